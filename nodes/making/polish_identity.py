"""Polish Identity: train an identity on the loaded model for a minute, so that it looks more like the person."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ...hyperdream_core.bases import TARGET_SETS
from ...hyperdream_core.faces.prepared_faces import Faces
from ...hyperdream_core.identity import Identity
from ...hyperdream_core.pipelines.polishing.memory import Memory
from ...hyperdream_core.pipelines.polishing.polish_config import (
    STEPS_AFTER_PREDICTION,
    STEPS_FROM_SCRATCH,
    PolishConfig,
)
from ..dials import choice, count_dial, number_dial
from ..wires import FACES, IDENTITY
from .polish import PolishOptions, polish, stopped_runs

_DEFAULT = PolishConfig()


class PolishIdentity(io.ComfyNode):
    """Polishing with its defaults."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamPolishIdentity",
            display_name="Polish Identity",
            category="HyperDream",
            description="Brings an identity closer to the person by training it on the photographs, with the "
            "model that is loaded. The model itself is not changed. Leave identity unconnected to "
            "start from scratch, for checkpoints without a predictor. Stop keeps the best so far in "
            "output/hyperdream.",
            inputs=_inputs(),
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        faces: Faces,
        steps: int,
        caption: str,
        seed: int,
        identity: Identity | None = None,
    ) -> io.NodeOutput:
        config = PolishConfig(steps=steps or None, seed=seed)
        return io.NodeOutput(*polish((model, clip, vae), faces, identity, caption, config, PolishOptions()))


class PolishIdentityAdvanced(io.ComfyNode):
    """The same with every dial."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamPolishIdentityAdvanced",
            display_name="Polish Identity (Advanced)",
            category="HyperDream/advanced",
            description="Polish Identity with full control over the training and the memory it takes.",
            inputs=[*_inputs(), *_training_inputs(), *_host_inputs()],
            outputs=_outputs(),
        )

    @classmethod
    def fingerprint_inputs(cls, **inputs: Any) -> int:
        """Changes when such a run was stopped, so that the next one trains the whole instead of taking what is kept."""
        return stopped_runs()

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        faces: Faces,
        steps: int,
        caption: str,
        memory: Memory,
        size: int,
        preview_every: int,
        on_stop: str,
        identity: Identity | None = None,
        **training: Any,
    ) -> io.NodeOutput:
        options = PolishOptions(
            size=size, memory=memory, preview_every=preview_every, goes_on=on_stop == "save and go on"
        )
        config = PolishConfig(steps=steps or None, **training)
        return io.NodeOutput(*polish((model, clip, vae), faces, identity, caption, config, options))


def _inputs() -> list[Any]:
    return [
        io.Model.Input("model", tooltip="The checkpoint the identity is for. Its weights stay as they are."),
        io.Clip.Input("clip", tooltip="Its text encoder, which reads the prompt."),
        io.Vae.Input("vae", tooltip="Its VAE, which turns pictures into latents and back."),
        FACES.Input("faces", tooltip="From Prepare Face."),
        IDENTITY.Input(
            "identity",
            optional=True,
            tooltip="Where to start, from Predict Identity; leave unconnected to start from scratch.",
        ),
        count_dial(
            "steps",
            f"How long to train; 0 takes {STEPS_AFTER_PREDICTION} steps after a prediction and {STEPS_FROM_SCRATCH} "
            "from scratch.",
            default=0,
            limits=(0, 2000),
        ),
        io.String.Input(
            "caption",
            default="",
            multiline=True,
            tooltip="What the photographs show besides the person, such as 'smiling, at the beach', so that "
            "it is not learnt as part of them. One line for all, or one line for each photograph. "
            "Left empty, the miniature works it out by itself; on other checkpoints, describe it.",
        ),
        _count("seed", "The same seed and settings give the same identity.", (0, 2**32 - 1)),
    ]


def _training_inputs() -> list[Any]:
    return [
        number_dial(
            "learning_rate",
            "The share by which a step changes each layer's output at first. Lower it if the pictures fall apart.",
            default=_DEFAULT.learning_rate,
            limits=(0.00001, 0.1),
            step=0.00001,
        ),
        _count(
            "rank", "How much the training may change in each layer; more takes in more of the photographs.", (1, 32)
        ),
        _count(
            "file_rank",
            "How much of that change the file keeps, the most important part first; 0 keeps all of it"
            " and makes a larger file.",
            (0, 64),
        ),
        _count("batch", "Samples per step; more makes each step slower and steadier.", (1, 64)),
        _count(
            "crops",
            "Slightly shifted copies of each photograph, so that long training does not learn its "
            "framing; short training gets blurry with them.",
            (0, 32),
        ),
        number_dial(
            "preserve",
            "How firmly to keep what the identity draws in other scenes, so that this photograph's "
            "smile or beach is not learnt as part of the person. 0 trains in half the time and "
            "forgets; it does nothing when starting from scratch.",
            default=_DEFAULT.preserve,
            limits=(0.0, 10.0),
            step=0.05,
        ),
        number_dial(
            "background_weight",
            "How much the surroundings of the head count in training. Below 1, less of the place is "
            "learnt; use 1 if the head is not in the middle of the picture.",
            default=_DEFAULT.background_weight,
            limits=(0.0, 1.0),
            step=0.05,
        ),
        _count(
            "holdout_every",
            "Test on an unseen crop every so many steps and keep the best result; 0 keeps the last.",
            (0, 500),
        ),
        choice("target_set", "Which layers to train when starting from scratch.", TARGET_SETS),
        _word("identifier", "The person's trigger word when starting from scratch: a rare word, such as sks."),
        _word("class_noun", "What the subject is when starting from scratch, such as face, man or dog."),
    ]


def _host_inputs() -> list[Any]:
    return [
        choice(
            "memory",
            "save memory needs about a quarter of the memory and a third more time, with the same "
            "result. automatic uses it if fast does not fit.",
            ["automatic", "fast", "save memory"],
        ),
        _count(
            "samples_at_once",
            "Samples that go through the UNet together; fewer need less memory and more time, with the same result.",
            (1, 64),
        ),
        count_dial(
            "size",
            "Side of the pictures trained on, in px; 0 uses the checkpoint's own, such as 512. "
            "Smaller needs less memory.",
            default=0,
            limits=(0, 2048),
            step=8,
        ),
        count_dial("preview_every", "Steps between preview pictures; 0 shows none.", default=10, limits=(0, 500)),
        choice(
            "on_stop",
            "What Stop does: save the best so far and end the run, or save it and continue with it.",
            ["save and stop", "save and go on"],
        ),
    ]


def _count(name: str, tooltip: str, limits: tuple[int, int]) -> Any:
    """A whole number of the training's settings."""
    return count_dial(name, tooltip, default=getattr(_DEFAULT, name), limits=limits)


def _word(name: str, tooltip: str) -> Any:
    """A word of the training's settings."""
    return io.String.Input(name, default=getattr(_DEFAULT, name), tooltip=tooltip)


def _outputs() -> list[Any]:
    return [
        IDENTITY.Output(display_name="identity", tooltip="The polished identity."),
        io.Image.Output(
            display_name="curve", tooltip="The training error and, on the miniature, the likeness over the steps."
        ),
    ]
