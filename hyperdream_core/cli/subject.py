"""The parts of personalisation as commands: predict, finetune, sample, export."""

from __future__ import annotations

import argparse
import re
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .console import Console, Outcome
from .flags import add_config_flags, config_from_flags, whole_number
from .preparing import add_reference_flags, prepare_subject, read_pictures
from .prompts import add_prompt_flags, check_words, resolve_prompts

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from ..identity import Identity
    from ..pipelines.diffusers.diffusers_base import DiffusersBase
    from ..pipelines.drawing.subjects import OneAdapter


def add_caption_flag(parser: argparse.ArgumentParser) -> None:
    """What the pictures show besides the subject."""
    parser.add_argument(
        "--caption",
        action="append",
        metavar="TEXT",
        help="what a picture shows besides the subject, such as 'smiling, at the beach', so that finetuning does not "
        "take it for a part of the subject; 'auto' lets the base read it off, 'none' says nothing; once for each "
        "picture, or one of these two for all (default: auto on the miniature, none elsewhere)",
    )


def captions_of(arguments: argparse.Namespace, base: DiffusersBase, references: Tensor) -> tuple[str, ...]:
    """The captions that --caption asks for."""
    from ..errors import ConfigError

    is_miniature = base.family.name == "miniature"
    given: list[str] = arguments.caption or ["auto" if is_miniature else "none"]
    if given == ["none"]:
        return ()
    if given == ["auto"]:
        given = given * len(references)
    if "auto" not in given or len(given) != len(references):
        # Of a wrong number finetuning says so.
        return tuple("" if one == "none" else one for one in given)
    if not is_miniature:
        raise ConfigError(
            f"caption 'auto' chooses among the words the base was taught, and {base.family.title}'s are not on record; "
            "write what each picture shows, such as --caption 'smiling, at the beach'"
        )
    from ..miniature.world.captions import describe_references

    described = describe_references(base, references)
    return tuple({"auto": read, "none": ""}.get(one, one) for one, read in zip(given, described, strict=True))


def add_base_flags(parser: argparse.ArgumentParser) -> None:
    """Which base, and where it runs."""
    parser.add_argument(
        "--base",
        default="miniature",
        metavar="BASE",
        help="'miniature', a diffusers folder or a .safetensors checkpoint (default: miniature)",
    )
    parser.add_argument(
        "--device", default="auto", metavar="NAME", help="cpu, cuda, mps ... (default: auto, cuda where there is one)"
    )
    parser.add_argument(
        "--dtype", default="fp32", choices=("fp32", "fp16", "bf16"), help="numbers of the base (default: fp32)"
    )


def add_predict(parser: argparse.ArgumentParser) -> None:
    """Flags of `predict`."""
    from ..pipelines.predictors.predict import PredictConfig

    add_reference_flags(parser)
    parser.add_argument(
        "--hypernetwork", type=Path, metavar="FILE", help="the predictor (default: the miniature's own)"
    )
    parser.add_argument("--device", default="auto", metavar="NAME", help="cpu, cuda, mps ... (default: auto)")
    _add_out(parser, "identity.safetensors")
    add_config_flags(parser, PredictConfig)


