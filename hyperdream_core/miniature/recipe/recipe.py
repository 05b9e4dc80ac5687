"""The recipe: from nothing to `weights/miniature`, stage by stage, each resumable and each skipped when done.

corpus -> latents -> base, decoder, judges, image encoder -> hypernetwork -> published weights. Base and hypernetwork
are trained in turn, round by round. Everything is decided by `RecipeConfig` and its seeds; seconds are reported, never
budgeted.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...config import config_to_json
from ...pipelines.training.loop import launch
from ...whole_file import write_whole
from . import stages
from .materials import Materials


@dataclass(frozen=True)
class Recipe(Materials):
    """A recipe at work in a folder."""

    def autoencoder(self) -> Any:
        """The VAE with its decoder trained."""
        self.latents("faces"), self.latents("pets")
        self._stage("autoencoder", stages.train_decoder)
        return super().autoencoder()

    def base(self, rounds: int = 0) -> Path:
        """The base after so many rounds, by default all, in the diffusers folder layout, float32."""
        rounds = rounds or self.config.rounds
        if rounds > 1:
            self.base(rounds - 1)
        self.latents("faces"), self.latents("pets")
        return self._stage(f"base-{rounds}", stages.train_base, rounds)

    def judges(self) -> Path:
        """Folder of the two judges."""
        self.corpus("judges"), self.autoencoder()
        return self._stage("judges", stages.train_judges)

    def encoder(self) -> Path:
        """Folder of the predictor's pretrained image encoder."""
        self.corpus("faces"), self.corpus("references")
        return self._stage("encoder", stages.train_encoder)

    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """What the frozen image encoder, trained before, sees in the references."""
        self.encoder()
        return super().features()

    def hypernetwork(self, rounds: int = 0) -> Path:
        """Folder of the hypernetwork of this recipe's seed after so many rounds, by default all."""
        rounds = rounds or self.config.rounds
        if rounds > 1:
            self.hypernetwork(rounds - 1)
        self.base(rounds), self.features()
        return self._stage(f"hypernetwork-{self.config.seed}-{rounds}", stages.train_hypernetwork, rounds)

    def seconds(self) -> dict[str, float]:
        """Seconds each stage took so far, interrupted calls included; a killed process takes its own along."""
        path = self.folder / "seconds.json"
        return json.loads(path.read_text()) if path.exists() else {}

    def facts(self) -> dict[str, Any]:
        """What was trained, on how much, for how long; published beside the weights."""
        config = config_to_json(self.config)
        sizes = {name: value for name, value in config.items() if isinstance(value, int)}
        return {"sizes": sizes, "config": config, "seconds": self.seconds()}

    def _stage(self, name: str, function: Any, *arguments: Any) -> Path:
        """Folder of a stage's result, trained by the function if it is not there."""
        if (self.folder / name).exists():
            return self.folder / name
        started = time.time()
        try:
            launch(function, (self, *arguments), self.config.processes)
        finally:
            seconds = self.seconds()
            seconds[name] = round(seconds.get(name, 0.0) + time.time() - started, 1)
            write_whole(self.folder / "seconds.json", json.dumps(seconds, indent=1))
        return self.folder / name
