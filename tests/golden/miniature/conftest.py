"""The doubles of the hosts, as the tests of the nodes and of the tab have them."""

from tests.nodes.conftest import faces, host, loaded_pack, miniature, portrait
from tests.webui.conftest import a1111, networks

__all__ = ["a1111", "faces", "host", "loaded_pack", "miniature", "networks", "portrait"]
