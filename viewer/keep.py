"""What is kept of a session by key or at its end: a scenario, a clip, an episode. No pygame."""

import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from worldmodel.errors import UserError
from worldmodel.heap import give_back
from worldmodel.viewer.journal import Head, scenario_of, to_yaml
from worldmodel.viewer.session import Session
from worldmodel.viewer.tape import write_whole
from worldmodel.viewer.tree import action_of
from worldmodel.viewer.video import VideoWriter, write_gif, write_strip
from worldmodel.world import Episode, World


@dataclass(frozen=True)
class Keeper:
    """Keeps parts of a session when a key asks for it.

    Attributes:
        head: says what is played.
        sessions, recordings: folders, made when they are needed.
        fps: frames per second of clips. clip_s: their length in seconds.
    """

    head: Callable[[World], Head]
    sessions: Path
    recordings: Path
    fps: float
    clip_s: float

    def save(self, session: Session, node: int | None = None) -> str:
        """Write the path to a node (None: the current one) as a scenario. Returns what to tell.

        Raises:
            UserError: there is no step yet, or the file cannot be written.
        """
        node = session.at if node is None else node
        head = self.head(session.world)
        scenario = scenario_of(session.tree, node, head, session.start_of(node))
        name = session.tree.names.get(node, f"frame {node}")
        return self.write(scenario, name)

    def write(self, scenario: Mapping[str, Any], name: str) -> str:
        """Write a scenario; `name` is that of the frame that it ends at. Returns what to tell.

        Raises:
            UserError: the file cannot be written.
        """
        slug = "".join(c if c.isalnum() else "-" for c in name).strip("-")
        path = _made(self.sessions) / f"{_stamp()}-{slug or 'path'}.yaml"
        write_whole(path, lambda file: file.write(to_yaml(scenario).encode()))
        return f"Kept the {scenario['steps']} steps to this frame: {path}"

    def clip(self, session: Session, tell: Callable[[str], None]) -> str:
        """Write the last seconds of the path as MP4, GIF and PNG, beside the model's work.

        Args:
            session: what is played.
            tell: told when the files are there, or why not.

        Raises:
            UserError: nothing was imagined yet, or the folder cannot be made.
        """
        frames = session.clip(round(self.clip_s * self.fps))
        if len(frames) < 2:
            raise UserError("There is no step to export yet.")
        stem = _made(self.recordings) / f"{_stamp()}-clip"
        work = partial(_export, frames, stem, self.fps, tell)
        threading.Thread(target=work, name="export").start()  # no daemon: leaving waits for it
        return f"Exporting the last {len(frames) / self.fps:.0f} s ..."


def _export(frames: list[np.ndarray], stem: Path, fps: float, tell: Callable[[str], None]) -> None:
    try:
        video = VideoWriter(stem.with_suffix(".mp4"), fps)
        for frame in frames:
            video.add(frame)
        video.close()
        write_whole(stem.with_suffix(".gif"), lambda file: write_gif(file, frames, fps))
        write_whole(stem.with_suffix(".png"), lambda file: write_strip(file, frames))
    except (UserError, OSError) as error:
        tell(str(error))
    else:
        tell(f"Exported {len(frames)} frames: {stem}.mp4, .gif, .png")
    finally:
        give_back()


def episode_of(session: Session, node: int) -> Episode:
    """Return the path to a node as an episode for a store; the session must have kept all frames.

    Raises:
        UserError: no steps, or a step without keys whose sentence names no action: an episode
            says what was done in each step, and there nobody knows.
    """
    table = session.world.spec.actions
    start, *steps = (session.tree[i] for i in session.tree.path(node))
    if not steps:
        raise UserError("The session has no steps on the path to this frame, so no episode.")
    actions = []
    for step in steps:
        try:
            actions.append(action_of(step, table) or table.parse(step.instruction))
        except UserError:
            raise UserError(
                f"Step {step.number} was led by '{step.instruction}', which is no action of the "
                "world; an episode needs the action of each step. Name a frame before it with "
                "node=, or keep the path as scenario=FILE."
            ) from None
    frames = [session.film.whole(i) for i in session.tree.path(node)]
    assert all(frame is not None for frame in frames)
    return Episode(
        frames=np.stack(frames),  # type: ignore[arg-type]
        actions=np.array([[a.dx, a.dy, a.dyaw] for a in actions], np.float32),
        keys=np.array([table.mask(action) for action in actions], np.uint16),
        facts={},
        annotations=(),
        info={
            "world": session.world.spec.name,
            "seed": start.start,
            "split": "train",
            "policy": "human",
            "imagined": hasattr(session.world, "checkpoint_name"),
        },
    )


def store_episode(episode: Episode, session: Session, out: str) -> None:
    """Append an episode to the store `out`, which is made if missing.

    Raises:
        UserError: a store of another world, or one that cannot be written.
    """
    from worldmodel.datasets.store import EpisodeWriter

    EpisodeWriter(out, session.world.spec).write(episode)


def _made(folder: Path) -> Path:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"Cannot make the folder '{folder}': {error.strerror or error}.") from error
    return folder


def _stamp() -> str:
    return f"{datetime.now():%Y%m%d-%H%M%S}"
