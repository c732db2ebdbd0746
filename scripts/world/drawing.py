"""Pictures of scenes: coloured silhouettes with a dark line and a white rim."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable

from PIL import Image, ImageDraw, ImageFilter

from .scenes import Scene, Thing

Colour = tuple[int, int, int]
Point = tuple[float, float]

PALETTE: dict[str, Colour] = {
    "red": (214, 36, 40), "orange": (246, 130, 24), "yellow": (250, 218, 48),
    "green": (46, 160, 60), "blue": (36, 84, 210), "purple": (128, 56, 170),
    "pink": (250, 150, 192), "brown": (124, 74, 38), "black": (28, 28, 32),
    "white": (252, 252, 252), "gray": (140, 143, 148), "turquoise": (40, 202, 192),
}  # fmt: skip
DARK, LIGHT, WOOD = (44, 42, 50), (246, 240, 222), (150, 106, 64)
LEAF, FLAME = (70, 140, 70), (255, 190, 60)
OVERSAMPLE = 2


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """Mix `share` of `b` into `a`."""
    return tuple(round(x + (y - x) * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]


class Pen:
    """Draws in a box whose x and y run from -1 to 1 (y downwards).

    Shapes are filled with the thing's colour by default.
    """

    def __init__(self, half: int, colour: Colour, flip: bool) -> None:
        self.half, self.flip = half, -1 if flip else 1
        self.side = round(half * 2.3)
        self.image = Image.new("RGBA", (self.side, self.side))
        self.canvas = ImageDraw.Draw(self.image)
        dark = sum(colour) < 150
        self.ink = (150, 150, 158) if dark else DARK
        lighter, darker = mix(colour, (255, 255, 255), 0.22), mix(colour, (0, 0, 0), 0.28)
        self.body, self.shade = colour, lighter if dark else darker
        self.width = max(2, round(half * 0.055))

    def at(self, points: Iterable[Point]) -> list[Point]:
        """Return unit points as pixels of the tile."""
        middle, along = self.side / 2, self.flip * self.half
        return [(middle + x * along, middle + y * self.half) for x, y in points]

    def poly(self, *points: Point, fill: Colour | None = None) -> None:
        """Draw a filled, outlined polygon."""
        pixels = self.at(points)
        self.canvas.polygon(pixels, fill=fill or self.body)
        self.canvas.line(
            [*pixels, pixels[0], pixels[1]], fill=self.ink, width=self.width, joint="curve"
        )

    def rect(self, x0: float, y0: float, x1: float, y1: float, fill: Colour | None = None) -> None:
        """Draw a filled, outlined rectangle."""
        self.poly((x0, y0), (x1, y0), (x1, y1), (x0, y1), fill=fill)

    def oval(
        self, x: float, y: float, rx: float, ry: float | None = None, fill: Colour | None = None
    ) -> None:
        """Draw a filled, outlined ellipse about (x, y)."""
        self.pie(x, y, rx, rx if ry is None else ry, 0, 360, fill)

    def pie(
        self,
        x: float,
        y: float,
        rx: float,
        ry: float,
        start: int,
        end: int,
        fill: Colour | None = None,
    ) -> None:
        """Draw a filled, outlined segment of an ellipse, closed by a chord.

        It goes from `start` to `end` degrees (0 right, 90 down).
        """
        self.poly(*arc(x, y, rx, ry, start, end), fill=fill)

    def line(self, *points: Point, fill: Colour | None = None, width: float = 0.055) -> None:
        """Draw an open line, in ink by default."""
        self.canvas.line(
            self.at(points),
            fill=fill or self.ink,
            width=max(2, round(self.half * width)),
            joint="curve",
        )

    def rod(self, *points: Point, fill: Colour | None = None, width: float = 0.16) -> None:
        """Draw a thick line with an ink edge, in the thing's colour by default."""
        self.line(*points, width=width + 0.09)
        self.line(*points, fill=fill or self.body, width=width)

    def dot(self, x: float, y: float, r: float = 0.07, fill: Colour | None = None) -> None:
        """Draw a small round dot without an outline, in ink by default."""
        (cx, cy), r = self.at([(x, y)])[0], r * self.half
        self.canvas.ellipse((cx - r, cy - r, cx + r, cy + r), fill=fill or self.ink)


