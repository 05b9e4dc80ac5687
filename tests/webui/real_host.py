"""What must hold in the real programs, whichever of the two it is; each has a file of its own that names an install."""

from __future__ import annotations

import base64
import os
import threading
import time
from pathlib import Path
from typing import Any
from urllib.error import HTTPError

import pytest

from benchmarks.webui_server import Install, Server, running_webui
from hyperdream_core.bundled import bundled_examples

PORTRAIT = base64.b64encode((bundled_examples() / "portrait.png").read_bytes()).decode()
ORDER = {
    "images": [PORTRAIT],
    "detector": "already-cropped",
    "predict": False,
    "batch": 2,
    "size": 64,
    "draw_steps": 2,
}


def install_of(kind: str) -> Install:
    """The install that HYPERDREAM_KIND_ROOT names; its Python is ROOT/venv/bin/python unless _PYTHON names another."""
    root = Path(os.environ.get(f"HYPERDREAM_{kind.upper()}_ROOT", ""))
    python = os.environ.get(f"HYPERDREAM_{kind.upper()}_PYTHON", str(root / "venv" / "bin" / "python"))
    return Install(kind, root, python)


def guidance(
    name: str, preset: str = "hybrid", subject_scale: float = -1, schedule: str = "", enabled: bool = True
) -> dict[str, Any]:
    """What the host's API takes for our accordion."""
    return {
        "alwayson_scripts": {"HyperDream guidance": {"args": [enabled, name, preset, -1, subject_scale, schedule, 1]}}
    }


def without(kind: str) -> Any:
    """The mark that skips a file where no install is named."""
    return pytest.mark.skipif(
        not os.environ.get(f"HYPERDREAM_{kind.upper()}_ROOT"), reason=f"HYPERDREAM_{kind.upper()}_ROOT names no install"
    )


