"""A double of ComfyUI's node API, as far as the nodes use it."""