def arc(x: float, y: float, rx: float, ry: float, start: int, end: int) -> list[Point]:
    """Return points along an ellipse, every ten degrees."""
    angles = [math.radians(a) for a in [*range(start, end, 10), end]]
    return [(x + rx * math.cos(a), y + ry * math.sin(a)) for a in angles]


# --- the 36 objects


def house(p: Pen) -> None:
    p.rect(0.35, -0.85, 0.6, -0.2, fill=p.shade)
    p.rect(-0.75, -0.1, 0.75, 0.92)
    p.poly((-1, -0.05), (0, -0.92), (1, -0.05), fill=p.shade)
    p.rect(-0.5, 0.3, -0.1, 0.92, fill=DARK)
    p.rect(0.15, 0.2, 0.55, 0.58, fill=LIGHT)


def castle(p: Pen) -> None:
    p.poly((-0.5, 0.0), (-0.25, 0.0), (-0.25, -0.2), (0, -0.2), (0, 0), (0.25, 0), (0.25, -0.2),
    (0.5, -0.2),
           (0.5, 0.92), (-0.5, 0.92))  # fmt: skip
    for x in (-0.68, 0.68):
        p.poly((x - 0.28, -0.75), (x - 0.1, -0.75), (x - 0.1, -0.55), (x + 0.1, -0.55),
        (x + 0.1, -0.75),
               (x + 0.28, -0.75), (x + 0.28, 0.92), (x - 0.28, 0.92))  # fmt: skip
        p.rect(x - 0.07, -0.3, x + 0.07, 0.05, fill=DARK)
    p.poly((-0.24, 0.92), *arc(0, 0.45, 0.24, 0.24, 180, 360), (0.24, 0.92), fill=DARK)


def tent(p: Pen) -> None:
    p.poly((0, -0.75), (1, 0.8), (-1, 0.8))
    p.poly((0, -0.75), (0.4, 0.8), (-0.4, 0.8), fill=DARK)
    p.poly((0, -0.75), (-0.15, 0.8), (-0.55, 0.8), fill=p.shade)


def tree(p: Pen) -> None:
    p.rect(-0.15, 0.2, 0.15, 0.98, fill=WOOD)
    bumps = [
        (0, -0.55, 0.42),
        (-0.5, -0.2, 0.4),
        (0.5, -0.2, 0.4),
        (-0.3, 0.1, 0.35),
        (0.3, 0.1, 0.35),
    ]
    for x, y, r in bumps:
        p.oval(x, y, r)
    for x, y, r in bumps:
        p.dot(x, y, r - 0.03, fill=p.body)
    p.dot(0, -0.15, 0.45, fill=p.body)


def flower(p: Pen) -> None:
    p.line((0, 0), (0, 0.98), fill=LEAF, width=0.13)
    p.pie(0.25, 0.68, 0.3, 0.13, 0, 360, fill=LEAF)
    for turn in range(0, 360, 60):
        x, y = math.cos(math.radians(turn + 30)), math.sin(math.radians(turn + 30))
        p.oval(0.42 * x, -0.3 + 0.42 * y, 0.27)
    p.oval(0, -0.3, 0.24, fill=FLAME)


def mushroom(p: Pen) -> None:
    p.poly((-0.25, 0.0), (-0.35, 0.9), (0.35, 0.9), (0.25, 0.0), fill=LIGHT)
    p.pie(0, 0.1, 0.98, 0.95, 180, 360)
    for x, y, r in ((0, -0.5, 0.17), (-0.5, -0.18, 0.14), (0.48, -0.2, 0.15)):
        p.dot(x, y, r, fill=LIGHT)


def apple(p: Pen) -> None:
    p.poly(*arc(-0.32, 0.15, 0.55, 0.65, 80, 310), *arc(0.32, 0.15, 0.55, 0.65, 230, 460))
    p.line((0, -0.35), (0.1, -0.85), width=0.1, fill=WOOD)
    p.poly((0.08, -0.55), (0.35, -0.9), (0.7, -0.8), (0.4, -0.5), fill=LEAF)


def pear(p: Pen) -> None:
    p.line((0, -0.55), (0.12, -0.98), width=0.1, fill=WOOD)
    p.poly(*arc(0, 0.4, 0.65, 0.55, -30, 210), *arc(0, -0.42, 0.3, 0.28, 180, 360))


