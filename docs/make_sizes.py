"""Write the table of sizes in docs/model.md anew: `python docs/make_sizes.py`.

It stands between `<!-- table sizes -->` and `<!-- end -->`. Nothing of the sizes is allocated.
"""

import re
from pathlib import Path
from typing import Any

import yaml

from worldmodel.flops import cost
from worldmodel.transformer import CoreConfig

PAGE = Path(__file__).with_name("model.md")
SHAPES = Path(__file__).parents[1] / "worldmodel" / "conf" / "model"
KEYS = 1000
"""Tokens that a token sees, for the FLOPs."""

# The vocabulary and the latents that each size is meant for.
MEANT_FOR: dict[str, dict[str, Any]] = {
    "nano": {"vocab": 2048, "latent_grid": (8, 8), "latent_channels": 32},
    "small": {"vocab": 8192, "latent_grid": (16, 16), "latent_channels": 32},
    "base": {"vocab": 32_768, "latent_grid": (16, 16), "latent_channels": 768},
    "paper": {"vocab": 128_256, "latent_grid": (16, 16), "latent_channels": 1152},
}
LATENTS = {
    "nano": "embedded RAE, 64 px",
    "small": "embedded RAE, 128 px",
    "base": "SigLIP 2 base, 256 px",
    "paper": "SigLIP 2 So400m, 224 px",
}


def shape_of(name: str, **changes: Any) -> CoreConfig:
    """Return the core of a named size."""
    shape = yaml.safe_load((SHAPES / f"{name}.yaml").read_text())
    shape.pop("name")
    return CoreConfig(**(shape | MEANT_FOR[name] | changes))


def table() -> str:
    """Return the table in Markdown."""
    lines = [
        "| `model=` | latents | tokens a frame | active | total | FLOPs: text token | frame |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for name in MEANT_FOR:
        shape = shape_of(name)
        found = cost(shape)
        seen = KEYS * found.per_key
        cells = [
            f"`{name}`",
            LATENTS[name],
            str(shape.frame_tokens),
            _short(found.active),
            _short(found.total),
            _short(found.text + seen),
            _short(found.vision + seen),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def with_table(page: str) -> str:
    """Return the page with its table made anew."""
    found = re.compile(r"(<!-- table sizes -->\n).*?(<!-- end -->)", re.DOTALL)
    return found.sub(lambda m: f"{m[1]}{table()}{m[2]}", page)


def _short(count: float) -> str:
    return f"{count / 1e9:.2f} G" if count >= 1e9 else f"{count / 1e6:.1f} M"


if __name__ == "__main__":
    PAGE.write_text(with_table(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
