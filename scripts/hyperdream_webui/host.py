"""Everything the tab asks of Automatic1111 or Forge: folders, queue, progress, pictures, the loaded model.

Nothing of a host is imported when this file is, so that it is tested without one. Seen in Automatic1111 1.10.1; Forge
differs where `is_forge` is asked.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TypeVar

from PIL import Image

from hyperdream_core.errors import Cancelled, HyperDreamError

T = TypeVar("T")


def is_forge() -> bool:
    """Whether the host is Forge or one of its family."""
    return find_spec("modules_forge") is not None


class WebUI:
    """The running host."""

    @property
    def lora_folder(self) -> Path:
        """Where `<lora:...>` looks; ours have a folder of their own in it."""
        from modules import shared

        return Path(shared.cmd_opts.lora_dir) / "hyperdream"

    @property
    def own_folder(self) -> Path:
        """models/hyperdream: predictors, recognisers and the miniature's identities."""
        from modules import paths_internal

        return Path(paths_internal.models_path) / "hyperdream"

    @property
    def face_model_folders(self) -> tuple[Path, ...]:
        """Where insightface's packs and recognisers in ONNX may lie."""
        return self.own_folder, self.own_folder.parent / "insightface"

    @property
    def font_file(self) -> str:
        """The host's font; empty if it has none. Its Pillow has but a small one of dots."""
        from modules import paths_internal

        file = getattr(paths_internal, "roboto_ttf_file", "")
        return str(file) if file and Path(file).is_file() else ""

    @property
    def has_api(self) -> bool:
        """Whether the user has switched the host's API on."""
        from modules import shared

        return bool(shared.cmd_opts.api or shared.cmd_opts.nowebui)

    @property
    def api_users(self) -> dict[str, str]:
        """Names and passwords that the host asks of those who use its API; empty if it asks for none."""
        from modules import shared

        pairs = (shared.cmd_opts.api_auth or "").split(",")
        return dict(pair.split(":", 1) for pair in pairs if ":" in pair)

    def lets_in(self, origin: str) -> bool:
        """Whether the user has told the host to answer pages of that origin."""
        from modules import shared

        options = shared.cmd_opts
        allowed = (getattr(options, "cors_allow_origins", None) or "").split(",")
        pattern = getattr(options, "cors_allow_origins_regex", None)
        return bool(origin) and (origin in allowed or bool(pattern and re.fullmatch(pattern, origin)))

    def queued(self, job: Callable[..., Any], outputs_on_error: Sequence[Any]) -> Callable[..., Any]:
        """A job for a button: it waits its turn among the host's others and has a progress bar.

        Its first argument is the id that the page has made up; its last output is a line of HTML.
        """
        from modules import call_queue

        wrapped: Callable[..., Any] = call_queue.wrap_gradio_gpu_call(job, extra_outputs=list(outputs_on_error))
        return wrapped

    def in_turn(self, job: Callable[[], T]) -> T:
        """Do a job from a worker thread when no other is running, and say so to the host's state."""
        from modules import call_queue, shared

        with call_queue.queue_lock:
            shared.state.begin(job="hyperdream")
            try:
                return job()
            finally:
                shared.state.end()

    def with_models(self, job: Callable[[], T]) -> T:
        """Do a job where models may be loaded and moved: Forge has one thread for that, and swallows its errors."""
        if not is_forge():
            return job()
        from modules_forge import main_thread

        def caught() -> tuple[Any, BaseException | None]:
            try:
                return job(), None
            except Exception as error:
                return None, error

        result, error = main_thread.run_and_wait_result(caught)
        if error is not None:
            raise error
        done: T = result
        return done

    def progress(self, label: str) -> Callable[..., None]:
        """What the core calls between steps: shows the host's bar, and stops when the user has pressed Interrupt.

        The returned function takes (step, total) and a picture to show or None.

        Raises:
            Cancelled: when called, after Interrupt or Skip.
        """
        from modules import shared

        state = shared.state
        state.job_count, state.job_no, state.textinfo = 1, 0, label

        def progress(step: int, total: int, picture: Image.Image | None = None) -> None:
            state.sampling_steps, state.sampling_step = total, step
            if picture is not None:
                state.assign_current_image(picture)
            if state.interrupted or getattr(state, "stopping_generation", False):
                raise Cancelled("stopped by the user")

        return progress

    @property
    def is_interrupted(self) -> bool:
        from modules import shared

        return bool(shared.state.interrupted or getattr(shared.state, "stopping_generation", False))

    def interrupt(self) -> None:
        """What the Interrupt button does."""
        from modules import shared

        shared.state.interrupt()

    def loaded_base(self) -> Any:
        """The loaded checkpoint as the core's `Base`, clean of the last picture's LoRAs.

        Raises:
            ConfigError, BaseMismatchError: its state or kind cannot be trained upon; says why and what to do.
        """
        from . import a1111_base, forge_base

        return forge_base.loaded_base() if is_forge() else a1111_base.loaded_base()

    def draw(self, prompt: str, seed: int, size: int, steps: int) -> tuple[Image.Image, str]:
        """A picture by the host's own txt2img, with its infotext; nothing is saved.

        The host's infotext lacks the prompt's `<lora:...>`; here it has the prompt as it was, so that whoever pastes it
        draws the same person.
        """
        from modules import processing, shared

        job = processing.StableDiffusionProcessingTxt2Img(
            sd_model=shared.sd_model,
            prompt=prompt,
            negative_prompt="",
            seed=seed,
            steps=steps,
            cfg_scale=7.0,
            width=size,
            height=size,
            sampler_name="DPM++ 2M",
            do_not_save_samples=True,
            do_not_save_grid=True,
        )
        try:
            done = processing.process_images(job)
        finally:
            job.close()
        if not done.images:
            raise Cancelled("stopped by the user")
        facts = [line for line in done.infotexts[0].splitlines() if line.startswith("Steps: ")]
        return done.images[0], "\n".join([prompt, *facts])

    def refresh_networks(self) -> None:
        """Tell the host's Lora page of new, renamed and deleted files."""
        networks = sys.modules.get("networks")
        if networks is not None and hasattr(networks, "list_available_networks"):
            networks.list_available_networks()


def sentence(error: Exception) -> str:
    """What to tell the user of an error of ours."""
    text = str(error)
    return text if isinstance(error, HyperDreamError) else f"{type(error).__name__}: {text}"
