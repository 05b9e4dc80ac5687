"""A double of the parts of ComfyUI that the nodes use, written from its behaviour: see the tests beside it."""
