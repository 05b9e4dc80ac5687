"""The settings of a trial: who is drawn, by which methods, and how."""

from __future__ import annotations

from dataclasses import dataclass

from ...config import check_at_most
from ...errors import ConfigError
from ...pipelines.drawing.guidance_config import GuidanceConfig

METHODS = ("ceiling", "other people", "copy", "base", "prediction", "wrong reference", "mean prediction")


@dataclass(frozen=True, kw_only=True)
class TrialConfig(GuidanceConfig):
    """Settings of one trial on the miniature. The row `base` is guided plainly, whatever the guidance of the others."""

    people: int = 100
    """Unseen people."""
    prompts: int = 8
    """Pictures of each, all in other contexts."""
    methods: tuple[str, ...] = (*METHODS, "prediction+20", "prediction+40", "scratch+20", "scratch+40")
    """Rows of the table. `prediction+N` polishes for N steps, `scratch+N` polishes for N steps from nothing,
    `prediction k=N` refines N times."""
    sample_steps: int = 15
    """Denoising steps."""
    population: str = "test"
    """`test` for figures to report, `validation` for choosing settings."""
    seed: int = 3
    """Seed of the pictures' noise."""
    polish_rank: int = 4
    """Rank of the fresh adapter of `+N` rows."""
    captions: bool = True
    """Whether `+N` rows train under what the base reads off the reference besides the person."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("people", "prompts", "sample_steps"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be 1 or more, got {getattr(self, name)}")
        check_at_most(self, people=100_000, prompts=1000, sample_steps=1000, polish_rank=1024)
        if self.population not in ("test", "validation"):
            raise ConfigError(f"population must be 'test' or 'validation', got {self.population!r}")
        for method in self.methods:
            if method not in METHODS and not method.startswith(("prediction+", "scratch+", "prediction k=")):
                known = ", ".join((*METHODS, "prediction+N", "scratch+N", "prediction k=N"))
                raise ConfigError(f"unknown method {method!r}; known: {known}")
