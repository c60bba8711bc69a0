"""DoomWorld: procedural ViZDoom levels as a World."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import vizdoom

from worldmodel.actions import Action, ActionRow, ActionTable
from worldmodel.envs.doom import wad
from worldmodel.envs.doom.leash import write_launcher
from worldmodel.envs.doom.levels import KINDS, SPLITS, UNITS_PER_METRE, Level, make_level
from worldmodel.envs.doom.textures import THEMES
from worldmodel.envs.scratch import Scratch
from worldmodel.errors import UserError, suggest
from worldmodel.world import Step, WorldSpec

TICS = 4  # engine tics per step; 35 tics make a second
STRIDE = 0.5  # metres per step along a held key
TURN = 11.25  # degrees per step
RAYS = 24  # directions of the `rays` fact

ACTIONS = ActionTable(
    (
        ActionRow(
            "forward",
            "w",
            "walk forward",
            dx=STRIDE,
            phrases=("step forward", "go forward", "walk ahead", "move forward"),
        ),
        ActionRow(
            "back",
            "s",
            "walk backward",
            dx=-STRIDE,
            phrases=("step back", "go back", "walk backward", "back up"),
        ),
        ActionRow(
            "turn left",
            "a",
            "turn to the left",
            dyaw=TURN,
            unit="deg",
            phrases=("turn left", "look left", "rotate left", "turn to the left"),
        ),
        ActionRow(
            "turn right",
            "d",
            "turn to the right",
            dyaw=-TURN,
            unit="deg",
            phrases=("turn right", "look right", "rotate right", "turn to the right"),
        ),
        ActionRow(
            "strafe left",
            "q",
            "step to the left side",
            dy=STRIDE,
            phrases=("step left", "strafe left", "sidestep left", "slide left"),
        ),
        ActionRow(
            "strafe right",
            "e",
            "step to the right side",
            dy=-STRIDE,
            phrases=("step right", "strafe right", "sidestep right", "slide right"),
        ),
    )
)

SPEC = WorldSpec(
    "doom",
    ACTIONS,
    64,
    64,
    35 / TICS,
    objects=tuple(kind.name for kind in KINDS),
    themes=tuple(theme.name for theme in THEMES),
)

_FULL = 50.0  # the engine clamps a key's thrust here; see wad._PLAYER
_RESOLUTIONS = {
    120: vizdoom.ScreenResolution.RES_160X120,
    240: vizdoom.ScreenResolution.RES_320X240,
    480: vizdoom.ScreenResolution.RES_640X480,
}
_MIN_PIXELS = 0.0015  # an object counts as visible from this share of the picture
_MIN_BRIGHTNESS = 28.0  # and from this mean of its pixels' strongest channel


class DoomWorld:
    """A procedural level seen through the eyes of a walker. Implements `World`.

    Besides the documented facts it gives `rays` float32 [24], metres to the wall every 15
    degrees counter-clockwise from straight ahead.

    Args:
        split: 'train', 'val' or 'test'; their levels are disjoint.
        native: height of the engine's picture before it is resampled: 120, 240 or 480.
        size: height and width of the frames.

    Raises:
        UserError: an unknown split, native height, or a size out of range.
    """

    def __init__(self, split: str = "train", native: int = 240, size: int = 64) -> None:
        if split not in SPLITS:
            raise UserError(f"Unknown split '{split}'.{suggest(split, SPLITS)}")
        if native not in _RESOLUTIONS:
            raise UserError(f"Unknown native height {native}. Known: {sorted(_RESOLUTIONS)}.")
        if not 8 <= size <= native:
            raise UserError(f"size must be from 8 to native ({native}), got {size}.")
        self._split, self._native, self._size = split, native, size
        self._scratch = Scratch(self, "doom")  # the engine writes files
        self._game: Any = None
        self._level: Level | None = None
        self._seed = -1

    @property
    def spec(self) -> WorldSpec:
        """The world's description."""
        return replace(SPEC, height=self._size, width=self._size)

    @property
    def level(self) -> Level:
        """The level being played.

        Raises:
            UserError: `reset` was not called yet.
        """
        if self._level is None:
            raise UserError("The world has no level yet: call reset() first.")
        return self._level

    @property
    def info(self) -> dict[str, Any]:
        """Where the current episode comes from, as plain values."""
        return {"world": SPEC.name, "split": self._split, "level_seed": self._seed}

    def reset(self, seed: int | None = None) -> Step:
        """Start in the level of `seed`; None goes to the next one. Returns the first frame."""
        seed = self._seed + 1 if seed is None else int(seed)
        if seed < 0:
            raise UserError(f"A seed is a whole number from 0, got {seed}.")
        if not self._scratch.alive:
            raise UserError("The world is closed; make a new one.")
        self._stop()
        self._seed, self._level = seed, make_level(self._split, seed)
        path = self._scratch.path / "level.wad"
        wad.write_wad(self._level, path)
        self._game = _start(path, self._scratch, self._native, seed)
        # The engine takes no keys in its first tics.
        self._game.make_action([0.0, 0.0, 0.0], 12)
        return self._look("")

    def step(self, action: Action) -> Step:
        """Do one action for `TICS` tics and return what is seen then."""
        if self._game is None:
            raise UserError("The world has no level yet: call reset() first.")
        forward = _FULL * float(np.clip(action.dx / STRIDE, -1, 1))
        right = -_FULL * float(np.clip(action.dy / STRIDE, -1, 1))
        self._game.make_action([forward, right, -action.dyaw / TICS], TICS)
        return self._look(ACTIONS.text(action))

    def close(self) -> None:
        """Stop the engine and remove its scratch folder."""
        self._stop()
        self._scratch.close()

    def _stop(self) -> None:
        if self._game is not None:
            self._game.close()
            self._game = None

    def _look(self, text: str) -> Step:
        state = self._game.get_state()
        height, width = state.screen_buffer.shape[:2]
        left = (width - height) // 2
        square = np.ascontiguousarray(state.screen_buffer[:, left : left + height])
        frame = cv2.resize(square, (self._size, self._size), interpolation=cv2.INTER_AREA)
        x, y, yaw = (float(v) for v in state.game_variables)
        return Step(frame, facts=self._facts(state, x, y, yaw, left), text=text)

    def _facts(self, state: Any, x: float, y: float, yaw: float, left: int) -> dict[str, Any]:
        rays = self.level.wall_distance(x, y, yaw + np.arange(RAYS) * (360 / RAYS))
        rays = np.minimum(rays / UNITS_PER_METRE, 99.0)
        sector = self.level.sector_at(x, y)
        bearing, distance = self._visible(state, x, y, yaw, left)
        return {
            "pose": np.array([x / UNITS_PER_METRE, y / UNITS_PER_METRE, yaw], np.float32),
            "light": np.float32(sector.light / 255),
            "wall": np.float32(rays[0]),
            "bearing": bearing,
            "distance": distance,
            "rays": rays.astype(np.float32),
            "theme": np.float32(sector.theme),
        }

    def _visible(
        self, state: Any, x: float, y: float, yaw: float, left: int
    ) -> tuple[np.ndarray, np.ndarray]:
        bearing = np.full(len(KINDS), np.nan, np.float32)
        distance = np.full(len(KINDS), np.nan, np.float32)
        for label in state.labels:
            kind = _KIND_OF.get(label.object_name)
            if kind is None or not _seen(state, label, left):
                continue
            dx, dy = label.object_position_x - x, label.object_position_y - y
            far = math.hypot(dx, dy) / UNITS_PER_METRE
            if np.isnan(distance[kind]) or far < distance[kind]:
                turn = math.degrees(math.atan2(dy, dx)) - yaw
                bearing[kind] = (turn + 180) % 360 - 180
                distance[kind] = far
        return bearing, distance


