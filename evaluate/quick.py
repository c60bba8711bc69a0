"""The quick suite: a first, complete look at a model on held-out levels.

Quality by horizon beside its baselines, obedience to actions, consistency under one held key,
text, speed, and contact sheets to look at.
"""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from worldmodel.actions import Action, ActionTable
from worldmodel.datasets.store import EpisodeStore
from worldmodel.errors import UserError
from worldmodel.evaluate import experts, metrics, sheets
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.consistency import judge_key, measure_reference
from worldmodel.evaluate.drift import long_clips, measure_drift, real_windows
from worldmodel.evaluate.imaginer import Guest
from worldmodel.evaluate.inverse_dynamics import InverseDynamics, exact_accuracy, key_counts
from worldmodel.evaluate.language import held_out_texts, measure_language, read_notes
from worldmodel.evaluate.perceptual import Perceptual, measure_perceptual
from worldmodel.evaluate.pose import PoseReader, measure_pose, true_poses
from worldmodel.evaluate.rollouts import (
    Clips,
    FrameEncoder,
    Imagination,
    Speaker,
    encode,
    imagine,
    reconstruct,
    several_clips,
)
from worldmodel.evaluate.scorecard import Metric, Verdict, data_hash, metric
from worldmodel.evaluate.sensitivity import measure_sensitivity, wrong_plans
from worldmodel.evaluate.sheets import Sheet
from worldmodel.moe import routers

BEATS_COPY_TO = 16  # steps ahead up to which the model has to be better than the last frame
IDM_RATIO = 0.75
FPS = 10.0
_SHOWN = 6  # clips on the sheet of futures


@dataclass(frozen=True)
class Outcome:
    """What a suite gives; the tables are of plain values, by name, `data` as in a `Scorecard`."""

    metrics: tuple[Metric, ...]
    verdicts: tuple[Verdict, ...]
    sheets: tuple[Sheet, ...]
    tables: Mapping[str, Any] = field(default_factory=dict)
    data: str = ""


@dataclass(frozen=True)
class Futures:
    """The same clips' futures by different hands; each uint8 [K, T, H, W, 3].

    Attributes:
        imagined: under the true actions.
        shuffled: under another clip's actions, with the same noise. idle: under none.
        disordered: under the clip's own actions in another order.
        copy: the last given frame, again and again.
        decoded: the true frames encoded and decoded.
        decoded_past: the given frames encoded and decoded, uint8 [K, context, H, W, 3].
    """

    imagined: np.ndarray
    shuffled: np.ndarray
    idle: np.ndarray
    disordered: np.ndarray
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
    pose: PoseReader | None = None,
    perceptual: Perceptual | None = None,
) -> Outcome:
    """Run the suite; pose and perceptual metrics only with the networks that they need.

    Raises:
        UserError: the store has no held-out clips of the size asked for.
    """
    why = "at least 2 are needed. Collect more held-out episodes."
    clips = several_clips(store, config, config.clips, config.horizon, why)
    seen = imagine_futures(dream, encoder, clips, config)
    quality, better = measure_quality(clips, seen, encoder, config.seed)
    following, obeys = measure_following(clips, seen, idm, config.seed)
    wrong = {"shuffled": seen.shuffled, "time-shuffled": seen.disordered, "zeroed": seen.idle}
    sensitivity = measure_sensitivity(clips, seen.imagined, wrong, encoder, config.seed)
    walked = _measure_walks(clips, seen, store, pose, config.seed) if pose else []
    looks = _measure_looks(clips, seen, perceptual, config.seed) if perceptual else []
    drift = _measure_drift(dream, encoder, store, config) if config.drift else []
    inside = look_inside(dream, store, clips, config)
    keys = hold_keys(dream, encoder, idm, clips, seen, config)
    reads = isinstance(dream, Speaker)
    said = follow_instructions(dream, idm, clips, config) if reads else Outcome((), (), ())
    speed = measure_speed(dream, clips, config.seed)
    fast = Verdict(
        "fast enough to play", f"at least {FPS:g} frames/s", f"{speed.value:.1f} frames/s",
        speed.value >= FPS,
    )  # fmt: skip
    text = measure_language(dream, store, config) if reads else []
    futures = _futures_sheet(dream.spec.actions, clips, seen)
    return Outcome(
        (
            *quality, *following, *looks, *sensitivity, *walked, *drift, *keys.metrics,
            *said.metrics, *text, *inside.metrics, speed,
        ),
        (*better, obeys, *keys.verdicts, fast),
        (futures, *keys.sheets, *said.sheets, *inside.sheets),
        inside.tables,
        data_hash(clips.frames, clips.keys),
    )  # fmt: skip