def car(p: Pen) -> None:
    p.poly((-0.55, 0.05), (-0.35, -0.42), (0.3, -0.42), (0.6, 0.05))
    p.poly((-0.4, 0.02), (-0.27, -0.3), (-0.03, -0.3), (-0.03, 0.02), fill=LIGHT)
    p.poly((0.07, 0.02), (0.07, -0.3), (0.24, -0.3), (0.42, 0.02), fill=LIGHT)
    p.poly((-1, 0.05), (0.75, 0.05), (1, 0.2), (1, 0.5), (-1, 0.5))
    for x in (-0.55, 0.55):
        p.oval(x, 0.5, 0.25, fill=DARK)
        p.dot(x, 0.5, 0.1, fill=LIGHT)


def train(p: Pen) -> None:
    p.rect(0.5, -0.65, 0.72, -0.1, fill=p.shade)
    p.rect(-0.2, -0.2, 0.9, 0.42)
    p.rect(-0.95, -0.75, -0.15, 0.42)
    p.rect(-0.78, -0.55, -0.32, -0.12, fill=LIGHT)
    p.rect(-1, -0.92, -0.08, -0.75, fill=p.shade)
    p.poly((0.9, 0.42), (1.05, 0.78), (0.7, 0.42), fill=p.shade)
    for x in (-0.65, -0.1, 0.45):
        p.oval(x, 0.58, 0.25, fill=DARK)
        p.dot(x, 0.58, 0.1, fill=LIGHT)


def boat(p: Pen) -> None:
    p.line((0, -0.95), (0, 0.35), width=0.1, fill=WOOD)
    p.poly((0.08, -0.85), (0.75, 0.18), (0.08, 0.18), fill=LIGHT)
    p.poly((-0.08, -0.6), (-0.08, 0.18), (-0.6, 0.18), fill=p.body)
    p.poly((-1, 0.32), (1, 0.32), (0.6, 0.85), (-0.65, 0.85))


def rocket(p: Pen) -> None:
    p.poly((-0.2, 0.6), (0, 1.05), (0.2, 0.6), fill=FLAME)
    p.poly((-0.3, 0.1), (-0.7, 0.75), (-0.25, 0.6), fill=p.shade)
    p.poly((0.3, 0.1), (0.7, 0.75), (0.25, 0.6), fill=p.shade)
    p.poly(
        (0, -1),
        (0.22, -0.7),
        (0.34, -0.2),
        (0.28, 0.62),
        (-0.28, 0.62),
        (-0.34, -0.2),
        (-0.22, -0.7),
    )
    p.oval(0, -0.25, 0.16, fill=LIGHT)


def balloon(p: Pen) -> None:
    p.line((0, 0.4), (0.12, 0.6), (-0.1, 0.8), (0.05, 1.0))
    p.poly((0, 0.3), (-0.14, 0.48), (0.14, 0.48))
    p.oval(0, -0.33, 0.56, 0.66)
    p.pie(-0.22, -0.55, 0.1, 0.17, 0, 360, fill=mix(p.body, (255, 255, 255), 0.6))


def kite(p: Pen) -> None:
    p.line((-0.1, 0.3), (-0.3, 0.6), (0.0, 0.78), (-0.35, 1.0))
    for x, y in ((-0.27, 0.58), (-0.05, 0.78)):
        p.poly(
            (x - 0.16, y - 0.1),
            (x + 0.16, y + 0.1),
            (x + 0.16, y - 0.1),
            (x - 0.16, y + 0.1),
            fill=p.shade,
        )
    p.poly((0.25, -1), (0.75, -0.45), (-0.1, 0.4), (-0.5, -0.6))
    p.poly((0.25, -1), (0.75, -0.45), (0.1, -0.42), fill=p.shade)
    p.poly((0.1, -0.42), (-0.1, 0.4), (-0.5, -0.6), fill=p.shade)


def umbrella(p: Pen) -> None:
    p.line((0, -0.95), (0, 0.7), *arc(0.17, 0.7, 0.17, 0.2, 180, 0), width=0.09)
    p.line((0, 0.7), *arc(0.17, 0.7, 0.17, 0.2, 0, 180)[::-1], width=0.09)
    scallops = [
        point for x in (0.66, 0.0, -0.66) for point in arc(x, 0.05, 0.33, 0.22, 180, 360)[::-1]
    ]
    p.poly(*arc(0, 0.05, 1, 0.9, 180, 360), *scallops)
    p.line((-0.33, 0.0), (-0.22, -0.5), (0, -0.85), (0.22, -0.5), (0.33, 0.0))


