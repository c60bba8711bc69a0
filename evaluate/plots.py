"""Small inline SVG plots, drawn here so that a report needs nothing but itself.

Colours are the CSS variables `--s0` to `--s4` of the page, so that they follow its theme.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 440, 260
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 34


@dataclass(frozen=True)
class Line:
    """One line of a plot.

    Attributes:
        name: for the legend.
        xs, ys: its points; points that are not finite are left out.
        low, high: a band around it, or empty.
        dashed: for what is not the model.
    """

    name: str
    xs: Sequence[float]
    ys: Sequence[float]
    low: Sequence[float] = ()
    high: Sequence[float] = ()
    dashed: bool = False


@dataclass(frozen=True)
class Bar:
    """One bar: a share from 0 to 1 with its interval; `strong` is the model's own."""

    name: str
    value: float
    low: float
    high: float
    strong: bool = False


def lines(title: str, x_title: str, series: Sequence[Line], unit: str = "") -> str:
    """Return a figure with a line plot, its legend, and the values under the pointer."""
    shown = [s for s in series if any(map(math.isfinite, s.ys))]
    if not shown:
        return ""
    values = [v for s in shown for v in (*s.ys, *s.low, *s.high) if math.isfinite(v)]
    ticks = nice_ticks(min(values), max(values))
    xs = [x for s in shown for x in s.xs]
    x0, x1 = min(xs), max(max(xs), min(xs) + 1)
    y0, y1 = ticks[0], ticks[-1]

    def px(x: float) -> float:
        return _LEFT + (x - x0) / (x1 - x0) * (_WIDTH - _LEFT - _RIGHT)

    def py(y: float) -> float:
        return _TOP + (y1 - y) / (y1 - y0) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_grid(py(t), _label(t, ticks)) for t in ticks]
    parts += [
        f'<text class="tick" x="{px(x):.1f}" y="{_HEIGHT - 16}">{x:g}</text>'
        for x in _x_ticks(x0, x1)
    ]
    parts.append(f'<text class="tick" x="{_WIDTH / 2}" y="{_HEIGHT - 2}">{x_title}</text>')
    for i, s in reversed(list(enumerate(shown))):  # the model's line on top
        if s.low:
            edge = [*zip(s.xs, s.high, strict=True)]
            edge += reversed([*zip(s.xs, s.low, strict=True)])
            shape = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in edge)
            parts.append(f'<polygon class="band" style="fill:var(--s{i})" points="{shape}"/>')
        points = [(x, y) for x, y in zip(s.xs, s.ys, strict=True) if math.isfinite(y)]
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if s.dashed else ""
        parts.append(f'<polyline class="line" style="stroke:var(--s{i})"{dash} points="{path}"/>')
        for x, y in points:
            tip = f"{html.escape(s.name)} at {x:g}: {y:.3f} {unit}".strip()
            spot = f'cx="{px(x):.1f}" cy="{py(y):.1f}" r="5"'
            parts.append(f"<circle class='spot' {spot}><title>{tip}</title></circle>")
    view = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(title)}"'
    caption = f"{html.escape(title)}{f' <small>{unit}</small>' if unit else ''}"
    return (
        f"<figure><figcaption>{caption}</figcaption><svg {view}>{''.join(parts)}</svg>"
        f"{_legend(shown)}</figure>"
    )


def bars(title: str, items: Sequence[Bar]) -> str:
    """Return a figure with horizontal bars of shares, with intervals as thin lines."""
    left, row, width = 190, 34, 2 * _WIDTH
    span, height = width - left - 70, row * len(items) + 8
    parts = []
    for i, bar in enumerate(items):
        y, middle = i * row + 6, i * row + 18
        color = "var(--s0)" if bar.strong else "var(--s4)"
        tip = f"{html.escape(bar.name)}: {bar.value:.1%} ({bar.low:.1%} to {bar.high:.1%})"
        ends = f'x1="{left + span * bar.low:.1f}" x2="{left + span * bar.high:.1f}"'
        parts.append(
            f'<text class="name" x="{left - 10}" y="{middle + 4}">{html.escape(bar.name)}</text>'
            f'<rect x="{left}" y="{y}" width="{max(1, span * bar.value):.1f}" height="24" rx="3" '
            f'style="fill:{color}"><title>{tip}</title></rect>'
            f'<line class="whisker" {ends} y1="{middle}" y2="{middle}"/>'
            f'<text class="value" x="{left + span * max(bar.value, bar.high) + 8:.1f}" '
            f'y="{middle + 4}">{bar.value:.1%}</text>'
        )
    view = f'viewBox="0 0 {width} {height}" role="img" aria-label="{html.escape(title)}"'
    return (
        f'<figure class="wide"><figcaption>{html.escape(title)}</figcaption>'
        f"<svg {view}>{''.join(parts)}</svg></figure>"
    )


def nice_ticks(
    low: float, high: float, count: int = 5, steps: Sequence[float] = (1, 2, 2.5, 5, 10)
) -> list[float]:
    """Return about `count` round numbers that enclose low and high, in steps of `steps`."""
    span = max(high - low, 0.02 * abs(high), 1e-3)  # a constant is a flat line, not its rounding
    rough = span / count
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(m * power for m in steps if m * power >= rough * 0.999)
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [i * step for i in range(first, max(last, first + 1) + 1)]


def _x_ticks(x0: float, x1: float) -> list[float]:
    inner = [t for t in nice_ticks(x0, x1, 6, (1, 2, 5, 10)) if x0 < t <= x1]
    return [x0, *(t for t in inner if t - x0 > 0.06 * (x1 - x0))]


def _grid(y: float, label: str) -> str:
    return (
        f'<line class="grid" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick left" x="{_LEFT - 6}" y="{y + 4:.1f}">{label}</text>'
    )


def _label(value: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += round(step * 10**digits, 6) % 1 > 0  # steps of 2.5
    return f"{value + 0.0:.{digits}f}"


def _legend(series: Sequence[Line]) -> str:
    keys = [
        f'<span><i class="{"dash" if s.dashed else ""}" style="color:var(--s{i})"></i>'
        f"{html.escape(s.name)}</span>"
        for i, s in enumerate(series)
    ]
    return f'<div class="legend">{"".join(keys)}</div>'
