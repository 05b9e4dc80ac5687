"""Makes a small predictor of random weights for Stable Diffusion 1.x: `make_predictor.py FILE`, and `tiny` for tests.

Run by a host's Python with this checkout on its path. Its identities are nobody's, and change the picture.
"""

from __future__ import annotations

import sys

import torch

from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdream_core.pipelines.predictors.hypernetwork_predictor import save_hypernetwork


def main(path: str, size: str) -> None:
    if size == "tiny":
        from tests.webui import tiny_family

        assert tiny_family
    torch.manual_seed(0)
    network = Hypernetwork(HypernetworkConfig(family="sd15"))
    # A fresh one predicts nobody.
    for parameter in network.parameters():
        if not parameter.any():
            torch.nn.init.normal_(parameter, std=0.05)
    save_hypernetwork(path, network)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
