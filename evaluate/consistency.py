"""One key held for many steps: does the view keep moving, and does it stay a view?

Each rollout is cut into windows of `WINDOW` steps, and each cell (a start, a window) is judged
against what real clips of held-out levels show:

freeze    the mean change from frame to frame stays within the range of real steps of that key;
dissolve  the sharpness stays within the range of real and of reconstructed frames, and the
          frame no further from the nearest real one, in the encoder's space, than real ones are;
reading   the inverse-dynamics model reads the key off the frames.

The ranges are quantiles over real clips, widened by `SLACK`.

A walker meets a wall, and then the true view is still as well. A key that walks is therefore
judged for movement and reading in the first window only; one that turns, in all.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from worldmodel.actions import ActionRow
from worldmodel.evaluate import metrics
from worldmodel.evaluate.inverse_dynamics import InverseDynamics
from worldmodel.evaluate.rollouts import Clips, FrameEncoder, encode
from worldmodel.evaluate.scorecard import Metric, Verdict, metric

WINDOW = 16
SHARE = 0.75
"""Share of the cells that have to be in range, and of the real clips' reading to be reached."""
SLACK = 1.2
"""Factor by which the real ranges are widened: the clips they are read from are few."""

_ENOUGH = 20  # real steps of exactly one key from which a range may be read


@dataclass(frozen=True)
class Reference:
    """What real clips show.

    Attributes:
        change: lowest and highest change of a step (0 to 255), by key: 5 % to 95 %.
        reading: share of the real steps of a key in which the reader sees that key, by key.
        sharpness: lowest and highest sharpness of a frame: 1 % to 99 %.
        strangeness: largest encoder distance of a frame to the nearest one of other clips: 99 %.
        bank: latents float32 [M, N, C] of the real frames.
    """

    change: dict[str, tuple[float, float]]
    reading: dict[str, float]
    sharpness: tuple[float, float]
    strangeness: float
    bank: np.ndarray


def measure_reference(
    clips: Clips, decoded: np.ndarray, encoder: FrameEncoder, idm: InverseDynamics
) -> Reference:
    """Measure the ranges of real clips.

    Args:
        clips: held-out clips, at least 2.
        decoded: the same frames encoded and decoded, uint8 [K, T, H, W, 3].
        encoder: the model's frame encoder.
        idm: the reader.
    """
    bank = encode(encoder, clips.frames)
    latents = encode(encoder, decoded)
    strange = []
    for i, name in enumerate(clips.names):
        others = [j for j, other in enumerate(clips.names) if other != name]
        others = others or [j for j in range(len(clips)) if j != i]
        strange.append(metrics.nearest_distance(latents[i], np.concatenate(bank[others])))
    sharp = np.concatenate(
        [metrics.sharpness(clips.frames).ravel(), metrics.sharpness(decoded).ravel()]
    )
    # A decoder softens what it draws, so what it makes of real clips is in range as well.
    changes = np.stack([metrics.frame_change(clips.frames), metrics.frame_change(decoded)])
    read = idm.predict(clips.frames)
    pairs = {key: _of_key(clips, changes, read, 1 << i) for i, key in enumerate(idm.keys)}
    return Reference(
        change={key: _range(values, 0.05) for key, (values, _) in pairs.items()},
        reading={key: share for key, (_, share) in pairs.items()},
        sharpness=_range(sharp, 0.01),
        strangeness=float(np.quantile(np.concatenate(strange), 0.99)) * SLACK,
        bank=bank.reshape(-1, *bank.shape[-2:]),
    )


