"""`hyperdream export`: an identity as a LoRA for other programs."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..console import Console, Outcome
from ..flags import add_config_flags, config_from_flags, place


def add_flags(parser: argparse.ArgumentParser) -> None:
    """Flags of `export`."""
    from ...pipelines.export import ExportConfig

    parser.add_argument("identity", metavar="IDENTITY", type=place, help="identity file")
    parser.add_argument(
        "--out", type=place, metavar="FILE", help="LoRA file to write (default: NAME-lora.safetensors beside it)"
    )
    parser.add_argument("--preview", type=place, metavar="PICTURE", help="picture to show in LoRA browsers")
    add_config_flags(parser, ExportConfig)


def run(arguments: argparse.Namespace, console: Console) -> Outcome:
    """An identity file to a LoRA file."""
    from ...formats.identity_file import read_identity
    from ...pipelines.export import ExportConfig, export_lora

    config = config_from_flags(ExportConfig, arguments)
    out: Path = arguments.out or arguments.identity.with_name(f"{arguments.identity.stem}-lora.safetensors")
    results = console.open_results(out.parent, [out.name])
    identity = read_identity(arguments.identity)
    thumbnail = _thumbnail(arguments.preview) if arguments.preview else ""
    path = results.keep(out.name, lambda path: export_lora(identity, path, config, thumbnail))
    results.close()
    size = path.stat().st_size
    data = {"file": str(path), "bytes": size, "family": identity.family, "dialect": config.dialect}
    return Outcome(data, f"{path} ({size / 1000:,.0f} KB, {config.dialect} keys for {identity.family})")


def _thumbnail(path: Path) -> str:
    import base64
    import io

    from ...pictures.files import read_image, square_crop, to_pil

    stream = io.BytesIO()
    to_pil(square_crop(read_image(path), 256)).save(stream, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()
