"""`worldmodel play`: the window, its events, and headless runs of the very same program."""

import json
from collections.abc import Callable
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from worldmodel.errors import UserError
from worldmodel.evaluate.scenario import Scenario, load_scenario
from worldmodel.viewer.config import PlayConfig
from worldmodel.viewer.engine import Engine, Snapshot
from worldmodel.viewer.meter import Stats, peak_memory_mb, summary
from worldmodel.viewer.script import ScriptPlayer
from worldmodel.viewer.starts import make_context
from worldmodel.viewer.tape import Tape, prepare, write_whole
from worldmodel.viewer.window import (
    open_window,
    outliving_its_window,
    prepare_environment,
    require_display,
)
from worldmodel.world import World

DEFAULT_FPS = 12.0
"""Of recordings where the pace is free."""


def main(cfg: PlayConfig, load: Callable[..., World] | None = None) -> int:
    """Run the viewer until it is closed or its script is over.

    Args:
        cfg: the settings.
        load: makes the world; called with `Dream.load`'s arguments, and by default that.

    Returns:
        0, or 1 if the model had failed.

    Raises:
        UserError: no display, no such checkpoint, a bad script, an output that cannot be written.
    """
    prepare_environment(cfg.headless)
    scenario = load_scenario(cfg.script) if cfg.script else None
    for path in (cfg.record, cfg.frames, cfg.report, cfg.screenshot):
        prepare(path)
    if not cfg.headless:
        require_display()

    return _play(cfg, scenario, load)


def _play(cfg: PlayConfig, scenario: Scenario | None, load: Callable[..., World] | None) -> int:
    from worldmodel.viewer.ui import Window

    tape = Tape(
        keep_frames=bool(cfg.frames),
        keep_events=bool(cfg.report),
        fps=cfg.fps or DEFAULT_FPS,
        steady=scenario is not None,
    )
    # A real world that starts in itself needs only the seed.
    given = scenario.start if scenario and scenario.start.world != cfg.world else None
    watched = cfg.fps > 0 and not cfg.headless
    player = ScriptPlayer(scenario, 1 / cfg.fps if watched else 0.0) if scenario else None
    open_window(cfg.width, cfg.height, "worldmodel", cfg.headless, cfg.fullscreen)
    window = Window(tape, player, cfg.smooth, new_recording)
    with outliving_its_window(window.close):
        engine = Engine(
            partial(load_world, cfg, scenario, load),
            fps=cfg.fps,
            start=_start(cfg, scenario),
            context=partial(make_context, given) if given else None,
            lockstep=scenario is not None,
            on_change=window.wake,
            on_step=tape.add,
        )
        if cfg.record:
            tape.record(cfg.record)
        try:
            window.run(engine)
        finally:
            ended = engine.stop()
            saved = tape.stop()
        if saved:
            print(f"recorded {saved[1]} frames in {saved[0]}", flush=True)
        failure = engine.snapshot.failure
        if failure and (scenario or isinstance(failure, UserError)):
            raise failure
        _write(cfg, tape, lambda: make_report(cfg, engine.snapshot, window.stats, tape))
        return 1 if failure or not ended else 0


def load_world(
    cfg: PlayConfig, scenario: Scenario | None, load: Callable[..., World] | None
) -> World:
    """Make the world that the settings and the script name.

    Raises:
        UserError: there is no such world or checkpoint.
    """
    if load is None and cfg.world != "dream":
        from worldmodel.envs import make_world

        return make_world(cfg.world)
    if load is None:
        from worldmodel.dream import Dream

        make: Callable[..., World] = Dream.load
    else:
        make = load
    default = PlayConfig()
    checkpoint, seed = cfg.checkpoint, cfg.seed
    if scenario and scenario.checkpoint and checkpoint == default.checkpoint:
        checkpoint = scenario.checkpoint
    if scenario and scenario.seed is not None and seed == default.seed:
        seed = scenario.seed
    return make(
        checkpoint=checkpoint,
        device=cfg.device,
        dtype=cfg.dtype,
        denoise_steps=cfg.denoise_steps,
        guidance=cfg.guidance,
        seed=seed,
    )


def _start(cfg: PlayConfig, scenario: Scenario | None) -> int:
    if scenario and scenario.start.seed is not None and cfg.start == PlayConfig().start:
        return scenario.start.seed
    return cfg.start


def _write(cfg: PlayConfig, tape: Tape, report: Callable[[], dict[str, Any]]) -> None:
    """Write the files that the settings ask for."""
    import pygame

    if cfg.frames:
        tape.write_frames(cfg.frames)
    if cfg.screenshot:
        surface = pygame.display.get_surface()
        assert surface is not None
        write_whole(cfg.screenshot, lambda file: pygame.image.save(surface, file, ".png"))
    if cfg.report:
        text = json.dumps(report(), indent=2, ensure_ascii=False) + "\n"
        write_whole(cfg.report, lambda file: file.write(text.encode()))


def make_report(cfg: PlayConfig, snapshot: Snapshot, stats: Stats, tape: Tape) -> dict[str, Any]:
    """Return the report of a session; plain JSON values, times in the units of their names."""
    info = snapshot.info
    return {
        "device": info.device if info else "",
        "device_reason": info.reason if info else "",
        "dtype": info.dtype if info else "",
        "threads": info.threads if info else 0,
        "checkpoint": info.name if info else cfg.checkpoint,
        "world": cfg.world,
        "start": snapshot.start,
        "denoise_steps": snapshot.denoise_steps,
        "frames": tape.num_steps,
        "fps": round(stats.fps, 2),
        "latency_ms": summary(stats.latencies_ms),
        "step_ms": summary(stats.steps_ms),
        "start_s": round(stats.start_s, 3) if stats.start_s is not None else None,
        "peak_memory_mb": peak_memory_mb(),
        "events": tape.events,
    }


def new_recording() -> Path:
    """Return the path of a recording that begins now; its folder is made."""
    folder = Path("recordings")
    folder.mkdir(exist_ok=True)
    return folder / f"{datetime.now():%Y%m%d-%H%M%S}.mp4"
