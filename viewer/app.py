"""`worldmodel play`: the window, its events, and headless runs of the very same program."""

import hashlib
import json
import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

from worldmodel.errors import UserError
from worldmodel.evaluate.scenario import Scenario, Start, load_scenario
from worldmodel.viewer.config import PlayConfig
from worldmodel.viewer.engine import Engine, Snapshot
from worldmodel.viewer.journal import (
    Head,
    Journal,
    Record,
    new_session,
    read_session,
    scenario_of,
    to_yaml,
)
from worldmodel.viewer.keep import Keeper, episode_of, store_episode
from worldmodel.viewer.keyfile import KeyFile, load_keyfile
from worldmodel.viewer.meter import Stats, peak_memory_mb, summary
from worldmodel.viewer.script import ScriptPlayer, SessionPlayer
from worldmodel.viewer.session import Session
from worldmodel.viewer.starts import Reality, folder_of, make_context, take_picture
from worldmodel.viewer.tape import Tape, prepare, write_whole
from worldmodel.viewer.view import BESIDE_FACE, REAL_FACE, Face
from worldmodel.viewer.window import (
    open_window,
    outliving_its_window,
    prepare_environment,
    require_display,
)
from worldmodel.world import World

RECORDINGS = Path("recordings")
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
        UserError: no display, no such checkpoint, a bad script, session or keymap, an output that
            cannot be written.
    """
    if cfg.remote:
        from worldmodel.viewer.remote_play import main as play_remote

        return play_remote(cfg)
    prepare_environment(cfg.headless)
    scenario = load_scenario(cfg.script) if cfg.script else None
    record = read_session(cfg.session) if cfg.session else None
    keys = load_keyfile(cfg.keymap)
    for path in (cfg.record, cfg.frames, cfg.report, cfg.screenshot, cfg.scenario):
        prepare(path)
    if not cfg.headless:
        require_display()
    if cfg.camera:
        picture = take_picture(cfg.camera, RECORDINGS)
        print(f"took the picture {picture}", flush=True)
        cfg = replace(cfg, camera="", image=str(picture))
    head = record.head if record else Head(world=cfg.world)
    plan = settle(cfg, scenario, head)
    return _play(plan, scenario, record, keys, load)


@dataclass(frozen=True)
class Plan:
    """What will be played: the settings, with what a script or a session leaves open filled in.

    Attributes:
        cfg: the settings.
        start: number of the start scene.
        given: a start of another kind, or None.
        beside: what is put beside the dream, or None.
    """

    cfg: PlayConfig
    start: int
    given: Start | None
    beside: Reality | None = None


def settle(cfg: PlayConfig, scenario: Scenario | None, head: Head) -> Plan:
    """Fill in what the settings leave at their defaults and a script or session says.

    Raises:
        UserError: a script or session that begins elsewhere than what is put beside it.
    """
    default = PlayConfig()
    said: dict[str, Any] = {}
    start = Start()
    if scenario:
        start = scenario.start
        said = {"checkpoint": scenario.checkpoint, "seed": scenario.seed}
    elif cfg.session:
        start = head.start
        names = ("checkpoint", "world", "beside", "seed", "denoise_steps", "guidance", "dtype")
        said = {name: getattr(head, name) for name in names}
    left = {
        name: value
        for name, value in said.items()
        if value not in (None, "", 0) and getattr(cfg, name) == getattr(default, name)
    }
    cfg = replace(cfg, **left)
    if cfg.image:
        start = Start(seed=cfg.start or start.seed, image=cfg.image)
    number = start.seed if start.seed is not None and cfg.start == default.start else cfg.start
    if cfg.beside:
        named = start.store or start.image or start.world
        if named not in (None, cfg.beside) or start.step:
            raise UserError(
                f"The start names '{named}'; with beside={cfg.beside} a dream begins with the "
                "first frame of that. Leave one of the two away."
            )
        if start.store and start.seed is None:
            number = cfg.start or start.episode
        reality = Reality(cfg.beside, start.split or Reality.split, cfg.pose)
        return Plan(cfg, number, None, reality)
    # A real world that starts in itself needs only the seed.
    own = start.world == cfg.world or not (start.store or start.image or start.world)
    return Plan(cfg, number, None if own else start)


def _play(
    plan: Plan,
    scenario: Scenario | None,
    record: Record | None,
    keys: KeyFile,
    load: Callable[..., World] | None,
) -> int:
    from worldmodel.viewer.ui import Window

    cfg = plan.cfg
    tape = Tape(
        keep_frames=bool(cfg.frames),
        keep_events=bool(cfg.report),
        fps=cfg.fps or DEFAULT_FPS,
        steady=scenario is not None,
    )
    watched = cfg.fps > 0 and not cfg.headless
    player: ScriptPlayer | SessionPlayer | None = None
    if scenario:
        player = ScriptPlayer(scenario, 1 / cfg.fps if watched else 0.0)
    elif record:
        player = SessionPlayer(record.commands, cfg.node, live=not cfg.headless)
    keeper = Keeper(
        head=partial(make_head, plan),
        sessions=Path(cfg.sessions or "sessions"),
        recordings=RECORDINGS,
        fps=cfg.fps or DEFAULT_FPS,
        clip_s=cfg.clip_s,
    )
    face = BESIDE_FACE if plan.beside else Face() if cfg.world == "dream" else REAL_FACE
    face = replace(face, bindings=keys.bindings(face.bindings))
    open_window(cfg.width, cfg.height, "worldmodel", cfg.headless, cfg.fullscreen)
    window = Window(tape, player, cfg.smooth, new_recording, face, keeper, keys.world)
    # What a script does is written already: in the script.
    written = cfg.sessions and not (scenario or cfg.headless)
    with outliving_its_window(window.close):
        engine = Engine(
            partial(_load_checked, plan, record, load, window.tell),
            fps=cfg.fps,
            start=plan.start,
            context=partial(make_context, plan.given) if plan.given else None,
            beside=plan.beside,
            lockstep=player is not None,
            adapt=cfg.adapt,
            fulfil=cfg.fulfil,
            journal=partial(_journal, plan) if written else None,
            history_bytes=math.inf if cfg.store else None,
            on_change=window.wake,
            on_step=tape.add,
            on_answer=tape.add_answer,
            on_reading=tape.add_reading,
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
        if engine.snapshot.journal and Path(engine.snapshot.journal).exists():
            print(f"go on with: worldmodel play session={engine.snapshot.journal}", flush=True)
        failure = engine.snapshot.failure
        if failure and (player or isinstance(failure, UserError)):
            raise failure
        write_outputs(cfg, tape, lambda: make_report(cfg, engine.snapshot, window.stats, tape))
        if ended and engine.session:
            _write_path(plan, engine.session)
        return 1 if failure or not ended else 0


def load_world(cfg: PlayConfig, load: Callable[..., World] | None) -> World:
    """Make the world that the settings name.

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
    return make(
        checkpoint=cfg.checkpoint,
        device=cfg.device,
        dtype=cfg.dtype,
        denoise_steps=cfg.denoise_steps,
        guidance=cfg.guidance,
        seed=cfg.seed,
    )


