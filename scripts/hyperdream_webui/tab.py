"""The tab: a `gradio.Blocks` over the jobs, one source for gradio 3.41 (Automatic1111) and 4.40 (Forge)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, get_args

import gradio as gr

from hyperdream_core.bases import get_base
from hyperdream_core.errors import ConfigError, HyperDreamError, ReferenceImageError
from hyperdream_core.faces.detectors import DetectorName
from hyperdream_core.faces.face import FaceOrder
from hyperdream_core.pipelines.polishing.polish_config import STEPS_AFTER_PREDICTION, STEPS_FROM_SCRATCH

from . import html
from .host import sentence
from .jobs import Jobs
from .orders import CHECKPOINT, SHIPPED, FaceChoice, Order

_WHERE = {"the loaded checkpoint": CHECKPOINT} | {
    f"{get_base(name).title} (to try it; {get_base(name).picture_size} px)": name for name in SHIPPED
}


_DRAWN = next((label for label, name in _WHERE.items() if name != CHECKPOINT), "")
_ONLY_HERE = "the miniature's people are drawn in this tab only"
_NOBODY_CHOSEN = "nobody is chosen; click a card first"
_NOTHING_TO_SEND = (
    "there is no prompt to send; create somebody, or click a card of the Library, for the loaded checkpoint"
)
_WORDS = {
    "take it as already-cropped": "choose 'already-cropped' as the face detector under 'Which face'",
    "set on_no_face to": "choose 'If no face is found' to be",
    "samples_at_once must": "'Samples at once' must",
    "draw_steps must": "'Drawing steps' must",
    "seed must": "'Seed' must",
    "identifier (the trigger word) must": "'Trigger word' must",
    "class_noun (what the subject is) must": "'What the subject is' must",
    "name a predictor": "put a predictor into models/hyperdream/predictors",
}
"""what the core and the API call things, and what this tab does"""


def build_tab(jobs: Jobs) -> gr.Blocks:
    """The tab over the jobs; one for each call."""
    with gr.Blocks(analytics_enabled=False) as tab, gr.Column(elem_id="hyperdream_tab"):
        gr.HTML(html.STYLE + html.INTRO)
        with gr.Tabs():
            with gr.TabItem("Create"):
                created = _create_panel(jobs)
            with gr.TabItem("Library") as library:
                cards, chosen = _library_panel(jobs)
        show = {"fn": lambda: html.cards(jobs.loras), "inputs": [], "outputs": [cards]}
        library.select(**show)
        created.change(fn=lambda name: name, inputs=[created], outputs=[chosen])
        tab.load(**show)
    return tab


def _create_panel(jobs: Jobs) -> Any:
    """Photographs on the left, what came of them on the right; returns the box with the new identity's name."""
    with gr.Row():
        with gr.Column(scale=5):
            files = gr.File(
                label="Photographs of one person",
                file_count="multiple",
                file_types=["image"],
                elem_id="hyperdream_files",
            )
            faces = gr.Gallery(
                label="Faces", columns=2, height=320, object_fit="contain", elem_id="hyperdream_faces", visible=False
            )
            report = gr.HTML(elem_id="hyperdream_report")
            choice = _face_inputs()
            settings = _create_inputs()
        with gr.Column(scale=6):
            with gr.Row():
                create = gr.Button("Create", variant="primary", elem_id="hyperdream_create")
                stop = gr.Button("Interrupt", elem_id="hyperdream_stop")
            gr.HTML('<div id="hyperdream_live"></div>')
            grid = gr.Image(
                label="Before and after", show_label=False, type="pil", interactive=False, elem_id="hyperdream_grid"
            )
            likeness = gr.HTML(elem_id="hyperdream_likeness")
            result = gr.HTML(elem_id="hyperdream_result")
            prompt = gr.Textbox(label="Put this in the prompt", interactive=False, elem_id="hyperdream_prompt")
            send = gr.Button("Send to txt2img", elem_id="hyperdream_send")
            sent = gr.HTML(elem_id="hyperdream_sent")
            infotext = gr.Textbox(label="Generation data", interactive=False, elem_id="hyperdream_infotext")
            created = gr.Textbox(visible=False)
            log = gr.HTML()

    def look(dropped: Any, where: str, *chosen: Any) -> tuple[Any, str]:
        if not dropped:
            return gr.update(value=None, visible=False), ""
        try:
            pictures, text = jobs.look(paths_of(dropped), _face_choice(chosen), _WHERE[where])
        except HyperDreamError as error:
            return gr.update(value=None, visible=False), html.refused(worded(error, where))
        return gr.update(value=pictures, visible=True), html.said(text)

    def job(task: str, dropped: Any, *values: Any) -> tuple[Any, ...]:
        count = len(choice)
        try:
            order = _order(paths_of(dropped or []), _face_choice(values[:count]), values[count:])
            made = jobs.webui.with_models(lambda: jobs.create(order))
        except HyperDreamError as error:
            return None, "", html.refused(worded(error, values[count + 1])), "", "", "", ""
        bars = html.likeness_bars(made.likeness_before, made.likeness)
        note = "" if made.prompt else f"\n{_ONLY_HERE}"
        text = html.said(f"kept as {made.name}\n{made.report}{note}")
        return made.grid, bars, text, made.prompt, made.infotext, made.name, ""

    looked = {"fn": look, "inputs": [files, settings[1], *choice], "outputs": [faces, report]}
    for component in (files, settings[1], *choice):
        component.change(**looked)
    task = gr.Textbox(visible=False)
    outputs = [grid, likeness, result, prompt, infotext, created, log]
    create.click(
        fn=jobs.webui.queued(job, [None, "", "", "", "", ""]),
        inputs=[task, files, *choice, *settings],
        outputs=outputs,
        show_progress=False,
        **script(html.START),
    )
    stop.click(fn=jobs.webui.interrupt, inputs=[], outputs=[])
    send.click(fn=_after_sending, inputs=[prompt], outputs=[sent], **script(html.TO_TXT2IMG))
    prompt.change(fn=lambda: html.said(""), inputs=[], outputs=[sent])
    return created


