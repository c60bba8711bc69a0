"""The configuration of `worldmodel eval`; the same keys as conf/eval.yaml."""

from dataclasses import dataclass


@dataclass(frozen=True)
class EvalConfig:
    """What to evaluate, on what, and how much of it. Each key is explained in conf/eval.yaml."""

    suite: str = "metrics"
    scenario: str = ""
    compare: tuple[str, ...] = ()
    checkpoint: str = "doom-nano"
    imaginer: str = ""
    weights: str = ""
    policy: str = ""
    world: str = "doom"
    reward: str = "brightness"
    store: str = "data/doom.zarr"
    split: str = "val"
    out: str = "runs/eval"
    clips: int = 64
    context: int = 4
    horizon: int = 32
    starts: int = 16
    key_steps: int = 64
    batch: int = 16
    texts: int = 256
    questions: int = 256
    prose: str = ""
    instructions: tuple[str, ...] = ("turn right", "turn left", "go forward")
    idm: str = "auto"
    pose: str = "auto"
    drift: int = 0
    experts: int = 8
    lpips: str = ""
    dreamsim: str = ""
    fid: str = ""
    fvd: str = ""
    device: str = "auto"
    dtype: str = "auto"
    denoise_steps: int = 2
    guidance: float = 1.5
    seed: int = 0