def predict(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Pictures to an identity file, in one pass."""
    from ..bases import get_base
    from ..formats.identity_file import write_identity
    from ..pipelines.predictors.predict import PredictConfig, predict_identity
    from ..pipelines.predictors.stored_hypernetwork import load_hypernetwork

    config = config_from_flags(PredictConfig, arguments)
    results = console.open_results(arguments.out.parent)
    pictures = read_pictures(arguments)
    stored = load_hypernetwork(arguments.hypernetwork or bundled_hypernetwork(), device_named(arguments.device))
    family = get_base(stored.network.config.family)
    references = prepare_subject(arguments, console, pictures, family.name, family.picture_size, config.class_noun)
    identity = predict_identity(stored.network, references.pixels, config, references.weights)
    path = results.keep(arguments.out.name, lambda path: write_identity(path, identity))
    results.close()
    facts = {"references": len(references.pixels), "faces": references.report()}
    return _identity_outcome(path, identity, facts)


def add_polish(parser: argparse.ArgumentParser) -> None:
    """Flags of `polish`."""
    from ..pipelines.polishing.polish import PolishConfig

    add_reference_flags(parser)
    add_caption_flag(parser)
    parser.add_argument("--start", type=Path, metavar="IDENTITY", help="prediction to polish (default: from nothing)")
    parser.add_argument(
        "--size",
        type=whole_number,
        default=0,
        metavar="N",
        help="side of the pictures, px (default: 0, the base's own)",
    )
    parser.add_argument("--checkpoint", type=Path, metavar="FILE", help="save to this file, and go on from it")
    add_base_flags(parser)
    _add_out(parser, "identity.safetensors")
    add_config_flags(parser, PolishConfig)


def polish(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Pictures and perhaps a prediction to a polished identity file; Ctrl-C keeps the best so far."""
    from ..formats.identity_file import read_identity, write_identity
    from ..pipelines.diffusers.loading import base_family
    from ..pipelines.polishing.polish import PolishConfig
    from ..pipelines.polishing.polish import polish as run

    config = config_from_flags(PolishConfig, arguments)
    results = console.open_results(arguments.out.parent)
    pictures = read_pictures(arguments)
    start = read_identity(arguments.start) if arguments.start else None
    family = base_family(arguments.base)
    size = arguments.size or family.picture_size
    noun = start.class_noun if start else config.class_noun
    references = prepare_subject(arguments, console, pictures, family.name, size, noun)
    base = load(arguments)
    with console.progress("finetuning") as progress:
        captions = captions_of(arguments, base, references.pixels)
        result = run(base, references.pixels, start, config, progress, arguments.checkpoint, captions)
    path = results.keep(arguments.out.name, lambda path: write_identity(path, result.identity))
    results.close()
    facts: dict[str, Any] = {
        "steps": len(result.losses),
        "seconds": round(result.seconds, 2),
        "last_loss": result.losses[-1] if result.losses else None,
        "stopped": result.cancelled,
        "captions": list(captions),
        "faces": references.report(),
    }
    if result.cancelled:
        console.say(f"stopped after {len(result.losses)} of {config.steps} steps; the best so far is kept: {path}")
    return _identity_outcome(path, result.identity, facts, stopped=result.cancelled)


def add_sample(parser: argparse.ArgumentParser) -> None:
    """Flags of `sample`."""
    from ..pipelines.drawing.draw import DrawConfig

    parser.add_argument(
        "--identity", type=Path, metavar="FILE", help="identity or LoRA of the subject (default: the base alone)"
    )
    parser.add_argument(
        "--neutral",
        type=Path,
        metavar="FILE",
        help="identity predicted from a plain grey picture, which guidance 'reference-null' leads away from",
    )
    add_prompt_flags(parser)
    parser.add_argument(
        "--count", type=whole_number, default=1, metavar="N", help="pictures of each prompt (default: 1)"
    )
    add_base_flags(parser)
    parser.add_argument(
        "--out", type=Path, default=Path("pictures"), metavar="DIR", help="folder to write to (default: pictures)"
    )
    add_config_flags(parser, DrawConfig)


def sample(arguments: argparse.Namespace, console: Console) -> Outcome:
    """Prompts to PNG files, with an identity, a LoRA or the base alone."""
    from ..errors import ConfigError
    from ..pictures.files import save_image
    from ..pipelines.diffusers.loading import base_family
    from ..pipelines.drawing.draw import DrawConfig
    from ..pipelines.drawing.draw import draw as run
    from ..pipelines.drawing.subjects import Subject

    config = config_from_flags(DrawConfig, arguments)
    if arguments.count < 1:
        raise ConfigError(f"count must be 1 or more, got {arguments.count}")
    results = console.open_results(arguments.out)
    family = base_family(arguments.base).name if arguments.identity or arguments.neutral else None
    adapter, identifier, class_noun = _read_adapter(arguments.identity, family)
    neutral = _read_adapter(arguments.neutral, family)[0]
    subject = None if adapter is None else Subject(adapter=adapter, identifier=identifier, neutral=neutral)
    prompts = resolve_prompts(arguments, identifier, class_noun, needs_subject=adapter is not None)
    base = load(arguments)
    check_words(arguments, prompts, identifier, base.family.name)
    prompts = [prompt for prompt in prompts for _ in range(arguments.count)]
    with console.progress("drawing") as progress:
        pictures = run(base, prompts, subject, config, progress).cpu()
    made = []
    for index, (prompt, picture) in enumerate(zip(prompts, pictures, strict=True)):
        facts = {"prompt": prompt, "seed": str(config.seed + index)}
        name = f"{index + 1:02d}-{_file_name(prompt)}.png"
        path = results.keep(name, partial(save_image, image=picture, texts=facts))
        made.append({"file": str(path), "prompt": prompt, "seed": config.seed + index})
    results.close()
    return Outcome({"pictures": made}, "\n".join(str(one["file"]) for one in made))


def add_export(parser: argparse.ArgumentParser) -> None:
    """Flags of `export`."""
    from ..pipelines.export import ExportConfig

    parser.add_argument("identity", metavar="IDENTITY", type=Path, help="identity file")
    parser.add_argument(
        "--out", type=Path, metavar="FILE", help="LoRA file to write (default: NAME-lora.safetensors beside it)"
    )
    parser.add_argument("--preview", type=Path, metavar="PICTURE", help="picture to show in LoRA browsers")
    add_config_flags(parser, ExportConfig)


def export(arguments: argparse.Namespace, console: Console) -> Outcome:
    """An identity file to a LoRA file."""
    from ..errors import OutputError
    from ..formats.identity_file import read_identity
    from ..pipelines.export import ExportConfig, export_lora

    config = config_from_flags(ExportConfig, arguments)
    out: Path = arguments.out or arguments.identity.with_name(f"{arguments.identity.stem}-lora.safetensors")
    if out.exists() and out.samefile(arguments.identity):
        raise OutputError(f"{out}: is the identity itself, which the LoRA would replace; name another file with --out")
    results = console.open_results(out.parent)
    identity = read_identity(arguments.identity)
    thumbnail = _thumbnail(arguments.preview) if arguments.preview else ""
    path = results.keep(out.name, lambda path: export_lora(identity, path, config, thumbnail))
    results.close()
    size = path.stat().st_size
    data = {"file": str(path), "bytes": size, "family": identity.family, "dialect": config.dialect}
    return Outcome(data, f"{path} ({size / 1000:,.0f} KB, {config.dialect} keys for {identity.family})")


def bundled_hypernetwork() -> Path:
    """The miniature's own predictor."""
    from ..bundled import bundled_weights

    return bundled_weights() / "miniature" / "hypernetwork.safetensors"


def load(arguments: argparse.Namespace) -> DiffusersBase:
    """The base that the flags of `add_base_flags` name."""
    import torch

    from ..pipelines.diffusers.loading import load_base

    dtypes = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
    return load_base(arguments.base, device_named(arguments.device), dtypes[arguments.dtype])


def device_named(name: str) -> torch.device:
    """The device of that name; `auto` is CUDA where there is one.

    Raises:
        ConfigError: no such device here.
    """
    import torch

    from ..errors import ConfigError

    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0].strip(" .")
        raise ConfigError(f"device {name!r} cannot be used here ({reason}); use --device cpu") from error
    return device


