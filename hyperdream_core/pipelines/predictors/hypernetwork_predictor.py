"""The hypernetwork as a predictor, in memory and as a file.

The configuration in a file's metadata makes the network, its tensors fill it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...bases import get_base
from ...config import config_from_json, config_to_json
from ...errors import ConfigError, FileFormatError, quoted
from ...faces.prepared_faces import Faces
from ...formats.predictor_file import HypernetworkFile, read_hypernetwork, write_hypernetwork
from ...identity import Identity
from ...models.hypernetwork import Hypernetwork, HypernetworkConfig
from ...models.image_encoder import building_errors
from ...models.one_thread import BUILDING
from .predict import PredictConfig, neutral_identity, predict_identity
from .wants import Wants


@dataclass(frozen=True, eq=False)
class HypernetworkPredictor:
    """A hypernetwork and what its file says about it; see `predictor.Predictor`."""

    network: Hypernetwork
    fingerprint: str = ""
    training: Mapping[str, Any] = field(default_factory=dict)

    @property
    def family(self) -> str:
        return self.network.config.family

    @property
    def wants(self) -> Wants:
        return Wants(size=get_base(self.family).picture_size)

    def predict(
        self, faces: Faces, config: PredictConfig | None = None, seed: int = 0, candidates: int = 1
    ) -> list[Identity]:
        """The one identity it sees in the faces, whose pictures count by their quality.

        Raises:
            ConfigError: more than one candidate.
        """
        if candidates != 1:
            raise ConfigError(
                f"a hypernetwork has one answer, got candidates {candidates}; ask for 1, or use a generator"
            )
        return [predict_identity(self.network, faces.at(self.wants.size), config, faces.weights)]

    def neutral(self, config: PredictConfig | None = None) -> Identity:
        """What it says of a plain grey picture: of nobody in particular.

        Source: the neutral reference of asymmetric guidance, docs/methods.md, "Guidance".
        """
        return neutral_identity(self.network, self.wants.size, config)


def save_hypernetwork(
    path: Path | str,
    network: Hypernetwork,
    *,
    base_fingerprint: str = "",
    training: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
) -> None:
    """Write the network as one file, image encoder included.

    Args:
        path: of the file; replaced atomically.
        network: to save.
        base_fingerprint: of the base it was trained on.
        training: facts, as JSON values.
        dtype: of the stored tensors; the network's own by default.

    Raises:
        OutputError: the file cannot be written, or a tensor is not finite.
    """
    contents = HypernetworkFile(
        config=config_to_json(network.config),
        tensors=_stored_tensors(network),
        base_fingerprint=base_fingerprint,
        training=dict(training or {}),
    )
    write_hypernetwork(path, contents, dtype)


def read_hypernetwork_predictor(
    path: Path | str, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32
) -> HypernetworkPredictor:
    """Read a network, ready to predict, on `device` in `dtype`.

    Raises:
        FileFormatError: the file is damaged or foreign, or its tensors are not those of its configuration.
        MissingDependencyError: its image encoder needs a package that is not installed.
    """
    contents = read_hypernetwork(path)
    # Measured without memory first: a few bytes of JSON can ask for any size.
    config, expected = _measured(Path(path), contents.config)
    _check_tensors(Path(path), contents.tensors, expected)
    with BUILDING:
        network = Hypernetwork(config).to(device, dtype)
    network.load_state_dict(contents.tensors, strict=False)
    return HypernetworkPredictor(network.train(False), contents.base_fingerprint, contents.training)


def _measured(path: Path, settings: Mapping[str, Any]) -> tuple[HypernetworkConfig, dict[str, Tensor]]:
    """The network's configuration and its tensors without numbers, after it was built and run without any."""
    try:
        config = config_from_json(HypernetworkConfig, settings)
        with torch.device("meta"), torch.no_grad():
            network = Hypernetwork(config)
            size = network.encoder.image_size
            network(torch.zeros(1, 3, size, size), refine_steps=2)
    except ConfigError as error:
        raise FileFormatError(path, f"describes no network that can be built ({error}). Get the file again.") from error
    except building_errors() as error:
        raise FileFormatError(
            path, f"describes no network that can be built and run ({str(error)[:200]}). Get the file again."
        ) from error
    return config, _stored_tensors(network)


def _stored_tensors(network: Hypernetwork) -> dict[str, Tensor]:
    """All but the integers that some vision transformers keep, position numbers, which are made anew."""
    return {name: tensor for name, tensor in network.state_dict().items() if tensor.is_floating_point()}


def _check_tensors(path: Path, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    for name in sorted({*found, *expected}):
        if name not in found or name not in expected:
            what = "lacks" if name in expected else "has an unknown"
            raise FileFormatError(
                path,
                f"{what} tensor {quoted(name, 120)} for the network of its configuration. It was altered; get it "
                "again.",
            )
        if found[name].shape != expected[name].shape:
            raise FileFormatError(
                path,
                f"tensor {quoted(name, 120)} has the shape {tuple(found[name].shape)}, but its configuration needs "
                f"{tuple(expected[name].shape)}. It was altered; get it again.",
            )
