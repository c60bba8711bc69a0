"""Scorecards side by side: what differs, how surely, and whether they can be compared at all."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worldmodel.errors import UserError
from worldmodel.evaluate.metrics import estimate
from worldmodel.evaluate.scorecard import Metric, Scorecard

LETTERS = "ABCDEFGHIJ"
"""What scorecards are called beside each other."""

ENOUGH = 6
"""Clips or starts that a sure change takes: five all go one way by chance in 6 % of cases."""

_SAME = ("store", "split", "seed", "device", "dtype", "version", "commit")


@dataclass(frozen=True)
class Change:
    """How a metric differs from that of the first scorecard.

    Attributes:
        value: the difference; NaN where one of the two is missing.
        low, high: its 95 % interval, where both were measured on the same clips; else NaN.
        sure: whether that interval leaves out 0; without one, whether the two metrics' own
            intervals do not overlap, which asks for more. Never of fewer than `ENOUGH` clips.
    """

    value: float
    low: float
    high: float
    sure: bool


@dataclass(frozen=True)
class Difference:
    """One metric in all scorecards.

    Attributes:
        name, horizon: of the metric.
        found: the metric in each scorecard; None where one lacks it.
        changes: of each scorecard but the first.
        better: 'higher', 'lower' or ''.
    """

    name: str
    horizon: int | None
    found: tuple[Metric | None, ...]
    changes: tuple[Change, ...]
    better: str

    @property
    def label(self) -> str:
        """The name with the horizon."""
        return self.name if self.horizon is None else f"{self.name} at {self.horizon}"

    def good(self, change: Change) -> bool | None:
        """Whether a change is surely for the better, or the worse; None where neither is known."""
        if not (change.sure and self.better):
            return None
        return (change.value > 0) == (self.better == "higher")


def load_cards(places: Sequence[str]) -> list[Scorecard]:
    """Return scorecards from files, or from folders that hold a scorecard.json.

    Raises:
        UserError: fewer than two, or too many, or one that is not there or no scorecard.
    """
    if not 2 <= len(places) <= len(LETTERS):
        raise UserError(
            f"To compare takes two scorecards or more, at most {len(LETTERS)}: "
            "worldmodel eval compare A B."
        )
    paths = [Path(place) for place in places]
    return [Scorecard.load(p / "scorecard.json" if p.is_dir() else p) for p in paths]


def compare(cards: Sequence[Scorecard]) -> list[Difference]:
    """Return what the scorecards say about each metric that at least two of them have."""
    by_key = [{(m.name, m.horizon): m for m in card.metrics} for card in cards]
    rows = []
    for key in dict.fromkeys(key for card in by_key for key in card):
        found = tuple(card.get(key) for card in by_key)
        known = [m for m in found if m]
        if len(known) < 2:
            continue
        changes = tuple(
            _change(found[0], m, _paired(cards[0], card), card.seed)
            for m, card in zip(found[1:], cards[1:], strict=True)
        )
        rows.append(Difference(*key, found, changes, known[0].better))
    return rows


def doubts(cards: Sequence[Scorecard]) -> list[str]:
    """Return in which ways the scorecards were not measured alike, a sentence each."""
    said = []
    suites = [card.suite for card in cards]
    if len(set(suites)) > 1:
        said.append(f"The suites differ ({_list(suites)}); only what they share is compared.")
    data = [card.data for card in cards]
    if not all(data):
        said.append(
            "A scorecard does not say what it was measured on, so nothing is known about the "
            "same clips: a change counts where the two intervals do not overlap."
        )
    elif len(set(data)) > 1:
        said.append(
            "They were not measured on the same clips or starts, so differences are not paired: "
            "a change counts where the two intervals do not overlap."
        )
    for name in _SAME:
        values = [getattr(card, name) or "none" for card in cards]
        if len(set(values)) > 1:
            hint = "; speeds cannot be compared" if name in ("device", "dtype") else ""
            said.append(f"Not the same {name}: {_list(values)}{hint}.")
    for key in dict.fromkeys(key for card in cards for key in card.settings):
        values = [str(card.settings.get(key, "none")) for card in cards]
        if len(set(values)) > 1:
            said.append(f"Not the same {key.replace('_', ' ')}: {_list(values)}.")
    return said


def table(cards: Sequence[Scorecard], rows: Sequence[Difference]) -> str:
    """Return the comparison as text; a star marks changes that are sure."""
    names = [card.checkpoint[-18:] for card in cards]
    heads = "".join(f"{name:>20}" for name in names) + f"{'change':>12}"
    lines = [*(f"note: {doubt}" for doubt in doubts(cards)), f"{'metric':>36}{heads}"]
    for row in rows:
        cells = "".join(f"{m.value:20.3f}" if m else f"{'-':>20}" for m in row.found)
        changes = "".join(f"{c.value:+11.3f}{'*' if c.sure else ' '}" for c in row.changes)
        lines.append(f"{row.label:>36}{cells}{changes}")
    lines.append("* beyond the 95 % interval (paired, where measured on the same clips)")
    return "\n".join(lines)


def _paired(first: Scorecard, other: Scorecard) -> bool:
    return bool(first.data) and first.data == other.data


def _change(first: Metric | None, other: Metric | None, paired: bool, seed: int) -> Change:
    if not (first and other):
        return Change(math.nan, math.nan, math.nan, sure=False)
    value, enough = other.value - first.value, min(first.n, other.n) >= ENOUGH
    if paired and first.samples and len(first.samples) == len(other.samples):
        gain = estimate(np.subtract(other.samples, first.samples), seed)
        sure = enough and (gain.low > 0 or gain.high < 0)
        return Change(value, gain.low, gain.high, sure)
    apart = first.low > other.high or other.low > first.high
    return Change(value, math.nan, math.nan, enough and apart)


def _list(values: Sequence[object]) -> str:
    return ", ".join(f"{x}: {value}" for x, value in zip(LETTERS, values, strict=False))