def _face_inputs() -> list[Any]:
    with gr.Accordion("Which face", open=False):
        detector = gr.Dropdown(
            list(get_args(DetectorName)),
            value="auto",
            label="Face detector",
            info="auto: insightface if you have its models, otherwise the one that comes with scikit-image",
        )
        with gr.Row():
            order = gr.Dropdown(list(get_args(FaceOrder)), value="size", label="Order of faces")
            face = gr.Slider(0, 20, value=0, step=1, label="Face", info="counted from 1; 0 takes the first")
            on_no_face = gr.Dropdown(["stop", "skip", "whole-picture"], value="stop", label="If no face is found")
    return [detector, order, face, on_no_face]


def _create_inputs() -> list[Any]:
    with gr.Row():
        name = gr.Textbox(label="Name", value="face", elem_id="hyperdream_name")
        on = gr.Radio(list(_WHERE), value=next(iter(_WHERE)), label="Make it on", elem_id="hyperdream_on")
    with gr.Row():
        predict = gr.Checkbox(value=True, label="Predict first, if there is a predictor", elem_id="hyperdream_predict")
        steps = gr.Slider(
            -1, 400, value=Order.steps, step=1, label="Polishing steps",
            info=f"-1: {STEPS_AFTER_PREDICTION} after a prediction, {STEPS_FROM_SCRATCH} from scratch; 0: predict only",
            elem_id="hyperdream_steps",
        )  # fmt: skip
    caption = gr.Textbox(
        label="What the photographs show besides the person",
        placeholder="smiling, at the beach",
        info="so that it is not learnt as part of them; one line for all, or one for each",
        lines=1,
        elem_id="hyperdream_caption",
    )
    prompts = gr.Textbox(
        label="Draw for comparison", value="a [V] face", lines=2, info="one prompt per line; [V] stands for the person",
        elem_id="hyperdream_prompts",
    )  # fmt: skip
    with gr.Accordion("More", open=False):
        with gr.Row():
            identifier = gr.Textbox(label="Trigger word", value="sks", elem_id="hyperdream_identifier")
            class_noun = gr.Textbox(label="What the subject is", value="face", elem_id="hyperdream_class")
        with gr.Row():
            size = gr.Slider(
                0, 1024, value=0, step=64, label="Size, px", info="0: the checkpoint's own", elem_id="hyperdream_size"
            )
            at_once = gr.Slider(
                1, 16, value=Order.samples_at_once, step=1, label="Samples at once",
                info="fewer need less memory, with the same result", elem_id="hyperdream_at_once",
            )  # fmt: skip
        with gr.Row():
            draw_steps = gr.Slider(1, 60, value=20, step=1, label="Drawing steps", elem_id="hyperdream_draw_steps")
            seed = gr.Number(
                value=0, precision=0, label="Seed", info="-1: by chance, and said below", elem_id="hyperdream_seed"
            )
    return [name, on, predict, steps, caption, prompts, identifier, class_noun, size, at_once, draw_steps, seed]