def _read_adapter(path: Path | None, family: str | None) -> tuple[OneAdapter, str, str]:
    """The adapter in an identity or LoRA file for a base of that family, its identifier and its class noun."""
    from ..errors import BaseMismatchError, FileFormatError
    from ..formats.identity_file import read_identity
    from ..formats.lora_file import read_lora
    from .inspection import header, kind_of

    if path is None:
        return None, "sks", "face"
    metadata, names = header(path)
    kind = kind_of(metadata, names)
    if kind == "LoRA":
        identifier, _, class_noun = metadata.get("modelspec.trigger_phrase", "sks face").partition(" ")
        return read_lora(path, family)[1], identifier, class_noun
    if kind == "hypernetwork":
        raise FileFormatError(path, "is a predictor, but an identity or a LoRA is expected. Run predict with it first.")
    identity = read_identity(path)
    if family is not None and identity.family != family:
        raise BaseMismatchError(
            f"{path.name}: was made for {identity.family!r}, but the base is {family!r}; load a base of "
            f"{identity.family!r}"
        )
    return identity, identity.identifier, identity.class_noun


def _identity_outcome(path: Path, identity: Identity, facts: dict[str, Any], stopped: bool = False) -> Outcome:
    size = path.stat().st_size
    data = {"file": str(path), "bytes": size, "family": identity.family, "rank": identity.rank, **facts}
    return Outcome(data, f"{path} ({size / 1000:,.0f} KB, rank {identity.rank}, {identity.family})", stopped=stopped)


def _add_out(parser: argparse.ArgumentParser, default: str) -> None:
    parser.add_argument(
        "--out", type=Path, default=Path(default), metavar="FILE", help=f"file to write (default: {default})"
    )


def _file_name(prompt: str) -> str:
    return re.sub(r"\W+", "-", prompt.lower()).strip("-")[:40].strip("-") or "picture"


def _thumbnail(path: Path) -> str:
    import base64
    import io

    from ..pictures.files import read_image, square_crop, to_pil

    stream = io.BytesIO()
    to_pil(square_crop(read_image(path), 256)).save(stream, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
