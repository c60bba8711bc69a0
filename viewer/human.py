"""`worldmodel collect policy=human`: play a real world in the window; what is played is stored."""

from collections.abc import Callable
from typing import Any

from worldmodel.datasets.played import RecordedWorld, recover
from worldmodel.datasets.workers import Annotate, CollectConfig
from worldmodel.errors import UserError
from worldmodel.viewer.app import DEFAULT_FPS, new_recording
from worldmodel.viewer.config import PlayConfig
from worldmodel.viewer.engine import Engine
from worldmodel.viewer.keys import BINDINGS, Binding
from worldmodel.viewer.tape import Tape
from worldmodel.viewer.view import Face
from worldmodel.viewer.window import (
    open_window,
    outliving_its_window,
    prepare_environment,
    require_display,
)
from worldmodel.world import World

REMEDY = "Playing by hand needs a window: start it in a desktop session, or let policy=mix play."

_CLOSE_S = 60.0  # for the last episode to be committed
_NEXT = Binding(
    "next", ("return", "enter", "r", "n", "f5"), "Enter", "end this episode, begin the next"
)
_NOT_HERE = (
    *("say", "clear", "rewind", "restart", "next", "previous", "finer", "faster"),
    *("fork", "map", "save", "clip", "experts"),
)
_BINDINGS = (_NEXT, *(binding for binding in BINDINGS if binding.name not in _NOT_HERE))


def main(config: CollectConfig, make_world: Callable[..., World], annotate: Annotate) -> int:
    """Let a person play episodes into a store until the window is closed.

    Args:
        config: the world and the store; seeds are the free ones from `config.seed` on.
        make_world: `make_world(env, split=split)` gives a world.
        annotate: `annotate(episode, spec, seed)` gives sentences about an episode.

    Returns:
        0, or 1 if the world had failed.

    Raises:
        UserError: no display, no such world, a store that does not fit or cannot be written.
    """
    if config.seed < 0:
        raise UserError(f"seed={config.seed} must not be negative.")
    if unused := _unused(config):
        print(
            f"Playing by hand goes on until you close the window; not used: {', '.join(unused)}.",
            flush=True,
        )
    prepare_environment(headless=False)
    require_display(REMEDY)
    for line in recover(config.out, annotate):
        print(line, flush=True)
    from worldmodel.viewer.ui import Window

    size = PlayConfig()
    open_window(size.width, size.height, "worldmodel", False, False, REMEDY)
    tape = Tape(keep_frames=False, keep_events=False, fps=DEFAULT_FPS, steady=False)
    player = _Player(config, make_world, annotate)
    face = Face(
        bindings=_BINDINGS,
        hints=(("next", "next"), ("pause", "pause"), ("help", "help")),
        loading="Opening the world",
        sent="DONE",
        line=player.line,
        about=player.about,
    )
    window = Window(tape, None, True, new_recording, face)
    with outliving_its_window(window.close):
        engine = Engine(
            player.load, fps=None, start=config.seed, on_change=window.wake, on_step=tape.add
        )
        try:
            window.run(engine)
        finally:
            ended = engine.stop(_CLOSE_S)
            tape.stop()
    failure = engine.snapshot.failure
    print(player.summary(), flush=True)
    if isinstance(failure, UserError):
        raise failure
    return 1 if failure or not ended else 0


def _unused(config: CollectConfig) -> tuple[str, ...]:
    """Return the settings that somebody made for a policy's play, as they were given."""
    usual = CollectConfig()
    return tuple(
        f"{name}={getattr(config, name)}"
        for name in ("episodes", "steps", "workers", "ray")
        if getattr(config, name) != getattr(usual, name)
    )


class _Player:
    """Makes the world that is recorded, and says how far it is."""

    def __init__(
        self, config: CollectConfig, make_world: Callable[..., World], annotate: Annotate
    ) -> None:
        self._config, self._make_world, self._annotate = config, make_world, annotate
        self._world: RecordedWorld | None = None

    def load(self) -> World:
        """Make the world; called in the engine's thread."""
        world: Any = self._make_world(self._config.env, split=self._config.split)
        try:
            self._world = RecordedWorld(world, self._config, self._annotate)
        except BaseException:
            world.close()
            raise
        return self._world

    def about(self) -> str:
        """Return the line under the world's name."""
        seed = self._world.seed if self._world else self._config.seed
        return f"real, {self._config.split}, seed {seed}"

    def line(self) -> str:
        """Return what is being recorded, and what is safe."""
        now = self._world.num_steps if self._world else 0
        safe = self._world.episodes if self._world else 0
        return f"recording step {now}; {_count(safe)} stored in {self._config.out}"

    def summary(self) -> str:
        """Return what was stored, when all is over."""
        episodes = self._world.episodes if self._world else 0
        steps = self._world.steps if self._world else 0
        return f"Stored {_count(episodes)} of {steps} steps in {self._config.out}."


def _count(episodes: int) -> str:
    return f"{episodes} episode{'s' if episodes != 1 else ''}"
