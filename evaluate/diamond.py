"""DIAMOND (Alonso et al. 2024, arXiv 2405.12399) as a peer: its denoiser behind `Imaginer`.

Its code is imported from a checkout of https://github.com/eloialonso/diamond (branch main) that
the user has; none of it is here. `python -m worldmodel.evaluate.diamond_train` trains its
denoiser on a store, `worldmodel eval imaginer=worldmodel.evaluate.diamond:load weights=FOLDER`
scores what came of it.

The folder holds `denoiser.safetensors` and `config.json`, which names the checkout; the
environment variable DIAMOND_CHECKOUT names another place of it.

Letters in shapes: B rollouts, T given frames, H imagined ones, n frames of its window, h w 3 a
frame.
"""

import importlib
import importlib.util
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import torch
import yaml
from safetensors.torch import load_file, save_file

from worldmodel.actions import Action, ActionTable
from worldmodel.errors import UserError
from worldmodel.world import WorldSpec

CHECKOUT = "DIAMOND_CHECKOUT"
WEIGHTS, CONFIG = "denoiser.safetensors", "config.json"
_SAMPLER = ("num_steps_denoising", "sigma_min", "sigma_max", "rho")  # the rest is of no effect
_NAMES = ("data", "models", "utils")  # its top-level modules; other programs have such, too


@dataclass(frozen=True)
class Borrowed:
    """What is used of a checkout: its modules, and its settings for Atari.

    Attributes:
        diffusion: module `models.diffusion`. utils: module `utils`.
        denoiser: settings of `DenoiserConfig`, with those of its `inner_model`.
        sampler: settings of `DiffusionSamplerConfig`.
        training: settings `optimizer`, `training`, `sigma_distribution` of the denoiser.
    """

    diffusion: ModuleType
    utils: ModuleType
    denoiser: Mapping[str, Any]
    sampler: Mapping[str, Any]
    training: Mapping[str, Mapping[str, Any]]


def borrow(checkout: str | Path) -> Borrowed:
    """Import what is used of a checkout, and read its settings.

    Raises:
        UserError: the folder is no checkout of DIAMOND's main branch, or lacks a package.
    """
    root = Path(checkout).expanduser().absolute()
    try:
        agent, trainer = (
            yaml.safe_load((root / "config" / name).read_text(encoding="utf-8"))
            for name in ("agent/default.yaml", "trainer.yaml")
        )
        with _importing_from(root / "src"):
            diffusion, utils = map(importlib.import_module, ("models.diffusion", "utils"))
        sampler = trainer["world_model_env"]["diffusion_sampler"]
        return Borrowed(
            diffusion,
            utils,
            _plain(agent["denoiser"]),
            _plain({key: sampler[key] for key in _SAMPLER}),
            _plain(trainer["denoiser"]),
        )
    except (OSError, ImportError, KeyError, TypeError, yaml.YAMLError) as error:
        raise UserError(
            f"{root} is no usable checkout of DIAMOND ({type(error).__name__}: {error}). Clone "
            "https://github.com/eloialonso/diamond, branch main, and give its folder."
        ) from error


def build(parts: Borrowed, actions: int, device: str = "cpu") -> Any:
    """Return an untrained `Denoiser` (a module) for so many actions."""
    sizes = {**parts.denoiser["inner_model"], "num_actions": actions}
    kinds = parts.diffusion
    config = kinds.DenoiserConfig(
        **{**parts.denoiser, "inner_model": kinds.InnerModelConfig(**sizes)}
    )
    return kinds.Denoiser(config).to(device)


def noise_levels(parts: Borrowed, denoiser: torch.nn.Module) -> torch.Tensor:
    """Return the noise levels that its sampler goes through, float [steps+1], down to 0."""
    config = parts.diffusion.DiffusionSamplerConfig(**parts.sampler)
    return parts.diffusion.DiffusionSampler(denoiser, config).sigmas


def as_input(frames: np.ndarray, device: torch.device | str) -> torch.Tensor:
    """Return frames uint8 [..., h, w, 3] as it takes them: float [..., 3, h, w], -1 to 1."""
    channels_first = torch.from_numpy(np.moveaxis(frames, -1, -3).copy())
    return channels_first.to(device).float() / 127.5 - 1


class ActionIndex:
    """Numbers for combinations of keys, as it wants them: those that the data hold.

    Args:
        masks: the key masks that have a number, in this order.
    """

    def __init__(self, masks: Sequence[int]) -> None:
        self.masks = tuple(masks)

    def __len__(self) -> int:
        return len(self.masks)

    def __getitem__(self, mask: int) -> int:
        """Return the number of a mask; of one that has none, that of the likest."""
        return min(range(len(self)), key=lambda i: (self.masks[i] ^ mask).bit_count())

    def of(self, table: ActionTable, action: Action) -> int:
        """Return the number of an action.

        Raises:
            UserError: an action that no keys make.
        """
        if not action.keys and not action.idle:
            raise UserError("DIAMOND knows keys only; this action is a displacement without keys.")
        return self[table.mask(action)]


