"""What the browser gets of the tab besides gradio's own: styles, cards, a likeness bar and short scripts."""

from __future__ import annotations

import base64
import html
import io
from collections.abc import Sequence
from pathlib import Path

from hyperdream_core.errors import HyperDreamError
from hyperdream_core.pictures.files import read_image, square_crop, to_pil
from hyperdream_core.pipelines.library import Entry

from .lora_folder import LoraFolder, plain_title

_THUMBNAIL = 192
_SHORT = {"sd15": "SD 1.x", "sd2": "SD 2.x", "sdxl": "SDXL"}

STYLE = """<style>
#hyperdream_tab .hd-intro { margin: 0 0 .25em; color: var(--body-text-color-subdued); }
#hyperdream_tab .hd-cards { display: flex; flex-wrap: wrap; gap: 12px; max-height: 30em; overflow: auto; padding: 2px; }
#hyperdream_tab .hd-card { width: 148px; padding: 0; overflow: hidden; text-align: left; cursor: pointer;
  color: var(--body-text-color); background: var(--background-fill-primary);
  border: 1px solid var(--border-color-primary); border-radius: 8px; }
#hyperdream_tab .hd-card:hover, #hyperdream_tab .hd-card:focus-visible { outline: 2px solid var(--color-accent);
  outline-offset: -1px; }
#hyperdream_tab .hd-card img, #hyperdream_tab .hd-card .hd-blank { display: flex; margin: 0;
  width: 148px; height: 148px;
  object-fit: cover; align-items: center; justify-content: center; font-size: 52px;
  background: var(--background-fill-secondary); color: var(--body-text-color-subdued); }
#hyperdream_tab .hd-card b, #hyperdream_tab .hd-card small { display: block; padding: 0 8px; overflow: hidden;
  text-overflow: ellipsis; white-space: nowrap; }
#hyperdream_tab .hd-card b { padding-top: 6px; }
#hyperdream_tab .hd-card small { padding-bottom: 7px; color: var(--body-text-color-subdued); }
#hyperdream_tab .hd-bad { border-style: dashed; }
#hyperdream_tab .hd-bad small { white-space: normal; max-height: 5.5em; }
#hyperdream_tab .hd-likeness { display: grid; grid-template-columns: max-content 1fr max-content; gap: 6px 12px;
  align-items: center; }
#hyperdream_tab .hd-bar { height: 10px; border-radius: 5px; background: var(--border-color-primary); }
#hyperdream_tab .hd-bar i { display: block; height: 100%; border-radius: 5px;
  background: var(--body-text-color-subdued); }
#hyperdream_tab .hd-bar i.hd-after { background: var(--color-accent); }
#hyperdream_tab .hd-said { white-space: pre-wrap; line-height: 1.5; }
#hyperdream_tab .hd-refused { padding: 10px 12px; border-left: 4px solid var(--color-accent);
  background: var(--background-fill-secondary); }
#hyperdream_tab #hyperdream_rename, #hyperdream_tab #hyperdream_blend { align-self: end; max-height: 42px; }
#hyperdream_tab #hyperdream_live { position: relative; min-height: 0; }
#hyperdream_tab #hyperdream_live:has(.livePreview) { min-height: 256px; }
</style>"""

INTRO = (
    '<p class="hd-intro">Turn a photograph of a face into a person you can prompt for. Drop a picture, press '
    "<b>Create</b>, and use the identity in any prompt as <code>&lt;lora:name:1&gt;</code>.</p>"
)

START = """(...inputs) => {
  if (typeof randomId !== 'function') return inputs;
  const id = randomId();
  const live = document.getElementById('hyperdream_live');
  if (live) requestProgress(id, live, live, () => {}, () => {});
  inputs[0] = id;
  return inputs;
}"""
"""Makes up the job's id and begins to ask for its progress, where the host has functions for both."""

