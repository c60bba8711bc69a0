"""A small deterministic world with a Dream's interface, and a program that plays it.

`python viewer_toy.py key=value ...` runs the real viewer on it. The environment makes it slow
(TOY_DELAY_S), breaks it (TOY_FAIL=load|missing|step) or makes it write down every text
(TOY_LOG=FILE).
"""

import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

from worldmodel.actions import Action, ActionRow, ActionTable
from worldmodel.errors import UserError
from worldmodel.world import Step, WorldSpec

TABLE = ActionTable(
    (
        ActionRow("forward", "w", "walk forward", dx=0.5, phrases=("step forward",)),
        ActionRow("back", "s", "walk back", dx=-0.5, phrases=("step back",)),
        ActionRow("turn left", "a", "turn left", dyaw=11.25, phrases=("turn left",)),
        ActionRow("turn right", "d", "turn right", dyaw=-11.25, phrases=("turn right",)),
    )
)


class ToyDream:
    """A gradient that drifts with the keys."""

    spec = WorldSpec("toy", TABLE, 48, 64)
    device = "cpu"
    device_reason = "no CUDA device found"
    dtype = "float32"
    num_starts = 5
    checkpoint_name = "toy"

    def __init__(self, seed: int = 0, denoise_steps: int = 4) -> None:
        self.denoise_steps = denoise_steps
        self.seed = seed
        self.history = 768
        # where it is, how many were stepped together, and the sentence in force
        self.past: list[tuple[float, float, int, str | None]] = [(0.0, 0.0, 1, None)]
        self.start = 0
        self.closed = False

    @classmethod
    def load(cls, *, seed: int, denoise_steps: int, **_: object) -> "ToyDream":
        time.sleep(float(os.environ.get("TOY_LOAD_S", "0")))
        if os.environ.get("TOY_FAIL") == "missing":
            raise UserError("Unknown checkpoint 'doom-nono'. Did you mean 'doom-nano'?")
        if os.environ.get("TOY_FAIL") == "load":
            raise RuntimeError("the weights exploded")
        return cls(seed, denoise_steps)

    def _frame(self) -> np.ndarray:
        x, yaw, team, _ = self.past[-1]
        rows, columns = np.mgrid[0:48, 0:64]
        red = (rows * 5 + x * 20 + self.start * 40) % 256
        green = (columns * 4 + yaw * 2) % 256
        blue = (len(self.past) * 3 + self.seed + team * 9) % 256 + 0 * rows
        return np.stack([red, green, blue], axis=-1).astype(np.uint8)

    def reset(self, seed=None, frames=None, actions=None) -> Step:
        self.start = (seed or 0) % self.num_starts
        self.context = frames
        self.past = [(0.0, 0.0, 1, None)]
        return Step(self._frame())

    def say(self, text: str | None) -> str:
        if text and len(text.split()) > 20:
            raise UserError(f"The sentence has {len(text.split())} tokens, at most 20 fit.")
        self.past[-1] = (*self.past[-1][:3], text)
        return f"instruction: {text}" if text else ""

    @property
    def said(self) -> str | None:
        return self.past[-1][3]

    @property
    def frame(self) -> np.ndarray:
        return self._frame()

    @property
    def length(self) -> int:
        return len(self.past) - 1

    def fork(self, k: int) -> list["ToyDream"]:
        copies = [type(self)(self.seed, self.denoise_steps) for _ in range(k)]
        for copy in copies:
            copy.past, copy.start = list(self.past), self.start
        return copies

    @staticmethod
    def batch_step(dreams: list["ToyDream"], actions: list[Action | None]) -> list[Step]:
        """A batch has frames of its own, as rounding has."""
        return [
            dream._step(action, len(dreams)) for dream, action in zip(dreams, actions, strict=True)
        ]

    def step(self, action: Action | None) -> Step:
        return self._step(action, 1)

    def _step(self, action: Action | None, team: int) -> Step:
        time.sleep(float(os.environ.get("TOY_DELAY_S", "0")))
        if os.environ.get("TOY_FAIL") == "step" and len(self.past) == 3:
            raise RuntimeError("out of memory")
        parts = [f"instruction: {self.said}"] if self.said else []
        if action is None:
            action = Action(dyaw=3.0)
        else:
            parts.append(TABLE.text(action))
        x, yaw, _, said = self.past[-1]
        self.past.append((x + action.dx, yaw + action.dyaw + len(said or ""), team, said))
        text = "\n".join(parts)
        if log := os.environ.get("TOY_LOG"):
            with Path(log).open("a", encoding="utf-8") as file:
                file.write(text.replace("\n", " | ") + "\n")
        return Step(self._frame(), text=text)

    def answer(self, question: str) -> str:
        time.sleep(float(os.environ.get("TOY_DELAY_S", "0")))
        return f"{len(question.split())} words after {len(self.past) - 1} steps"

    def rewind(self, n: int) -> Step:
        del self.past[max(1, len(self.past) - n) :]
        return Step(self._frame())

    def close(self) -> None:
        self.closed = True


def play(
    folder: Path, *arguments: str, timeout_s: float = 60
) -> "subprocess.CompletedProcess[str]":
    """Run the program below in a folder, without a display."""
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER")
    return subprocess.run(
        [sys.executable, __file__, "headless=true", *arguments],
        cwd=folder,
        env={key: value for key, value in os.environ.items() if key not in hidden},
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def _value(text: str) -> object:
    plain = {"true": True, "false": False}
    return plain[text] if text in plain else int(text) if text.isdigit() else text


if __name__ == "__main__":
    from worldmodel.viewer.app import main
    from worldmodel.viewer.config import PlayConfig

    given = dict(argument.split("=", 1) for argument in sys.argv[1:])
    try:
        config = PlayConfig(**{key: _value(value) for key, value in given.items()})  # type: ignore[arg-type]
        code = main(config, load=ToyDream.load)
    except UserError as error:
        print(error, file=sys.stderr)
        code = 2
    sys.exit(code)
