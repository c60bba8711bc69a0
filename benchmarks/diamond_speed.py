"""Imagined frames per second of a checkpoint at play, beside DIAMOND's Atari world model.

python benchmarks/diamond_speed.py --checkout DIR [--checkpoint NAME] [--threads 1] [--cpu]

DIAMOND's denoiser comes from the user's checkout, with its settings for Atari (64x64, 4 frames of
context, 3 denoising steps), untrained: speed does not depend on what weights say. Batch 1. It runs
in float32 as shipped, and tuned: channels last, bfloat16 by autocast. Of both only the imagining
is timed, which for the checkpoint is a whole `Dream.step`: the key as text, the network, the cache,
the decoder.

Contestants alternate; medians, ratios medians of the rounds' ratios. `--cpu`: processor time, for a
machine that has other things to do.
"""

import argparse
import statistics

import torch
from interleave import begin, ratio, times_s

from worldmodel.dream import Dream
from worldmodel.evaluate.diamond import borrow, build, noise_levels

ACTIONS = 18  # of an Atari game


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--checkout", required=True)
    parser.add_argument("--checkpoint", default="doom-nano")
    parser.add_argument("--denoise-steps", type=int, default=2, help="of the checkpoint")
    parser.add_argument("--guidance", type=float, default=2.0, help="of the checkpoint")
    parser.add_argument("--rounds", type=int, default=30)
    options, device = begin(parser)

    dream = Dream.load(
        options.checkpoint,
        str(device),
        denoise_steps=options.denoise_steps,
        guidance=options.guidance,
    )
    key = dream.spec.actions.press(["w"])
    for _ in range(8):  # until its window is full
        dream.step(key)

    parts = borrow(options.checkout)
    shipped = build(parts, ACTIONS, str(device)).eval()
    tuned = build(parts, ACTIONS, str(device)).eval().to(memory_format=torch.channels_last)
    config = parts.diffusion.DiffusionSamplerConfig(**parts.sampler)
    seen = torch.zeros(1, shipped.cfg.inner_model.num_steps_conditioning, 3, 64, 64, device=device)
    told = torch.zeros(seen.shape[:2], dtype=torch.long, device=device)
    samplers = [parts.diffusion.DiffusionSampler(net, config) for net in (shipped, tuned)]

    @torch.inference_mode()
    def as_shipped() -> None:
        samplers[0].sample(seen, told)

    @torch.inference_mode()
    def as_tuned() -> None:
        with torch.autocast(device.type, torch.bfloat16):
            samplers[1].sample(seen, told)

    runs = {
        options.checkpoint: lambda: dream.step(key),
        "DIAMOND, as shipped": as_shipped,
        "DIAMOND, tuned": as_tuned,
    }
    times = times_s(runs, options.rounds, device, options.cpu)
    passes = len(noise_levels(parts, shipped)) - 1
    weights = sum(p.numel() for p in shipped.parameters()) / 1e6
    print(f"DIAMOND: {weights:.2f} M parameters, {passes} denoising steps, 64x64")
    how = f"{options.denoise_steps} denoising steps, guidance {options.guidance:g}, {dream.dtype}"
    print(f"{options.checkpoint}: {how}\n")
    print("| | ms/frame | frames/s | times as long as " + options.checkpoint + " |")
    print("|---|---:|---:|---:|")
    for name, spent in times.items():
        middle = statistics.median(spent)
        slower = ratio(spent, times[options.checkpoint])
        print(f"| {name} | {1e3 * middle:.1f} | {1 / middle:.1f} | {slower:.2f} |")


if __name__ == "__main__":
    main()
