"""`worldmodel play remote=HOST:PORT`: the same window, on a model that runs elsewhere."""

import os
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

from worldmodel.errors import UserError
from worldmodel.evaluate.scenario import parse_scenario
from worldmodel.viewer.app import (
    DEFAULT_FPS,
    RECORDINGS,
    make_report,
    new_recording,
    write_outputs,
)
from worldmodel.viewer.config import PlayConfig
from worldmodel.viewer.journal import Head
from worldmodel.viewer.keep import Keeper
from worldmodel.viewer.keyfile import load_keyfile
from worldmodel.viewer.remote import Address, RemoteEngine
from worldmodel.viewer.session import Session
from worldmodel.viewer.tape import Tape, prepare
from worldmodel.viewer.view import Face
from worldmodel.viewer.window import (
    open_window,
    outliving_its_window,
    prepare_environment,
    require_display,
)

_OURS = (
    *("remote", "token", "start", "record", "frames", "report", "screenshot", "sessions", "clip_s"),
    *("width", "height", "fullscreen", "smooth", "keymap"),
)
"""The settings that are the window's; the others are the server's."""

MISSING = {
    "finer": "How many denoising steps there are is up to the server.",
    "faster": "How many denoising steps there are is up to the server.",
    "experts": "Others use the model too: its experts are not shown.",
}
"""What does not work from afar, by command, and what to say then."""


@dataclass(frozen=True)
class RemoteKeeper(Keeper):
    """Keeps clips of what came, and scenarios that the server writes for us.

    Attributes:
        ask: asks the server for the path to a node, None for the current one.
    """

    ask: Callable[[int | None], None] = lambda _: None

    def save(self, session: Session, node: int | None = None) -> str:
        """Ask for the scenario of the path to a node; `keep` writes it when it comes."""
        self.ask(node)
        return "Asking the server for the path to this frame ..."

    def keep(self, scenario: dict[str, Any], name: str) -> str:
        """Write a scenario that came. Returns what to tell.

        Raises:
            UserError: it is none, or the file cannot be written.
        """
        parse_scenario(scenario)
        return self.write(scenario, name)


def main(cfg: PlayConfig) -> int:
    """Play until the window is closed.

    Returns:
        0, or 1 if the model had failed.

    Raises:
        UserError: no display, no such server, a wrong token, or a setting that is the server's.
    """
    usual = PlayConfig()
    for field in fields(cfg):
        if field.name not in _OURS and getattr(cfg, field.name) != getattr(usual, field.name):
            raise UserError(
                f"{field.name}= does not go with remote=: the server has the model and the "
                f"session. What does: {', '.join(_OURS)}."
            )
    address = Address.parse(cfg.remote)
    prepare_environment(headless=False)
    keys = load_keyfile(cfg.keymap)
    for path in (cfg.record, cfg.frames, cfg.report, cfg.screenshot):
        prepare(path)
    require_display("Playing from afar needs a window here: start it in a desktop session.")
    from worldmodel.viewer.ui import Window

    tape = Tape(
        keep_frames=bool(cfg.frames),
        keep_events=bool(cfg.report),
        fps=DEFAULT_FPS,
        steady=False,
    )
    open_window(cfg.width, cfg.height, "worldmodel", False, cfg.fullscreen)
    face = Face()
    face = replace(
        face,
        bindings=keys.bindings(face.bindings),
        hints=tuple(hint for hint in face.hints if hint[0] not in MISSING),
        loading=f"Connecting to {address.name}",
        about=lambda: engine.about(),
        stages=lambda: engine.stages(),
        missing=MISSING,
    )
    keeper = RemoteKeeper(
        head=lambda _: Head(),  # the server knows it
        sessions=Path(cfg.sessions or "sessions"),
        recordings=RECORDINGS,
        fps=DEFAULT_FPS,
        clip_s=cfg.clip_s,
        ask=lambda node: engine.ask_path(node),
    )
    window = Window(tape, None, cfg.smooth, new_recording, face, keeper, keys.world)
    engine = RemoteEngine(
        address,
        cfg.token or address.token or os.environ.get("WORLDMODEL_TOKEN", ""),
        cfg.start,
        on_change=window.wake,
        on_step=tape.add,
        on_answer=tape.add_answer,
        on_reading=tape.add_reading,
        on_path=keeper.keep,
        keeps=round(cfg.clip_s * DEFAULT_FPS),
    )
    with outliving_its_window(window.close):
        if cfg.record:
            tape.record(cfg.record)
        try:
            window.run(engine)
        finally:
            engine.stop()
            saved = tape.stop()
        if saved:
            print(f"recorded {saved[1]} frames in {saved[0]}", flush=True)
        failure = engine.snapshot.failure
        if isinstance(failure, UserError):
            raise failure
        write_outputs(cfg, tape, lambda: make_report(cfg, engine.snapshot, window.stats, tape))
        return 1 if failure else 0
