"""The commands: each a file of its own, named as the command, with its flags and what it does."""
