"""What the sections of `gpu.py` share: the report, models of each size, and their training."""

import gc
import json
import time
import traceback
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path

import numpy as np
import torch
import yaml

from worldmodel import checkpoint as checkpoints
from worldmodel.actions import ActionRow, ActionTable
from worldmodel.checkpoint import Checkpoint
from worldmodel.encoders.rae import RAE, RAEConfig
from worldmodel.sequence import Document, Frame, Text
from worldmodel.text import train_tokenizer
from worldmodel.train.core import CoreTask, CoreTraining
from worldmodel.train.packing import count_tokens
from worldmodel.transformer import Core, CoreConfig
from worldmodel.world import WorldSpec

SHAPES = Path(checkpoints.__file__).parent / "conf" / "model"
WORDS = 6
KEYS = ActionTable(
    (
        ActionRow("forward", "w", "go", dx=0.5, phrases=("go forward",)),
        ActionRow("left", "a", "turn", dyaw=11.25, phrases=("turn left",)),
    )
)


@dataclass(frozen=True)
class Setting:
    """A model of conf/model with its encoder, and a batch that fills a large GPU.

    Attributes:
        vocab, frames: text tokens; most frames of a document.
        tokens: of a batch.
        rae: the encoder (for base in place of SigLIP 2: as many latents, a ViT-B draws them).
    """

    vocab: int
    frames: int
    tokens: int
    rae: RAEConfig


SETTINGS = {
    "nano": Setting(2048, 12, 131072, RAEConfig()),
    "small": Setting(8192, 8, 65536, RAEConfig(size=128)),
    "base": Setting(32768, 4, 16384, RAEConfig(256, 16, 768, 768, 12, 1, 12)),
}


@dataclass
class Report:
    """Prints rows as they come, and keeps them in a file."""

    out: Path | None
    ends: float
    rows: list[dict[str, object]] = field(default_factory=list)
    columns: tuple[str, ...] = ()

    def __call__(self, section: str, case: str, **figures: object) -> None:
        """Print a row; a table begins where the columns change."""
        row = {"section": section, "case": case} | figures
        if tuple(row) != self.columns:
            self.columns = tuple(row)
            print(f"\n| {' | '.join(self.columns)} |\n|{'---|' * len(self.columns)}")
        shown = (f"{x:.4g}" if isinstance(x, float) else str(x) for x in row.values())
        print(f"| {' | '.join(shown)} |", flush=True)
        self.rows.append(row)
        if self.out:
            self.out.write_text(json.dumps(self.rows, indent=2) + "\n")

    def late(self, what: str, needed: float) -> bool:
        """Whether so many seconds are not left for `what`, which is said then."""
        late = time.monotonic() + needed > self.ends
        if late:
            print(f"\nNo time left for {what}.", flush=True)
        return late


def shape(name: str, **changes: object) -> CoreConfig:
    """The shape of conf/model/<name>.yaml, over the latents of its setting."""
    setting, known = SETTINGS[name], {f.name for f in fields(CoreConfig)}
    told = yaml.safe_load((SHAPES / f"{name}.yaml").read_text())
    cells = setting.rae.size // setting.rae.patch
    told |= {"latent_grid": (cells, cells), "latent_channels": setting.rae.channels}
    told |= {"vocab": setting.vocab} | changes
    return CoreConfig(**{key: value for key, value in told.items() if key in known})


def speaking(core: Core) -> Core:
    """The core with something in the weights that start at zero."""
    generator = torch.Generator("cpu").manual_seed(1)
    with torch.no_grad():
        for weight in core.parameters():
            if not weight.any():
                noise = torch.randn(weight.shape, generator=generator, device="cpu")
                weight.copy_(0.05 * noise)
    return core


def difference(found: torch.Tensor, wanted: torch.Tensor) -> float:
    """||found - wanted|| / ||wanted||."""
    found, wanted = found.detach().double().cpu(), wanted.detach().double().cpu()
    return ((found - wanted).norm() / wanted.norm().clamp(min=1e-30)).item()


@dataclass
class Films:
    """Draws documents of 2 to `most` frames with words before each."""

    most: int
    vocab: int
    latents: int

    def draw(self, rng: np.random.Generator, step: int = 0) -> tuple[int, Document]:
        """Return a sample kind and a document."""
        del step
        count = int(rng.integers(2, self.most + 1))
        first = int(rng.integers(self.latents - count))
        document: list[Text | Frame] = []
        for number in range(count):
            words = rng.integers(16, self.vocab, WORDS).tolist()
            document += [Text(tuple(words), "action"), Frame(first + number)]
        return 0, document


def training(core: Core, films: Films, tokens: int, dtype: torch.dtype) -> CoreTask:
    """A core's training on packed films, about `tokens` tokens a batch, where the core is."""
    config, device = core.config, next(core.parameters()).device
    longest = [span for _ in range(films.most) for span in (Text((0,) * WORDS), Frame(0))]
    length = -(-count_tokens(longest, config.frame_tokens) // 128) * 128
    rows = max(1, tokens // length)
    settings = CoreTraining(rows=rows, length=length, shortcut=0.0, own_past=0.0)
    cells = config.latent_grid[0] * config.latent_grid[1]
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(films.latents, cells, config.latent_channels, generator=generator)
    return CoreTask(core, films, latents.to(device), settings, dtype)


def untrained(name: str, device: torch.device) -> Checkpoint:
    """A model of this size that can be played."""
    size = SETTINGS[name].rae.size
    with device:  # large models are filled faster there
        core, encoder = speaking(Core(shape(name))).eval(), RAE(SETTINGS[name].rae).eval()
    return Checkpoint(
        name=name,
        core=core,
        encoder=encoder,
        tokenizer=train_tokenizer(["action: w+a", "action: none"] * 9, 400),
        spec=WorldSpec("untrained", KEYS, height=size, width=size),
        start_frames=np.random.default_rng(0).integers(0, 255, (1, 2, size, size, 3), np.uint8),
        start_keys=np.ones((1, 1), np.int32),
        context_level=0.9,
        details={},
    )


def clear() -> None:
    """Give memory of what is gone back to the device."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def attempt(report: Report, section: str, case: str, work: Callable[[], None]) -> None:
    """Run a part; where it fails, say so in a line and keep the traceback beside the figures."""
    try:
        work()
    except Exception as error:
        told = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
        report(section, case, failed=told)
        if report.out:
            with report.out.with_suffix(".errors.txt").open("a") as file:
                file.write(f"--- {section}: {case}\n{traceback.format_exc()}\n")
    clear()
