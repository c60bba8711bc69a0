"""A small deterministic world with a Dream's interface, and a program that plays it.

`python viewer_toy.py key=value ...` runs the real viewer on it. The environment makes it slow
(TOY_DELAY_S), breaks it (TOY_FAIL=load|missing|step) or makes it write down every text
(TOY_LOG=FILE).
"""

import os
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
        self.said: str | None = None
        self.past = [(0.0, 0.0)]
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
        x, yaw = self.past[-1]
        rows, columns = np.mgrid[0:48, 0:64]
        red = (rows * 5 + x * 20 + self.start * 40) % 256
        green = (columns * 4 + yaw * 2) % 256
        blue = (len(self.past) * 3 + self.seed) % 256 + 0 * rows
        return np.stack([red, green, blue], axis=-1).astype(np.uint8)

    def reset(self, seed=None, frames=None, actions=None) -> Step:
        self.start = (seed or 0) % self.num_starts
        self.context = frames
        self.past = [(0.0, 0.0)]
        return Step(self._frame())

    def say(self, text: str | None) -> str:
        if text and len(text.split()) > 20:
            raise UserError(f"The sentence has {len(text.split())} tokens, at most 20 fit.")
        self.said = text
        return f"instruction: {text}" if text else ""

    def step(self, action: Action | None) -> Step:
        time.sleep(float(os.environ.get("TOY_DELAY_S", "0")))
        if os.environ.get("TOY_FAIL") == "step" and len(self.past) == 3:
            raise RuntimeError("out of memory")
        parts = [f"instruction: {self.said}"] if self.said else []
        if action is None:
            action = Action(dyaw=3.0)
        else:
            parts.append(TABLE.text(action))
        x, yaw = self.past[-1]
        self.past.append((x + action.dx, yaw + action.dyaw))
        text = "\n".join(parts)
        if log := os.environ.get("TOY_LOG"):
            with Path(log).open("a", encoding="utf-8") as file:
                file.write(text.replace("\n", " | ") + "\n")
        return Step(self._frame(), text=text)

    def rewind(self, n: int) -> Step:
        del self.past[-n:]
        return Step(self._frame())

    def close(self) -> None:
        self.closed = True


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
