"""One sheet of labelled pictures: rows and columns with their names, ready to be looked at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .files import resize, to_pil

PAPER = (250, 249, 246)
INK = (38, 38, 42)
FAINT = (116, 114, 110)
EMPTY = (238, 236, 231)

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont


@dataclass(frozen=True)
class _Layout:
    """Sizes in px; all follow from the cell, so that a grid looks the same at every size."""

    cell: int

    @property
    def gap(self) -> int:
        return max(4, self.cell // 20)

    @property
    def margin(self) -> int:
        return max(12, self.cell // 8)

    @property
    def text(self) -> int:
        return max(11, self.cell // 13)

    @property
    def corner(self) -> int:
        return max(3, self.cell // 32)


class _Text:
    """A label wrapped to a width (px), which knows its size before it is drawn."""

    def __init__(self, text: str, font: Font, colour: tuple[int, int, int], width: float) -> None:
        if isinstance(font, ImageFont.ImageFont):
            # The bitmap font has no other letters and raises on them.
            text = text.encode("latin-1", "replace").decode("latin-1")
        self.lines, self.font, self.colour = _wrap(text, font, width), font, colour
        # Measured on letters with ascenders and descenders, so that every line is as high as any other.
        self.line_height = round(1.25 * font.getbbox("Agjpqy")[3])
        self.width = math.ceil(max((font.getlength(line) for line in self.lines), default=0))
        self.height = len(self.lines) * self.line_height

    def draw(self, draw: ImageDraw.ImageDraw, x: float, y: float, shift: float = 0.0) -> None:
        """Draw from y down; x is the left edge at shift 0, the middle at 0.5, the right edge at 1."""
        for index, line in enumerate(self.lines):
            start = x - shift * self.font.getlength(line)
            draw.text((start, y + index * self.line_height), line, font=self.font, fill=self.colour)


def labelled_grid(
    rows: Sequence[Sequence[Tensor | None]],
    column_labels: Sequence[str],
    row_labels: Sequence[str] = (),
    *,
    title: str = "",
    caption: str = "",
    cell: int = 256,
    font_file: str = "",
) -> Image.Image:
    """Draw pictures as a table with names above the columns and left of the rows.

    Args:
        rows: pictures (3, h, w) in 0..1, fitted into square cells; None leaves a cell blank.
        column_labels: one per column; wrapped to the width of a cell.
        row_labels: one per row, or none at all.
        title: large, above everything.
        caption: small, below everything; wrapped to the width of the grid.
        cell: side of a picture in px.
        font_file: a TrueType font for the labels; Pillow's own if left out.
    """
    columns = len(column_labels)
    if not rows or not columns or any(len(row) != columns for row in rows):
        raise ValueError(f"rows have {[len(row) for row in rows]} pictures, expected {columns} in each")
    if row_labels and len(row_labels) != len(rows):
        raise ValueError(f"{len(row_labels)} row labels for {len(rows)} rows")
    layout = _Layout(cell)
    font = label_font(layout.text, font_file)
    heads = [_Text(label, font, INK, cell) for label in column_labels]
    sides = [_Text(label, font, INK, cell) for label in row_labels]

    left = layout.margin + (max(side.width for side in sides) + 2 * layout.gap if sides else 0)
    width = left + columns * cell + (columns - 1) * layout.gap + layout.margin
    heading = _Text(title, label_font(round(1.5 * layout.text), font_file), INK, width - 2 * layout.margin)
    footer = _Text(caption, label_font(round(0.9 * layout.text), font_file), FAINT, width - 2 * layout.margin)
    head_height = max(head.height for head in heads)
    heads_top = layout.margin + heading.height + (layout.gap if title else 0)
    top = heads_top + head_height + layout.gap // 2
    bottom = top + len(rows) * cell + (len(rows) - 1) * layout.gap
    footer_top = bottom + (2 * layout.gap if caption else 0)
    sheet = Image.new("RGB", (width, footer_top + footer.height + layout.margin), PAPER)

    draw = ImageDraw.Draw(sheet)
    heading.draw(draw, layout.margin, layout.margin)
    for column, head in enumerate(heads):
        # Labels of one line stand next to the pictures even where a neighbour needs two.
        head.draw(draw, left + column * (cell + layout.gap) + cell / 2, heads_top + head_height - head.height, 0.5)
    for row, side in enumerate(sides):
        side.draw(draw, left - 2 * layout.gap, top + row * (cell + layout.gap) + (cell - side.height) / 2, 1.0)
    footer.draw(draw, layout.margin, footer_top)
    _paste_cells(sheet, rows, left, top, layout)
    return sheet


def _paste_cells(
    sheet: Image.Image, rows: Sequence[Sequence[Tensor | None]], left: int, top: int, layout: _Layout
) -> None:
    cell, step = layout.cell, layout.cell + layout.gap
    # Drawn at four times the size and reduced: Pillow draws rounded corners without antialiasing.
    mask = Image.new("L", (4 * cell, 4 * cell), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, 4 * cell - 1, 4 * cell - 1), 4 * layout.corner, fill=255)
    mask = mask.resize((cell, cell), Image.Resampling.BOX)
    for row, pictures in enumerate(rows):
        for column, picture in enumerate(pictures):
            if picture is None:
                continue
            fitted = to_pil(_fitted(picture, cell))
            tile = Image.new("RGB", (cell, cell), EMPTY)
            tile.paste(fitted, ((cell - fitted.width) // 2, (cell - fitted.height) // 2))
            sheet.paste(tile, (left + column * step, top + row * step), mask)


def _fitted(picture: Tensor, cell: int) -> Tensor:
    height, width = picture.shape[-2:]
    scale = cell / max(height, width)
    return resize(picture, max(1, round(height * scale)), max(1, round(width * scale)))


def label_font(size: int, file: str = "") -> Font:
    """The font of labels, at a size in px: the one in a TrueType file, or Pillow's own."""
    if file:
        return ImageFont.truetype(file, size)
    try:
        return ImageFont.load_default(size)
    except TypeError:
        # Pillow before 10.1, as Automatic1111 has it, bundles only its small bitmap font.
        return ImageFont.load_default()


def _wrap(text: str, font: Font, width: float) -> list[str]:
    """Break text into lines no wider than `width`, at spaces where there are any and inside words where not."""
    lines: list[str] = []
    for paragraph in text.splitlines():
        line = ""
        for word in paragraph.split():
            if line and font.getlength(f"{line} {word}") <= width:
                line = f"{line} {word}"
                continue
            if line:
                lines.append(line)
            while font.getlength(word) > width and len(word) > 1:
                head = next(n for n in range(len(word) - 1, 0, -1) if n == 1 or font.getlength(word[:n]) <= width)
                lines.append(word[:head])
                word = word[head:]
            line = word
        lines.append(line)
    return lines
