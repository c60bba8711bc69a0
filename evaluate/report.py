"""The report of a scorecard: one HTML file that needs no other file and no network.

Metrics that a part of the page is made for come first; of all others, whatever their names, the
curves are plotted and the single numbers listed, by the first word of their names.
"""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from worldmodel.evaluate.page import Section, escape, facts, mark, number, page, sheet, table
from worldmodel.evaluate.plots import Bar, Line, bars, lines
from worldmodel.evaluate.scorecard import Metric, Scorecard
from worldmodel.evaluate.sheets import Sheet

_QUALITY = [("ssim", "SSIM"), ("encoder_distance", "Encoder distance"), ("psnr", "PSNR")]
_GAINS = ("copy", "shuffled")
_READERS = [
    ("real", "real clips (ceiling)"),
    ("reconstruction", "real, decoded"),
    ("imagined", "imagined"),
    ("other_actions", "imagined, other actions"),
    ("shuffled", "imagined, shuffled"),
]
_TILES = [
    ("ssim", 1, "SSIM, 1 step ahead", False),
    ("ssim", 16, "SSIM, 16 steps ahead", False),
    ("idm_ratio", None, "actions read, of real", True),
    ("perplexity", None, "text perplexity", False),
    ("answer_accuracy", None, "questions answered", True),
    ("fps", None, "imagined frames/s", False),
]
_HELD = [
    ("change", "Change from frame to frame (0 to 255)"),
    ("strangeness", "Encoder distance to the nearest real frame"),
    ("read", "Share of steps read as the key"),
]
_CURVE = 3  # horizons from which on a metric is plotted
_GROUP = 3  # numbers whose names begin alike from which on they are listed by themselves


def write_report(card: Scorecard, sheets: Sequence[Sheet], path: Path) -> None:
    """Write the page of a scorecard and its contact sheets."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(card, sheets), encoding="utf-8")


def render(card: Scorecard, sheets: Sequence[Sheet]) -> str:
    """Return the page as text."""
    more = "".join(map(sheet, sheets[1:]))
    sections = [
        Section("Requirements", _verdicts(card)),
        Section("Films", "".join(map(sheet, sheets[:1]))),
        Section("Skills", _skills(card)),
        Section("Imagined against true futures", _quality(card)),
        Section("Does it obey?", _following(card)),
        Section("One key held", _keys(card)),
        Section("More measurements", _others(card)),
        Section("More films", more),
        Section("All numbers", _everything(card)),
    ]
    return page(f"{card.checkpoint}: {card.suite} evaluation", _head(card), sections)


def described(card: Scorecard) -> list[tuple[str, object]]:
    """Return what a scorecard was measured with, as names and values."""
    return [
        ("store", card.store),
        ("split", card.split),
        *((name.replace("_", " "), _plain(value)) for name, value in card.settings.items()),
        ("seed", card.seed),
        ("device", card.device),
        ("numbers", card.dtype),
        ("version", card.version),
        ("commit", (card.commit or "no git checkout")[:15]),
        ("weights", card.checkpoint_hash[:10]),
        ("data", card.data[:10]),
    ]


def titled(name: str) -> str:
    """Return a metric's name as people read it."""
    return name.replace("_", " ")


def hint(metric: Metric) -> str:
    """Return which way is better, in words."""
    return f"{metric.better} is better" if metric.better else ""


def plotted(curve: Sequence[Metric]) -> bool:
    """Whether a metric has so many horizons that it is drawn as a line."""
    return len(curve) >= _CURVE


def curve_of(name: str, curve: Sequence[Metric]) -> Line:
    """Return a metric at all its horizons as a line with its band."""
    xs = [float(m.horizon or 0) for m in curve]
    low, high = [m.low for m in curve], [m.high for m in curve]
    return Line(name, xs, [m.value for m in curve], low, high)


def _head(card: Scorecard) -> str:
    held = sum(v.passed for v in card.verdicts)
    tiles = []
    if card.verdicts:
        tiles.append(_tile("requirements hold", f"{held} of {len(card.verdicts)}"))
    tiles += [
        _tile(f"checks that {label} passes", _passes(card, hand))
        for hand, label in _HANDS.items()
        if _judged(card)
    ]
    named = [_measured(card, *tile) for tile in _TILES]
    if not any(named):
        plain = [m for m in card.metrics if "pass mark" not in m.baselines][:4]
        named = [_measured(card, m.name, m.horizon, titled(m.name), False) for m in plain]
    return (
        f'<div class="kind">{escape(card.suite)} evaluation</div>'
        f"<h1>{escape(card.checkpoint)}</h1>{facts(described(card))}"
        f'<div class="tiles">{"".join([*tiles, *named])}</div>'
    )


