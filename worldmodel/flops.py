"""What a core costs, found without building it: parameters, and FLOPs of a token.

Counting: a matrix product of [m, k] and [k, n] is 2 m k n FLOPs; training takes three times the
forward pass. So a token costs about 6 N FLOPs, N its active parameters (arXiv 2603.03276 counts
C = 6 N D), and what attention adds to that with the number of tokens it sees.
"""

from dataclasses import dataclass

import torch

from worldmodel.transformer import Core, CoreConfig


@dataclass(frozen=True)
class Cost:
    """Cost of one token of each modality; FLOPs are of the forward pass.

    Attributes:
        active, total: parameters that a token runs, and all; embedding tables are in both.
        text, vision: FLOPs of a text token and of a frame token, without attention's products.
        per_key: FLOPs that every token seen adds to that.
    """

    active: int
    total: int
    text: int
    vision: int
    per_key: int


def cost(config: CoreConfig) -> Cost:
    """Return what a core of this shape costs; nothing of its size is allocated."""
    with torch.device("meta"):
        core = Core(config)
    active, total = core.parameters_by_use()
    width, channels = config.width, config.channels
    head = config.vocab * width
    motion = 0 if core.motion is None else sum(p.numel() for p in core.motion.parameters())
    seen = channels * width
    paint = 0 if core.paint is None else core.paint.weight.numel()
    unet = at_latents = 0
    if core.unet is not None:
        unet = sum(p.numel() for p in core.unet.parameters())
        at_tokens = core.unet.join.weight.numel()
        at_tokens += sum(p.numel() for p in core.unet.hints.parameters())
        at_latents = unet - at_tokens
    only_frames = sum(
        p.numel()
        for part in (core.see, core.level, core.stride, core.paint)
        if part is not None
        for p in part.parameters()
    )
    only_frames += core.place.numel() + motion + unet
    blocks = active - only_frames - 2 * head
    return Cost(
        active=active,
        total=total,
        text=2 * (blocks + head),
        # Convolutions run at every latent, of which a token has merge^2.
        vision=2 * (blocks + seen + paint + motion + unet + (config.merge**2 - 1) * at_latents),
        per_key=4 * config.depth * width,
    )


def training_flops_per_token(config: CoreConfig, keys: float, vision: float = 1.0) -> float:
    """FLOPs of forward and backward of one token, on average.

    Args:
        config: shape of the core.
        keys: tokens that it sees, on average.
        vision: share of frame tokens, 0 to 1.
    """
    found = cost(config)
    return 3 * (vision * found.vision + (1 - vision) * found.text + keys * found.per_key)
