"""Make the pictures of the viewer with a checkpoint, without a display.

    python docs/make_viewer.py [checkpoint [pose regressor]]

Writes viewer.png, viewer-fork.png, viewer-map.png and viewer-beside.png to docs/images. All that
is on them was imagined for them, and the figures are those of this machine in this run.
"""

import os
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

import pygame

from worldmodel.dream import Dream
from worldmodel.viewer.commands import (
    Advance,
    Branch,
    Chart,
    Command,
    Drop,
    Fork,
    Name,
    Pick,
    Say,
)
from worldmodel.viewer.config import PlayConfig
from worldmodel.viewer.draw import draw
from worldmodel.viewer.engine import Engine
from worldmodel.viewer.keys import Keymap
from worldmodel.viewer.meter import Stats
from worldmodel.viewer.script import SessionPlayer
from worldmodel.viewer.starts import Reality
from worldmodel.viewer.view import BESIDE_FACE, Face, ViewState

OUT = Path(__file__).parent / "images"
SIZE = (1000, 800)
START = 21

W, A, D = (Branch((key,)) for key in "wad")
TURN = Branch(say="turn right")
DRIVE = (Advance(("w",)),) * 8
FORK = (Say(TURN.say), Fork((W, A, D, TURN)), *[Advance()] * 6)
ON = (
    Pick(3),
    *[Advance()] * 3,
    Say(""),
    *[Advance(("w",))] * 8,
    Fork((W, A, D)),
    *[Advance()] * 8,
    Pick(0),
    *[Advance(("w",))] * 6,
)

BESIDE = 14
WALK = (*[Advance(("w",))] * 4, Drop(), *[Advance(("a",))] * 3, *[Advance(("w",))] * 3)


class Camera:
    """Plays commands on a model and takes pictures of the window."""

    def __init__(self, checkpoint: str, start: int, beside: Reality | None = None) -> None:
        play = PlayConfig()
        load = partial(
            Dream.load, checkpoint, denoise_steps=play.denoise_steps, guidance=play.guidance
        )
        self.engine = Engine(load, start=start, beside=beside, lockstep=True)
        self.engine.start()
        self.stats = Stats()
        self._seen = 0

    def play(self, commands: Sequence[Command]) -> None:
        """Carry out commands, measuring as the window does."""
        player = SessionPlayer(commands)
        while not player.tick(self.engine, self.engine.snapshot, time.perf_counter()):
            now = self.engine.snapshot
            if now.failure:
                raise now.failure
            if now.steps_done != self._seen:
                self._seen = now.steps_done
                self.stats.shown(now.steps_done, now.step_ms, now.input_s, time.perf_counter())
            time.sleep(0.002)

    def shoot(
        self,
        name: str,
        held: tuple[str, ...] = (),
        selected: int | None = None,
        apart: bool = False,
    ) -> None:
        """Write what the window shows now."""
        now = self.engine.snapshot
        assert now.info is not None
        assert now.now is not None
        face = BESIDE_FACE if now.now.sight else Face()
        keymap = Keymap(now.info.spec.actions, face.bindings)
        hints = tuple((keymap.label(command), word) for command, word in face.hints)
        latencies = sorted(self.stats.latencies_ms)
        view = ViewState(
            now,
            held=held,
            scripted=True,
            hints=(("1-9", "take"), ("Esc", "back"), ("F", "again")) if now.futures else hints,
            latency_ms=latencies[len(latencies) // 2] if latencies else None,
            step_times_ms=tuple(self.stats.steps_ms)[-120:],
            charted=selected,
            apart=apart,
        )
        surface = pygame.Surface(SIZE)
        draw(surface, view)  # loads the type
        begin_s = time.perf_counter()
        draw(surface, view)
        draw_ms = (time.perf_counter() - begin_s) * 1e3
        draw(surface, replace(view, draw_ms=draw_ms))
        pygame.image.save(surface, str(OUT / name))


def main() -> None:
    """Write all pictures."""
    pygame.font.init()
    checkpoint = sys.argv[1] if len(sys.argv) > 1 else "doom-nano"
    camera = Camera(checkpoint, START)
    try:
        camera.play(DRIVE)
        camera.shoot("viewer.png", held=("w",))
        camera.play(FORK)
        camera.shoot("viewer-fork.png", held=("w", "a", "d"))
        camera.play(ON)
        assert camera.engine.session is not None
        tree = camera.engine.session.tree
        fork = next(node.id for node in tree if len(tree.children(node.id)) > 3)
        camera.play((Name(fork, "the crossing"), Chart(True)))
        camera.shoot("viewer-map.png", selected=1)
    finally:
        camera.engine.stop()
    pose = sys.argv[2] if len(sys.argv) > 2 else "auto"
    camera = Camera(checkpoint, BESIDE, Reality("doom", pose=pose))
    try:
        camera.play(WALK)
        camera.shoot("viewer-beside.png", held=("w",), apart=True)
    finally:
        camera.engine.stop()


if __name__ == "__main__":
    main()