def imagine_futures(
    dream: Imagination, encoder: FrameEncoder, clips: Clips, config: EvalConfig
) -> Futures:
    """Imagine the clips' futures under true and under wrong actions, with the same noise."""
    plans = clips.plans(dream.spec.actions)
    wrong = wrong_plans(plans, config.seed)
    told = {"true": plans, **wrong}
    imagined, shuffled, disordered, still = (
        imagine(dream, clips, told[kind], config.seed, config.batch, title=f"{kind} actions")
        for kind in told
    )
    # A guest has no decoder of ours: the best that it could show are the frames themselves.
    decoded = clips.frames if isinstance(dream, Guest) else reconstruct(encoder, clips.frames)
    return Futures(
        imagined=imagined,
        shuffled=shuffled,
        idle=still,
        disordered=disordered,
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


def look_inside(
    dream: Imagination, store: EpisodeStore, clips: Clips, config: EvalConfig
) -> Outcome:
    """Say which experts serve what, where the model is a `Dream` with experts to choose from."""
    engine: Any = getattr(dream, "engine", None)
    count = min(config.experts, len(clips))
    if engine is None or not routers(engine.core) or not count:
        return Outcome((), (), ())
    texts = held_out_texts(read_notes(store, config.split, config.seed), 4 * count)
    some = clips.take(range(count))
    picks = experts.count_picks(engine, some, texts, config.denoise_steps, config.seed)
    found = experts.measure_experts(picks, config.seed)
    return Outcome(tuple(found), (), (experts.draw(picks),), experts.table(picks))


def _measure_looks(clips: Clips, seen: Futures, perceptual: Perceptual, seed: int) -> list[Metric]:
    """Return the perceptual metrics of the clips' futures."""
    others = {"copy": seen.copy, "reconstruction": seen.decoded}
    return measure_perceptual(perceptual, clips.future, seen.imagined, others, seed)


def _measure_walks(
    clips: Clips, seen: Futures, store: EpisodeStore, pose: PoseReader, seed: int
) -> list[Metric]:
    """Return the errors of the paths that the clips' futures show."""
    futures = {"imagined": seen.imagined, "reconstruction": seen.decoded}
    told = clips.moves[:, clips.context - 1 :]
    return measure_pose(
        clips, futures, seen.decoded_past, true_poses(store, clips), pose, told, seed
    )


def _measure_drift(
    dream: Imagination, encoder: FrameEncoder, store: EpisodeStore, config: EvalConfig
) -> list[Metric]:
    """Imagine long futures under the recorded actions; return their drift by position."""
    clips = long_clips(store, config)
    plans = clips.plans(dream.spec.actions)
    frames = imagine(dream, clips, plans, config.seed, config.batch, title="long rollouts")
    reference = real_windows(store, clips, config.seed)
    return measure_drift(clips, frames, encoder, reference, config.seed)


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
        drawn = sheets.rollouts(starts.past[:, -1], frames, [row.key] * len(starts))
        caption = f"{config.key_steps} steps of '{row.key}' ({row.meaning}), {len(starts)} starts"
        pictures.append(Sheet(f"key_{row.key}", f"Holding {row.key}", caption, *drawn))
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
        drawn = sheets.rollouts(starts.past[:, -1], frames, labels)
        caption = f"{config.horizon} steps under the instruction “{text}” alone{read}"
        pictures.append(Sheet(f"say_{name}", f"“{text}”", caption, *drawn))
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
    drawn = sheets.futures(
        clips.past[:count, -1], clips.future[:count], seen.imagined[:count], actions
    )
    caption = "True futures of held-out levels and imagined ones, under the same actions"
    return Sheet("futures", "Real and imagined futures", caption, *drawn)


def _short(table: ActionTable, action: Action | None) -> str:
    return table.text(action, "keys").removeprefix("action: ") if action else ""