def _seen(state: Any, label: Any, left: int) -> bool:
    """Whether a labelled object is more than a speck, and not lost in the dark."""
    height, width = state.labels_buffer.shape
    rows = slice(max(label.y, 0), label.y + label.height)
    columns = slice(max(label.x, left), min(label.x + label.width, width - left))
    mask = state.labels_buffer[rows, columns] == label.value
    pixels = int(mask.sum())
    if pixels < _MIN_PIXELS * height * height:
        return False
    colours = state.screen_buffer[rows, columns][mask]
    return float(colours.max(axis=1).mean()) >= _MIN_BRIGHTNESS


_KIND_OF = {kind.actor: n for n, kind in enumerate(KINDS)}


def _start(path: Path, scratch: Scratch, native: int, seed: int) -> Any:
    """Return a running engine on the level at `path`."""
    game = vizdoom.DoomGame()
    engine = str(Path(vizdoom.__file__).with_name("vizdoom"))
    if launcher := write_launcher(scratch.path / "engine", engine):
        game.set_vizdoom_path(launcher)
    game.set_doom_scenario_path(str(path))
    game.set_doom_config_path(str(scratch.path / "engine.ini"))
    game.set_doom_map(wad.MAP)
    game.set_screen_resolution(_RESOLUTIONS[native])
    game.set_screen_format(vizdoom.ScreenFormat.RGB24)
    game.set_window_visible(False)
    game.set_sound_enabled(False)
    game.set_audio_buffer_enabled(False)  # with it the engine crashes the process
    game.set_labels_buffer_enabled(True)
    for hide in ("hud", "weapon", "crosshair", "decals", "particles", "messages"):
        getattr(game, f"set_render_{hide}")(False)
    button, variable = vizdoom.Button, vizdoom.GameVariable
    game.set_available_buttons(
        [
            button.MOVE_FORWARD_BACKWARD_DELTA,
            button.MOVE_LEFT_RIGHT_DELTA,
            button.TURN_LEFT_RIGHT_DELTA,
        ]
    )
    game.set_available_game_variables([variable.POSITION_X, variable.POSITION_Y, variable.ANGLE])
    game.set_episode_timeout(0)
    game.set_mode(vizdoom.Mode.PLAYER)
    game.set_seed(seed % 2**31)
    game.add_game_args("+movebob 0 +r_visibility 24")
    # The engine makes a `_vizdoom` folder where it is started: let that be the scratch folder.
    with scratch.working():
        game.init()
    return game
