"""Small inline SVG plots, drawn here so that a report needs nothing but itself.

Colours are the CSS variables `--s0` to `--s5` of the page, so that they follow its theme.
"""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass

_WIDTH, _HEIGHT = 420, 250
_LEFT, _RIGHT, _TOP, _BOTTOM = 46, 14, 12, 36
_COLOURS = 6


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
    """One bar: a share from 0 to 1 with its interval; a `strong` one is the model's own."""

    name: str
    value: float
    low: float
    high: float
    strong: bool = False


def lines(title: str, x_title: str, series: Sequence[Line], unit: str = "", hint: str = "") -> str:
    """Return a figure with a line plot, its legend, and the values under the pointer.

    Args:
        title: of the figure.
        x_title: of the axis below.
        series: the lines, the model's first; without any there is no figure.
        unit: of the values.
        hint: said beside the title, for instance 'higher is better'.
    """
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

    parts = [_grid(py(t), _label(t, ticks), zero=abs(t) < 1e-9 and y0 < 0) for t in ticks]
    parts += [
        f'<text class="tick" x="{px(x):.1f}" y="{_HEIGHT - 19}">{x:g}</text>'
        for x in _x_ticks(x0, x1)
    ]
    parts.append(
        f'<text class="tick" x="{_WIDTH / 2}" y="{_HEIGHT - 3}">{html.escape(x_title)}</text>'
    )
    for i, s in reversed(list(enumerate(shown))):  # the model's line on top
        paint, name = f"var(--s{i % _COLOURS})", html.escape(s.name)
        band = [
            (x, low, high)
            for x, low, high in zip(s.xs, s.low, s.high, strict=bool(s.low))
            if math.isfinite(low) and math.isfinite(high)
        ]
        if band:
            edge = [(x, high) for x, _, high in band] + [(x, low) for x, low, _ in band[::-1]]
            shape = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in edge)
            parts.append(f'<polygon class="band" style="fill:{paint}" points="{shape}"/>')
        points = [(x, y) for x, y in zip(s.xs, s.ys, strict=True) if math.isfinite(y)]
        path = " ".join(f"{px(x):.1f},{py(y):.1f}" for x, y in points)
        dash = ' stroke-dasharray="5 4"' if s.dashed else ""
        parts.append(f'<polyline class="line" style="stroke:{paint}"{dash} points="{path}"/>')
        if len(points) == 1:  # which makes no line
            ((x, y),) = points
            dot = f'cx="{px(x):.1f}" cy="{py(y):.1f}" r="3.5" style="fill:{paint}"'
            parts.append(f'<circle class="dot" {dot}/>')
        for x, y in points:
            tip = f"{name} at {x:g}: {y:.4g} {html.escape(unit)}".strip()
            spot = f'cx="{px(x):.1f}" cy="{py(y):.1f}" r="5"'
            parts.append(f'<circle class="spot" {spot}><title>{tip}</title></circle>')
    view = f'viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{html.escape(_told(shown))}"'
    note = " ".join(html.escape(part) for part in (unit, *([f"({hint})"] if hint else [])) if part)
    caption = f"{html.escape(title)}{f' <small>{note}</small>' if note else ''}"
    return (
        f"<figure><figcaption>{caption}</figcaption><svg {view}>{''.join(parts)}</svg>"
        f"{_legend(shown)}</figure>"
    )


def bars(title: str, items: Sequence[Bar]) -> str:
    """Return a figure with horizontal bars of shares, with intervals as thin lines."""
    parts = []
    for bar in (bar for bar in items if math.isfinite(bar.value)):
        name = html.escape(bar.name)
        ends = f"left:{100 * bar.low:.2f}%;width:{100 * (bar.high - bar.low):.2f}%"
        parts.append(
            f'<span>{name}</span><div class="track" title="{bar.low:.1%} to {bar.high:.1%}">'
            f'<i class="{"strong" if bar.strong else ""}" style="width:{100 * bar.value:.2f}%"></i>'
            f'<u style="{ends}"></u></div><b>{bar.value:.1%}</b>'
        )
    return (
        f"<figure><figcaption>{html.escape(title)}</figcaption>"
        f'<div class="bars">{"".join(parts)}</div></figure>'
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


def _grid(y: float, label: str, zero: bool = False) -> str:
    return (
        f'<line class="{"zero" if zero else "grid"}" x1="{_LEFT}" x2="{_WIDTH - _RIGHT}" '
        f'y1="{y:.1f}" y2="{y:.1f}"/>'
        f'<text class="tick left" x="{_LEFT - 6}" y="{y + 4:.1f}">{label}</text>'
    )


def _label(value: float, ticks: Sequence[float]) -> str:
    step = ticks[1] - ticks[0]
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    digits += round(step * 10**digits, 6) % 1 > 0  # steps of 2.5
    return f"{value + 0.0:.{digits}f}"


def _legend(series: Sequence[Line]) -> str:
    keys = [
        f'<span><i class="{"dash" if s.dashed else ""}" style="color:var(--s{i % _COLOURS})"></i>'
        f"{html.escape(s.name)}</span>"
        for i, s in enumerate(series)
    ]
    return f'<div class="legend">{"".join(keys)}</div>'


def _told(series: Sequence[Line]) -> str:
    """Return what a line plot shows as words, for those who cannot see it."""
    ends = [
        f"{s.name} from {s.ys[0]:.4g} at {s.xs[0]:g} to {s.ys[-1]:.4g} at {s.xs[-1]:g}"
        for s in series
    ]
    return "line plot: " + "; ".join(ends)
