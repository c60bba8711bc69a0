"""One MP4 per episode, and a JSON Lines file beside it with what was done and said.

The first line describes the episode: `id`, `info`, `fps`, `world`. Then, in order, one line per
frame, {"frame", "dx", "dy", "dyaw", "keys", "text"} with the action that follows it (missing
after the last one; null where it is unknown), and one line per sentence, {"annotation"}.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from worldmodel.actions import Action
from worldmodel.datasets import schema
from worldmodel.datasets.store import EpisodeStore
from worldmodel.datasets.video import write_mp4
from worldmodel.world import Episode, WorldSpec


def write(store: EpisodeStore, names: Sequence[str], out: Path) -> None:
    """Write episodes as `<out>/<id>.mp4` and `<out>/<id>.jsonl`.

    Raises:
        UserError: a damaged episode, or a file that cannot be written.
    """
    for name in names:
        episode = store.read(name)
        write_mp4(out / f"{name}.mp4", episode.frames, store.spec.fps)
        lines = [{"id": name, "info": episode.info, "fps": store.spec.fps}]
        lines[0]["world"] = store.spec.to_json()
        lines += [_line(episode, i, store.spec) for i in range(len(episode.frames))]
        lines += [{"annotation": vars(said)} for said in episode.annotations]
        text = "".join(f"{schema.to_text(line)}\n" for line in lines)
        (out / f"{name}.jsonl").write_text(text, encoding="utf-8")


def _line(episode: Episode, frame: int, spec: WorldSpec) -> dict[str, Any]:
    if frame == episode.num_steps:
        return {"frame": frame}
    if episode.info.get("labelled") is False:
        return {"frame": frame, "dx": None, "dy": None, "dyaw": None, "keys": None, "text": None}
    dx, dy, dyaw = episode.actions[frame].tolist()
    keyed = spec.actions.from_mask(int(episode.keys[frame]))
    action = keyed if keyed.keys else Action((), dx, dy, dyaw)
    moves = {"dx": dx, "dy": dy, "dyaw": dyaw}
    return {"frame": frame, **moves, "keys": list(keyed.keys), "text": spec.actions.text(action)}
