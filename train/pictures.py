"""Pictures of rollouts beside what really followed."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch

from worldmodel.actions import Action
from worldmodel.checkpoint import Checkpoint
from worldmodel.dream import Dream
from worldmodel.encoders import FrameEncoder
from worldmodel.errors import UserError
from worldmodel.stream import Engine
from worldmodel.text import TextTokenizer
from worldmodel.train.data import Recordings
from worldmodel.transformer import Core, CoreConfig

CONTEXT, HORIZON, SHOWN = 4, 8, 2  # frames given, imagined, and drawn of those given


@dataclass(frozen=True)
class Truth:
    """A moment of a recording: frames uint8 [CONTEXT + HORIZON, H, W, 3] and what was done."""

    frames: np.ndarray
    actions: tuple[Action | None, ...]


def pick_truths(recordings: Recordings, count: int) -> list[Truth]:
    """Return the middles of episodes that are long enough, evenly spread; maybe fewer."""
    length = CONTEXT + HORIZON
    sizes = np.diff(recordings.starts)
    long_enough = np.flatnonzero(sizes >= length)
    chosen = long_enough[np.linspace(0, len(long_enough) - 1, count).astype(int)]
    truths = []
    for episode in dict.fromkeys(chosen.tolist() if len(long_enough) else []):
        first = int(recordings.starts[episode]) + (int(sizes[episode]) - length) // 2
        actions = tuple(recordings.action(i) for i in range(first, first + length - 1))
        truths.append(Truth(np.asarray(recordings.frames[first : first + length]), actions))
    return truths


def painter(
    config: CoreConfig,
    encoder: FrameEncoder,
    tokenizer: TextTokenizer,
    recordings: Recordings,
    count: int,
    context_level: float,
    device: torch.device,
    dtype: torch.dtype,
) -> Callable[[Mapping[str, torch.Tensor]], np.ndarray]:
    """Return a function that draws what given weights of the core imagine.

    For each of `count` moments two rows of frames: the end of the context with what really
    followed, and with what is imagined under the same actions.

    Raises:
        UserError: no episode is long enough.
    """
    truths = pick_truths(recordings, count)
    if not truths:
        raise UserError(
            f"watch.images_every needs episodes of at least {CONTEXT + HORIZON} frames of the "
            "split 'val', and there are none. Collect some, or set watch.images_every=0."
        )

    def paint(weights: Mapping[str, torch.Tensor]) -> np.ndarray:
        with torch.random.fork_rng(devices=[]):  # the core's first weights are random
            core = Core(config)
        core.load_state_dict(dict(weights))
        checkpoint = Checkpoint(
            name="training",
            core=core.eval(),
            encoder=encoder,
            tokenizer=tokenizer,
            spec=recordings.spec,
            start_frames=np.stack([truth.frames[:CONTEXT] for truth in truths]),
            start_keys=np.zeros((len(truths), CONTEXT - 1), np.int32),
            context_level=context_level,
            details={},
        )
        dream = Dream(Engine(checkpoint, device, dtype))
        return np.concatenate([_rows(dream, truth) for truth in truths])

    return paint


def _rows(dream: Dream, truth: Truth) -> np.ndarray:
    """Two rows of frames [2 H, (SHOWN + HORIZON) W, 3] with a line between past and future."""
    told = [action for action in truth.actions[: CONTEXT - 1] if action is not None]
    known = len(told) == CONTEXT - 1
    dream.reset(frames=truth.frames[:CONTEXT], actions=told if known else None)
    imagined = [dream.step(action).frame for action in truth.actions[CONTEXT - 1 :]]
    rows = []
    for future in (truth.frames[CONTEXT:], np.stack(imagined)):
        past = truth.frames[CONTEXT - SHOWN : CONTEXT]
        line = np.full((past.shape[1], 2, 3), 255, np.uint8)
        rows.append(np.concatenate([*past, line, *future], axis=1))
    return np.concatenate(rows)
