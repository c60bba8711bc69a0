"""What the model's thread tells the window: one immutable value after each change."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from worldmodel.errors import UserError
from worldmodel.viewer.instruments import Dials
from worldmodel.viewer.outline import Stop
from worldmodel.viewer.phrases import known_phrases, token_counter
from worldmodel.viewer.session import Answer, Future, Moment, Session
from worldmodel.world import World, WorldSpec


@dataclass(frozen=True)
class ModelInfo:
    """What the loaded world says about itself.

    Attributes:
        spec, name: of the world or checkpoint.
        device, reason, dtype, threads: where it runs, and why there.
        num_starts: number of start scenes, 0 where they have no end.
        phrases: sentences that it may know.
        count_tokens: gives the tokens of a sentence, of which `max_tokens` are read; None where
            it reads no tokens.
        window: frames of the past that it sees; 0 where that is no question.
    """

    spec: WorldSpec
    name: str
    device: str
    reason: str
    dtype: str
    threads: int
    num_starts: int
    phrases: tuple[str, ...] = ()
    count_tokens: Callable[[str], int] | None = None
    max_tokens: int = 0
    window: int = 0

    @property
    def line(self) -> str:
        """One line, for instance 'device: cpu (no CUDA device found), bfloat16, 2 threads'."""
        threads = f"{self.threads} thread{'s' if self.threads != 1 else ''}" if self.threads else ""
        kind = [part for part in (self.dtype, threads) if part]
        return ", ".join([f"device: {self.device} ({self.reason})", *kind])


@dataclass(frozen=True)
class Snapshot:
    """Everything the window knows about the model, at one instant.

    Attributes:
        serial: grows with every change.
        status: 'loading', 'playing', 'paused' or 'failed'.
        info: None while loading.
        now, timeline: the current moment, and some of those before it.
        futures: the branches of the open fork, if one is open.
        chart: the outline of the tree while it is asked for.
        journal: the session's file, or empty.
        instruction: the instruction in force, or empty.
        answer: to the last question, None before the first one.
        dials: how far the imagination can be trusted, and which experts fire.
        start: number of the start scene.
        begin: what this dream began with instead of a start scene, or empty.
        imagined: frames that were imagined since then.
        denoise_steps: denoising steps per frame, 0 where there are none.
        wanted_denoise: those asked for, where they follow the machine; else 0.
        steps_done: steps taken since the program began; rewinding does not lower it.
        fps: steps per second lately. wanted_fps: those aimed at, 0 for as many as can be.
        step_ms: milliseconds of the last step.
        apart_s: seconds that a script stood still while real frames were measured for the trust
            meter; a person who plays does not wait for that.
        input_s: time (`time.perf_counter`) of the input that the current frame answers, or None.
        notice: a sentence for the user, and when (`time.perf_counter`) it was written.
        commands_done: commands carried out since the program began.
        failure: what stopped the model, or in a strict engine the command.
    """

    serial: int = 0
    status: str = "loading"
    info: ModelInfo | None = None
    now: Moment | None = None
    timeline: tuple[Moment, ...] = ()
    futures: tuple[Future, ...] = ()
    chart: tuple[Stop, ...] = ()
    journal: str = ""
    instruction: str = ""
    answer: Answer | None = None
    dials: Dials = field(default_factory=Dials)
    start: int = 0
    begin: str = ""
    imagined: int = 0
    denoise_steps: int = 0
    wanted_denoise: int = 0
    steps_done: int = 0
    fps: float = 0.0
    wanted_fps: float = 0.0
    step_ms: float = 0.0
    apart_s: float = 0.0
    input_s: float | None = None
    notice: str = ""
    notice_s: float = 0.0
    commands_done: int = 0
    failure: Exception | None = None


def describe(world: World) -> ModelInfo:
    """Return what `world` says about itself; real environments have no device."""
    device = str(getattr(world, "device", "none"))
    torch = sys.modules.get("torch")
    count, most = token_counter(world)
    return ModelInfo(
        spec=world.spec,
        name=str(getattr(world, "checkpoint_name", world.spec.name)),
        device=device,
        reason=str(getattr(world, "device_reason", f"{world.spec.name} needs no model")),
        dtype=str(getattr(world, "dtype", "")),
        threads=torch.get_num_threads() if torch and device.startswith("cpu") else 0,
        num_starts=int(getattr(world, "num_starts", 0)),
        phrases=known_phrases(world.spec) if callable(getattr(world, "say", None)) else (),
        count_tokens=count,
        max_tokens=most,
        window=int(getattr(getattr(world, "engine", None), "window", 0)),
    )


def begin_of(session: Session) -> str:
    """Return what a session's dream began with, for people; empty for a start scene."""
    try:
        start = session.start_of(session.at)
    except UserError:
        return "the middle of a real walk"
    if start.image:
        return f"the picture {Path(start.image).name}"
    if start.store:
        step = f", step {start.step}" if start.step else ""
        return f"{Path(start.store).name}, episode {start.episode}{step}"
    return f"{start.world}, seed {start.seed}" if start.world else ""
