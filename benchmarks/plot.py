"""Plots of time by size, both on logarithmic scales, as SVG: a few lines and texts, written by hand
so that a benchmark needs no plotting library."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from html import escape

Lines = dict[str, list[tuple[float, float]]]  # title -> (bytes, microseconds), sizes rising

WIDTH, HEIGHT, LEFT, TOP, BOTTOM, GAP = 270, 240, 60, 64, 44, 26
COLOURS = ("#0b6e4f", "#6fbf73", "#1b4f9c", "#d1495b", "#edae49", "#7d5ba6")
SIZES = ((1 << 20, "M"), (1 << 10, "K"), (1, ""))
TIMES = ((1e6, " s"), (1e3, " ms"), (1, " µs"), (1e-3, " ns"))


def _named(value: float, units: Sequence[tuple[float, str]]) -> str:
    for factor, unit in units:
        if value >= factor:
            return f"{value / factor:g}{unit}"
    return f"{value:g}"


class _Scale:
    """From a value to a position, logarithmic."""

    def __init__(self, low: float, high: float, start: float, end: float) -> None:
        self._low = math.log(low)
        self._span = max(math.log(high) - self._low, 1e-9)
        self._start, self._length = start, end - start

    def __call__(self, value: float) -> float:
        at = self._start + self._length * (math.log(value) - self._low) / self._span
        return round(at, 1)


def _text(x: float, y: float, words: str, anchor: str = "middle", size: int = 11) -> str:
    return f'<text x="{x}" y="{y}" text-anchor="{anchor}" font-size="{size}">{escape(words)}</text>'


def _line(x1: float, y1: float, x2: float, y2: float, colour: str, width: float = 1) -> str:
    return (
        f'<line x1="{x1}" y1="{y1}" x2="{x2}" y2="{y2}" stroke="{colour}" stroke-width="{width}"/>'
    )


def _panel(
    left: float, title: str, lines: Lines, times: tuple[float, float], colours: Mapping[str, str]
) -> list[str]:
    sizes = sorted({size for line in lines.values() for size, _ in line})
    x = _Scale(sizes[0], sizes[-1], left, left + WIDTH)
    y = _Scale(*times, TOP + HEIGHT, TOP)
    parts = [_text(left + WIDTH / 2, TOP - 8, title, size=13)]
    for power in range(round(math.log10(times[0])), round(math.log10(times[1])) + 1):
        at = y(10.0**power)
        parts.append(_line(left, at, left + WIDTH, at, "#dddddd"))
        parts.append(_text(left - 5, at + 4, _named(10.0**power, TIMES), "end"))
    for i, size in enumerate(sizes):
        at = x(size)
        parts.append(_line(at, TOP + HEIGHT, at, TOP + HEIGHT + 4, "#666666"))
        parts.append(_text(at, TOP + HEIGHT + 16 + 13 * (i % 2), _named(size, SIZES)))
    parts.append(_line(left, TOP + HEIGHT, left + WIDTH, TOP + HEIGHT, "#666666"))
    for name, line in lines.items():
        points = " ".join(f"{x(size)},{y(us)}" for size, us in line)
        style = f'fill="none" stroke="{colours[name]}" stroke-width="2"'
        parts.append(f'<polyline points="{points}" {style}/>')
        parts += [
            f'<circle cx="{x(size)}" cy="{y(us)}" r="2.5" fill="{colours[name]}"/>'
            for size, us in line
        ]
    return parts


def svg(title: str, panels: Mapping[str, Lines], order: Sequence[str]) -> str:
    """Panels side by side with one scale of times. `order` is that of the legend, and of the
    colours, so that a library has the same one in every plot."""
    colours = dict(zip(order, COLOURS, strict=True))
    found = [us for lines in panels.values() for line in lines.values() for _, us in line]
    times = (10.0 ** math.floor(math.log10(min(found))), 10.0 ** math.ceil(math.log10(max(found))))
    width = len(panels) * (LEFT + WIDTH) + GAP
    height = TOP + HEIGHT + BOTTOM
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" '
        f'width="{width}" height="{height}" font-family="sans-serif" fill="#222222">',
        f'<rect width="{width}" height="{height}" fill="#ffffff"/>',
        _text(LEFT, 20, f"{title}: time by bytes", "start", 14),
    ]
    at: float = LEFT
    for name in (name for name in order if any(name in lines for lines in panels.values())):
        parts.append(f'<rect x="{at}" y="30" width="12" height="4" fill="{colours[name]}"/>')
        parts.append(_text(at + 16, 36, name, "start"))
        at += 30 + 7 * len(name)
    for i, (panel, lines) in enumerate(panels.items()):
        parts += _panel(LEFT + i * (LEFT + WIDTH), panel, lines, times, colours)
    return "\n".join([*parts, "</svg>\n"])
