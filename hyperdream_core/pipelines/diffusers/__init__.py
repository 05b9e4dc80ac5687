"""A base in diffusers' and transformers' modules: read from a folder or a single file, and written as one."""
