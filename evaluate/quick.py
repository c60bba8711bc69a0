"""The quick suite: a first, complete look at a model on held-out levels.

Quality by horizon beside its baselines, obedience to actions, consistency under one held key,
text, speed, and contact sheets to look at.
"""

import time
from dataclasses import dataclass

import numpy as np

from worldmodel.actions import Action, ActionTable
from worldmodel.datasets.store import EpisodeStore
from worldmodel.errors import UserError
from worldmodel.evaluate import metrics, sheets
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.consistency import judge_key, measure_reference
from worldmodel.evaluate.inverse_dynamics import InverseDynamics, exact_accuracy, key_counts
from worldmodel.evaluate.language import measure_language
from worldmodel.evaluate.rollouts import (
    Clips,
    FrameEncoder,
    Imagination,
    encode,
    imagine,
    reconstruct,
    sample_clips,
)
from worldmodel.evaluate.scorecard import Metric, Verdict, metric
from worldmodel.evaluate.sheets import Sheet

BEATS_COPY_TO = 16  # steps ahead up to which the model has to be better than the last frame
IDM_RATIO = 0.75
FPS = 10.0
_SHOWN = 6  # clips on the sheet of futures


@dataclass(frozen=True)
class Outcome:
    """What a suite gives."""

    metrics: tuple[Metric, ...]
    verdicts: tuple[Verdict, ...]
    sheets: tuple[Sheet, ...]


@dataclass(frozen=True)
class Futures:
    """The same clips' futures by different hands; each uint8 [K, T, H, W, 3].

    Attributes:
        imagined: under the true actions.
        shuffled: under another clip's actions, with the same noise. idle: under none.
        copy: the last given frame, again and again.
        decoded: the true frames encoded and decoded.
        decoded_past: the given frames encoded and decoded, uint8 [K, context, H, W, 3].
    """

    imagined: np.ndarray
    shuffled: np.ndarray
    idle: np.ndarray
    copy: np.ndarray
    decoded: np.ndarray
    decoded_past: np.ndarray

    def baselines(self) -> dict[str, np.ndarray]:
        """Return what the imagined future is compared with, by name."""
        return {
            "copy": self.copy,
            "reconstruction": self.decoded,
            "shuffled actions": self.shuffled,
            "no action": self.idle,
        }


def run_quick(
    dream: Imagination,
    encoder: FrameEncoder,
    store: EpisodeStore,
    idm: InverseDynamics,
    config: EvalConfig,
) -> Outcome:
    """Run the suite.

    Raises:
        UserError: the store has no held-out clips of the size asked for.
    """
    clips = sample_clips(
        store, config.split, config.clips, config.context, config.horizon, config.seed
    )
    if len(clips) < 2:
        raise UserError(
            f"Split '{config.split}' gives only one clip of {config.context + config.horizon} "
            "frames; at least 2 are needed. Collect more held-out episodes."
        )
    seen = imagine_futures(dream, encoder, clips, config)
    quality, better = measure_quality(clips, seen, encoder, config.seed)
    following, obeys = measure_following(clips, seen, idm, config.seed)
    keys = hold_keys(dream, encoder, idm, clips, seen, config)
    said = follow_instructions(dream, idm, clips, config)
    speed = measure_speed(dream, clips, config.seed)
    fast = Verdict(
        "fast enough to play", f"at least {FPS:g} frames/s", f"{speed.value:.1f} frames/s",
        speed.value >= FPS,
    )  # fmt: skip
    text = measure_language(dream, store, config)
    futures = _futures_sheet(dream.spec.actions, clips, seen)
    return Outcome(
        (*quality, *following, *keys.metrics, *said.metrics, *text, speed),
        (*better, obeys, *keys.verdicts, fast),
        (futures, *keys.sheets, *said.sheets),
    )


def imagine_futures(
    dream: Imagination, encoder: FrameEncoder, clips: Clips, config: EvalConfig
) -> Futures:
    """Imagine the clips' futures under true, shuffled and no actions, with the same noise."""
    plans = clips.plans(dream.spec.actions)
    idle = [[Action()] * len(plan) for plan in plans]
    imagined, shuffled, still = (
        imagine(dream, clips, plan, config.seed, config.batch, title=title)
        for plan, title in [
            (plans, "true actions"),
            (plans[1:] + plans[:1], "shuffled actions"),
            (idle, "no action"),
        ]
    )
    decoded = reconstruct(encoder, clips.frames)
    return Futures(
        imagined=imagined,
        shuffled=shuffled,
        idle=still,
        copy=np.repeat(clips.past[:, -1:], clips.future.shape[1], axis=1),
        decoded=decoded[:, clips.context :],
        decoded_past=decoded[:, : clips.context],
    )


