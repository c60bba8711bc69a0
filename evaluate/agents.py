"""Agents in closed loop: what a policy earns in the real world, and in the imagination.

A policy sees a frame and chooses an action, as in a Gymnasium environment of ours
(`worldmodel.envs.world_env.WorldEnv`, actions 'discrete'). What a step earns is a function of
frames alone, so that real and imagined ones earn by the same rule, and an agent can be trained in
the dream and scored in the real world (docs/examples/train_in_dream.py).

Letters in shapes: S starts, T steps, H W 3 a frame.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
from tqdm import tqdm

from worldmodel.actions import Action
from worldmodel.envs.gym_controls import pairs
from worldmodel.errors import UserError
from worldmodel.evaluate import sheets
from worldmodel.evaluate.checks import LUMA
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.imaginer import find_object
from worldmodel.evaluate.metrics import estimate
from worldmodel.evaluate.quick import Outcome
from worldmodel.evaluate.scenario import Start
from worldmodel.evaluate.scorecard import Metric, Verdict, metric
from worldmodel.evaluate.sheets import Row, Sheet
from worldmodel.evaluate.starts import open_world
from worldmodel.world import World

Policy = Callable[[np.ndarray], int]
"""Chooses an action, a number of `pairs(spec.actions)`, from a frame uint8 [H, W, 3]."""

Reward = Callable[[np.ndarray, np.ndarray], float]
"""What a step earns, from the frames before and after it, both uint8 [H, W, 3]."""

WALKS = 4
"""Random walks from each start; their mean is the baseline."""
_COLUMNS, _SHOWN = 9, 3  # of the sheet: frames of a walk, starts


def brightness(before: np.ndarray, after: np.ndarray) -> float:
    """Earn the brightness of what is seen after the step, 0 (black) to 1 (white)."""
    return float((after @ LUMA).mean() / 255)


def load_policy(place: str) -> Policy:
    """Return the policy that `place` names.

    Args:
        place: `path/to/file.py:name` or `package.module:name` of a function of a frame, or of
            an object with `predict(frame)` as Stable-Baselines3 has it; or the .zip of a PPO
            agent that Stable-Baselines3 saved.

    Raises:
        UserError: nothing of that kind is there.
    """
    found = _load_ppo(place) if place.endswith(".zip") else find_object(place)
    if hasattr(found, "predict"):
        return lambda frame: int(found.predict(frame, deterministic=True)[0])
    if callable(found):
        return lambda frame: int(cast(Any, found)(frame))
    raise UserError(
        f"{place} is a {type(found).__name__}; a policy is a function of a frame, or an object "
        "with predict(frame)."
    )


@dataclass(frozen=True)
class Walks:
    """What a policy did from some starts.

    Attributes:
        frames: uint8 [S, T+1, H, W, 3], from the start's frame on.
        earned: what a step earned on average, float [S].
    """

    frames: np.ndarray
    earned: np.ndarray


def walk_real(
    world: World,
    seeds: Sequence[int],
    policy: Policy,
    known: Sequence[Action],
    steps: int,
    reward: Reward,
) -> Walks:
    """Let a policy choose among `known` actions for T steps in the levels of S seeds.

    Where a walk ends early, the steps that are left earn nothing.
    """
    walks, earned = [], np.zeros(len(seeds))
    for s, seed in enumerate(seeds):
        step = world.reset(seed)
        seen = [step.frame]
        while len(seen) <= steps:
            if not (step.terminated or step.truncated):
                step = world.step(known[_checked(policy(seen[-1]), known)])
                earned[s] += reward(seen[-1], step.frame) / steps
            seen.append(step.frame)
        walks.append(np.stack(seen))
    return Walks(np.stack(walks), earned)


def walk_imagined(
    dream: Any,
    starts: np.ndarray,
    seed: int,
    policy: Policy,
    known: Sequence[Action],
    steps: int,
    reward: Reward,
) -> Walks:
    """The same in the imagination of a `Dream` or `Guest`, as one batch.

    The walks begin with the frames `starts`, uint8 [S, H, W, 3]; walk i has the noise of seed + i.
    """
    team = [dream, *dream.fork(len(starts) - 1)]
    for s, member in enumerate(team):
        member.reset(seed=seed + s, frames=starts[s : s + 1], actions=[])
    seen, earned = [starts], np.zeros(len(starts))
    for _ in range(steps):
        told = [known[_checked(policy(frame), known)] for frame in seen[-1]]
        seen.append(np.stack([step.frame for step in type(dream).batch_step(team, told)]))
        earned += [reward(*both) / steps for both in zip(seen[-2], seen[-1], strict=True)]
    return Walks(np.stack(seen, axis=1), earned)


def run_policy(dream: Any, config: EvalConfig) -> Outcome:
    """Score a policy in the real world and in a `Dream` or `Guest`, from the same first frames.

    Beside it, in both: the mean of `WALKS` random walks, the key that walks ahead held, nothing
    done.

    Raises:
        UserError: no such policy, reward or world, or a world of other frames or keys.
    """
    policy, reward = load_policy(config.policy), _find_reward(config.reward)
    known = pairs(dream.spec.actions)
    ahead = _ahead(known)
    hands: dict[str, list[Policy]] = {
        "policy": [policy],
        "random": [_random(len(known), config.seed + k) for k in range(WALKS)],
        "ahead": [lambda _: ahead],
        "still": [lambda _: 0],
    }
    bar = tqdm(total=2 * sum(map(len, hands.values())), desc="walking", unit="hand", leave=False)

    def all_walk(go: Callable[[Policy], Walks]) -> dict[str, Walks]:
        """Let all hands walk; of those of one name, return the frames of the first."""
        done = {}
        for name, some in hands.items():
            found = []
            for one in some:
                found.append(go(one))
                bar.update()
            done[name] = Walks(found[0].frames, np.mean([each.earned for each in found], axis=0))
        return done

    seeds, how = range(config.seed, config.seed + config.starts), (known, config.horizon, reward)
    world = open_world(Start(world=config.world, split=config.split), dream.spec)
    try:
        real = all_walk(lambda policy: walk_real(world, seeds, policy, *how))
    finally:
        world.close()
    starts = real["policy"].frames[:, 0]
    parts = range(0, config.starts, config.batch)

    def imagined(policy: Policy) -> Walks:
        done = [
            walk_imagined(dream, starts[i : i + config.batch], config.seed + i, policy, *how)
            for i in parts
        ]
        return Walks(
            np.concatenate([one.frames for one in done]),
            np.concatenate([one.earned for one in done]),
        )

    found = _judge(real, all_walk(imagined), config)
    bar.close()
    return found


def _judge(real: dict[str, Walks], imagined: dict[str, Walks], config: EvalConfig) -> Outcome:
    """Compare what was earned, by hand, and draw the policy's walks."""
    found: list[Metric] = []
    verdicts: list[Verdict] = []
    more: dict[str, Any] = {"better": "higher", "horizon": config.horizon}
    for where, walks in (("real", real), ("dream", imagined)):
        earned = {name: one.earned for name, one in walks.items()}
        beside = {name: float(v.mean()) for name, v in earned.items() if name != "policy"}
        value = estimate(earned["policy"], config.seed)
        found.append(metric(f"reward_{where}", value, baselines=beside, **more))
        for name in beside:
            gain = estimate(earned["policy"] - earned[name], config.seed)
            found.append(metric(f"reward_{where}_over_{name}", gain, **more))
            if where == "real":
                said = f"{gain.value:+.4f} ({gain.low:+.4f} to {gain.high:+.4f}), n={gain.n}"
                asked = "a gain in the real world whose whole interval is above zero"
                verdicts.append(Verdict(f"earns more than {name}", asked, said, gain.low > 0))
    seen, dreamt = real["policy"], imagined["policy"]
    promised = estimate(dreamt.earned - seen.earned, config.seed)
    found.append(metric("reward_dream_over_real", promised, horizon=config.horizon))
    at = np.unique(np.linspace(0, config.horizon, min(_COLUMNS, config.horizon + 1)).astype(int))
    rows = [
        Row(label, one.frames[s, at])
        for s in range(min(_SHOWN, len(seen.frames)))
        for label, one in (("real", seen), ("dream", dreamt))
    ]
    png = sheets.draw(rows, ["given", *(f"+{t}" for t in at[1:])], 80)
    caption = f"{config.policy} from the same frames in the real world and in the imagination"
    sheet = Sheet("policy", "Walks of the policy", caption, png)
    return Outcome(tuple(found), tuple(verdicts), (sheet,))


def _load_ppo(place: str) -> Any:
    try:
        from stable_baselines3 import PPO
    except ImportError as error:
        raise UserError(
            "An agent of Stable-Baselines3 needs it: pip install 'worldmodel[rl]'."
        ) from error
    try:
        return PPO.load(place, device="cpu")
    except (OSError, ValueError, KeyError, RuntimeError, AssertionError) as error:
        raise UserError(
            f"{place} is no PPO agent of Stable-Baselines3 ({error}). For another algorithm write "
            "policy=FILE.py:NAME, where NAME is the loaded agent."
        ) from error


def _find_reward(name: str) -> Reward:
    return brightness if name == "brightness" else find_object(name)


def _random(count: int, seed: int) -> Policy:
    rng = np.random.default_rng(seed)
    return lambda _: int(rng.integers(count))


def _ahead(known: Sequence[Action]) -> int:
    """Return the number of the action that walks straight ahead."""
    return max(range(len(known)), key=lambda i: (known[i].dx, -len(known[i].keys)))


def _checked(number: int, known: Sequence[Action]) -> int:
    if not 0 <= number < len(known):
        raise UserError(f"The policy chose action {number}; there are 0 to {len(known) - 1}.")
    return number
