"""Train an agent inside the dream with Stable-Baselines3, then score it in the real world.

pip install "worldmodel[rl]"
python docs/examples/train_in_dream.py --steps 16384 --out agent.zip

The agent (PPO on frames) never meets the real world before it is scored. Each step earns the
brightness of what is seen, the reward that `worldmodel eval policy=agent.zip` counts; beside the
agent that command scores random walks, the forward key held, and standing still.
"""

import argparse
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium
import numpy as np
import torch
from stable_baselines3 import PPO
from stable_baselines3.common.vec_env import VecEnv, VecMonitor

from worldmodel.evaluate.agents import brightness
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.run import main as evaluate


class DreamVecEnv(VecEnv):
    """`worldmodel/Dream-v0`, stepped as one batch, as Stable-Baselines3 wants environments.

    All episodes are cut after the same number of steps and begin anew together.

    Args:
        number: of episodes at once.
        steps: of an episode.
        reward: of a step, from the frames before and after it.
        options: of `worldmodel.envs.dream_env.DreamEnv`.
    """

    def __init__(
        self,
        number: int,
        steps: int,
        reward: Callable[[np.ndarray, np.ndarray], float],
        **options: Any,
    ) -> None:
        self.dreams = gymnasium.make_vec(
            "worldmodel/Dream-v0", num_envs=number, max_episode_steps=steps, **options
        )
        self.earn = reward
        spaces = self.dreams.single_observation_space, self.dreams.single_action_space
        super().__init__(number, *spaces)

    def reset(self) -> np.ndarray:
        """Begin anew; the first time from the starts that the agent's seed says."""
        self.frames, _ = self.dreams.reset(seed=self._seeds)
        self._reset_seeds()
        return self.frames

    def step_async(self, actions: np.ndarray) -> None:
        """Remember what to do."""
        self.chosen = actions

    def step_wait(self) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[dict[str, Any]]]:
        """Do it; where the episodes are cut, return the first frames of the next ones."""
        before = self.frames
        self.frames, _, _, cut, _ = self.dreams.step(self.chosen)
        earned = [self.earn(*both) for both in zip(before, self.frames, strict=True)]
        infos: list[dict[str, Any]] = [{} for _ in earned]
        if cut.all():
            infos = [
                {"terminal_observation": frame, "TimeLimit.truncated": True}
                for frame in self.frames
            ]
            self.reset()
        return self.frames, np.asarray(earned, np.float32), cut, infos

    def close(self) -> None:
        """Close the dreams."""
        self.dreams.close()

    def get_attr(self, attr_name: str, indices: Any = None) -> list[Any]:
        """Return an attribute of each."""
        return [getattr(self.dreams, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: Any = None) -> None:
        """Refuse: they share one model."""
        raise NotImplementedError

    def env_method(
        self, method_name: str, *args: Any, indices: Any = None, **kwargs: Any
    ) -> list[Any]:
        """Refuse: they share one model."""
        raise NotImplementedError

    def env_is_wrapped(self, wrapper_class: Any, indices: Any = None) -> list[bool]:
        """Return that none is wrapped."""
        return [False] * len(list(self._get_indices(indices)))


def main(arguments: Sequence[str] | None = None) -> None:
    """Train, save, score."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkpoint", default="doom-nano")
    parser.add_argument("--steps", type=int, default=16384, help="imagined steps to train for")
    parser.add_argument("--episode", type=int, default=32, help="steps of an episode")
    parser.add_argument("--dreams", type=int, default=8, help="episodes at once")
    parser.add_argument("--out", default="agent.zip")
    parser.add_argument("--levels", type=int, default=16, help="real levels to score in")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: as PyTorch has it")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    if options.threads:
        torch.set_num_threads(options.threads)
    dreams = DreamVecEnv(
        options.dreams,
        options.episode,
        brightness,
        checkpoint=options.checkpoint,
        device=options.device,
        denoise_steps=1,
    )
    agent = PPO(
        "CnnPolicy",
        VecMonitor(dreams),  # tells what episodes earn
        n_steps=2 * options.episode,
        batch_size=options.episode * options.dreams // 2,
        n_epochs=4,
        gamma=0.95,
        ent_coef=0.01,
        seed=options.seed,
        device="cpu",
        verbose=1,
    )
    agent.learn(options.steps)
    agent.save(options.out)
    dreams.close()
    config = EvalConfig(
        checkpoint=options.checkpoint,
        policy=options.out,
        starts=options.levels,
        horizon=options.episode,
        denoise_steps=1,
        guidance=1.0,
        device=options.device,
        out=f"{options.out}.eval",
    )
    evaluate(config)


if __name__ == "__main__":
    main()
