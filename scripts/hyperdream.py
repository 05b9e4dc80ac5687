"""HyperDream in Automatic1111's web UI and in Forge, which run every file of this folder; all else is in the package.

The package is imported while its folder is on the path, and stays usable afterwards: the host puts the old path back.
"""

import sys
from pathlib import Path

_FOLDER = str(Path(__file__).resolve().parent)
sys.path.insert(0, _FOLDER)
try:
    from hyperdream_webui import extension
finally:
    sys.path.remove(_FOLDER)

extension.register()
GuidanceScript = extension.guidance_script()