def hat(p: Pen) -> None:
    p.poly((-0.5, -0.75), (0.5, -0.75), (0.45, 0.5), (-0.45, 0.5))
    p.poly((-0.47, 0.15), (0.47, 0.15), (0.46, 0.45), (-0.46, 0.45), fill=LIGHT)
    p.oval(0, 0.55, 1, 0.2)


def shirt(p: Pen) -> None:
    p.poly((-0.3, -0.75), (-0.55, -0.7), (-1, -0.15), (-0.72, 0.12), (-0.5, -0.12), (-0.5, 0.9),
    (0.5, 0.9),
           (0.5, -0.12), (0.72, 0.12), (1, -0.15), (0.55, -0.7), (0.3, -0.75),
           (0, -0.5))  # fmt: skip
    for y in (-0.15, 0.2, 0.55):
        p.dot(0, y, 0.08)


def crown(p: Pen) -> None:
    p.poly(
        (-0.8, 0.65), (-1, -0.4), (-0.45, 0.05), (0, -0.65), (0.45, 0.05), (1, -0.4), (0.8, 0.65)
    )
    p.rect(-0.8, 0.45, 0.8, 0.75, fill=p.shade)
    for x, y in ((-1, -0.45), (0, -0.72), (1, -0.45)):
        p.oval(x * 0.96, y, 0.12, fill=LIGHT)


def cup(p: Pen) -> None:
    p.rod(*arc(0.5, 0.2, 0.4, 0.35, -90, 90), width=0.12)
    p.poly((-0.7, -0.35), (0.5, -0.35), (0.4, 0.8), (-0.6, 0.8))
    p.oval(-0.1, -0.35, 0.6, 0.14, fill=LIGHT)
    for x in (-0.35, -0.05, 0.25):
        p.line(
            (x, -0.55), (x + 0.1, -0.7), (x - 0.03, -0.8), (x + 0.07, -0.95), fill=(170, 170, 176)
        )


def bottle(p: Pen) -> None:
    p.poly((-0.14, -0.8), (0.14, -0.8), (0.14, -0.35), (0.38, -0.05), (0.38, 0.98), (-0.38, 0.98),
    (-0.38, -0.05),
           (-0.14, -0.35))  # fmt: skip
    p.rect(-0.17, -1, 0.17, -0.78, fill=WOOD)
    p.rect(-0.38, 0.22, 0.38, 0.65, fill=LIGHT)


def lamp(p: Pen) -> None:
    p.line((0, 0), (0, 0.8), width=0.14)
    p.pie(0, 0.92, 0.5, 0.25, 180, 360, fill=p.shade)
    p.poly((-0.38, -0.9), (0.38, -0.9), (0.85, 0.1), (-0.85, 0.1))
    p.line((0.5, 0.1), (0.5, 0.42))


def candle(p: Pen) -> None:
    p.poly((0, -1), (0.17, -0.62), (0, -0.42), (-0.17, -0.62), fill=FLAME)
    p.line((0, -0.55), (0, -0.3))
    p.rect(-0.22, -0.32, 0.22, 0.75)
    p.rod(*arc(0.72, 0.72, 0.18, 0.18, 0, 360), fill=LIGHT, width=0.07)
    p.pie(0, 0.68, 0.7, 0.28, 0, 180, fill=LIGHT)


def clock(p: Pen) -> None:
    for x in (-0.5, 0.5):
        p.oval(x, -0.68, 0.24)
        p.line((x, 0.6), (x * 1.4, 0.98), width=0.14)
    p.oval(0, 0.05, 0.8)
    p.oval(0, 0.05, 0.52, fill=LIGHT)
    p.line((0, -0.3), (0, 0.05), (0.25, 0.2), fill=DARK, width=0.1)


def book(p: Pen) -> None:
    p.poly((-0.6, 0.7), (0.7, 0.7), (0.7, 0.95), (-0.6, 0.95), fill=LIGHT)
    p.line((-0.5, 0.83), (0.68, 0.83), fill=(150, 150, 150))
    p.rect(-0.7, -0.95, 0.7, 0.72)
    p.rect(-0.7, -0.95, -0.42, 0.95, fill=p.shade)
    p.rect(-0.15, -0.65, 0.48, -0.25, fill=LIGHT)