def make_head(plan: Plan, world: World) -> Head:
    """Return what a session file says first."""
    cfg = plan.cfg
    folder = folder_of(world)
    return Head(
        checkpoint=cfg.checkpoint if cfg.world == "dream" else "",
        sha256=hashlib.sha256((folder / "config.json").read_bytes()).hexdigest() if folder else "",
        world=cfg.world,
        beside=cfg.beside,
        start=_start_of(plan),
        seed=cfg.seed,
        denoise_steps=cfg.denoise_steps,
        guidance=cfg.guidance,
        device=str(getattr(world, "device", "")),
        dtype=str(getattr(world, "dtype", "")),
    )


def _start_of(plan: Plan) -> Start:
    if plan.beside:
        return plan.beside.start(plan.start) or Start(seed=plan.start)
    return plan.given or Start(seed=plan.start)


def _load_checked(
    plan: Plan,
    record: Record | None,
    load: Callable[..., World] | None,
    tell: Callable[[str], None],
) -> World:
    """Make the world, and say so if it is not the one of the session."""
    world = load_world(plan.cfg, load)
    if record and record.head.sha256 != make_head(plan, world).sha256:
        notice = "This is not the checkpoint that the session was played on; frames will differ."
        print(notice, flush=True)
        tell(notice)
    return world


def _journal(plan: Plan, world: World) -> Journal:
    return Journal(new_session(Path(plan.cfg.sessions)), make_head(plan, world))


def _write_path(plan: Plan, session: Session) -> None:
    """Write the path to the last frame where the settings ask for it."""
    node = session.at
    if plan.cfg.scenario:
        head = make_head(plan, session.world)
        scenario = scenario_of(session.tree, node, head, session.start_of(node))
        write_whole(plan.cfg.scenario, lambda file: file.write(to_yaml(scenario).encode()))
    if plan.cfg.store:
        store_episode(episode_of(session, node), session, plan.cfg.store)


def write_outputs(cfg: PlayConfig, tape: Tape, report: Callable[[], dict[str, Any]]) -> None:
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
        "fps": round(stats.fps(snapshot.apart_s), 2),
        "calibration_s": round(snapshot.apart_s, 3),
        "latency_ms": summary(stats.latencies_ms),
        "step_ms": summary(stats.steps_ms),
        "start_s": round(stats.start_s, 3) if stats.start_s is not None else None,
        "peak_memory_mb": peak_memory_mb(),
        "experts": snapshot.dials.routing.picks if snapshot.dials.routing else None,
        "events": tape.events,
    }


def new_recording() -> Path:
    """Return the path of a recording that begins now; its folder is made."""
    RECORDINGS.mkdir(exist_ok=True)
    return RECORDINGS / f"{datetime.now():%Y%m%d-%H%M%S}.mp4"
