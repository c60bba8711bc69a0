"""What the trust meter says about a frame, in multiples of what real frames have."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

AMBER_ABOVE, RED_ABOVE = 4.0, 16.0
"""Where the lights change, in spreads of real frames above what is usual for them."""

FLOOR = 1e-3
"""Least spread: where real frames come back exactly, as pixels do, rounding is no alarm."""


@dataclass(frozen=True)
class Level:
    """What real frames have of a figure.

    Attributes:
        usual: their median.
        spread: from there to their 95th percentile.
    """

    usual: float
    spread: float

    @staticmethod
    def of(values: Sequence[float] | np.ndarray) -> "Level":
        """The level of some measured values."""
        usual, high = np.percentile(values, [50, 95])
        return Level(float(usual), float(max(high - usual, FLOOR)))

    def above(self, value: float) -> float:
        """How many spreads a value lies above what is usual, at least 0."""
        return max(0.0, (value - self.usual) / self.spread)


@dataclass(frozen=True)
class Reading:
    """What was measured at one frame.

    Attributes:
        round_trip: encoder distance, 0 to 2, of the imagined latent and the frame seen again.
        instability: encoder distance of the last two passes; None where there was only one.
        score: spreads above real frames, of the two the larger.
        drift: of the last frames; 1 is what a real clip has.
    """

    round_trip: float
    instability: float | None
    score: float
    drift: float

    @property
    def light(self) -> str:
        """'green', 'amber' or 'red'."""
        return (
            "green" if self.score <= AMBER_ABOVE else "amber" if self.score <= RED_ABOVE else "red"
        )

    def to_json(self) -> dict[str, Any]:
        """Plain values, for a report."""
        unrest = None if self.instability is None else round(self.instability, 5)
        return {
            "light": self.light,
            "score": round(self.score, 2),
            "round_trip": round(self.round_trip, 5),
            "instability": unrest,
            "drift": round(self.drift, 3),
        }