def key(p: Pen) -> None:
    p.rod((-0.2, 0), (1, 0), width=0.17)
    for x in (0.62, 0.9):
        p.rod((x, 0.05), (x, 0.4), width=0.13)
    p.rod(*arc(-0.55, 0, 0.33, 0.33, 0, 360), (-0.22, 0.05), width=0.2)


def bell(p: Pen) -> None:
    p.oval(0, 0.75, 0.18, fill=p.shade)
    p.oval(0, -0.8, 0.14, fill=p.shade)
    p.poly(
        *arc(0, -0.2, 0.45, 0.52, 180, 360), (0.52, 0.3), (0.85, 0.7), (-0.85, 0.7), (-0.52, 0.3)
    )
    p.line((-0.6, 0.45), (0.6, 0.45))


def drum(p: Pen) -> None:
    p.poly((-0.85, -0.3), (0.85, -0.3), *arc(0, 0.6, 0.85, 0.3, 0, 180))
    p.line(
        (-0.85, 0.6),
        (-0.5, 0.05),
        (-0.2, 0.85),
        (0.15, 0.1),
        (0.5, 0.8),
        (0.85, 0.0),
        fill=LIGHT,
        width=0.08,
    )
    p.oval(0, -0.3, 0.85, 0.26, fill=LIGHT)
    p.line((-0.1, -0.35), (0.75, -0.95), width=0.09, fill=WOOD)
    p.line((-0.3, -0.35), (-0.75, -0.95), width=0.09, fill=WOOD)


def guitar(p: Pen) -> None:
    p.poly((-0.1, -0.98), (0.1, -0.98), (0.1, 0.2), (-0.1, 0.2), fill=WOOD)
    p.rect(-0.17, -1.02, 0.17, -0.75, fill=DARK)
    p.poly(*arc(0, 0.55, 0.58, 0.43, -40, 220), *arc(0, 0.02, 0.42, 0.33, 150, 390))
    p.oval(0, 0.25, 0.16, fill=DARK)
    p.rect(-0.2, 0.65, 0.2, 0.75, fill=DARK)


def chair(p: Pen) -> None:
    p.rod((-0.5, -0.95), (-0.5, 0.98), width=0.2)
    p.rod((0.5, 0.15), (0.5, 0.98), width=0.2)
    p.rect(-0.6, 0.02, 0.65, 0.28)
    p.rect(-0.64, -0.95, -0.36, -0.1)


def table(p: Pen) -> None:
    for x in (-0.75, 0.75):
        p.rod((x, -0.2), (x, 0.85), width=0.2)
    p.poly((-0.8, -0.5), (0.8, -0.5), (1.02, -0.05), (-1.02, -0.05))
    p.rect(-1.02, -0.05, 1.02, 0.15, fill=p.shade)


def ball(p: Pen) -> None:
    p.oval(0, 0, 0.85)
    for start in (0, 120, 240):
        p.poly((0, -0.05), *arc(0, 0, 0.85, 0.85, start - 30, start + 30), fill=LIGHT)


def star(p: Pen) -> None:
    radius = [1.0 if i % 2 == 0 else 0.42 for i in range(10)]
    angles = [math.radians(36 * i - 90) for i in range(10)]
    p.poly(
        *[(r * math.cos(a), 0.05 + r * math.sin(a)) for r, a in zip(radius, angles, strict=True)]
    )


def heart(p: Pen) -> None:
    p.poly((0, 0.92), *arc(-0.46, -0.3, 0.48, 0.5, 145, 360), *arc(0.46, -0.3, 0.48, 0.5, 180, 395))


def fish(p: Pen) -> None:
    p.poly((0.35, 0), (1, -0.5), (0.85, 0), (1, 0.5), fill=p.shade)
    p.poly((-0.4, -0.35), (0.1, -0.75), (0.3, -0.3), fill=p.shade)
    p.oval(-0.25, 0, 0.75, 0.48)
    p.oval(-0.65, -0.1, 0.11, fill=LIGHT)
    p.dot(-0.66, -0.1, 0.06, fill=DARK)
    p.line(*arc(-0.5, 0, 0.25, 0.42, -50, 50))


