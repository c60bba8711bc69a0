"""How well the next frame is predicted, key by key: a checkpoint beside simple baselines.

python benchmarks/next_frame.py --store data/doom.zarr --checkpoint doom-nano [--net-seconds 240]

All in the checkpoint's latents (variance 1), mean squared error on held-out levels, for frames
after one single key: a copy of the last frame; with `--net-seconds`, six gated convolutions of 128
channels over the last two frames that are told the key, trained alone for so many seconds of
processor time on the train split; and the core's prediction from pure noise after true frames,
which is its idea of the mean. What comes into view cannot be known; what is moved can. One seed.
"""

import argparse
import time

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from variants import latents_of

from worldmodel import checkpoint as checkpoints
from worldmodel.devices import choose_dtype, mixed_precision
from worldmodel.flow import mix
from worldmodel.sequence import visibility
from worldmodel.train.core import CoreTask, CoreTraining, run
from worldmodel.train.data import Recordings, load_recordings
from worldmodel.train.samples import Mixture, Sampler
from worldmodel.unet import GatedConvolution

ACTIONS_ALONE = {"action": 1.0, "text": 0, "caption": 0, "imagine": 0, "question": 0}
ACTIONS_ALONE |= {"video": 0, "instructed": 0, "commanded": 0, "mixed_forms": 0, "drop_action": 0}


class Net(nn.Module):
    """Convolutions over two frames' latents, told the key mask."""

    def __init__(self, channels: int, grid: tuple[int, int], width: int = 128) -> None:
        super().__init__()
        self.grid = grid
        self.cells = nn.Linear(2 * channels, width)
        self.layers = nn.ModuleList(GatedConvolution(width) for _ in range(6))
        self.told = nn.ModuleList(nn.Embedding(1 << 10, 2 * width) for _ in range(6))
        self.out = nn.Linear(width, channels)
        for layer in self.layers:
            assert isinstance(layer, GatedConvolution)
            layer.init_weights()

    def forward(self, frames: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
        """Two frames [B, n, 2 c] and key masks [B] to the next frame [B, n, c]."""
        x = self.cells(frames).unflatten(1, self.grid)
        for layer, told in zip(self.layers, self.told, strict=True):
            x = layer(x, told(keys)[:, None, None])
        return self.out(F.rms_norm(x, x.shape[-1:])).flatten(1, 2)


def single_keys(recordings: Recordings) -> np.ndarray:
    """Numbers of frames that have one before them, and after them one key alone."""
    inside = np.ones(len(recordings.keys), bool)
    inside[recordings.starts[1:] - 1] = inside[recordings.starts[:-1]] = False
    masks = recordings.keys.astype(int)
    return np.flatnonzero(inside & (masks > 0) & (masks & (masks - 1) == 0))


def pairs(
    latents: torch.Tensor, recordings: Recordings, at: np.ndarray
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Two frames [B, n, 2 c], key masks [B], and the next frame [B, n, c]."""
    frames = torch.cat([latents[at].float(), latents[at - 1].float()], dim=-1)
    return frames, torch.from_numpy(recordings.keys[at].astype(np.int64)), latents[at + 1].float()


def train_net(
    net: Net, latents: torch.Tensor, recordings: Recordings, seconds: float, dtype: torch.dtype
) -> int:
    """Train for so much processor time; returns how many frames were seen."""
    optimizer = torch.optim.AdamW(net.parameters(), lr=2e-3, betas=(0.9, 0.98))
    rng, places = np.random.default_rng(0), single_keys(recordings)
    began, steps = time.process_time(), 0
    while (spent := time.process_time() - began) < seconds:
        rate = 2e-3 * min(1.0, steps / 100) * max(0.02, 1 - spent / seconds)
        optimizer.param_groups[0]["lr"] = rate
        frames, keys, following = pairs(latents, recordings, rng.choice(places, 64))
        with mixed_precision(latents.device, dtype):
            loss = F.mse_loss(net(frames, keys).float(), following)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        steps += 1
    return 64 * steps


@torch.no_grad()
def core_errors(
    found: checkpoints.Checkpoint,
    latents: torch.Tensor,
    recordings: Recordings,
    dtype: torch.dtype,
    batches: int,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors of frames that the core predicts from noise after true ones, and their key masks."""
    core = found.core.eval()
    sampler = Sampler(recordings, found.tokenizer, Mixture(forms=(0, 1, 0), **ACTIONS_ALONE))
    config = CoreTraining(rows=8, context_noise=0.0, own_past=0.0, shortcut=0.0, seed=5)
    task = CoreTask(core, sampler, latents, config, dtype)
    errors, keys = [], []
    for number in range(batches):
        batch, clean = task.batch(np.random.default_rng([5, number]))
        noise = torch.randn(clean.shape, generator=torch.Generator().manual_seed(number))
        aims = batch.is_target
        level = (~aims).float()
        stride = torch.full_like(batch.source, core.config.strides - 1)
        shown = mix(clean, noise, level)
        with mixed_precision(latents.device, dtype):
            hidden, seen = run(core, batch, visibility(batch), shown, level, stride)
            places = batch.visual.view(len(aims), -1)[aims]
            drawn = core.draw(hidden.flatten(0, 1)[places], seen[aims], shown[aims], level[aims])
        errors.append((drawn.float() - clean[aims]).square().mean((1, 2)))
        masks = recordings.keys[batch.source[aims].numpy() - 1]
        keys.append(torch.from_numpy(masks.astype(np.int64)))
    return torch.cat(errors), torch.cat(keys)


def main() -> None:
    """Print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--store", default="data/doom.zarr")
    parser.add_argument("--checkpoint", nargs="+", default=["doom-nano"])
    parser.add_argument("--net-seconds", type=float, default=0.0)
    parser.add_argument("--batches", type=int, default=6)
    asked = parser.parse_args()
    dtype = choose_dtype("auto", torch.device("cpu"))
    first = checkpoints.load(asked.checkpoint[0])
    val = load_recordings(asked.store, "val")
    latents = latents_of(first, val, torch.device("cpu"))
    frames, keys, following = pairs(latents, val, single_keys(val))
    columns = {"copy": ((frames[..., : latents.shape[-1]] - following).square().mean((1, 2)), keys)}
    if asked.net_seconds:
        train = load_recordings(asked.store, "train")
        net = Net(first.encoder.channels, first.encoder.grid)
        seen = latents_of(first, train, torch.device("cpu"))
        count = train_net(net, seen, train, asked.net_seconds, dtype)
        with torch.no_grad(), mixed_precision(torch.device("cpu"), dtype):
            error = (net(frames, keys).float() - following).square().mean((1, 2))
        columns[f"net, {count} frames"] = (error, keys)
    for name in asked.checkpoint:
        errors = core_errors(checkpoints.load(name), latents, val, dtype, asked.batches)
        columns[name.rstrip("/").split("/")[-1]] = errors
    print("| key |", " | ".join(columns), "|\n|---|" + "---|" * len(columns))
    for row in val.spec.actions.rows:
        mask = val.spec.actions.press([row.key])
        number = val.spec.actions.mask(mask)
        cells = [f"{error[keys == number].mean().item():.3f}" for error, keys in columns.values()]
        print(f"| {row.key} |", " | ".join(cells), "|")


if __name__ == "__main__":
    main()