def _library_panel(jobs: Jobs) -> tuple[Any, Any]:
    """Cards, and what may be done with the chosen one; returns the cards and the box of the chosen one."""
    loras = jobs.loras
    cards = gr.HTML(elem_id="hyperdream_cards")
    with gr.Row():
        chosen = gr.Textbox(label="Selected identity", placeholder="click a card", elem_id="hyperdream_chosen")
        strength = gr.Slider(-2, 2, value=1, step=0.05, label="Strength")
        prompt = gr.Textbox(label="Put this in the prompt", interactive=False, elem_id="hyperdream_chosen_prompt")
    with gr.Row():
        send = gr.Button("Send to txt2img", variant="primary", elem_id="hyperdream_send_chosen")
        export = gr.Button("Export as LoRA", elem_id="hyperdream_export")
        refresh = gr.Button("Refresh", elem_id="hyperdream_refresh")
        delete = gr.Button("Delete", elem_id="hyperdream_delete")
    with gr.Row():
        new_name = gr.Textbox(label="New name", scale=5, elem_id="hyperdream_new_name")
        rename = gr.Button("Rename", scale=1, min_width=120, elem_id="hyperdream_rename")
    with gr.Row():
        other = gr.Dropdown([], label="Blend with", elem_id="hyperdream_other")
        share = gr.Slider(0, 1, value=0.5, step=0.01, label="Share of the other")
        blend_name = gr.Textbox(label="Name of the blend", value="blend")
        blend = gr.Button("Blend", scale=1, min_width=120, elem_id="hyperdream_blend")
    message = gr.HTML(elem_id="hyperdream_library_message")

    def shown(name: str, value: float) -> tuple[str, Any, Any]:
        """Of the chosen one: the prompt, what is to be said, and whom it can be blended with."""
        entries = {entry.name: entry for entry in loras.entries()}
        family = entries[name].family if name in entries else ""
        others = [
            other for other, entry in entries.items() if entry.family and entry.family == (family or entry.family)
        ]
        choices = gr.update(choices=[other for other in others if other != name])
        try:
            prompt = loras.prompt(name, value) if name and loras.is_for_host(name) else ""
        except HyperDreamError as error:
            return "", html.refused(sentence(error)), choices
        return prompt, html.said(_ONLY_HERE) if name and not prompt else gr.update(), choices

    def done(action: Callable[..., tuple[str, str]]) -> Callable[..., tuple[Any, ...]]:
        """An action of the library for a button: it gives the chosen name afterwards, and what to say."""

        def run(name: str, *values: Any) -> tuple[Any, ...]:
            try:
                if not name:
                    raise ConfigError(_NOBODY_CHOSEN)
                name, text = action(name, *values)
                jobs.webui.refresh_networks()
            except HyperDreamError as error:
                return html.cards(loras), name, html.refused(sentence(error))
            return html.cards(loras), name, html.said(text)

        return run

    def renamed(name: str, new: str) -> tuple[str, str]:
        now = loras.rename(name, new)
        return now, f"{name} is now {now}"

    def deleted(name: str, sure: str) -> tuple[str, str]:
        if not sure:
            return name, f"{name} is still there"
        loras.delete(name)
        return "", f"{name} is deleted"

    def exported(name: str) -> tuple[str, str]:
        return name, f"written: {loras.export(name)}"

    def blended(name: str, second: str, of_second: float, called: str) -> tuple[str, str]:
        if not second:
            raise ConfigError("there is nobody to blend with; choose one of the same family at 'Blend with'")
        made = loras.blend(name, second, of_second, called)
        return made, f"kept as {made}; polish it or draw with it"

    after = [cards, chosen, message]
    rename.click(fn=done(renamed), inputs=[chosen, new_name], outputs=after)
    sure = gr.Textbox(visible=False)
    delete.click(fn=done(deleted), inputs=[chosen, sure], outputs=after, **script(html.CONFIRM_DELETE))
    export.click(fn=done(exported), inputs=[chosen], outputs=after)
    blend.click(fn=done(blended), inputs=[chosen, other, share, blend_name], outputs=after)
    refresh.click(fn=lambda: html.cards(loras), inputs=[], outputs=[cards])
    for component in (chosen, strength):
        component.change(fn=shown, inputs=[chosen, strength], outputs=[prompt, message, other])
    send.click(fn=_after_sending, inputs=[prompt], outputs=[message], **script(html.TO_TXT2IMG))
    return cards, chosen


