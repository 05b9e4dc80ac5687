"""How the files beside this one were made, by 0.1.0 itself; kept to be read, and not to be run again.

The point of these files is that 0.1.0 wrote them. A later release must read them as they are: if a test here fails, it
is the reader that has to be mended and never the file. For the same reason this script is not kept up to date with
the names it imports.

    OMP_NUM_THREADS=1 python -m tests.golden.make_golden    (from the root of a checkout of 0.1.0)

The pictures and the identity in `miniature/` depend on the miniature's weights besides, and may be replaced together
with these; they were made by `miniature/make_golden.py`.
"""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import torch
from hyperdream_core.formats.adapter_file import Identity, write_identity
from hyperdream_core.miniature.kept_rows import keep_row
from hyperdream_core.pipelines.evaluate import score_method
from hyperdream_core.pipelines.finetune import finetune
from hyperdream_core.pipelines.predict import predict_identity
from hyperdream_core.pipelines.stored_hypernetwork import save_hypernetwork
from PIL import Image
from safetensors.torch import save_file

from hyperdream_core.bases import get_base
from hyperdream_core.errors import Cancelled
from hyperdream_core.models.hypernetwork import Hypernetwork, HypernetworkConfig
from hyperdream_core.ops.lidb import LidbCoefficients, basis_sizes
from hyperdream_core.pipelines.export import ExportConfig, export_lora
from hyperdream_core.pipelines.library import Library
from hyperdream_core.pipelines.training import train
from tests.golden.test_golden import LIBRARY, POLISH, TRAINING, Line, points, values_of
from tests.pipelines.conftest import random_base

FILES = Path(__file__).parent / "files"
SIZES = {"down_dim": 5, "up_dim": 7}


def random_identity(family: str, target_set: str = "attention", rank: int = 1) -> Identity:
    generator = torch.Generator().manual_seed(11)
    coefficients = {}
    for layer in get_base(family).layers(target_set):
        p, a = basis_sizes(layer.in_features, layer.out_features, **SIZES)
        down, up = torch.randn(rank, p, generator=generator), torch.randn(a, rank, generator=generator)
        coefficients[layer.name] = LidbCoefficients(down, up / 10)
    made_by = {"method": "drawn at random", "word": "größer"}
    return Identity(
        family=family, target_set=target_set, rank=rank, coefficients=coefficients, identifier="ohwx",
        class_noun="person", made_by=made_by, **SIZES,
    )  # fmt: skip


def stop_at(stop: int):
    def progress(step: int, steps: int) -> None:
        if step == stop:
            raise Cancelled("stopped for the golden file")

    return progress


def main() -> None:
    shutil.rmtree(FILES, ignore_errors=True)
    LIBRARY.mkdir(parents=True)
    kept = {}

    def keep(name: str, identity: Identity) -> None:
        for side, values in values_of(identity).items():
            kept[f"{name}/{side}"] = values

    # Identities drawn at random.
    sd15, text = random_identity("sd15"), random_identity("miniature", "attention+geglu+text", 2)
    write_identity(FILES / "identity-sd15-fp16.safetensors", sd15)
    write_identity(FILES / "identity-text-fp32.safetensors", text, torch.float32)
    keep("identity-sd15", sd15)
    keep("identity-text", text)
    layer, pair = list(sd15.expand().items())[-1]
    kept[f"expanded/{layer}/down"], kept[f"expanded/{layer}/up"] = pair.down, pair.up

    # A predictor, and what it sees in a picture.
    torch.manual_seed(0)
    encoder = {"kind": "conv", "channels": [8, 8, 8, 8], "blocks": [1, 1, 1], "width": 6, "image_size": 32}
    network = Hypernetwork(
        HypernetworkConfig(
            family="miniature", **SIZES, width=12, heads=3, decoder_layers=1, heads_per="shape", image_encoder=encoder
        )
    ).train(False)
    with torch.no_grad():
        for parameter in network.parameters():
            # An untrained one predicts nothing at all.
            parameter.add_(0.1 * torch.randn(parameter.shape))
    facts = {"steps": 12, "data": "nothing"}
    save_hypernetwork(FILES / "predictor.safetensors", network, base_fingerprint="f00d", training=facts)
    picture = torch.rand(1, 3, 32, 32, generator=torch.Generator().manual_seed(7))
    kept["picture"] = picture
    predicted = predict_identity(network, picture)
    write_identity(FILES / "identity-predicted-fp32.safetensors", predicted, torch.float32)
    keep("predicted", predicted)

    # Polished from there: stopped after three steps, and without a stop.
    base, checkpoint = random_base(), FILES / "finetune-checkpoint.safetensors"
    assert finetune(base, picture, predicted, POLISH, stop_at(3), checkpoint).cancelled
    result = finetune(base, picture, predicted, POLISH)
    polished = replace(result.identity, made_by={**result.identity.made_by, "notes": "polished"})
    for name, dtype in (("fp16", torch.float16), ("fp32", torch.float32)):
        write_identity(FILES / f"identity-polished-{name}.safetensors", polished, dtype)
    keep("polished", polished)
    kept["polished/losses"] = torch.tensor(result.losses)

    # LoRAs of these.
    about = {"title": "Sofia", "license": "CC0-1.0"}
    export_lora(polished, FILES / "lora-kohya.safetensors", ExportConfig(**about))
    config = ExportConfig(dialect="diffusers", strength=0.5, **about)
    export_lora(predicted, FILES / "lora-diffusers.safetensors", config)

    # A training of any network: stopped in its second cycle, and without a stop.
    for name, stop in (("training-checkpoint", 8), ("whole", 99)):
        line, path = Line(), FILES / f"{name}.safetensors"
        try:
            losses = train(line, points, TRAINING, path, stop_at(stop), cycles=2)
        except Cancelled:
            continue
        kept |= {"trained/slope": line.slope.detach(), "trained/losses": torch.tensor(losses)}
        path.unlink()

    # The library: one with notes, strength and picture, one in a folder, and a file that is none.
    (LIBRARY / "friends").mkdir()
    shutil.copyfile(FILES / "identity-polished-fp16.safetensors", LIBRARY / "mara.safetensors")
    shutil.copyfile(FILES / "identity-predicted-fp32.safetensors", LIBRARY / "friends" / "bruno.safetensors")
    Image.linear_gradient("L").resize((24, 16)).convert("RGB").save(LIBRARY / "mara.png")
    (LIBRARY / "strange.safetensors").write_bytes(b"no identity at all")
    library = Library(lambda: [LIBRARY])
    library.annotate("mara.safetensors", notes="from the beach,\nin größter Eile", strength=0.8)
    entries = [asdict(entry) for entry in library.entries()]
    for entry in entries:
        del entry["modified"], entry["preview"]
    entries.sort(key=lambda entry: entry["name"])
    (FILES / "library.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")

    # A finished row of a trial.
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.nn.functional.normalize(torch.randn(3, 2, 5, generator=generator), dim=-1)
    hits = {"style": torch.rand(3, 2, generator=generator) > 0.5}
    copies = torch.rand(3, 2, generator=generator)
    keep_row(FILES, "trial", score_method("prediction k=1", embeddings, embeddings[:, 0], hits, copies))

    save_file({name: value.contiguous() for name, value in kept.items()}, FILES / "expected.safetensors")


if __name__ == "__main__":
    main()
