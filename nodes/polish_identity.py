"""Polish Identity: train an identity on the loaded model for a minute, so that it looks more like the person."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from ..hyperdream_core.bases import TARGET_SETS
from ..hyperdream_core.formats.adapter_file import Identity
from ..hyperdream_core.pipelines.faces import Faces
from ..hyperdream_core.pipelines.finetune import FinetuneConfig
from .polish import PolishOptions, polish
from .wires import FACES, IDENTITY

_DEFAULT = FinetuneConfig()


class PolishIdentity(io.ComfyNode):
    """Rank-relaxed finetuning with its defaults."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamPolishIdentity",
            display_name="Polish Identity",
            category="HyperDream",
            description="Brings an identity closer to the person by training it on the photographs, on the very model "
            "that is loaded. The model itself is not changed. Without an identity it starts from nothing, for "
            "checkpoints that no predictor exists for. Stop keeps the best so far in output/hyperdream.",
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
        config = FinetuneConfig(steps=steps, seed=seed)
        return io.NodeOutput(*polish((model, clip, vae), faces, identity, caption, config, PolishOptions()))


class PolishIdentityAdvanced(io.ComfyNode):
    """The same with every dial."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="HyperDreamPolishIdentityAdvanced",
            display_name="Polish Identity (Advanced)",
            category="HyperDream/advanced",
            description="Polish Identity with a hand on the training itself, and on how much memory it takes.",
            inputs=[*_inputs(), *_training_inputs(), *_host_inputs()],
            outputs=_outputs(),
        )

    @classmethod
    def execute(
        cls,
        model: Any,
        clip: Any,
        vae: Any,
        faces: Faces,
        caption: str,
        memory: str,
        size: int,
        preview_every: int,
        on_stop: str,
        identity: Identity | None = None,
        **training: Any,
    ) -> io.NodeOutput:
        options = PolishOptions(
            size=size, memory=memory, preview_every=preview_every, goes_on=on_stop == "save and go on"
        )
        config = FinetuneConfig(**training)
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
            tooltip="Where to start, from Predict Identity. Without one, polishing starts from nothing.",
        ),
        io.Int.Input(
            "steps",
            default=_DEFAULT.steps,
            min=1,
            max=2000,
            tooltip="How long to train. 40 is enough after a prediction; from nothing take 200 or more.",
        ),
        io.String.Input(
            "caption",
            default="",
            multiline=True,
            tooltip="What the photographs show besides the person, such as 'smiling, at the beach', so that it is not "
            "learnt as a part of them. One line for all, or one line for each photograph.",
        ),
        io.Int.Input(
            "seed", default=0, min=0, max=2**32 - 1, tooltip="The same seed and settings give the same identity."
        ),
    ]


def _training_inputs() -> list[Any]:
    return [
        io.Float.Input(
            "learning_rate",
            default=_DEFAULT.learning_rate,
            min=0.00001,
            max=0.1,
            step=0.00001,
            round=0.00001,
            tooltip="How large the steps are at first. Lower it if the pictures fall apart.",
        ),
        io.Int.Input(
            "rank",
            default=_DEFAULT.rank,
            min=1,
            max=32,
            tooltip="How much the training may change in each layer; more takes in more of the photographs.",
        ),
        io.Int.Input(
            "file_rank",
            default=_DEFAULT.file_rank,
            min=0,
            max=64,
            tooltip="How much of it the file keeps, the most important first; 0 keeps all and makes larger files.",
        ),
        io.Int.Input(
            "batch", default=_DEFAULT.batch, min=1, max=64, tooltip="Samples in a step; more takes more memory."
        ),
        io.Int.Input(
            "crops",
            default=_DEFAULT.crops,
            min=0,
            max=32,
            tooltip="Slightly moved copies of each photograph, so that its framing is not learnt.",
        ),
        io.Int.Input(
            "holdout_every",
            default=_DEFAULT.holdout_every,
            min=0,
            max=500,
            tooltip="Look at an unseen crop every so many steps and keep the best; 0 keeps the last step's.",
        ),
        io.Combo.Input(
            "target_set",
            options=list(TARGET_SETS),
            default=_DEFAULT.target_set,
            tooltip="Which layers are trained when there is no identity to start from.",
        ),
        io.String.Input(
            "identifier",
            default=_DEFAULT.identifier,
            tooltip="The rare word that will stand for the person, when there is no identity to start from.",
        ),
        io.String.Input(
            "class_noun",
            default=_DEFAULT.class_noun,
            tooltip="What kind of thing they are, such as face, man or dog; likewise.",
        ),
    ]


def _host_inputs() -> list[Any]:
    return [
        io.Combo.Input(
            "memory",
            options=["automatic", "fast", "save memory"],
            default="automatic",
            tooltip="save memory takes about a quarter of the room and a third more time, with the same result. "
            "automatic takes it where fast does not fit.",
        ),
        io.Int.Input(
            "size",
            default=0,
            min=0,
            max=2048,
            step=8,
            tooltip="Side of the pictures trained on, in px; 0 takes the checkpoint's own, such as 512. Less takes "
            "less memory.",
        ),
        io.Int.Input(
            "preview_every", default=10, min=0, max=500, tooltip="Steps between preview pictures; 0 shows none."
        ),
        io.Combo.Input(
            "on_stop",
            options=["save and stop", "save and go on"],
            default="save and stop",
            tooltip="What Stop does: save the best so far and end the run, or save it and go on with it.",
        ),
    ]


def _outputs() -> list[Any]:
    return [
        IDENTITY.Output(display_name="identity", tooltip="The polished identity."),
        io.Image.Output(
            display_name="curve", tooltip="The training error and, on the miniature, the likeness over the steps."
        ),
    ]
