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
  if (prompt && text) {
    const old = prompt.value.trim();
    prompt.value = old ? old + ', ' + text : text;
    updateInput(prompt);
    switch_to_txt2img();
  }
  return [];
}"""

CONFIRM_DELETE = """(name) => [name && confirm('Delete ' + name + ' and the LoRA beside it for good?') ? name : '']"""

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
    title = html.escape(plain_title(entry))
    words = entry.problem or f"{_SHORT.get(entry.family, entry.family)} · a {entry.identifier} {entry.class_noun}"
    picture = loras.library.preview(entry.name)
    small = "" if picture is None else thumbnail(picture)
    shown = f'<img src="{small}" alt="">' if small else f'<span class="hd-blank">{title[:1]}</span>'
    name, tip = html.escape(entry.name, quote=True), html.escape(f"{entry.name}\n{entry.notes or words}", quote=True)
    return (
        f'<button type="button" class="hd-card" data-name="{name}" title="{tip}" onclick="{_CHOOSE}">{shown}'
        f"<b>{title}</b><small>{html.escape(words)}</small></button>"
    )


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