TO_TXT2IMG = """(text) => {
  const prompt = document.querySelector('#txt2img_prompt textarea');
  if (!prompt || !text) return [text];
  const [tag, name] = text.match(/<lora:([^:>]+):[^>]*>/) || ['', ''];
  const tags = prompt.value.match(/<lora:[^>]*>/g) || [];
  const known = tags.find((one) => name && one.startsWith('<lora:' + name + ':'));
  const old = prompt.value.trim();
  if (known) prompt.value = prompt.value.replace(known, () => tag);
  else if (!old.includes(text)) prompt.value = old ? old + ', ' + text : text;
  updateInput(prompt);
  switch_to_txt2img();
  return [text];
}"""
"""Adds to the host's prompt; a person who is there already gets the new strength."""

CONFIRM_DELETE = """(name, sure) =>
  [name, name && confirm('Delete ' + name + ' and the LoRA beside it for good?') ? 'yes' : '']"""

_CHOOSE = (
    "const box = document.querySelector('#hyperdream_chosen textarea, #hyperdream_chosen input'); "
    "box.value = this.dataset.name; box.dispatchEvent(new Event('input', {bubbles: true}));"
)


def cards(loras: LoraFolder) -> str:
    """The library as HTML: a card for each identity, which puts its name into the box of the chosen one."""
    entries = loras.entries()
    if not entries:
        return '<p class="hd-intro">No identities yet. Those you create appear here.</p>'
    return f'<div class="hd-cards">{"".join(_card(loras, entry) for entry in entries)}</div>'


def _card(loras: LoraFolder, entry: Entry) -> str:
    title = html.escape(_text(plain_title(entry)))
    words = entry.problem or f"{_SHORT.get(entry.family, entry.family)} · a {entry.identifier} {entry.class_noun}"
    name, tip = html.escape(_text(entry.name)), html.escape(_text(f"{entry.name}\n{entry.notes or words}"))
    small = html.escape(_text(words))
    if entry.problem:
        shown, kind, small = '<span class="hd-blank">⚠</span>', "hd-card hd-bad", f"cannot be read: {small}"
    else:
        shown, kind = _picture(loras, entry.name) or f'<span class="hd-blank">{title[:1]}</span>', "hd-card"
    return (
        f'<button type="button" class="{kind}" data-name="{name}" title="{tip}" onclick="{_CHOOSE}">{shown}'
        f"<b>{title}</b><small>{small}</small></button>"
    )


def _picture(loras: LoraFolder, name: str) -> str:
    """The picture beside an identity; empty without one that can be read."""
    try:
        path = loras.library.preview(name)
    except HyperDreamError:
        # Deleted since the folder was read.
        return ""
    small = "" if path is None else thumbnail(path)
    return f'<img src="{small}" alt="">' if small else ""


def _text(text: str) -> str:
    """A file's name as text; bytes that are none become question marks."""
    return text.encode("utf-8", "replace").decode()


def thumbnail(path: Path) -> str:
    """A picture as a small data URI; empty for one that cannot be read."""
    try:
        small = to_pil(square_crop(read_image(path), _THUMBNAIL))
    except HyperDreamError:
        return ""
    stream = io.BytesIO()
    small.save(stream, format="JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(stream.getvalue()).decode()


def likeness_bars(before: float | None, after: float | None) -> str:
    """Likeness without and with the identity, as two bars from 0 to 1."""
    if after is None:
        return ""
    rows = [("without", before, ""), ("with the identity", after, "hd-after")]
    cells: Sequence[str] = [
        f'<span>{label}</span><span class="hd-bar"><i class="{kind}" style="width: {100 * min(1, max(0, value)):.0f}%">'
        f"</i></span><b>{value:.2f}</b>"
        for label, value, kind in rows
        if value is not None
    ]
    explained = '<p class="hd-intro">Likeness: 0 is a stranger, 1 the same picture.</p>'
    return f'{explained}<div class="hd-likeness">{"".join(cells)}</div>'


def said(text: str) -> str:
    """Lines to read."""
    return f'<div class="hd-said">{html.escape(text)}</div>'


def refused(text: str) -> str:
    """Why something was not done."""
    return f'<div class="hd-said hd-refused">{html.escape(text)}</div>'