def measure_quality(
    clips: Clips, seen: Futures, encoder: FrameEncoder, seed: int
) -> tuple[list[Metric], list[Verdict]]:
    """Return PSNR, SSIM and encoder distance by horizon, and whether copying is beaten."""
    truth = encode(encoder, clips.future)

    def distance(frames: np.ndarray) -> np.ndarray:
        return metrics.encoder_distance(encode(encoder, frames), truth)

    found: list[Metric] = []
    verdicts: list[Verdict] = []
    for name, unit, better, measure in [
        ("psnr", "dB", "higher", lambda frames: metrics.psnr(frames, clips.future)),
        ("ssim", "", "higher", lambda frames: metrics.ssim(frames, clips.future)),
        ("encoder_distance", "", "lower", distance),
    ]:
        model = measure(seen.imagined)  # [K, T]
        others = {key: measure(frames) for key, frames in seen.baselines().items()}
        sign = 1 if better == "higher" else -1
        gains = {key: sign * (model - others[key]) for key in ("copy", "shuffled actions")}
        for h in range(model.shape[1]):
            at = {key: float(values[:, h].mean()) for key, values in others.items()}
            more = {"unit": unit, "horizon": h + 1}
            value = metrics.estimate(model[:, h], seed)
            found.append(metric(name, value, better=better, baselines=at, **more))
            for key, gain in gains.items():
                over = metrics.estimate(gain[:, h], seed)
                found.append(metric(f"{name}_over_{key.split()[0]}", over, better="higher", **more))
        if name != "psnr":
            verdicts.append(_beats_copy(name, gains["copy"], seed))
    return found, verdicts


def measure_following(
    clips: Clips, seen: Futures, idm: InverseDynamics, seed: int
) -> tuple[list[Metric], Verdict]:
    """Return how well the actions can be read off real, decoded and imagined clips.

    All but the real clips are read as they come from the decoder, the given frames included.
    """
    told = clips.told
    shuffled_told = np.roll(told, -1, axis=0)

    def read(past: np.ndarray, future: np.ndarray) -> np.ndarray:
        return idm.predict(np.concatenate([past[:, -2:], future], axis=1))

    real = read(clips.past, clips.future)
    decoded = read(seen.decoded_past, seen.decoded)
    imagined = read(seen.decoded_past, seen.imagined)
    shuffled = read(seen.decoded_past, seen.shuffled)
    scores = {
        "real": exact_accuracy(real, told),
        "reconstruction": exact_accuracy(decoded, told),
        "imagined": exact_accuracy(imagined, told),
        "shuffled": exact_accuracy(shuffled, told),
        "other_actions": exact_accuracy(shuffled, shuffled_told),
    }
    beside = {k: float(v.mean()) for k, v in scores.items()}
    more = {"better": "higher"}
    ratio = metrics.estimate_ratio(scores["imagined"], scores["real"], seed)
    gap = metrics.estimate(scores["imagined"] - scores["shuffled"], seed)
    found = [metric(f"idm_exact_{k}", metrics.estimate(v, seed), **more) for k, v in scores.items()]
    found += [
        metric("idm_ratio", ratio, baselines={"required": IDM_RATIO}, **more),
        metric("idm_gap_to_shuffled", gap, baselines=beside, **more),
    ]
    found += [
        metric(f"idm_key_f1_{name}", metrics.estimate_ratio(*key_counts(keys, told), seed), **more)
        for name, keys in [("real", real), ("reconstruction", decoded), ("imagined", imagined)]
    ]
    verdict = Verdict(
        "actions can be read off the imagination",
        f"at least {IDM_RATIO:.0%} of the accuracy on real clips",
        f"{ratio.value:.0%} ({beside['imagined']:.1%} of {beside['real']:.1%}; "
        f"{beside['shuffled']:.1%} under shuffled actions)",
        ratio.value >= IDM_RATIO,
    )
    return found, verdict


def hold_keys(
    dream: Imagination,
    encoder: FrameEncoder,
    idm: InverseDynamics,
    clips: Clips,
    seen: Futures,
    config: EvalConfig,
) -> Outcome:
    """Hold each of w, a, d and s for many steps; judge the first three, show all."""
    table = dream.spec.actions
    decoded = np.concatenate([seen.decoded_past, seen.decoded], axis=1)
    reference = measure_reference(clips, decoded, encoder, idm)
    found: list[Metric] = []
    verdicts: list[Verdict] = []
    pictures: list[Sheet] = []
    for row in (row for key in "wads" for row in table.rows if row.key == key):
        chosen = _starts_for(row.key, table, clips, config.starts)
        starts = clips.take(chosen)
        plan = [table.press([row.key])] * config.key_steps
        plans = [plan] * len(starts)
        title = f"holding {row.key}"
        frames = imagine(dream, starts, plans, config.seed, config.batch, title=title)
        joined = np.concatenate([seen.decoded_past[chosen, -1:], frames], axis=1)
        values, verdict = judge_key(row, joined, reference, encoder, idm, config.seed)
        found += values
        verdicts += [verdict] if row.key in "wad" else []
        png = sheets.rollouts(starts.past[:, -1], frames, [row.key] * len(starts))
        caption = f"{config.key_steps} steps of '{row.key}' ({row.meaning}), {len(starts)} starts"
        pictures.append(Sheet(f"key_{row.key}", f"Holding {row.key}", caption, png))
    return Outcome(tuple(found), tuple(verdicts), tuple(pictures))


