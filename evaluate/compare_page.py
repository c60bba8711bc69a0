"""The page that lays scorecards side by side; like the reports it loads nothing."""

import math
from collections.abc import Sequence
from pathlib import Path

from worldmodel.evaluate.compare import LETTERS, Change, Difference, doubts
from worldmodel.evaluate.page import Section, escape, film, mark, number, page, table
from worldmodel.evaluate.plots import lines
from worldmodel.evaluate.report import curve_of, described, hint, plotted, titled
from worldmodel.evaluate.scorecard import Metric, Scorecard
from worldmodel.evaluate.sheets import Sheet

_STEPS = (1, 4, 8, 16, 32, 64)  # horizons of a curve that stand in the table above the fold


def load_sheets(places: Sequence[str]) -> list[tuple[Sheet, ...]]:
    """Return the contact sheets that all of some folders hold, one tuple for each name."""
    folders = [Path(place) for place in places]
    if not all(folder.is_dir() for folder in folders):
        return []
    shared = set.intersection(*({p.stem for p in folder.glob("*.png")} for folder in folders))
    return [tuple(_sheet(folder, name) for folder in folders) for name in sorted(shared)]


def render(
    cards: Sequence[Scorecard], rows: Sequence[Difference], sheets: Sequence[tuple[Sheet, ...]] = ()
) -> str:
    """Return the comparison as a page.

    Args:
        cards: the scorecards, at most ten.
        rows: what `compare` found in them.
        sheets: contact sheets of the same kind, a tuple with one of each scorecard.
    """
    short = [
        row
        for row in rows
        if row.horizon is None or (row.horizon in _STEPS and not _derived(row.name))
    ]
    count = f"{len(rows)} numbers at all horizons"
    everything = f"<details><summary>{count}</summary>{_numbers(cards, rows)}</details>"
    sections = [
        Section("Runs", _runs(cards)),
        Section("Requirements", _verdicts(cards)),
        Section("Curves", _curves(cards)),
        Section("Numbers", _legend() + _numbers(cards, short) if rows else ""),
        Section("Films", "".join(map(_films, sheets))),
        Section("All numbers", everything if rows else ""),
    ]
    names = " / ".join(f"{x} {card.checkpoint}" for x, card in zip(LETTERS, cards, strict=False))
    head = f'<div class="kind">comparison</div><h1>{escape(names)}</h1>{_tiles(rows)}{_note(cards)}'
    return page(f"Comparison: {names}", head, sections)


def _sheet(folder: Path, name: str) -> Sheet:
    path = folder / f"{name}.mp4"
    mp4 = path.read_bytes() if path.exists() else b""
    return Sheet(name, titled(name), folder.name, (folder / f"{name}.png").read_bytes(), mp4)


def _tiles(rows: Sequence[Difference]) -> str:
    judged = [row.good(change) for row in rows for change in row.changes]
    counts = {
        "surely better than A": judged.count(True),
        "surely worse than A": judged.count(False),
        "no sure difference, or no better way": judged.count(None),
    }
    tiles = "".join(f'<div class="tile">{k}<b>{v}</b></div>' for k, v in counts.items())
    return f'<div class="tiles">{tiles}</div>'


def _note(cards: Sequence[Scorecard]) -> str:
    found = doubts(cards)
    if not found:
        return ""
    items = "".join(f"<li>{escape(doubt)}</li>" for doubt in found)
    return f'<div class="note"><strong>Not measured alike</strong><ul>{items}</ul></div>'


def _runs(cards: Sequence[Scorecard]) -> str:
    """Return what each was measured with; what is not the same in all stands out."""
    told = [dict([("suite", card.suite), *described(card)]) for card in cards]
    rows = []
    for name in dict.fromkeys(name for one in told for name in one):
        values = [str(one.get(name, "")) for one in told]
        if not any(values):
            continue
        kind = "text odd" if len(set(values)) > 1 else "text"
        rows.append([escape(name), *(f'<td class="{kind}">{escape(v)}</td>' for v in values)])
    return table(["", *_names(cards)], rows, "Runs")


def _verdicts(cards: Sequence[Scorecard]) -> str:
    known = [{v.name: v for v in card.verdicts} for card in cards]
    rows = []
    for name in dict.fromkeys(name for one in known for name in one):
        cells = [
            f'<td class="text">{mark(v.passed)} {escape(v.found)}</td>' if (v := one.get(name))
            else "–"
            for one in known
        ]  # fmt: skip
        rows.append([f'<span class="wrap">{escape(name)}</span>', *cells])
    return table(["requirement", *_names(cards)], rows, "Requirements") if rows else ""


def _curves(cards: Sequence[Scorecard]) -> str:
    """Return the metrics that have many horizons; what is derived from others is folded away."""
    plots, more = [], []
    for name in dict.fromkeys(m.name for card in cards for m in card.metrics):
        curves = [card.curve(name) for card in cards]
        shown = [
            curve_of(f"{letter} {card.checkpoint}", curve)
            for letter, card, curve in zip(LETTERS, cards, curves, strict=False)
            if plotted(curve)
        ]
        if len(shown) > 1:
            first = next(curve for curve in curves if curve)[0]
            kind = more if _derived(name) else plots
            kind.append(lines(titled(name), "steps ahead", shown, first.unit, hint(first)))
    if not (plots or more):
        return ""
    rest = f"<details><summary>{len(more)} more curves</summary>{_grid(more)}</details>"
    return _grid(plots) + (rest if more else "")


def _derived(name: str) -> bool:
    """Whether a curve says again what others do, or is of one key only."""
    return "_over_" in name or name.startswith("key_")


def _grid(plots: Sequence[str]) -> str:
    return f'<div class="plots">{"".join(plots)}</div>'


def _legend() -> str:
    return (
        "<p>Values with their 95 % intervals. A change is against A, with its interval where both "
        "were measured on the same clips; it is coloured where it is sure, and one way is better."
        "</p>"
    )


def _numbers(cards: Sequence[Scorecard], rows: Sequence[Difference]) -> str:
    lines = [
        [
            escape(titled(row.label)),
            *map(_value, row.found),
            *(_changed(row, change) for change in row.changes),
        ]
        for row in rows
    ]
    changes = [f"{letter} less A" for letter in LETTERS[1 : len(cards)]]
    return table(["metric", *_names(cards), *changes], lines, "Numbers")


def _value(m: Metric | None) -> str:
    if m is None:
        return "–"
    return f"{number(m.value)} <small>({number(m.low)} to {number(m.high)})</small>"


def _changed(row: Difference, change: Change) -> str:
    if math.isnan(change.value):
        return "–"
    good = row.good(change)
    kind = "" if good is None else f"mark {'yes' if good else 'no'}"
    text = f'<span class="{kind}">{change.value:+.3f}</span>'
    if math.isnan(change.low):
        return text
    return f"{text} <small>({change.low:+.3f} to {change.high:+.3f})</small>"


def _films(sheets: tuple[Sheet, ...]) -> str:
    shown = "".join(
        f"<div><h3>{letter} {escape(one.caption)}</h3>{film(one)}</div>"
        for letter, one in zip(LETTERS, sheets, strict=False)
    )
    return (
        f'<figure class="sheet"><figcaption>{escape(sheets[0].title)}</figcaption>'
        f'<div class="plots">{shown}</div></figure>'
    )


def _names(cards: Sequence[Scorecard]) -> list[str]:
    return [f"{x} {card.checkpoint}" for x, card in zip(LETTERS, cards, strict=False)]