def _after_sending(prompt: str) -> Any:
    """What is to be said once the browser has put a prompt where it belongs."""
    return html.said("") if prompt else html.refused(_NOTHING_TO_SEND)


def worded(error: HyperDreamError, where: str) -> str:
    """An error of making an identity in the words of this tab.

    Args:
        where: it was to be made, as the tab calls it.
    """
    text = sentence(error)
    for core, ours in _WORDS.items():
        text = text.replace(core, ours)
    if isinstance(error, ReferenceImageError) and "no face" in text and _WHERE.get(where) == CHECKPOINT:
        text += f". Drawn portraits, such as the one that comes with HyperDream, belong to {_DRAWN!r} at 'Make it on'."
    return text


def paths_of(dropped: Any) -> list[str]:
    """Paths of dropped files: gradio 3 gives temporary files, 4 gives texts."""
    files = dropped if isinstance(dropped, list) else [dropped]
    return [str(getattr(file, "name", file)) for file in files]


def script(text: str) -> dict[str, str]:
    """The argument that runs a script in the browser before a button's function; its name depends on gradio's age."""
    return {"_js" if int(gr.__version__.partition(".")[0]) < 4 else "js": text}


def _face_choice(values: Sequence[Any]) -> FaceChoice:
    detector, order, face, on_no_face = values
    return FaceChoice(detector=detector, order=order, face=_whole(face, "Face"), on_no_face=on_no_face)


def _order(files: Sequence[str], faces: FaceChoice, values: Sequence[Any]) -> Order:
    name, on, predict, steps, caption, prompts, identifier, class_noun, size, at_once, draw_steps, seed = values
    # Forge's gradio gives None for a box that nobody has touched.
    name, caption, prompts, identifier, class_noun = (
        text or "" for text in (name, caption, prompts, identifier, class_noun)
    )
    return Order(
        files=files,
        faces=faces,
        name=name,
        on=_WHERE.get(on, on),
        predict=predict,
        steps=_whole(steps, "Polishing steps"),
        caption=caption,
        prompts=prompts,
        identifier=" ".join(identifier.split()),
        class_noun=" ".join(class_noun.split()),
        size=_whole(size, "Size"),
        samples_at_once=_whole(at_once, "Samples at once"),
        draw_steps=_whole(draw_steps, "Drawing steps"),
        seed=_whole(seed, "Seed"),
    )


def _whole(value: Any, called: str) -> int:
    """A number from a dial; gradio hands over nothing where the user has emptied it."""
    try:
        return int(value)
    except (TypeError, ValueError, OverflowError) as error:
        raise ConfigError(f"{called!r} is empty or no number; write a whole number") from error
