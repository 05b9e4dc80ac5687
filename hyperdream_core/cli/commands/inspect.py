"""`hyperdream inspect`: what a file is, whoever made it, and for a file that is refused: why."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import FileFormatError, HyperDreamError, printable
from ..console import Console, Outcome
from ..flags import place


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `inspect`."""
    parser.add_argument(
        "files", metavar="FILE", nargs="+", type=place, help="file, folder of files, or diffusers folder"
    )


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """A report on each file; refused ones give exit code 1."""
    reports = [inspect_file(path) for given in arguments.files for path in files_of(given)]
    for report in reports:
        if not report["readable"]:
            console.say(f"hyperdream: {report['problem']}")
    text = "\n".join(format_report(report) for report in reports if report["readable"])
    readable = all(report["readable"] for report in reports)
    return Outcome({"files": reports}, text, ok=readable)


def files_of(path: Path) -> list[Path]:
    """The files to look into: those of a folder that is no base, of which bad ones do not hide the good ones."""
    if not path.is_dir() or (path / "model_index.json").exists() or (path / "unet").exists():
        return [path]
    found = sorted(one for one in path.iterdir() if one.suffix.lower() == ".safetensors" or _is_picture(one))
    return found or [path]


def inspect_file(path: Path) -> dict[str, Any]:
    """A report on an identity, predictor, LoRA, checkpoint or picture: `kind`, `readable`, `problem` and its facts."""
    report: dict[str, Any] = {"file": str(path), "kind": "unknown", "readable": False, "problem": None}
    try:
        if not path.exists():
            raise FileFormatError(path, f"is not there, but a file to look into is expected. Check the path: {path}.")
        if path.is_dir():
            return report | _describe_folder(path) | {"readable": True}
        report["bytes"] = path.stat().st_size
        if _is_picture(path):
            return report | _describe_picture(path) | {"readable": True}
        metadata, names = header(path)
        report["kind"] = kind = kind_of(metadata, names)
        return (
            report
            | {"metadata": metadata}
            | {"kind": kind}
            | _DESCRIPTIONS.get(kind, _describe_other)(path)
            | {"readable": True}
        )
    except HyperDreamError as error:
        return report | {"problem": str(error)}
    except OSError as error:
        return report | {"problem": f"{path}: cannot be opened ({error.strerror or error}). Check its permissions."}


def format_report(report: Mapping[str, Any]) -> str:
    """The report as lines for people."""
    if not report["readable"]:
        return f"{printable(report['file'])}: refused\n  {report['problem']}"
    hidden = {"file", "kind", "readable", "problem", "metadata"}
    lines = [f"{printable(report['file'])}: {report['kind']}"]
    for key, value in report.items():
        if key in hidden or value in ({}, [], "", None):
            continue
        if isinstance(value, list) and all(isinstance(one, str) for one in value):
            value = "; ".join(value)
        shown = ", ".join(f"{k} {v}" for k, v in value.items()) if isinstance(value, Mapping) else value
        if key == "bytes":
            shown = f"{value / 1000:,.1f} KB"
        elif isinstance(value, float):
            shown = f"{value:.4g}"
        lines.append(f"  {key.replace('_', ' '):<18} {printable(str(shown))}")
    return "\n".join(lines)


def header(path: Path) -> tuple[dict[str, str], list[str]]:
    """Metadata and tensor names of a safetensors file, without the tensors: a checkpoint has gigabytes of those.

    Raises:
        FileFormatError: not such a file, or a damaged one.
    """
    from ...formats.container import read_names

    return read_names(path)


def kind_of(metadata: Mapping[str, str], names: list[str]) -> str:
    """What it holds: `identity`, `predictor`, `LoRA` or, for anything else, `base checkpoint`."""
    from ...formats import identity_file, predictor_file
    from ...formats.foreign.lora_names import looks_like_an_adapter

    found = metadata.get("kind")
    if found == identity_file.KIND or any("lidb_" in name for name in names):
        return "identity"
    if found == predictor_file.KIND:
        return "predictor"
    # A file without tensors is left to the LoRA's reader, which says so.
    if looks_like_an_adapter(names) or not (names or found):
        return "LoRA"
    return f"{printable(found, 60)} file" if found else "base checkpoint"


def _describe_identity(path: Path) -> dict[str, Any]:
    from ...formats.identity_file import inspect_identity, read_identity

    report = inspect_identity(path)
    if not report["readable"]:
        # Read again for the error itself; the report has only its words.
        read_identity(path)
    return report


def _describe_predictor(path: Path) -> dict[str, Any]:
    from ...config import config_to_json
    from ...pipelines.predictors.predictor import open_predictor

    predictor = open_predictor(path)
    return {
        "family": predictor.family,
        "parameters": sum(parameter.numel() for parameter in predictor.network.parameters()),
        "wants": config_to_json(predictor.wants),
        "base_fingerprint": predictor.fingerprint,
        "training": dict(predictor.training),
    }


def _describe_lora(path: Path) -> dict[str, Any]:
    from ...formats.lora_file import read_lora_file

    found = read_lora_file(path)
    ranks = sorted({pair.rank for pair in found.pairs.values()})
    return {
        "family": found.family,
        "layers": len(found.pairs),
        "rank": ranks[0] if len(ranks) == 1 else ranks,
        "trigger_phrases": "; ".join(found.trigger_phrases),
        "left_out": ", ".join(found.left_out[:5]) + (", ..." if len(found.left_out) > 5 else ""),
    }


def _describe_checkpoint(path: Path) -> dict[str, Any]:
    from ...pipelines.diffusers.single_file import describe_file

    return describe_file(path)


def _describe_other(path: Path) -> dict[str, Any]:
    return {"tensors": len(header(path)[1])}


def _describe_folder(path: Path) -> dict[str, Any]:
    from ...pipelines.diffusers.loading import load_base

    base = load_base(path)
    return {
        "kind": "base folder",
        "family": base.family.name,
        "title": base.family.title,
        "prediction_type": base.noise.name,
        "assumptions": list(base.assumptions),
        "fingerprint": base.fingerprint(),
    }


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in {".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".heic"}


def _describe_picture(path: Path) -> dict[str, Any]:
    from ...pictures.files import read_picture

    picture = read_picture(path)
    height, width = picture.pixels.shape[-2:]
    return {"kind": "picture", "width": width, "height": height, "notes": "; ".join(picture.notes)}


_DESCRIPTIONS = {
    "identity": _describe_identity,
    "predictor": _describe_predictor,
    "LoRA": _describe_lora,
    "base checkpoint": _describe_checkpoint,
}
