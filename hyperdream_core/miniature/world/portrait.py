"""Painting a person's portrait, back to front.

A portrait is a person in a context (what the caption names) under a view (what nobody names).
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...bases.miniature import MINIATURE
from .canvas import Canvas, arc, blend, box, ellipse, grid, palette
from .captions import Context
from .people import EYE_COLOURS, HAIR_COLOURS, HAIR_STYLES, TRAITS, People
from .scenery import HeadFrame, apply_style, paint_accessories, paint_background
from .view import View, seen

SKIN = [(0.99, 0.87, 0.78), (0.93, 0.75, 0.60), (0.80, 0.58, 0.41), (0.58, 0.38, 0.25), (0.36, 0.23, 0.16)]


def render_people(people: People, context: Context, view: View, size: int = MINIATURE.picture_size) -> Tensor:
    """Paint portraits.

    Args:
        people, context, view: (b,) each.
        size: edge of the square pictures in px.

    Returns:
        Pictures (b, 3, size, size), 0..1.
    """
    count = len(people)
    raw_x, raw_y = grid(size, people.traits.device)
    canvas = Canvas(torch.ones(count, 3, size, size, device=people.traits.device))
    paint_background(canvas, raw_x, raw_y, context.background, view.mood)
    x, y = seen(raw_x, raw_y, view)
    painter = _Portrait(canvas, x, y, people, context, view)
    painter.paint()
    return apply_style(canvas.pixels, context.style)


class _Portrait:
    """One batch of portraits while it is painted: shared geometry and colours, one method a part."""

    def __init__(self, canvas: Canvas, x: Tensor, y: Tensor, people: People, context: Context, view: View) -> None:
        self.canvas, self.x, self.y, self.people, self.context, self.view = canvas, x, y, people, context, view
        t = people.trait
        self.width = t("face_width", 0.44, 0.64)
        self.length = t("face_length", 0.54, 0.72)
        self.middle = -0.07 + (self.length - 0.63) * 0.3
        self.top, self.chin = self.middle - self.length, self.middle + self.length
        turn = view.turn.reshape(-1, 1, 1)
        self.face_x = 0.16 * turn
        self.eye_y = self.middle + t("eye_height", -0.11, 0.04)
        self.eye_dx = t("eye_spacing", 0.185, 0.275)
        tone = people.traits[:, TRAITS.index("skin_tone")]
        warmth = people.trait("skin_warmth", -0.05, 0.05).reshape(-1, 1)
        self.skin = (blend(SKIN, tone) + warmth * torch.tensor([1.0, 0.1, -1.2])).clamp(0.0, 1.0)
        shade = people.trait("hair_shade", 0.75, 1.25).reshape(-1, 1)
        self.hair = (palette(HAIR_COLOURS, people.hair_colour) * shade).clamp(0.02, 0.97)
        self.head = self._head_distance()
        self.expression = [(context.expression == i).float().reshape(-1, 1, 1) for i in range(4)]
        self.frame = HeadFrame(self.width, self.top, self.chin, self.eye_y, self.eye_dx, self.face_x)

    def paint(self) -> None:
        """Paint everything, back to front."""
        self._hair_behind()
        self._body()
        self._ears_and_head()
        self._skin_details()
        self._beard()
        self._eyes()
        self._tears()
        self._brows()
        self._nose()
        self._mouth()
        self._hair_in_front()
        accessory_hue = self.view.mood[:, 3]
        paint_accessories(self.canvas, self.x, self.y, self.frame, self.context.accessory, accessory_hue)
        self._light()
        self._occlusion()

    def _head_distance(self) -> Tensor:
        """Skull above, jaw below: half the width of the head as a function of height."""
        t = self.people.trait
        s = ((self.y - self.middle) / self.length).clamp(-1.0, 1.0)
        skull = torch.sqrt((1.0 - s**2).clamp(min=1e-4))
        power = t("jaw_width", 1.75, 4.2)
        jaw = (1.0 - s.abs().clamp(1e-3, 1.0) ** power).clamp(min=1e-4) ** t("chin", 0.75, 0.45)
        profile = torch.where(s > 0.0, jaw, skull)
        across = (self.x.abs() - self.width * profile) * 0.85
        return torch.maximum(across, (self.y - self.middle).abs() - self.length)

    def _is_hair(self, *styles: str) -> Tensor:
        chosen = torch.zeros_like(self.people.hair_style, dtype=torch.bool)
        for style in styles:
            chosen |= self.people.hair_style == HAIR_STYLES.index(style)
        return chosen.float().reshape(-1, 1, 1)

    def _hair_behind(self) -> None:
        t, c = self.people.trait, self.canvas
        volume = t("hair_volume", 0.04, 0.18)
        bottom = t("hair_length", 0.30, 0.80)
        mane = box(self.x, self.y - (bottom + self.top - 0.1) * 0.5, self.width + volume + 0.04,
                   (bottom - self.top + 0.1) * 0.5, 0.36)  # fmt: skip
        c.paint(c.cover(mane) * self._is_hair("long"), self.hair * 0.78)
        bob = box(self.x, self.y - (self.top + 0.36), self.width + volume, 0.36 + bottom * 0.35, 0.3)
        c.paint(c.cover(bob) * self._is_hair("fringe"), self.hair * 0.78)
        wave = 0.035 * torch.sin(torch.atan2(self.y - self.top - 0.3, self.x) * 13.0)
        curls = ellipse(self.x, self.y - self.top - 0.34, self.width + volume + 0.12, 0.52 + volume) + wave
        c.paint(c.cover(curls) * self._is_hair("curly"), self.hair * 0.8)
        knot = ellipse(self.x, self.y - self.top + 0.10, 0.20 + volume * 0.5, 0.17 + volume * 0.5)
        c.paint(c.cover(knot) * self._is_hair("bun"), self.hair * 0.85)

    def _body(self) -> None:
        c = self.canvas
        neck = box(self.x, self.y - self.chin - 0.02, 0.19, 0.30, 0.05)
        c.paint(c.cover(neck), self.skin * 0.82)
        cloth = blend([(0.30, 0.38, 0.52), (0.62, 0.34, 0.36), (0.36, 0.50, 0.42), (0.85, 0.82, 0.76)],
                      self.view.mood[:, 2])  # fmt: skip
        shoulders = ellipse(self.x, self.y - self.chin - 0.62, 0.86, 0.50)
        collar = ellipse(self.x, self.y - self.chin - 0.12, 0.24, 0.15)
        c.paint(c.cover(torch.maximum(shoulders, -collar)), cloth)
        c.paint(c.cover(torch.maximum(shoulders, collar.abs() - 0.03)), cloth * 0.75)

    def _ears_and_head(self) -> None:
        c = self.canvas
        size = self.people.trait("ear_size", 0.75, 1.35)
        for side in (-1.0, 1.0):
            x = self.x - side * (self.width * 0.99 + 0.01 * size)
            ear = ellipse(x, self.y - self.eye_y - 0.08, 0.075 * size, 0.125 * size)
            c.paint(c.cover(ear), self.skin * 0.92)
            c.paint(c.cover(ear + 0.045), self.skin * 0.75)
        c.paint(c.cover(self.head), self.skin)
        rim = ((self.head + 0.16) / 0.16).clamp(0.0, 1.0) ** 2 * c.cover(self.head)
        c.shade(rim, 0.86)

    def _skin_details(self) -> None:
        t, c = self.people.trait, self.canvas
        blush = torch.tensor([0.88, 0.38, 0.36]).expand(len(self.people), 3)
        for side in (-1.0, 1.0):
            cheek = (self.x - self.face_x - side * (self.eye_dx + 0.05)) ** 2 + (self.y - self.eye_y - 0.25) ** 2
            c.paint(0.22 * torch.exp(-cheek * 55.0), blush)
        amount = ((t("freckles") - 0.6) / 0.4).clamp(0.0, 1.0)
        u, v = (self.x - self.face_x) * 12.0, (self.y - self.eye_y - 0.2) * 12.0
        dots = (torch.sin(u + 0.6 * torch.sin(v)) * torch.sin(v + 0.5 * torch.sin(u)) - 0.35).clamp(0.0, 0.5)
        band = torch.exp(-((self.y - self.eye_y - 0.2) ** 2) * 40.0 - (self.x - self.face_x) ** 2 * 8.0)
        c.shade(dots * band * amount * c.cover(self.head), 0.15)
        has_mole = (t("mole_x") > 0.5).float()
        where_x = self.face_x + (t("mole_x", -0.9, 0.9) - 0.45) * 0.62
        mole = ellipse(self.x - where_x, self.y - self.middle - t("mole_y", -0.02, 0.42), 0.05, 0.05)
        c.paint(c.cover(mole) * has_mole, self.skin * 0.28)

    def _beard(self) -> None:
        c = self.canvas
        beard = self.people.beard.reshape(-1, 1, 1)
        mouth_y, x = self._mouth_height(), self.x - self.face_x
        jaw = torch.maximum(self.head + 0.005, -(self.y - mouth_y + 0.10 - 0.9 * (x.abs() - 0.15).clamp(min=0.0) * 0.4))
        jaw = torch.maximum(jaw, -ellipse(x, self.y - mouth_y + 0.02, 0.17, 0.07))
        c.paint(c.cover(jaw, 3.0) * (beard == 3), self.hair * 0.85)
        c.paint(c.cover(jaw, 8.0) * (beard == 4) * 0.38, self.hair * 0.6)
        goatee = ellipse(x, self.y - self.chin + 0.07, 0.18, 0.15)
        c.paint(c.cover(goatee, 2.0) * (beard == 2), self.hair * 0.85)
        moustache = arc(x, self.y - mouth_y + 0.05, 0.26, -0.09, 0.055)
        c.paint(c.cover(moustache) * ((beard >= 1) & (beard <= 3)).float(), self.hair * 0.8)

    def _eyes(self) -> None:
        t, c = self.people.trait, self.canvas
        calm, smiling, sad, surprised = self.expression
        openness = calm + 0.72 * smiling + 0.70 * sad + 1.45 * surprised
        half = t("eye_size", 0.095, 0.150)
        height = half * 0.62 * openness
        iris_colour = palette(EYE_COLOURS, self.people.eye_colour)
        white = torch.full((len(self.people), 3), 0.97)
        ink = torch.full((len(self.people), 3), 0.07)
        gaze = 0.025 * self.view.turn.reshape(-1, 1, 1)
        for side in (-1.0, 1.0):
            x = self.x - self.face_x - side * self.eye_dx
            y = self.y - self.eye_y + side * x * t("eye_tilt", -0.32, 0.32)
            eye = ellipse(x, y, half, height)
            shape = c.cover(eye)
            c.paint(c.cover(eye - 0.022), self.skin * 0.62)
            c.paint(shape, white)
            radius = half * 0.60
            c.paint(c.cover(ellipse(x - gaze, y, radius, radius)) * shape, iris_colour)
            c.paint(c.cover(ellipse(x - gaze, y, radius * 0.5, radius * 0.5)) * shape, ink)
            c.paint(c.cover(ellipse(x - gaze - 0.022, y + 0.024, 0.022, 0.022)) * shape, white)
            lid = arc(x, y, half * 1.12, -height * 1.05, 0.030)
            c.paint(c.cover(lid), ink)

    def _tears(self) -> None:
        sad = self.expression[2]
        for side in (-1.0, 1.0):
            x = self.x - self.face_x - side * (self.eye_dx + 0.03)
            drop = box(x, self.y - self.eye_y - 0.20, 0.045, 0.12, 0.045)
            self.canvas.paint(self.canvas.cover(drop) * sad, torch.tensor([0.45, 0.78, 0.98]).expand(len(sad), 3))

    def _brows(self) -> None:
        t, c = self.people.trait, self.canvas
        _, smiling, sad, surprised = self.expression
        lift = 0.10 * surprised + 0.015 * smiling
        height = self.eye_y - t("brow_height", 0.165, 0.245) - lift
        slope = t("brow_angle", -0.28, 0.28) + 0.50 * sad
        for side in (-1.0, 1.0):
            x = self.x - self.face_x - side * self.eye_dx * 1.02
            y = self.y - height - side * x * slope
            brow = arc(x, y, 0.160, -0.04 - 0.03 * surprised, t("brow_thickness", 0.018, 0.062))
            c.paint(c.cover(brow), self.hair * 0.62)

    def _nose(self) -> None:
        t, c = self.people.trait, self.canvas
        width, tip = t("nose_width", 0.060, 0.140), self.eye_y + t("nose_length", 0.20, 0.34)
        x = self.x - self.face_x * 1.35
        bridge = torch.exp(-((x - 0.022) ** 2) * 900.0) * ((self.y - self.eye_y - 0.03) > 0) * (self.y < tip)
        c.shade(bridge.float() * 0.30, 0.72)
        ball = ellipse(x, self.y - tip + 0.01, width, 0.060)
        c.paint(c.cover(ball, 2.5) * 0.55, self.skin * 0.90)
        c.paint(c.cover(arc(x, self.y - tip - 0.012, width * 1.1, 0.042, 0.021)), self.skin * 0.52)
        c.paint(0.5 * torch.exp(-((x + 0.012) ** 2 + (self.y - tip + 0.035) ** 2) * 1200.0), self.skin * 0.3 + 0.7)

    def _mouth_height(self) -> Tensor:
        nose = self.eye_y + self.people.trait("nose_length", 0.20, 0.34)
        return nose + (self.chin - nose) * 0.42

    def _mouth(self) -> None:
        t, c = self.people.trait, self.canvas
        calm, smiling, sad, surprised = self.expression
        half = t("mouth_width", 0.135, 0.245) * (calm + 1.20 * smiling + 0.95 * sad + 0.55 * surprised)
        bend = 0.012 * calm + 0.120 * smiling - 0.110 * sad
        full = t("lip_fullness", 0.025, 0.062)
        lip = self.skin * torch.tensor([0.80, 0.50, 0.50])
        x, y = self.x - self.face_x, self.y - self._mouth_height() + 0.4 * bend
        c.paint(c.cover(arc(x, y, half, bend, full)) * (1.0 - surprised), lip)
        smile = torch.maximum(arc(x, y, half * 0.86, bend * 1.35, full * 0.2 + 0.05), -(y - bend * 0.35))
        c.paint(c.cover(smile) * smiling, torch.full((len(self.people), 3), 0.96))
        c.paint(c.cover(arc(x, y, half * 0.95, bend, 0.014)) * (1.0 - surprised), self.skin * 0.22)
        ring = ellipse(x, y, half + full * 0.6, 0.105 + full * 0.6)
        c.paint(c.cover(ring) * surprised, lip)
        c.paint(c.cover(ellipse(x, y, half * 0.72, 0.090)) * surprised, self.skin * 0.16)

    def _hair_in_front(self) -> None:
        t, c = self.people.trait, self.canvas
        volume = t("hair_volume", 0.04, 0.18)
        line = self.top + t("hairline", 0.16, 0.30)
        cap = ellipse(self.x, self.y - self.middle, self.width + volume * 0.55, self.length + volume)
        x = self.x - 0.6 * self.face_x
        edge = line + 0.55 * x**2
        short = torch.maximum(cap, self.y - edge - 0.12 * (x.abs() > self.width * 0.86))
        sides = torch.maximum(cap, torch.maximum(self.y - self.eye_y - 0.05, self.width * 0.86 - self.x.abs()))
        short = torch.minimum(short, sides)
        buzz = torch.maximum(self.head - 0.012, self.y - edge)
        parting = 0.34 * (x + 0.16).clamp(min=0.0) + 1.6 * (-x - 0.16).clamp(min=0.0)
        parted = torch.minimum(torch.maximum(cap, self.y - (line - 0.02 + parting)), sides)
        fringe = torch.maximum(cap, self.y - (self.eye_y - 0.185) - 0.022 * torch.sin(30.0 * x) - 0.30 * x**2)
        curly = torch.maximum(cap - 0.05, self.y - edge - 0.035 * torch.sin(24.0 * x)) - 0.02
        swept = torch.maximum(cap, self.y - (line - 0.05 + 0.95 * x.abs() ** 1.5))
        for style, shape in (("short", short), ("side part", parted), ("fringe", fringe), ("long", swept),
                             ("curly", curly), ("bun", swept)):  # fmt: skip
            on = self._is_hair(style)
            c.paint(c.cover(shape) * on, self.hair)
            gloss = torch.exp(-((x + 0.15) ** 2) * 14.0 - (self.y - self.top - 0.06) ** 2 * 160.0)
            c.paint(gloss * c.cover(shape) * on * 0.28, self.hair * 0.4 + 0.6)
        c.paint(c.cover(buzz, 3.0) * self._is_hair("shaved") * 0.45, self.hair * 0.8)

    def _light(self) -> None:
        direction, strength = self.view.light[:, 0].reshape(-1, 1, 1), self.view.light[:, 1].reshape(-1, 1, 1)
        lit = 1.0 + strength * (direction * self.x * 0.8).clamp(-0.6, 0.6)
        self.canvas.pixels = (self.canvas.pixels * lit.unsqueeze(1)).clamp(0.0, 1.0)

    def _occlusion(self) -> None:
        share = self.view.occlusion.reshape(-1, 1, 1)
        hidden = self.canvas.cover(-(self.y - self.chin + share * 2.0 * self.length)) * (share > 0)
        self.canvas.paint(hidden, torch.full((len(self.people), 3), 0.35))
