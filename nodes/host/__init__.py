"""What the nodes ask of ComfyUI, by what it is about; no other file of this package knows comfy or folder_paths.

The facts that these files rest on were seen in 0.8.0 and 0.28.0.
"""

from __future__ import annotations
