"""Train DIAMOND's denoiser on a store, for a given time, as its own settings for Atari say.

python -m worldmodel.evaluate.diamond_train --checkout DIR --store data/doom.zarr --minutes 60

The network, its loss, the optimiser and their settings are those of the user's checkout; see
`worldmodel.evaluate.diamond`. Reward, end and policy are left out: a store has none.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from worldmodel.datasets.clips import ClipIndex
from worldmodel.datasets.store import EpisodeStore
from worldmodel.devices import choose_device
from worldmodel.errors import UserError
from worldmodel.evaluate.diamond import ActionIndex, as_input, borrow, build, save


def train(
    checkout: str,
    store: EpisodeStore,
    out: Path,
    minutes: float,
    batch: int = 32,
    device: str = "cpu",
    bfloat16: bool = False,
    seed: int = 0,
) -> dict[str, Any]:
    """Train for some minutes, at least one step, and write the denoiser to `out`.

    Returns:
        What is known of the run: steps, loss (of the last 50 steps), minutes, ...

    Raises:
        UserError: no checkout of DIAMOND, no train split in the store.
    """
    parts, spec = borrow(checkout), store.spec
    torch.manual_seed(seed)
    index = known_masks(store)
    denoiser = build(parts, len(index), device)
    settings = parts.training
    denoiser.setup_training(
        parts.diffusion.SigmaDistributionConfig(**settings["sigma_distribution"])
    )
    optimizer = parts.utils.configure_opt(denoiser, **settings["optimizer"])
    schedule = parts.utils.get_lr_sched(optimizer, settings["training"]["lr_warmup_steps"])
    window = denoiser.cfg.inner_model.num_steps_conditioning
    clips = ClipIndex(store, window + 1, "train", seed=seed)
    data, losses = batches(clips, index, batch, device), []
    denoiser.train().to(memory_format=torch.channels_last)  # much faster on a CPU; else the same
    began = told = time.monotonic()
    while not losses or time.monotonic() - began < 60 * minutes:
        with torch.autocast(torch.device(device).type, torch.bfloat16, enabled=bfloat16):
            loss, _ = denoiser(next(data))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(denoiser.parameters(), settings["training"]["max_grad_norm"])
        optimizer.step()
        schedule.step()
        losses.append(float(loss.detach()))
        if time.monotonic() - told > 60:
            told = time.monotonic()
            print(f"step {len(losses)}: loss {np.mean(losses[-50:]):.4f}", flush=True)
    details = {
        "checkout": str(Path(checkout).expanduser().absolute()),
        "keys": spec.actions.keys,
        "masks": index.masks,
        "height": spec.height,
        "width": spec.width,
        "store": str(store.path),
        "steps": len(losses),
        "batch": batch,
        "minutes": (time.monotonic() - began) / 60,
        "loss": float(np.mean(losses[-50:])),
        "seed": seed,
    }
    save(out, denoiser, parts, details)
    return details


def known_masks(store: EpisodeStore) -> ActionIndex:
    """Return numbers for the key combinations of the train split, and for no key."""
    keys = [store.arrays(name)["keys"] for name in store.select("train")]
    return ActionIndex(sorted({0, *np.unique(np.concatenate([[0], *keys])).tolist()}))


def batches(
    clips: ClipIndex, index: ActionIndex, batch: int, device: str
) -> Iterator[SimpleNamespace]:
    """Yield batches of shuffled clips of n+1 frames without end, as its loss reads them.

    Each has `obs` float [B, n+1, 3, h, w], -1 to 1; `act` int [B, n+1], the action after each
    frame (of the last it is not used); `mask_padding` bool [B, n+1], all true.
    """
    numbers = {mask: number for number, mask in enumerate(index.masks)}
    for number in range(sys.maxsize):
        places = [divmod(number * batch + i, len(clips)) for i in range(batch)]
        read = [clips.read(clips.at(*place)) for place in places]
        told = [[*(numbers[int(mask)] for mask in clip.keys), 0] for clip in read]
        yield SimpleNamespace(
            obs=as_input(np.stack([clip.frames for clip in read]), device),
            act=torch.tensor(told, device=device),
            mask_padding=torch.ones(batch, clips.length, dtype=torch.bool, device=device),
        )


def main() -> int:
    """Read the options, train, and say what came of it; a user's mistake is one sentence."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", required=True, help="folder of a clone of DIAMOND")
    parser.add_argument("--store", default="data/doom.zarr")
    parser.add_argument("--out", type=Path, default=Path("runs/diamond"))
    parser.add_argument("--minutes", type=float, default=60, help="by the clock")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--device", default="auto")
    parser.add_argument("--bfloat16", action="store_true", help="by autocast")
    parser.add_argument("--threads", type=int, default=0, help="of the CPU; 0: as PyTorch has it")
    parser.add_argument("--seed", type=int, default=0)
    options = vars(parser.parse_args())
    if threads := options.pop("threads"):
        torch.set_num_threads(threads)
    try:
        device, reason = choose_device(options.pop("device"))
        print(f"{device}: {reason}")
        store = EpisodeStore(options.pop("store"))
        found = train(store=store, device=str(device), **options)
    except UserError as error:
        print(f"diamond_train: {error}", file=sys.stderr)
        return 2
    print(json.dumps({k: found[k] for k in ("steps", "minutes", "loss")}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
