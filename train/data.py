"""A store's split in memory: what every stage of training draws from."""

from dataclasses import dataclass

import numpy as np

from worldmodel.actions import Action
from worldmodel.datasets.store import EpisodeStore
from worldmodel.errors import UserError
from worldmodel.world import Annotation, WorldSpec


@dataclass(frozen=True)
class Recordings:
    """All episodes of a split, end to end.

    Attributes:
        spec: the world that they come from.
        frames: uint8 [F, H, W, 3], all frames of all episodes.
        keys: uint16 [F]; keys[i] is the key mask of the step from frame i to frame i + 1. The
            entry of an episode's last frame is unused.
        actions: float32 [F, 3], the displacement (dx, dy, dyaw) of the same step; NaN where nobody
            knows it, as in unlabelled video.
        starts: int64 [E + 1], where each episode begins; the last entry is F.
        annotations: one tuple an episode, frame numbers relative to its beginning.
    """

    spec: WorldSpec
    frames: np.ndarray
    keys: np.ndarray
    actions: np.ndarray
    starts: np.ndarray
    annotations: tuple[tuple[Annotation, ...], ...]

    @property
    def num_episodes(self) -> int:
        """E."""
        return len(self.annotations)

    def action(self, frame: int) -> Action | None:
        """Return the action from `frame` to the next, None where nobody knows it."""
        if mask := int(self.keys[frame]):
            return self.spec.actions.from_mask(mask)
        moved = self.actions[frame]
        return None if np.isnan(moved).any() else Action((), *map(float, moved))

    def captions(self) -> list[tuple[int, str]]:
        """Return (frame number, caption) of all captions."""
        return [
            (int(self.starts[e]) + note.start, note.text)
            for e, notes in enumerate(self.annotations)
            for note in notes
            if note.kind == "caption"
        ]


def load_recordings(path: str, split: str, limit: int = 0) -> Recordings:
    """Read a split of the store at `path`; `limit` > 0 reads only so many episodes.

    Raises:
        UserError: no store there, or none of its episodes are of this split.
    """
    store = EpisodeStore(path)
    ids = store.select(split)
    ids = ids[:limit] if limit else ids
    if not ids:
        raise UserError(
            f"The store '{path}' has no episodes of the split '{split}'. Collect some: "
            f"worldmodel collect env=doom split={split} out={path}"
        )
    lengths = [store.lengths[i] + 1 for i in ids]
    starts = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    height, width = store.spec.height, store.spec.width
    frames = np.empty((int(starts[-1]), height, width, 3), np.uint8)
    keys = np.zeros(int(starts[-1]), np.uint16)
    actions = np.zeros((int(starts[-1]), 3), np.float32)
    annotations = []
    for begin, name in zip(starts, ids, strict=False):
        episode = store.read(name)
        frames[begin : begin + len(episode.frames)] = episode.frames
        keys[begin : begin + episode.num_steps] = episode.keys
        actions[begin : begin + episode.num_steps] = episode.actions
        annotations.append(episode.annotations)
    return Recordings(store.spec, frames, keys, actions, starts, tuple(annotations))