class Diamond:
    """Its denoiser with its sampler (Euler), as an `Imaginer`.

    Args:
        denoiser: a trained `Denoiser`.
        levels: see `noise_levels`.
        index: numbers of the actions.
        table: the world's action table.
    """

    name = "DIAMOND"

    def __init__(
        self, denoiser: Any, levels: torch.Tensor, index: ActionIndex, table: ActionTable
    ) -> None:
        self.denoiser, self.levels, self.index, self.table = denoiser.eval(), levels, index, table
        self.context = int(denoiser.cfg.inner_model.num_steps_conditioning)

    @torch.inference_mode()
    def imagine(
        self,
        frames: np.ndarray,
        actions: Sequence[Sequence[Action]],
        horizon: int,
        seeds: Sequence[int],
    ) -> np.ndarray:
        """As `Imaginer.imagine`. Where fewer than n frames are given, the first one is repeated."""
        n, device = self.context, self.levels.device
        given = frames[:, -n:]
        missing = n - given.shape[1]
        seen = as_input(np.concatenate([given[:, :1]] * missing + [given], axis=1), device)
        idle = [self.index[0]] * missing
        told = torch.tensor(
            [
                idle + [self.index.of(self.table, a) for a in row[1 - given.shape[1] - horizon :]]
                for row in actions
            ],
            device=device,
        )  # [B, n-1+H]
        dice = [torch.Generator().manual_seed(seed) for seed in seeds]
        out = np.empty((len(frames), horizon, *frames.shape[2:]), np.uint8)
        for t in range(horizon):
            noise = torch.stack([torch.randn(seen.shape[2:], generator=die) for die in dice])
            new = self.next(seen, told[:, t : t + n], noise.to(device))
            seen = torch.cat([seen[:, 1:], new[:, None]], dim=1)
            shown = ((new + 1) * 127.5).round().clamp(0, 255).byte()
            out[:, t] = np.moveaxis(shown.cpu().numpy(), 1, -1)
        return out

    def next(self, seen: torch.Tensor, told: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Denoise the next frames along the noise levels, in Euler steps, as its sampler does.

        It is done here so that each rollout of a batch can have noise of its own.

        Args:
            seen: float [B, n, 3, h, w], -1 to 1.
            told: int [B, n], the action after each of them.
            noise: float [B, 3, h, w].

        Returns:
            float [B, 3, h, w], -1 to 1.
        """
        x, past = noise, seen.flatten(1, 2)
        for level, lower in pairwise(self.levels):
            clean = self.denoiser.denoise(x, level, past, told)
            x = x + (x - clean) / level * (lower - level)
        return x


def save(
    folder: Path, denoiser: torch.nn.Module, parts: Borrowed, details: Mapping[str, Any]
) -> None:
    """Write a trained denoiser; `details` has at least checkout, keys, masks, height and width."""
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: value.contiguous() for name, value in denoiser.state_dict().items()}
    save_file(weights, folder / WEIGHTS)
    config = {"denoiser": parts.denoiser, "sampler": parts.sampler, **details}
    (folder / CONFIG).write_text(json.dumps(config, indent=1) + "\n", encoding="utf-8")


def load(spec: WorldSpec, weights: str, device: str) -> Diamond:
    """Return the denoiser that `diamond_train` wrote; a `Factory` of imaginers.

    Raises:
        UserError: no such folder, one of another world, no checkout of DIAMOND.
    """
    folder = Path(weights)
    try:
        config = json.loads((folder / CONFIG).read_text(encoding="utf-8"))
        fits = (tuple(config["keys"]), config["height"], config["width"])
        index, place = ActionIndex(config["masks"]), config["checkout"]
        parts = borrow(os.environ.get(CHECKOUT) or place)
        parts = Borrowed(
            parts.diffusion, parts.utils, config["denoiser"], config["sampler"], parts.training
        )
        denoiser = build(parts, len(index), device)
        denoiser.load_state_dict(load_file(folder / WEIGHTS, device=device))
    except (OSError, ValueError, KeyError, TypeError, RuntimeError) as error:
        raise UserError(
            f"weights={weights} holds no denoiser ({error}). Train one first: python -m "
            "worldmodel.evaluate.diamond_train --checkout DIR --store STORE --out FOLDER."
        ) from error
    if fits != (spec.actions.keys, spec.height, spec.width):
        raise UserError(
            f"{weights} was trained on frames of {fits[2]}x{fits[1]} pixels and the keys "
            f"{', '.join(fits[0])}; {spec.width}x{spec.height} and {', '.join(spec.actions.keys)} "
            "are asked for."
        )
    return Diamond(denoiser, noise_levels(parts, denoiser), index, spec.actions)


@contextmanager
def _importing_from(folder: Path) -> Iterator[None]:
    """Let imports look into `folder` first, and forget afterwards what they were called."""

    def mine() -> list[str]:
        return [name for name in sys.modules if name.split(".")[0] in _NAMES]

    before = {name: sys.modules.pop(name) for name in mine()}
    lacks_wandb = importlib.util.find_spec("wandb") is None
    if lacks_wandb:  # its utils import it at the top, for a function that is not used here
        sys.modules["wandb"] = ModuleType("wandb")
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))
        if lacks_wandb:
            del sys.modules["wandb"]
        for name in mine():
            del sys.modules[name]
        sys.modules.update(before)


def _plain(settings: Any) -> Any:
    """Return settings without Hydra's targets, and numbers as such: YAML reads 2e-3 as text."""
    if isinstance(settings, Mapping):
        return {key: _plain(value) for key, value in settings.items() if key != "_target_"}
    if isinstance(settings, str):
        try:
            return float(settings)
        except ValueError:
            return settings
    return settings