class InTheRealHost:
    """Tests on a running server, which the file's own fixture gives, and in its order: starting one takes long."""

    install: Install
    leaves_out_the_negative_prompt = False
    """at a CFG scale of 1"""
    checkpoint: str

    def test_the_extension_loads_in_silence_and_shows_its_tab(self, server: Server) -> None:
        parts = server.get("/config")["components"]
        assert "HyperDream" in {part["props"].get("label") for part in parts if part["type"] == "tabitem"}
        # Tracebacks name the files they went through; those of the host's own extensions are not ours to judge.
        log = server.log.read_text()
        assert "hyperdream.py" not in log and "hyperdream_webui" not in log and "hyperdream_core" not in log

    def test_an_identity_is_made_and_draws_as_its_export_and_the_base_stays(self, server: Server) -> None:
        base = server.picture("a face")
        made = server.post("/hyperdream/v1/create", **ORDER, name="mara", steps=4)
        assert server.picture("a face") == base
        stem = Path(made["name"]).stem
        native = server.picture(f"a face <lora:{stem}:1>")
        assert native == server.picture(f"a face <lora:{stem}-lora:1>") != base
        assert server.picture(f"a face <lora:{stem}:0.3>") not in (base, native)
        assert server.picture("a face") == base
        assert made["prompt"] == f"<lora:{stem}:1> a sks face" and made["grid"] and not made["cancelled"]

    def test_a_prediction_is_polished_and_other_contexts_are_preserved(self, server: Server) -> None:
        base = server.picture("a face")
        order = {**ORDER, "predict": True, "prompts": ""}
        predicted = server.post("/hyperdream/v1/create", **order, name="start", steps=0)
        polished = server.post("/hyperdream/v1/create", **order, name="polished", steps=2)
        assert predicted["report"].startswith("predicted,")
        assert polished["report"].startswith("predicted and polished for 2 steps")
        assert server.picture("a face") == base
        pictures = {server.picture(f"a face <lora:{Path(one['name']).stem}:1>") for one in (predicted, polished)}
        assert len(pictures | {base}) == 3

    def test_guidance_mixes_base_and_person_and_leaves_nothing_behind(self, server: Server) -> None:
        made = server.post("/hyperdream/v1/create", **ORDER, name="guided", steps=2, prompts="")
        stem = Path(made["name"]).stem
        base, merged = server.picture("a face"), server.picture(f"a sks face <lora:{stem}:1>")
        alone = server.picture("a [V] face", **guidance(made["name"], subject_scale=0))
        assert alone == base
        # The same sums in another order: merged into 32 bit weights, and added to each layer's output.
        plain, infotext = server.drawn(f"a [V] face <lora:{stem}:1>", **guidance(made["name"], preset="plain"))
        assert max(abs(one - other) for one, other in zip(plain, merged, strict=True)) <= 2
        assert infotext.startswith("a sks face\n") and f"HyperDream identity: {made['name']}" in infotext
        hybrid = server.picture("a [V] face", **guidance(made["name"], subject_scale=5, schedule="default"))
        assert hybrid not in (base, merged)
        # Automatic1111 reckons with the negative prompt there too.
        without_negative = [("a [V] face", guidance(made["name"]) | {"cfg_scale": 1}, "CFG scale of 1")]
        for prompt, dials, words in (
            ("a [V] face AND a dog", guidance(made["name"]), "joined by AND"),
            ("a [V] face", guidance("none"), "no identity is chosen"),
            ("a [V] face", guidance("gone.safetensors"), "there is no identity"),
            ("a [V] face", guidance(made["name"], schedule="0-2:x"), "schedule"),
            *(without_negative if self.leaves_out_the_negative_prompt else ()),
        ):
            with pytest.raises(HTTPError, match=words) as refused:
                server.picture(prompt, **dials)
            assert refused.value.code == 422
        assert server.picture("a [V] face", **guidance(made["name"], enabled=False)) == server.picture("a [V] face")
        assert server.picture("a face") == base

    def test_after_a_picture_with_a_lora_the_base_is_polished_all_the_same(self, server: Server) -> None:
        first = server.post("/hyperdream/v1/create", **ORDER, name="first", steps=3, prompts="")
        server.picture(f"a face <lora:{Path(first['name']).stem}:2>")
        again = server.post("/hyperdream/v1/create", **ORDER, name="first", steps=3, prompts="")
        assert again["name"] == first["name"], "the same numbers, so the same digest"

    def test_interrupt_keeps_the_best_so_far(self, server: Server) -> None:
        base = server.picture("a face")

        def stop() -> None:
            for _ in range(600):
                time.sleep(0.5)
                if server.get("/sdapi/v1/progress")["state"]["sampling_step"] >= 2:
                    server.post("/sdapi/v1/interrupt")
                    return

        stopper = threading.Thread(target=stop)
        stopper.start()
        made = server.post("/hyperdream/v1/create", **ORDER, name="stopped", steps=500)
        stopper.join()
        assert made["cancelled"] and made["grid"] is None and "stopped by you" in made["report"]
        assert server.picture("a face") == base

    def test_the_miniature_makes_people_too(self, server: Server) -> None:
        made = server.post("/hyperdream/v1/create", images=[PORTRAIT], on="miniature", name="lena", steps=1)
        assert made["grid"] and made["likeness"] > made["likeness_before"] and made["prompt"] == ""

    def test_the_librarys_verbs_reach_the_lora_page(self, server: Server) -> None:
        made = server.post("/hyperdream/v1/create", **ORDER, name="ana", steps=1, prompts="")["name"]
        renamed = server.post("/hyperdream/v1/rename", name=made, new_name="lea")["name"]
        known = {entry["name"] for entry in server.get("/sdapi/v1/loras")}
        assert {Path(renamed).stem, Path(renamed).stem + "-lora"} <= known and Path(made).stem not in known
        server.post("/hyperdream/v1/delete", name=renamed)
        with pytest.raises(HTTPError):
            server.post("/hyperdream/v1/delete", name=renamed)

    def test_it_works_without_a_page(self, data: Path) -> None:
        checkpoint = data / "models" / "Stable-diffusion" / self.checkpoint
        with running_webui(self.install, data, checkpoint, "--nowebui") as server:
            assert "identities" in server.get("/hyperdream/v1/identities")
            assert "hyperdream_webui" not in server.log.read_text()
