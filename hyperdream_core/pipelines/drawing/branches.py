"""The branches of guidance in one call of the UNet: base and personalised parts side by side, live adapters per row."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor

from ...ops.guidance import combine_rescaled, composed
from ...ops.lowrank import LoraPair
from ...ops.noise import to_t
from ..base import Base, Conditioning
from ..prompts import without_identifier
from .guidance_config import GuidanceConfig, Guide, Mix
from .subjects import Pairs, ResolvedSubject


@dataclass(frozen=True, eq=False)
class _Row:
    """One prediction of every picture."""

    branch: str
    conditioning: Conditioning
    """(b, ...)"""
    pairs: Pairs
    strength: float


class Branches:
    """What guidance combines for a batch of pictures.

    Args:
        base: to draw with.
        prompts: b of them, with the identifier.
        negative_prompt: of all.
        subjects: whose adapters act; none is the base alone.
        config: how they take part.
        masks: (s, h, w), where each subject is, at the latents' size; None is everywhere.
    """

    def __init__(
        self,
        base: Base,
        prompts: Sequence[str],
        negative_prompt: str,
        subjects: Sequence[ResolvedSubject],
        config: GuidanceConfig,
        masks: Tensor | None = None,
    ) -> None:
        self.base, self.prompts, self.subjects, self.config, self.masks = base, list(prompts), subjects, config, masks
        self.guide = Guide(config)
        self.negative = [negative_prompt] * len(self.prompts)
        self.base_prompts = self.prompts
        for subject in subjects:
            self.base_prompts = [without_identifier(prompt, subject.identifier) for prompt in self.base_prompts]
        self._encoded: dict[tuple[object, ...], Conditioning] = {}

    def predict(self, latents: Tensor, timestep: Tensor) -> Tensor:
        """The guided output (b, c, h, w) for latents (b, c, h, w) at one timestep ()."""
        alphas = self.base.alphas_cumprod
        t = float(to_t(timestep, len(alphas)))
        is_active = any(subject.pairs[subject.band(t)] for subject in self.subjects)
        mix = self.guide.at(t, is_active)
        outputs = self._outputs(self._rows(mix, t), latents, timestep)
        return combine_rescaled(
            outputs,
            mix.weights,
            self.config.rescale,
            latents,
            alphas[int(timestep)].reshape(1).to(latents.device),
            self.base.prediction_type,
        )

    def _rows(self, mix: Mix, t: float) -> list[_Row]:
        """The predictions that are needed at `t`, and no others."""
        rows = []
        used = list(mix.weights.used)
        if self.masks is not None:
            # Around the masks every subject's branch is the base's.
            used = list(dict.fromkeys([*(name.replace("subject", "base") for name in used), *used]))
        for branch in used:
            if branch.startswith("base") or not self.subjects:
                prompts = {"base_null": self.negative, "base_prompt": self.base_prompts}.get(branch)
                if prompts is None:
                    prompts = self.negative if branch == "subject_null" else self.prompts
                rows.append(_Row(branch, self._encode(prompts, {}, 0.0, ()), {}, 0.0))
                continue
            for index, subject in enumerate(self.subjects):
                rows.append(self._subject_row(branch, index, subject, mix, t))
        return rows

    def _subject_row(self, branch: str, index: int, subject: ResolvedSubject, mix: Mix, t: float) -> _Row:
        strength, unet, text = self.config.strength, subject.unet_pairs(t), subject.text_pairs(t)
        key: tuple[object, ...] = (index, subject.band(t))
        prompts = self.prompts
        if branch == "subject_null":
            prompts, strength = self.negative, strength * mix.null_strength
            if self.config.guidance == "reference-null" and subject.pairs[subject.band(t)]:
                unet = {name: pair for name, pair in subject.neutral.items() if not name.startswith("text_encoder")}
                text = {name: pair for name, pair in subject.neutral.items() if name not in unet}
                key = (index, "neutral")
        return _Row(branch, self._encode(prompts, text, strength, key), unet, strength)

    def _encode(self, prompts: list[str], text: Pairs, strength: float, key: tuple[object, ...]) -> Conditioning:
        """Prompts as an adapter's text encoder part sees them, each encoded once and only if a step needs it."""
        is_adapted = bool(text) and strength != 0
        place = (tuple(prompts), *((strength, *key) if is_adapted else ()))
        if place not in self._encoded:
            with self.base.adapted(text, strength) if is_adapted else nullcontext():
                self._encoded[place] = self.base.encode_prompt(prompts)
        return self._encoded[place]

    def _outputs(self, rows: Sequence[_Row], latents: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        """Each branch's output (b, c, h, w), from one call."""
        each = len(rows)
        # The rows of a picture lie side by side, so that they can share its adapter.
        conditioning = Conditioning.interleave(*(row.conditioning for row in rows))
        with self._adapted(rows, len(latents)):
            output = self.base.predict(
                latents.repeat_interleave(each, 0) if each > 1 else latents,
                timestep.expand(each * len(latents)),
                conditioning,
            )
        parts: dict[str, list[Tensor]] = {}
        for index, row in enumerate(rows):
            parts.setdefault(row.branch, []).append(output[index::each])
        outputs = {branch: found[0] for branch, found in parts.items()}
        if self.masks is not None and self.subjects:
            for branch in ("subject_null", "subject_prompt"):
                if branch in parts:
                    around = outputs[branch.replace("subject", "base")]
                    outputs[branch] = composed(around, torch.stack(parts[branch]), self.masks)
        return outputs

    def _adapted(self, rows: Sequence[_Row], pictures: int) -> AbstractContextManager[None]:
        acting = [row for row in rows if row.pairs and row.strength != 0]
        if not acting:
            return nullcontext()
        first = acting[0]
        is_one_adapter = all(row.pairs is first.pairs or _same(row.pairs, first.pairs) for row in acting)
        strengths = [row.strength if row in acting else 0.0 for row in rows]
        if is_one_adapter and len(set(strengths)) == 1:
            return self.base.adapted(first.pairs, first.strength, len(rows))
        per_row = torch.tensor(strengths).repeat(pictures)
        if is_one_adapter:
            pairs = {name: _repeated(pair, len(rows)) for name, pair in first.pairs.items()}
        else:
            pairs = _stacked([row.pairs if row in acting else {} for row in rows], pictures)
        return self.base.adapted(pairs, per_row)


def _same(first: Pairs, second: Pairs) -> bool:
    return first.keys() == second.keys() and all(
        second[name].down.data_ptr() == pair.down.data_ptr() and second[name].rank == pair.rank
        for name, pair in first.items()
    )


def _repeated(pair: LoraPair, each: int) -> LoraPair:
    """A picture's pair for each of its rows."""
    if pair.down.dim() == 2:
        return pair
    return LoraPair(pair.down.repeat_interleave(each, 0), pair.up.repeat_interleave(each, 0))


def _stacked(rows: Sequence[Pairs], pictures: int) -> dict[str, LoraPair]:
    """Another adapter for each row: (pictures * rows, ...), missing layers and ranks filled with zeros."""
    pairs = {}
    for name in dict.fromkeys(name for row in rows for name in row):
        found: list[LoraPair | None] = [row.get(name) for row in rows]
        like = next(pair for pair in found if pair is not None)
        rank = max(pair.rank for pair in found if pair is not None)
        down = [_filled(pair, like, rank, pictures, "down") for pair in found]
        up = [_filled(pair, like, rank, pictures, "up") for pair in found]
        pairs[name] = LoraPair(torch.stack(down, 1).flatten(0, 1), torch.stack(up, 1).flatten(0, 1))
    return pairs


def _filled(pair: LoraPair | None, like: LoraPair, rank: int, pictures: int, side: str) -> Tensor:
    """One factor, (pictures, rank, i) or (pictures, o, rank)."""
    if side == "down":
        part = like.down.new_zeros(0, like.down.shape[-1]) if pair is None else pair.down
        padding = [0, 0, 0, rank - part.shape[-2]]
    else:
        part = like.up.new_zeros(like.up.shape[-2], 0) if pair is None else pair.up
        padding = [0, rank - part.shape[-1]]
    return torch.nn.functional.pad(part, padding).expand(pictures, -1, -1)
