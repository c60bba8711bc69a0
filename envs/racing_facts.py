"""What CarRacing knows of a drive, as facts: how fast the car is, and where the road lies.

Its `info` is empty, so this asks the simulator. It also draws each picture anew in every native
step, seen or not, which takes most of its time: `unseen` leaves that out.
"""

import contextlib
from collections.abc import Iterator
from typing import Any

import numpy as np

BACK, AHEAD = 12, 18  # points of the road behind and ahead of the nearest one; 3.5 m apart
HALF_WIDTH = 40 / 6  # metres from the middle of the road to its edge


def is_racing(env: Any) -> bool:
    """Whether an environment is CarRacing or is made from it."""
    own = type(env.unwrapped)
    return any(base.__module__.endswith("box2d.car_racing") for base in own.__mro__)


def read(env: Any) -> dict[str, np.ndarray]:
    """Return the facts `velocity` and `road`.

    Args:
        env: a CarRacing environment that has been reset.
    """
    own: Any = env.unwrapped
    hull = own.car.hull
    # A body's own y axis is where the car looks; an angle is counter-clockwise from it.
    ahead = np.array([-np.sin(hull.angle), np.cos(hull.angle)])
    own_frame = np.stack([ahead, [-ahead[1], ahead[0]]], axis=1)
    away = np.array([point[2:4] for point in own.track]) - np.array([*hull.position])
    nearest = int(np.hypot(*away.T).argmin())
    around = away[np.arange(nearest - BACK, nearest + AHEAD + 1) % len(away)]
    return {
        "velocity": (np.array([*hull.linearVelocity]) @ own_frame).astype(np.float32),
        "road": (around @ own_frame).astype(np.float32),
    }


@contextlib.contextmanager
def unseen(env: Any) -> Iterator[None]:
    """Let native steps within draw nothing; they return the picture of before."""
    own: Any = env.unwrapped
    own._render = lambda mode: own.state
    try:
        yield
    finally:
        del own._render


def picture(env: Any) -> np.ndarray:
    """Return the observation of this moment, uint8 [96, 96, 3]."""
    return env.unwrapped._render("state_pixels")