def follow_instructions(
    dream: Imagination, idm: InverseDynamics, clips: Clips, config: EvalConfig
) -> Outcome:
    """Give instructions instead of actions; those that name an action are also read."""
    starts = clips.take(range(min(config.starts, len(clips))))
    found: list[Metric] = []
    pictures: list[Sheet] = []
    for text in config.instructions:
        plans = [[None] * config.horizon] * len(starts)
        frames = imagine(dream, starts, plans, config.seed, config.batch, text, f"'{text}'")
        mask = _named_action(dream.spec.actions, text)
        name, read = text.replace(" ", "_"), ""
        if mask:
            seen = (idm.predict(frames) & np.uint16(mask)) == mask
            share = metrics.estimate(seen.mean(axis=1), config.seed)
            found.append(metric(f"say_{name}_read", share, better="higher"))
            read = f"; {share.value:.0%} of the steps are read as it"
        labels = [f"start {i}" for i in range(len(starts))]
        png = sheets.rollouts(starts.past[:, -1], frames, labels)
        caption = f"{config.horizon} steps under the instruction “{text}” alone{read}"
        pictures.append(Sheet(f"say_{name}", f"“{text}”", caption, png))
    return Outcome(tuple(found), (), tuple(pictures))


def measure_speed(dream: Imagination, clips: Clips, seed: int, steps: int = 32) -> Metric:
    """Return imagined frames per second of one rollout, as in play; n counts timed steps."""
    plan = clips.plans(dream.spec.actions)[0]
    past = clips.actions(dream.spec.actions, 0)[: clips.context - 1]
    dream.reset(seed=seed, frames=clips.past[0], actions=past)
    seconds = []
    for i in range(steps + 4):  # the first ones warm up
        start = time.perf_counter()
        dream.step(plan[i % len(plan)])
        seconds.append(time.perf_counter() - start)
    spent = np.asarray(seconds[4:])
    means = metrics.resampled_means(spent, seed)
    low, high = np.quantile(1 / means, [0.025, 0.975])
    return Metric(
        "fps", float(1 / spent.mean()), float(low), float(high), steps, "frames/s", "higher",
        baselines={"required": FPS},
    )  # fmt: skip


def _beats_copy(name: str, gain: np.ndarray, seed: int) -> Verdict:
    """Judge the gain over copying, float [K, T], at each horizon up to `BEATS_COPY_TO`."""
    reach = min(BEATS_COPY_TO, gain.shape[1])
    means = gain[:, :reach].mean(axis=0)
    low = np.quantile(metrics.resampled_means(gain[:, :reach], seed), 0.025, axis=0)
    lost = [str(h + 1) for h in range(reach) if means[h] <= 0]
    where = f"not at {', '.join(lost)}" if lost else f"at all {reach}"
    surely = f"beyond the 95 % interval at {int((low > 0).sum())} of {reach}"
    title = {"ssim": "SSIM", "encoder_distance": "encoder distance"}[name]
    return Verdict(
        f"better than copying the last frame in {title}",
        f"at every horizon from 1 to {BEATS_COPY_TO}",
        f"{where}; {surely}; smallest gain {means.min():+.3f}",
        not lost and reach == BEATS_COPY_TO,
    )


def _starts_for(key: str, table: ActionTable, clips: Clips, count: int) -> list[int]:
    """Return the clips in whose first steps the key was really held most: it can be there."""
    held = (clips.told[:, :16] == table.mask(table.press([key]))).sum(axis=1)
    return np.argsort(-held, kind="stable")[:count].tolist()


def _named_action(table: ActionTable, text: str) -> int:
    """Return the key mask of an instruction that is the phrase of an action, else 0."""
    try:
        return table.mask(table.parse(text))
    except UserError:
        return 0


def _futures_sheet(table: ActionTable, clips: Clips, seen: Futures) -> Sheet:
    count = min(_SHOWN, len(clips))
    actions = [
        [_short(table, action) for action in plan] for plan in clips.take(range(count)).plans(table)
    ]
    png = sheets.futures(
        clips.past[:count, -1], clips.future[:count], seen.imagined[:count], actions
    )
    caption = "True futures of held-out levels above imagined ones, under the same actions"
    return Sheet("futures", "Real and imagined futures", caption, png)


def _short(table: ActionTable, action: Action | None) -> str:
    return table.text(action, "keys").removeprefix("action: ") if action else ""
