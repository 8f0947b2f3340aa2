"""The learning curve as an SVG: the share of held-out answers that came out whole, against the tokens seen."""

from collections.abc import Sequence
from html import escape
from typing import Protocol

WIDTH, HEIGHT = 860, 430
LEFT, TOP, RIGHT, BOTTOM = 56, 40, 640, 372
TITLE = "Held-out answers that came out whole, by millions of tokens trained on"
COLORS = (
    "#4269d0 #efb118 #ff725c #6cc5b0 #3ca951 #ff8ab7 #a463f2 #97bbf5 #9c6b4e #9498a0 #1b6e53 #b5179e #7f5539".split()
)


class Measured(Protocol):
    """What a point must have: tokens seen so far, and a share from 0 to 1 for each skill."""

    @property
    def tokens(self) -> int: ...
    @property
    def accuracy(self) -> dict[str, float]: ...


def draw(points: Sequence[Measured]) -> str:
    """Return the picture. Raises ValueError without points."""
    if not points:
        raise ValueError("a learning curve needs at least one point")
    most = points[-1].tokens
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/>',
        f'<text x="{LEFT}" y="22" font-size="14">{TITLE}</text>',
    ]
    for tenth in range(0, 11, 2):
        y = _y(tenth / 10)
        parts.append(f'<path d="M{LEFT} {y}H{RIGHT}" stroke="#ddd"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4}" text-anchor="end">{tenth * 10} %</text>')
    for fifth in range(6):
        x = _x(most * fifth / 5, most)
        parts.append(f'<text x="{x}" y="{BOTTOM + 20}" text-anchor="middle">{most * fifth / 5e6:.0f}</text>')
    last = points[-1].accuracy
    for number, (name, color) in enumerate(zip(last, COLORS, strict=False)):
        path = " ".join(f"{_x(point.tokens, most)},{_y(point.accuracy[name])}" for point in points)
        y = TOP + 14 + number * 24
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="1.6"/>')
        parts.append(f'<path d="M{RIGHT + 16} {y}h18" stroke="{color}" stroke-width="3"/>')
        parts.append(f'<text x="{RIGHT + 40}" y="{y + 4}">{escape(name)} {last[name]:.1%}</text>')
    return "\n".join([*parts, "</svg>"]) + "\n"


def _x(tokens: float, most: int) -> float:
    return round(LEFT + (RIGHT - LEFT) * tokens / most, 1)


def _y(share: float) -> float:
    return round(BOTTOM - (BOTTOM - TOP) * share, 1)
