"""Scorecards side by side: what differs, and whether the intervals still overlap."""

import html
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worldmodel.errors import UserError
from worldmodel.evaluate.report import page
from worldmodel.evaluate.scorecard import Metric, Scorecard


@dataclass(frozen=True)
class Difference:
    """One metric in all scorecards.

    Attributes:
        name: of the metric, with its horizon.
        found: the metric in each scorecard; None where one lacks it.
        changes: of each but the first: its value less the first one's, NaN where one is missing.
        apart: of each but the first: whether its interval and the first one's do not overlap.
        better: 'higher', 'lower' or ''.
    """

    name: str
    found: tuple[Metric | None, ...]
    changes: tuple[float, ...]
    apart: tuple[bool, ...]
    better: str


def load_cards(places: Sequence[str]) -> list[Scorecard]:
    """Return scorecards from files, or from folders that hold a scorecard.json.

    Raises:
        UserError: fewer than two, or one that is not there or no scorecard.
    """
    if len(places) < 2:
        raise UserError("To compare takes two scorecards or more: compare=[A,B].")
    paths = [Path(place) for place in places]
    return [Scorecard.load(p / "scorecard.json" if p.is_dir() else p) for p in paths]


def compare(cards: Sequence[Scorecard]) -> list[Difference]:
    """Return what the scorecards say about each metric that at least two of them have."""
    by_key = [{(m.name, m.horizon): m for m in card.metrics} for card in cards]
    keys = dict.fromkeys(key for card in by_key for key in card)
    rows = []
    for name, horizon in keys:
        found = tuple(card.get((name, horizon)) for card in by_key)
        known = [m for m in found if m]
        if len(known) < 2:
            continue
        first = found[0]
        rows.append(
            Difference(
                name=name if horizon is None else f"{name} at {horizon}",
                found=found,
                changes=tuple(
                    m.value - first.value if m and first else math.nan for m in found[1:]
                ),
                apart=tuple(bool(m and first and _apart(m, first)) for m in found[1:]),
                better=known[0].better,
            )
        )
    return rows


def table(cards: Sequence[Scorecard], rows: Sequence[Difference]) -> str:
    """Return the comparison as text; a star marks intervals that do not overlap."""
    names = [card.checkpoint[-18:] for card in cards]
    lines = [f"{'metric':>36}" + "".join(f"{name:>20}" for name in names) + f"{'change':>12}"]
    for row in rows:
        cells = "".join(f"{m.value:20.3f}" if m else f"{'-':>20}" for m in row.found)
        changes = "".join(
            f"{change:+11.3f}{'*' if apart else ' '}"
            for change, apart in zip(row.changes, row.apart, strict=True)
        )
        lines.append(f"{row.name:>36}{cells}{changes}")
    lines.append("* the 95 % intervals do not overlap")
    return "\n".join(lines)


def render(cards: Sequence[Scorecard], rows: Sequence[Difference]) -> str:
    """Return the comparison as a page that loads nothing."""
    heads = ["metric", *(f"{card.checkpoint} ({card.suite})" for card in cards)]
    heads += ["change"] * (len(cards) - 1)
    lines = []
    for row in rows:
        cells = [f"<td>{html.escape(row.name)}</td>", *map(_cell, row.found)]
        for change, apart in zip(row.changes, row.apart, strict=True):
            good = (change > 0) == (row.better == "higher")
            kind = f"mark {'yes' if good else 'no'}" if apart and row.better else ""
            text = "–" if math.isnan(change) else f"{change:+.3f}"
            cells.append(f'<td><span class="{kind}">{text}</span></td>')
        lines.append(f"<tr>{''.join(cells)}</tr>")
    head = "".join(f"<th>{html.escape(name)}</th>" for name in heads)
    settings = "".join(
        f"<li>{html.escape(card.checkpoint)}: {html.escape(card.split)} {html.escape(card.store)}, "
        f"seed {card.seed}, {card.device}, checkpoint {card.checkpoint_hash[:10]}</li>"
        for card in cards
    )
    return page(
        "Comparison",
        f"<h1>Comparison</h1><ul>{settings}</ul><p>Values with their 95 % intervals; a change is "
        "against the first one, and coloured where the intervals do not overlap.</p>"
        f'<div class="scroll"><table><tr>{head}</tr>{"".join(lines)}</table></div>',
    )


def _apart(a: Metric, b: Metric) -> bool:
    return a.low > b.high or b.low > a.high


def _cell(m: Metric | None) -> str:
    if m is None:
        return "<td>–</td>"
    return f"<td>{m.value:.3f} <small>({m.low:.3f} to {m.high:.3f})</small></td>"
