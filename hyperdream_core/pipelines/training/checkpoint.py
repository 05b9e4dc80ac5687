"""The state of a training as a file: written whole, and seen to be of this very training before any of it is taken."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ...config import changed_setting
from ...errors import ConfigError, FileFormatError
from ...formats.container import read_container, read_names, read_tensors, write_container
from ...json_text import JsonTextError, parse_json
from ...whole_file import check_writable

CHECKPOINT = "training-checkpoint"
LOSSES_KEPT = 100
"""The losses of so many last steps are kept, so that what is said of a training does not depend on its pauses."""
_MOST_PROCESSES = 65_536
_MOMENTS = ("exp_avg", "exp_avg_sq", "step")
_REMEDY = "Name the checkpoint of this one, or remove the file to train from the beginning."


def steps_of(path: Path) -> int:
    """The steps that a checkpoint holds; 0 if there is none, or none that can be read: resuming says why."""
    try:
        return int(read_tensors(path, ["step"])[1]["step"].max())
    except (FileFormatError, SafetensorError, RuntimeError):
        return 0


def shares_of(path: Path) -> int:
    """The processes that a checkpoint was begun by, if each drew batches of its own; 0 if that is not known."""
    try:
        found = parse_json(read_names(path)[0].get("made_by", "")).get("processes")
    except (FileFormatError, JsonTextError, AttributeError):
        return 0
    return found if type(found) is int and 1 <= found <= _MOST_PROCESSES else 0


@dataclass(eq=False)
class TrainingCheckpoint:
    """A training's checkpoint file, and the state that it is read into and written from."""

    path: Path
    made_by: Mapping[str, Any]
    """JSON values of all settings that decide the result; a file of others is refused, one without any is not"""
    trained: Mapping[str, nn.Parameter]
    averaged: Mapping[str, Tensor]
    optimizer: torch.optim.AdamW
    losses: list[float] = field(default_factory=list)
    scaler: Any = None
    """torch's gradient scaler, where there is one"""

    def check_place(self) -> None:
        """See now that the file can be written later.

        Raises:
            OutputError: it cannot.
        """
        check_writable(self.path)

    def save(self, step: int) -> None:
        """Write the state after so many steps.

        Raises:
            OutputError: the disk is full, or the weights are no longer finite; the file is as it was.
        """
        tensors: dict[str, Tensor] = {
            "step": torch.tensor([float(step)]),
            "losses": torch.tensor(self.losses[-LOSSES_KEPT:], dtype=torch.float64),
        }
        if self.scaler is not None:
            state = self.scaler.state_dict()
            tensors["scaler"] = torch.tensor([float(state["scale"]), float(state["_growth_tracker"])])
        for name, parameter in self.trained.items():
            state = self.optimizer.state.get(parameter, {})
            tensors[f"weight/{name}"] = parameter.detach()
            tensors[f"average/{name}"] = self.averaged[name]
            for key in _MOMENTS:
                if key in state:
                    tensors[f"{key}/{name}"] = torch.as_tensor(state[key]).float()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        write_container(self.path, CHECKPOINT, 1, {"made_by": json.dumps(self.made_by, sort_keys=True)}, tensors)

    @torch.no_grad()
    def resume(self) -> int:
        """Take the state from the file, if there is one, and return its step; else 0.

        Raises:
            FileFormatError: the file is damaged, altered, or of another training.
            ConfigError: it was begun with other settings.
        """
        if not self.path.exists():
            return 0
        tensors = self._read()
        for name, parameter in self.trained.items():
            parameter.copy_(tensors[f"weight/{name}"])
            self.averaged[name].copy_(tensors[f"average/{name}"])
            if f"exp_avg/{name}" in tensors:
                # The one fused kernel counts its steps beside the parameter, the others on the CPU.
                counted = parameter.device if self.optimizer.defaults.get("fused") else "cpu"
                state: dict[str, Tensor] = {"step": tensors[f"step/{name}"].to(counted)}
                for key in _MOMENTS[:2]:
                    # Laid out in memory as the parameter (channels last): the fused kernel goes number by number.
                    state[key] = torch.empty_like(parameter, dtype=torch.float32).copy_(tensors[f"{key}/{name}"])
                self.optimizer.state[parameter] = state
        if self.scaler is not None and "scaler" in tensors:
            scale, tracker = tensors["scaler"].tolist()
            own = self.scaler.state_dict()
            self.scaler.load_state_dict({**own, "scale": scale, "_growth_tracker": int(tracker)})
        self.losses[:] = tensors["losses"].tolist() if "losses" in tensors else []
        return int(tensors["step"])

    def _read(self) -> dict[str, Tensor]:
        try:
            metadata, tensors = read_container(self.path, CHECKPOINT, 1)
        except FileFormatError as error:
            raise FileFormatError(
                self.path,
                f"{error.problem.rstrip('.')}. It lies at {self.path}; remove it to train from the beginning.",
            ) from error
        self._check_settings(metadata.get("made_by"))
        self._check_shapes(tensors)
        self._check_values(tensors)
        return tensors

    def _check_settings(self, text: str | None) -> None:
        """Releases before 0.2.0 did not write any."""
        if text is None:
            return
        try:
            found = parse_json(text)
        except JsonTextError as error:
            raise FileFormatError(self.path, f"what it says that it was made by {error}. {_REMEDY}") from error
        changed = changed_setting(found, json.loads(json.dumps(self.made_by)))
        if changed:
            raise ConfigError(
                f"{self.path}: was begun with {changed}. Ask for the same again, or remove the file to train from the "
                "beginning."
            )

    def _check_shapes(self, tensors: Mapping[str, Tensor]) -> None:
        """See that the tensors are those of this training, no more and no fewer, in their shapes."""
        shapes: dict[str, tuple[int, ...]] = {"step": (1,)}
        if "losses" in tensors:
            shapes["losses"] = (min(tensors["losses"].numel(), LOSSES_KEPT),)
        if self.scaler is not None and "scaler" in tensors:
            shapes["scaler"] = (2,)
        for name, parameter in self.trained.items():
            shapes |= dict.fromkeys((f"weight/{name}", f"average/{name}"), tuple(parameter.shape))
            if any(f"{key}/{name}" in tensors for key in _MOMENTS):
                shapes |= dict.fromkeys((f"exp_avg/{name}", f"exp_avg_sq/{name}"), tuple(parameter.shape))
                shapes[f"step/{name}"] = ()
        for name in sorted({*shapes, *tensors}):
            if name not in tensors or name not in shapes:
                what = "lacks" if name in shapes else "has an unknown"
                raise FileFormatError(self.path, f"{what} tensor {name!r} for this training. {_REMEDY}")
            if tuple(tensors[name].shape) != shapes[name]:
                raise FileFormatError(
                    self.path,
                    f"tensor {name!r} has the shape {tuple(tensors[name].shape)}, but this training needs "
                    f"{shapes[name]}. {_REMEDY}",
                )

    def _check_values(self, tensors: Mapping[str, Tensor]) -> None:
        """See that the numbers are some that a training could have come to."""
        step = float(tensors["step"])
        if not (step >= 0 and step == int(step)):
            raise FileFormatError(
                self.path,
                f"holds step {step:g}, but a whole number of 0 or more is expected. It was altered; remove it.",
            )
        if "scaler" in tensors and not (tensors["scaler"][0] > 0 and tensors["scaler"][1] >= 0):
            raise FileFormatError(self.path, f"holds a gradient scale that is none. It was altered. {_REMEDY}")
        for name, parameter in self.trained.items():
            wanted = torch.finfo(parameter.dtype).bits
            for key in (f"weight/{name}", f"average/{name}"):
                if torch.finfo(tensors[key].dtype).bits < wanted:
                    raise FileFormatError(
                        self.path, f"tensor {key!r} is rounded to {tensors[key].dtype}, and {parameter.dtype} is "
                        f"expected. It was altered. {_REMEDY}"
                    )  # fmt: skip
            if f"step/{name}" not in tensors:
                continue
            own = float(tensors[f"step/{name}"])
            if not (1 <= own <= step and own == int(own)) or bool((tensors[f"exp_avg_sq/{name}"] < 0).any()):
                raise FileFormatError(
                    self.path, f"the optimiser's state of {name!r} is none that {step:g} steps lead to. It was "
                    f"altered. {_REMEDY}"
                )  # fmt: skip