def cat(p: Pen) -> None:
    p.rod((0.4, 0.85), (0.9, 0.75), (0.95, 0.3), (0.75, 0.05), width=0.17)
    p.poly(*arc(0, 0.55, 0.55, 0.65, 140, 400), (0.4, 0.95), (-0.4, 0.95))
    p.poly((-0.5, -0.3), (-0.5, -0.98), (-0.15, -0.7), (0.15, -0.7), (0.5, -0.98), (0.5, -0.3),
           *arc(0, -0.3, 0.5, 0.42, 0, 180))  # fmt: skip
    for x in (-0.2, 0.2):
        p.dot(x, -0.38, 0.1, fill=LIGHT)
        p.dot(x, -0.38, 0.05, fill=DARK)
        p.line((x, -0.1), (x * 3.4, -0.16), width=0.03)
    p.line((-0.12, 0.95), (-0.12, 0.5))
    p.line((0.12, 0.95), (0.12, 0.5))


def snail(p: Pen) -> None:
    p.line((-0.72, 0.1), (-0.95, -0.4), width=0.07)
    p.line((-0.6, 0.1), (-0.6, -0.45), width=0.07)
    p.dot(-0.95, -0.4, 0.09)
    p.dot(-0.6, -0.45, 0.09)
    p.poly((-0.95, 0.3), *arc(-0.7, 0.2, 0.25, 0.25, 180, 340), (-0.4, 0.5), (0.7, 0.5),
    (1.05, 0.8), (-0.7, 0.8),
           fill=LIGHT)  # fmt: skip
    p.oval(0.2, 0.0, 0.65)
    spiral = [
        (r * math.cos(7 * r / 0.5), r * math.sin(7 * r / 0.5))
        for r in (i / 40 for i in range(2, 21))
    ]
    p.line(*[(0.2 + x, y) for x, y in spiral], width=0.09)


DRAW_OBJECT: dict[str, Callable[[Pen], None]] = {
    f.__name__: f for f in (
        house, castle, tent, tree, flower, mushroom, apple, pear, car, train, boat, rocket, balloon,
        kite, umbrella,
        hat, shirt, crown, cup, bottle, lamp, candle, clock, book, key, bell, drum, guitar, chair,
        table, ball, star,
        heart, fish, cat, snail,
    )
}  # fmt: skip


# --- the 8 settings: each paints on a canvas `n` pixels wide


def sky(d: ImageDraw.ImageDraw, n: int, top: Colour, bottom: Colour, until: float = 1.0) -> None:
    """Draw a vertical gradient in 16 bands down to the height `until`."""
    for i in range(16):
        d.rectangle(
            (0, n * until * i / 16, n, n * until * (i + 1) / 16), fill=mix(top, bottom, i / 15)
        )


def disc(d: ImageDraw.ImageDraw, x: float, y: float, r: float, fill: Colour) -> None:
    """Draw a filled circle."""
    d.ellipse((x - r, y - r, x + r, y + r), fill=fill)


def hills(
    d: ImageDraw.ImageDraw, n: int, y: float, height: float, fill: Colour, rng: random.Random
) -> None:
    """Draw a wavy ground from the height `y` down."""
    phase, waves = rng.random() * 6.3, rng.uniform(0.8, 1.6)
    top = [
        (n * i / 32, n * (y + height * math.sin(phase + waves * 6.3 * i / 32))) for i in range(33)
    ]
    d.polygon([*top, (n, n), (0, n)], fill=fill)


def night(d: ImageDraw.ImageDraw, n: int, rng: random.Random) -> None:
    sky(d, n, (8, 12, 48), (34, 42, 104))
    for _ in range(45):
        disc(
            d,
            rng.random() * n,
            rng.random() * n * 0.85,
            n * rng.uniform(0.003, 0.007),
            (255, 250, 220),
        )
    x, y, r = n * rng.uniform(0.1, 0.9), n * rng.uniform(0.08, 0.16), n * 0.07
    disc(d, x, y, r, (250, 244, 205))
    disc(d, x + r * 0.5, y - r * 0.2, r * 0.85, (12, 17, 56))
    hills(d, n, 0.88, 0.02, (14, 22, 40), rng)