def judge_key(
    row: ActionRow,
    frames: np.ndarray,
    reference: Reference,
    encoder: FrameEncoder,
    idm: InverseDynamics,
    seed: int = 0,
) -> tuple[list[Metric], Verdict]:
    """Judge rollouts under one held key.

    Args:
        row: the key.
        frames: uint8 [S, 1+T, H, W, 3], each from its last given frame on.
        reference: what real clips show.
        encoder: the model's frame encoder.
        idm: the reader.
        seed: of the bootstrap.

    Returns:
        The metrics, and whether the view keeps moving and does not dissolve.
    """
    imagined, latents = frames[:, 1:], encode(encoder, frames[:, 1:])
    change = _windows(metrics.frame_change(frames))  # [S, W]
    sharp = _windows(metrics.sharpness(imagined))
    strange = _windows(np.stack([metrics.nearest_distance(one, reference.bank) for one in latents]))
    held = np.uint16(1 << idm.keys.index(row.key))
    seen = _windows(((idm.predict(frames) & held) > 0).astype(float))

    low, high = reference.change[row.key]
    judged = slice(None) if row.dyaw else slice(0, 1)
    moves = (change[:, judged] >= low).mean()
    calm = (change <= high).mean()
    clear = (sharp >= reference.sharpness[0]) & (sharp <= reference.sharpness[1])
    whole = clear & (strange <= reference.strangeness)
    last = whole[:, -1].mean()
    reading = seen[:, judged].mean()
    passed = (
        min(moves, calm, whole.mean(), last) >= SHARE
        and reading >= SHARE * reference.reading[row.key]
    )
    name, limits = f"key_{row.key}", {"real low": low, "real high": high}
    sharp_limits = {"real low": reference.sharpness[0], "real high": reference.sharpness[1]}

    def mean(what: str, values: np.ndarray, **more: object) -> Metric:
        return metric(f"{name}_{what}", metrics.estimate(values.mean(1), seed), **more)

    found = [
        mean("change", change, baselines=limits),
        mean("sharpness", sharp, baselines=sharp_limits),
        mean("strangeness", strange, baselines={"real high": reference.strangeness}),
        mean("read", seen[:, judged], baselines={"real": reference.reading[row.key]}),
    ]
    curves = {"change": change, "sharpness": sharp, "strangeness": strange, "read": seen}
    found += [
        metric(f"{name}_{what}_at", metrics.estimate(cells[:, w], seed), horizon=(w + 1) * WINDOW)
        for what, cells in curves.items()
        for w in range(cells.shape[1])
    ]
    told = f"moving {moves:.0%}, not too wild {calm:.0%}, still a view {whole.mean():.0%} "
    told += f"(at the end {last:.0%}), read as {row.key} {reading:.0%}"
    asked = f"each at least {SHARE:.0%} of the windows; read at least {SHARE:.0%} of the real "
    asked += f"clips' {reference.reading[row.key]:.0%}"
    title = f"{imagined.shape[1]} steps of '{row.key}' neither freeze nor dissolve"
    return found, Verdict(title, asked, told, bool(passed))


def _of_key(
    clips: Clips, changes: np.ndarray, read: np.ndarray, mask: int
) -> tuple[np.ndarray, float]:
    """Return the changes of the real steps of one key, and the share that is read as it.

    The changes [2, K, T-1] are those of the real and of the decoded frames. Steps of exactly
    that key; with too few of them also those that hold other keys too, then all steps that
    hold any.
    """
    for chosen in (clips.keys == mask, (clips.keys & mask) > 0, clips.keys > 0, clips.keys >= 0):
        if chosen.sum() >= _ENOUGH:
            break
    held = (clips.keys[:, 1:] & mask) > 0
    seen = (read & mask) > 0
    return changes[:, chosen].ravel(), float(seen[held].mean()) if held.any() else 0.0


def _range(values: np.ndarray, tail: float) -> tuple[float, float]:
    """Return the quantiles `tail` and 1 - `tail`, widened; the low one is never near zero.

    In a dark room little moves, but where nothing moves at all something is wrong.
    """
    low, middle, high = np.quantile(values, [tail, 0.5, 1 - tail])
    return float(max(low, 0.1 * middle) / SLACK), float(high * SLACK)


def _windows(values: np.ndarray) -> np.ndarray:
    """Return [S, T] as means over windows, [S, W]; the last one is longer or shorter."""
    count = max(1, round(values.shape[1] / WINDOW))
    edges = [w * WINDOW for w in range(count)] + [values.shape[1]]
    return np.stack([values[:, a:b].mean(1) for a, b in pairwise(edges)], axis=1)
