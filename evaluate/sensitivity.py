"""Sensitivity to actions: how much worse a future gets under wrong actions, with the same noise.

A model that ignores what it is told has ratios of 1 and gaps of 0. The wrong actions are another
clip's (shuffled), the clip's own in another order (time-shuffled), and none (zeroed).
"""

from collections.abc import Mapping, Sequence

import numpy as np

from worldmodel.actions import Action
from worldmodel.evaluate import metrics
from worldmodel.evaluate.rollouts import Clips, FrameEncoder, Plan, encode
from worldmodel.evaluate.scorecard import Metric, metric

WRONG = ("shuffled", "time-shuffled", "zeroed")


def wrong_plans(plans: Sequence[Plan], seed: int = 0) -> dict[str, list[Plan]]:
    """Return the plans of K clips made wrong in each of the ways of `WRONG`."""
    rng = np.random.default_rng(seed)
    return {
        "shuffled": [*plans[1:], *plans[:1]],
        "time-shuffled": [[plan[i] for i in rng.permutation(len(plan))] for plan in plans],
        "zeroed": [[Action()] * len(plan) for plan in plans],
    }


def measure_sensitivity(
    clips: Clips,
    imagined: np.ndarray,
    wrong: Mapping[str, np.ndarray],
    encoder: FrameEncoder,
    seed: int = 0,
) -> list[Metric]:
    """Return error ratios and PSNR gaps, by horizon and, without a horizon, over all steps.

    `action_ratio_X` is the encoder distance to the true future under the wrong actions over the
    one under the true actions. `counterfactual_psnr` is the PSNR under the true actions less the
    mean of those under the wrong ones, as in Genie (arXiv 2402.15391, there for random actions);
    each kind of wrong actions stands beside it.

    Args:
        clips: recorded clips.
        imagined: under the true actions, uint8 [K, T, H, W, 3].
        wrong: under wrong actions with the same noise, by kind.
        encoder: the model's frame encoder.
        seed: of the bootstrap.
    """
    truth = encode(encoder, clips.future)

    def distance(frames: np.ndarray) -> np.ndarray:
        return metrics.encoder_distance(encode(encoder, frames), truth)

    right = distance(imagined)  # [K, T]
    off = {kind: distance(frames) for kind, frames in wrong.items()}
    peak = metrics.psnr(imagined, clips.future)
    gaps = {kind: peak - metrics.psnr(frames, clips.future) for kind, frames in wrong.items()}
    found = []
    for h in (None, *range(right.shape[1])):
        at, horizon = (slice(None), None) if h is None else (slice(h, h + 1), h + 1)
        for kind, values in off.items():
            ratio = metrics.estimate_ratio(
                values[:, at].mean(axis=1), right[:, at].mean(axis=1), seed
            )
            name = f"action_ratio_{kind.replace('-', '_')}"
            found.append(metric(name, ratio, better="higher", horizon=horizon))
        beside = {kind: float(gap[:, at].mean()) for kind, gap in gaps.items()}
        mean = np.mean([gap[:, at].mean(axis=1) for gap in gaps.values()], axis=0)
        found.append(
            metric(
                "counterfactual_psnr",
                metrics.estimate(mean, seed),
                unit="dB",
                better="higher",
                horizon=horizon,
                baselines=beside,
            )
        )
    return found