def sea(d: ImageDraw.ImageDraw, n: int, rng: random.Random) -> None:
    horizon, beach = rng.uniform(0.3, 0.4), rng.uniform(0.74, 0.82)
    sky(d, n, (150, 210, 250), (215, 240, 252), horizon)
    d.rectangle((0, n * horizon, n, n), fill=(40, 130, 190))
    for _ in range(26):
        x, y, w = rng.random() * n, n * rng.uniform(horizon + 0.03, beach), n * 0.035
        d.arc((x, y, x + w, y + w * 0.7), 0, 180, fill=(170, 220, 240), width=max(1, n // 128))
        d.arc(
            (x + w, y, x + 2 * w, y + w * 0.7), 0, 180, fill=(170, 220, 240), width=max(1, n // 128)
        )
    hills(d, n, beach, 0.02, (240, 250, 252), rng)
    hills(d, n, beach + 0.035, 0.02, (238, 218, 160), rng)


def snow(d: ImageDraw.ImageDraw, n: int, rng: random.Random) -> None:
    sky(d, n, (176, 196, 220), (222, 232, 244), 0.6)
    hills(d, n, rng.uniform(0.42, 0.52), 0.05, (232, 240, 250), rng)
    hills(d, n, rng.uniform(0.62, 0.7), 0.04, (250, 252, 255), rng)
    for _ in range(70):
        disc(d, rng.random() * n, rng.random() * n, n * rng.uniform(0.006, 0.012), (255, 255, 255))


def desert(d: ImageDraw.ImageDraw, n: int, rng: random.Random) -> None:
    sky(d, n, (120, 195, 240), (252, 232, 190), 0.6)
    disc(d, n * rng.uniform(0.1, 0.9), n * 0.12, n * 0.075, (255, 236, 130))
    hills(d, n, rng.uniform(0.46, 0.55), 0.05, (232, 184, 110), rng)
    for _ in range(3):
        x, y, h = n * rng.random(), n * rng.uniform(0.6, 0.75), n * rng.uniform(0.11, 0.16)
        for dx, y0, y1 in (
            (0, -h, 0),
            (-0.3 * h, -0.75 * h, -0.4 * h),
            (0.3 * h, -0.85 * h, -0.5 * h),
        ):
            d.line((x + dx, y + y0, x + dx, y + y1), fill=(60, 120, 70), width=round(h * 0.16))
            d.line((x, y + y1, x + dx, y + y1), fill=(60, 120, 70), width=round(h * 0.16))
    hills(d, n, rng.uniform(0.72, 0.8), 0.05, (222, 168, 92), rng)


def forest(d: ImageDraw.ImageDraw, n: int, rng: random.Random) -> None:
    d.rectangle((0, 0, n, n), fill=(58, 92, 66))
    for row, (y, shade) in enumerate(((0.55, (34, 70, 48)), (0.8, (24, 56, 38)))):
        for i in range(-1, 9):
            x, h = n * (i + rng.uniform(0.1, 0.9) + row * 0.5) / 8, n * rng.uniform(0.45, 0.62)
            tone = mix(shade, (70, 110, 70), rng.random() * 0.3)
            for part in range(3):
                w, top = n * (0.05 + 0.02 * part), n * y - h * (1 - part * 0.28)
                d.polygon([(x, top), (x + w, top + h * 0.45), (x - w, top + h * 0.45)], fill=tone)
    hills(d, n, 0.82, 0.015, (52, 62, 36), rng)


def city(d: ImageDraw.ImageDraw, n: int, rng: random.Random) -> None:
    sky(d, n, (190, 205, 218), (226, 226, 224), 0.9)
    for tone, low, high in (((168, 172, 182), 0.15, 0.4), ((116, 120, 132), 0.32, 0.6)):
        x = -0.05
        while x < 1:
            width, top = rng.uniform(0.1, 0.17), rng.uniform(low, high)
            d.rectangle(
                (n * x, n * top, n * (x + width - 0.01), n * 0.88),
                fill=mix(tone, (90, 90, 100), rng.random() * 0.3),
            )
            for i in range(int(width / 0.035) - 1):
                for k in range(int((0.82 - top) / 0.05)):
                    wx, wy = n * (x + 0.02 + 0.035 * i), n * (top + 0.025 + 0.05 * k)
                    d.rectangle((wx, wy, wx + n * 0.015, wy + n * 0.024), fill=(232, 226, 190))
            x += width
    d.rectangle((0, n * 0.87, n, n), fill=(82, 84, 90))
    for i in range(6):
        d.rectangle(
            (n * (i * 0.2 - 0.05), n * 0.93, n * (i * 0.2 + 0.05), n * 0.945), fill=(235, 235, 225)
        )


def meadow(d: ImageDraw.ImageDraw, n: int, rng: random.Random) -> None:
    sky(d, n, (130, 205, 250), (210, 238, 252), 0.5)
    hills(d, n, rng.uniform(0.33, 0.42), 0.04, (150, 208, 104), rng)
    hills(d, n, rng.uniform(0.55, 0.65), 0.04, (118, 190, 80), rng)
    for _ in range(70):
        x, y = rng.random() * n, n * rng.uniform(0.45, 1)
        disc(d, x, y, n * 0.008, rng.choice([(255, 255, 255), (255, 240, 130), (250, 190, 215)]))
        d.line((x, y, x, y + n * 0.02), fill=(80, 150, 60), width=max(1, n // 200))


def rain(d: ImageDraw.ImageDraw, n: int, rng: random.Random) -> None:
    sky(d, n, (92, 102, 116), (140, 150, 160))
    hills(d, n, 0.8, 0.01, (104, 112, 116), rng)
    for _ in range(5):
        x, y, w = rng.random() * n, n * rng.uniform(0.84, 0.97), n * rng.uniform(0.06, 0.12)
        d.ellipse((x - w, y - w * 0.22, x + w, y + w * 0.22), fill=(160, 182, 204))
    for _ in range(130):
        x, y, h = rng.random() * n, rng.random() * n, n * rng.uniform(0.04, 0.08)
        d.line((x, y, x - h * 0.3, y + h), fill=(188, 206, 226), width=max(1, n // 170))


DRAW_SETTING: dict[str, Callable[[ImageDraw.ImageDraw, int, random.Random], None]] = {
    f.__name__: f for f in (night, sea, snow, desert, forest, city, meadow, rain)
}


def paste(
    picture: Image.Image, thing: Thing, x: float, y: float, half: float, rng: random.Random
) -> None:
    """Draw `thing` about (x, y) with a white rim, all in shares of the picture's width."""
    colour = mix(PALETTE[thing.colour], tuple(rng.randrange(256) for _ in range(3)), 0.05)  # type: ignore[arg-type]
    pen = Pen(round(half * picture.width), colour, rng.random() < 0.5)
    DRAW_OBJECT[thing.object](pen)
    blurred = pen.image.getchannel("A").filter(ImageFilter.GaussianBlur(picture.width / 110))
    rim = Image.new("RGB", pen.image.size, (255, 255, 255))
    corner = (round(x * picture.width - pen.side / 2), round(y * picture.width - pen.side / 2))
    picture.paste(rim, corner, blurred.point([0] * 20 + [min(255, 6 * i) for i in range(236)]))
    picture.paste(pen.image, corner, pen.image)


def placements(scene: Scene, rng: random.Random) -> list[tuple[float, float, float]]:
    """Return each thing's centre and half size, in shares of the picture's width.

    Centres keep to eighths.
    """
    if len(scene.things) == 1:
        big = scene.things[0].size == "big"
        return [
            (
                rng.choice((3, 4, 5) if big else (2, 3, 4, 5, 6)) / 8,
                rng.choice((4, 5)) / 8,
                0.34 if big else 0.225,
            )
        ]
    halves = [0.225 if t.size == "big" else 0.165 for t in scene.things]
    along = (0.25, 0.75) if scene.relation in ("left", "above") else (0.75, 0.25)
    if scene.relation in ("left", "right"):
        return [(a, rng.choice((4, 5)) / 8, h) for a, h in zip(along, halves, strict=True)]
    middle = rng.choice((3, 4, 5))
    return [
        ((middle + rng.choice((-1, 0, 0, 1))) / 8, a, h) for a, h in zip(along, halves, strict=True)
    ]


def draw_placed(
    scene: Scene, rng: random.Random, size: int = 256
) -> tuple[Image.Image, list[tuple[float, float, float]]]:
    """Draw a scene as `draw` does; return each thing's centre and half size, too.

    These are in shares of the picture's width.
    """
    n = size * OVERSAMPLE
    picture = Image.new("RGB", (n, n))
    DRAW_SETTING[scene.setting](ImageDraw.Draw(picture), n, rng)
    placed = placements(scene, rng)
    for thing, (x, y, half) in zip(scene.things, placed, strict=True):
        paste(picture, thing, x, y, half, rng)
    return picture.reduce(OVERSAMPLE), placed


def draw(scene: Scene, rng: random.Random, size: int = 256) -> Image.Image:
    """Draw a scene, `size` pixels square; all that it leaves open comes from `rng`."""
    return draw_placed(scene, rng, size)[0]
