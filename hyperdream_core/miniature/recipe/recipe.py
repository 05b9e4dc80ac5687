"""The recipe: from nothing to `weights/miniature`, stage by stage, each resumable and each skipped when done.

corpus -> latents -> base, decoder, judges, image encoder -> hypernetwork -> published weights. Base and hypernetwork
are trained in turn, round by round. Everything is decided by `RecipeConfig` and its seeds; seconds are reported, never
budgeted.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ...config import config_to_json
from ...errors import FileFormatError, OutputError
from ...json_text import read_json
from ...pipelines.training.loop import launch
from ...whole_file import write_whole
from . import stages
from .materials import Materials


@dataclass(frozen=True)
class Recipe(Materials):
    """A recipe at work in a folder."""

    def autoencoder(self) -> Any:
        """The VAE with its decoder trained."""
        self._stage("autoencoder", self._all_latents, stages.train_decoder)
        return super().autoencoder()

    def base(self, rounds: int = 0) -> Path:
        """The base after so many rounds, by default all, in the diffusers folder layout, float32."""
        rounds = rounds or self.config.rounds

        def before() -> None:
            if rounds > 1:
                self.base(rounds - 1)
            self._all_latents()

        return self._stage(f"base-{rounds}", before, stages.train_base, rounds)

    def judges(self) -> Path:
        """Folder of the two judges."""
        return self._stage("judges", lambda: (self.corpus("judges"), self.autoencoder()), stages.train_judges)

    def encoder(self) -> Path:
        """Folder of the predictor's pretrained image encoder."""
        return self._stage("encoder", lambda: (self.corpus("faces"), self.corpus("references")), stages.train_encoder)

    def features(self) -> tuple[np.ndarray, np.ndarray]:
        """What the frozen image encoder, trained before, sees in the references."""
        self.encoder()
        return super().features()

    def hypernetwork(self, rounds: int = 0) -> Path:
        """Folder of the hypernetwork of this recipe's seed after so many rounds, by default all."""
        rounds = rounds or self.config.rounds

        def before() -> None:
            if rounds > 1:
                self.hypernetwork(rounds - 1)
            self.base(rounds), self.features(), self.latents("faces")

        return self._stage(f"hypernetwork-{self.config.seed}-{rounds}", before, stages.train_hypernetwork, rounds)

    def _all_latents(self) -> None:
        """What the trainings of base and decoder read, seen to be there before they begin."""
        for name in ("faces", "pets"):
            self.corpus(name), self.latents(name)
        self.encoder_only(), self.tokenizer()

    def seconds(self) -> dict[str, float]:
        """Seconds each stage took so far, interrupted calls included; a killed process takes its own along."""
        path = self.folder / "seconds.json"
        if not path.exists():
            return {}
        try:
            return {name: float(value) for name, value in read_json(path).items()}
        except (FileFormatError, ValueError, TypeError, OverflowError):
            # Only said in the model card; nothing depends on them.
            self.say(f"{path}: is no readable list of seconds; it is begun anew")
            return {}

    def facts(self) -> dict[str, Any]:
        """What was trained, on how much, for how long; published beside the weights."""
        config = config_to_json(self.config)
        sizes = {name: value for name, value in config.items() if isinstance(value, int)}
        return {"sizes": sizes, "config": config, "seconds": self.seconds()}

    def _stage(self, name: str, before: Callable[[], Any], function: Any, *arguments: Any) -> Path:
        """Folder of a stage's result, trained by the function, once what comes before is there, if it is not there."""
        result = self.result(name)
        if result.is_there():
            return result.path
        before()
        started = time.time()
        try:
            launch(function, (self, *arguments), self.config.processes)
        finally:
            seconds = self.seconds()
            seconds[name] = round(seconds.get(name, 0.0) + time.time() - started, 1)
            with suppress(OutputError):  # Not worth stopping for, nor to hide why the stage has stopped.
                write_whole(self.folder / "seconds.json", json.dumps(seconds, indent=1))
        return result.path
