"""The configuration of `worldmodel plan`; the same keys as conf/plan.yaml."""

from dataclasses import dataclass


@dataclass(frozen=True)
class PlanConfig:
    """Which goals to reach, and how to search. Each key is explained in conf/plan.yaml."""

    checkpoint: str = "doom-nano"
    store: str = "data/doom.zarr"
    split: str = "val"
    world: str = ""
    goal: str = "frame"
    out: str = "runs/plan"
    episodes: int = 16
    context: int = 4
    horizon: int = 8
    hold: int = 2
    pairs: bool = True
    candidates: int = 32
    elites: int = 6
    iterations: int = 3
    batch: int = 32
    replan: int = 4
    steps: int = 16
    lead: int = 12
    policy: str = "explore"
    near_metres: float = 1.0
    near_degrees: float = 30.0
    device: str = "auto"
    dtype: str = "auto"
    denoise_steps: int = 1
    guidance: float = 1.0
    seed: int = 0

    @property
    def judged(self) -> bool:
        """Whether the goal is one that a path reaches, so that success means something."""
        return self.goal in ("frame", "object")
