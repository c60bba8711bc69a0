"""Where an imagination begins: a bundled start, a recorded episode, a picture, a real world."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from worldmodel.actions import Action
from worldmodel.errors import UserError
from worldmodel.evaluate.scenario import Start
from worldmodel.evaluate.starts import find_start, open_recordings, open_world
from worldmodel.world import World, WorldSpec

if TYPE_CHECKING:  # it imports torch, and the window is to open before that
    from worldmodel.evaluate.pose import PoseReader

WARM_UP = 10
"""Pictures that a camera takes before the one that counts: the first ones are dark."""


def folder_of(world: World) -> Path | None:
    """Return the folder of the checkpoint that a world is imagined by; None if there is none."""
    return getattr(getattr(getattr(world, "engine", None), "checkpoint", None), "folder", None)


@dataclass(frozen=True)
class Context:
    """An own start for a Dream: frames uint8 [n, H, W, 3] and the n-1 actions between them.

    Attributes:
        source: what a scenario calls this start; None where it has no name for it.
    """

    frames: np.ndarray
    actions: tuple[Action, ...] = ()
    source: Start | None = None


def make_context(start: Start, spec: WorldSpec) -> Context | None:
    """Return the frames that `start` names; None for a bundled start.

    Raises:
        UserError: a picture, store, episode or world that is not there or does not fit.
    """
    given = find_start(start, spec)
    # Some come as views of what nobody may write to, which torch warns about.
    return Context(np.array(given.frames), given.actions, start) if given else None


def take_picture(camera: str, folder: Path) -> Path:
    """Write what a camera sees now to a new file in `folder`. Returns its path.

    Args:
        camera: number of a camera, or a video file or address that OpenCV opens.
        folder: made if missing.

    Raises:
        UserError: no such camera, or one that gives no picture; a folder that cannot be written.
    """
    import cv2

    cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)  # one sentence says it below
    source = cv2.VideoCapture(int(camera) if camera.isdecimal() else camera)
    try:
        if not source.isOpened():
            raise UserError(
                f"Cannot open the camera '{camera}'. Give the number of one that is plugged in "
                "and free, such as camera=0, or take image=FILE."
            )
        seen = None
        for _ in range(WARM_UP if camera.isdecimal() else 1):
            seen = source.read()[1]
    finally:
        source.release()
    if seen is None:
        raise UserError(f"The camera '{camera}' gives no picture. Is another program using it?")
    path = folder / f"{datetime.now():%Y%m%d-%H%M%S}-camera.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(".png", seen)[1].tobytes())
    except OSError as error:
        raise UserError(f"Cannot write '{path}': {error.strerror or error}.") from error
    return path


@dataclass(frozen=True)
class Reality:
    """What is put beside a dream: a real world, or a store of recorded episodes.

    Attributes:
        name: of the world, or path of the store.
        split: which of the world's levels.
        pose: file of a pose regressor (`worldmodel.evaluate.pose`), 'auto' for the checkpoint's or
            the store's, 'none' for none.
    """

    name: str
    split: str = "val"
    pose: str = "auto"

    @property
    def recorded(self) -> bool:
        """Whether it is a store."""
        path = Path(self.name)
        return "://" in self.name or path.suffix == ".zarr" or (path / "zarr.json").exists()

    def label(self, seed: int) -> str:
        """Name it and one of its starts, for people."""
        if self.recorded:
            return f"{Path(self.name).name}, episode {seed}"
        return f"{self.name}, {self.split} seed {seed}"

    def open(self, spec: WorldSpec) -> World:
        """Open it for a dream of `spec`; a store's seeds are the numbers of its episodes.

        Raises:
            UserError: no such world or store, or one with other frames or keys.
        """
        if self.recorded:
            return open_recordings(self.name, spec)
        return open_world(Start(world=self.name, split=self.split), spec)

    def reader(self, dream: World) -> "PoseReader | None":
        """Return what reads the motion of a dream off its frames; None where there is nothing.

        Raises:
            UserError: a file that is missing or damaged, or reads frames of another size.
        """
        from worldmodel.evaluate.pose import load_pose  # loads torch

        path = Path(self.pose)
        if self.pose == "auto":
            folder = folder_of(dream)
            files = [folder / "pose.safetensors"] if folder else []
            if self.recorded and "://" not in self.name:
                files.append(Path(self.name).with_suffix(".pose.safetensors"))
            path = next((file for file in files if file.exists()), None)
        if self.pose == "none" or path is None:
            return None
        reader = load_pose(path)
        size = dream.spec.width, dream.spec.height
        if (reader.width, reader.height) != size:
            raise UserError(
                f"The pose regressor {path} reads frames of {reader.width}x{reader.height} pixels, "
                f"not {size[0]}x{size[1]}. Give another with pose=FILE, or pose=none."
            )
        return reader

    def start(self, seed: int, step: int = 0) -> Start | None:
        """What a scenario calls a start `step` steps after that of `seed`; None if it cannot."""
        if self.recorded:
            return Start(seed=seed, store=self.name, episode=seed, step=step)
        return None if step else Start(world=self.name, split=self.split, seed=seed)