def _measured(card: Scorecard, name: str, horizon: int | None, label: str, percent: bool) -> str:
    try:
        m = card.get(name, horizon)
    except KeyError:
        return ""
    show = (lambda v: f"{v:.0%}") if percent else number
    beside = f", copy {number(m.baselines['copy'])}" if "copy" in m.baselines else ""
    return _tile(label, show(m.value), f"{show(m.low)} to {show(m.high)}{beside}")


def _tile(label: str, value: str, below: str = "") -> str:
    return f'<div class="tile">{escape(label)}<b>{value}</b><span>{below}</span></div>'


def _verdicts(card: Scorecard) -> str:
    rows = [
        f"<li>{mark(v.passed)}<strong>{escape(v.name)}</strong>"
        f"<div>Found: {escape(v.found)}</div><div>Asked: {escape(v.required)}</div></li>"
        for v in card.verdicts
    ]
    return f'<ul class="verdicts">{"".join(rows)}</ul>' if rows else ""


def _skills(card: Scorecard) -> str:
    found = _judged(card)
    rows = []
    for m in found:
        least, cells = m.baselines["pass mark"], []
        for value in (m.value, *(m.baselines.get(name, math.nan) for name in _HANDS)):
            tick = "" if not math.isfinite(value) else " ✓" if value >= least else " ✗"
            cells.append(f"{value:.2f}{tick}" if tick else "–")
        span = f"{m.low:.2f} to {m.high:.2f}"
        rows.append([escape(m.name), f"{least:.2f}", *cells, span, str(m.n)])
    if not rows:
        return ""
    heads = ["check", "pass mark", "model", "real world", "copy", "noise", "95 % interval", "n"]
    return (
        "<p>A score is 1 at best. The pass mark is a fixed share of the score of "
        "the real world under the same keys, where it can be measured. “Copy” shows the first "
        "frame all the time, “noise” random pixels; n counts starts.</p>"
        + table(heads, rows, "Skills")
    )


_HANDS = {"real": "the real world", "copy": "a copy of the start", "noise": "noise"}


def _passes(card: Scorecard, hand: str) -> str:
    """Return how many checks another hand passes, of those that it can be put to."""
    pairs = [(m.baselines.get(hand, math.nan), m.baselines["pass mark"]) for m in _judged(card)]
    known = [(value, least) for value, least in pairs if math.isfinite(value)]
    return f"{sum(value >= least for value, least in known)} of {len(known)}"


def _judged(card: Scorecard) -> list[Metric]:
    return [m for m in card.metrics if "pass mark" in m.baselines]


def _quality(card: Scorecard) -> str:
    plots = [_plot(curve, title) for name, title in _QUALITY if (curve := card.curve(name))]
    for name, title in _QUALITY:
        gains = [(k, card.curve(f"{name}_over_{k}")) for k in _GAINS]
        shown = [curve_of(f"better than {k}", curve) for k, curve in gains if curve]
        plots.append(lines(f"{title}: gain on the same clips", "steps ahead", shown))
    if not any(plots):
        return ""
    return (
        "<p>Held-out levels. Beside the model: the last given frame copied; the true frame "
        "encoded and decoded, the best that can be shown; the same noise under another clip's "
        "actions, and under none. Bands are 95 % bootstrap intervals over clips; those of gains "
        f'are paired.</p><div class="plots">{"".join(plots)}</div>'
    )


def _plot(curve: Sequence[Metric], title: str, x_title: str = "steps ahead") -> str:
    """Return a metric over its horizons, beside its baselines."""
    xs = [float(m.horizon or 0) for m in curve]
    beside = [
        Line(name, xs, [m.baselines.get(name, math.nan) for m in curve], dashed=True)
        for name in dict.fromkeys(name for m in curve for name in m.baselines)
    ]
    first = curve[0]
    return lines(title, x_title, [curve_of("model", curve), *beside], first.unit, hint(first))


def _following(card: Scorecard) -> str:
    known = {m.name: m for m in card.metrics}
    items = [
        Bar(label, m.value, m.low, m.high, key in ("imagined", "other_actions"))
        for key, label in _READERS
        if (m := known.get(f"idm_exact_{key}"))
    ]
    if not items:
        return ""
    return (
        "<p>An inverse-dynamics model, trained on real clips, reads the keys "
        "off the frames: the share of steps whose whole key combination is read right. “Other "
        "actions” are another clip's, and read as those; “shuffled” are the same rollouts read "
        "as the clip's own actions, which is what ignoring the actions would give.</p>"
        + bars("Key combination read right", items)
    )


def _keys(card: Scorecard) -> str:
    known = {m.name: m for m in card.metrics if m.horizon is None}
    keys = [name[4:-7] for name in known if name.startswith("key_") and name.endswith("_change")]
    if not keys:
        return ""
    rows = []
    for key in keys:
        cells = [escape(key)]
        for what in ("change", "sharpness", "strangeness", "read"):
            m = known[f"key_{key}_{what}"]
            bounds = " to ".join(number(v) for v in m.baselines.values())
            cells.append(f"{number(m.value)} <small>({bounds})</small>")
        rows.append(cells)
    heads = ["key", "change", "sharpness", "encoder distance to real", "read as the key"]
    plots = [
        lines(
            title, "steps held", [curve_of(key, card.curve(f"key_{key}_{what}_at")) for key in keys]
        )
        for what, title in _HELD
    ]
    return (
        "<p>In brackets what real clips show: the range of single steps or "
        "frames, the largest distance to the nearest other real frame, the share read. A walker "
        "meets a wall: for keys that walk, reading and movement are judged in the first steps "
        f'only.</p><div class="plots">{"".join(plots)}</div>' + table(heads, rows, "Keys")
    )


def _others(card: Scorecard) -> str:
    """Return what no other part shows: curves as plots, numbers as tables, by their first word."""
    groups: dict[str, list[Metric]] = {}
    for m in card.metrics:
        if not _shown_above(m):
            groups.setdefault(m.name.replace(":", "_").split("_")[0], []).append(m)
    parts, single = [], []
    for word, group in groups.items():
        names = list(dict.fromkeys(m.name for m in group))
        curves = {name: card.curve(name) for name in names}
        plots = [_plot(curve, titled(name)) for name, curve in curves.items() if plotted(curve)]
        alone = [m for m in group if m.horizon is None or not plotted(curves[m.name])]
        if len(alone) < _GROUP and not plots:
            single += alone
            continue
        parts.append(f"<h3>{escape(word.capitalize())}</h3>")
        parts.append(f'<div class="plots">{"".join(plots)}</div>' if plots else "")
        parts.append(_listed(alone, word) if alone else "")
    if single:
        parts.append("<h3>Others</h3>" if parts else "")
        parts.append(_listed(single, "Others"))
    return "".join(parts)


def _shown_above(m: Metric) -> bool:
    quality = [name for name, _ in _QUALITY]
    gains = [f"{name}_over_{beside}" for name in quality for beside in _GAINS]
    special = m.name in (*quality, *gains) or m.name.startswith("key_")
    return special or m.name.startswith("idm_exact_") or "pass mark" in m.baselines


def _everything(card: Scorecard) -> str:
    count = f"{len(card.metrics)} numbers with their intervals and baselines"
    listed = _listed(card.metrics, "All numbers") + _tables(card.tables, ())
    return f"<details><summary>{count}</summary>{listed}</details>"


def _tables(value: Any, names: tuple[str, ...]) -> str:
    """Return plain values, however they are nested, as tables."""
    if isinstance(value, Mapping):
        return "".join(_tables(part, (*names, str(name))) for name, part in value.items())
    rows = value if isinstance(value, list) else [value]
    cells = [
        [str(i), *map(_cell, row if isinstance(row, list) else [row])]
        for i, row in enumerate(rows, start=1)
    ]
    if not cells:
        return ""
    title, wide = " / ".join(map(titled, names)), max(map(len, cells))
    heads = ["", *map(str, range(1, wide))]
    return f"<h3>{escape(title)}</h3>{table(heads, cells, title)}"


def _cell(value: object) -> str:
    return number(float(value)) if isinstance(value, int | float) else escape(value)


def _listed(metrics: Sequence[Metric], label: str) -> str:
    """Return metrics as a table; without the columns that none of them fills."""
    ahead = any(m.horizon is not None for m in metrics)
    beside = any(m.baselines for m in metrics)
    rows = []
    for m in metrics:
        row = [escape(titled(m.name)), *([str(m.horizon or "")] if ahead else [])]
        row += [f"{number(m.value)} {escape(m.unit)}".strip()]
        row += [f"{number(m.low)} to {number(m.high)}", str(m.n)]
        others = ", ".join(f"{escape(k)} {number(v)}" for k, v in m.baselines.items())
        rows.append([*row, *([f'<td class="text">{others}</td>'] if beside else [])])
    heads = ["metric", *(["steps"] if ahead else []), "value", "95 % interval", "n"]
    return table([*heads, *(["beside"] if beside else [])], rows, label)


def _plain(value: object) -> object:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else value
