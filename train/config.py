"""The configuration of `worldmodel train`; the same keys as conf/train.yaml."""

from dataclasses import dataclass, field

from worldmodel.encoders.rae import RAEConfig
from worldmodel.train.core import CoreTraining
from worldmodel.train.encoder import EncoderTraining
from worldmodel.train.loop import LoopConfig
from worldmodel.train.representation import RepresentationConfig
from worldmodel.train.samples import Mixture
from worldmodel.train.watch import Watch


@dataclass(frozen=True)
class ModelShape:
    """The knobs of `CoreConfig` that a user turns; the rest follows from encoder and tokenizer."""

    name: str = "nano"
    merge: int = 2
    motion: int = 1
    unet: int = 3
    unet_width: int = 96
    width: int = 192
    depth: int = 6
    heads: int = 4
    kv_heads: int = 4
    ffn: str = "moe"
    hidden: int = 768
    granularity: int = 4
    experts: int = 12
    shared: str = "modality"
    prediction: str = "x"
    positions: str = "sharp"
    qk_norm: bool = True
    window: int = 10


@dataclass(frozen=True)
class TrainConfig:
    """What to train, from what, for how long. Each key is explained in conf/train.yaml."""

    stage: str = "all"
    store: str = "data/doom.zarr"
    stores: tuple[str, ...] = ()
    weights: tuple[float, ...] = ()
    text: str = "python"
    init: str = ""
    out: str = "runs/doom-nano"
    checkpoint: str = "doom-nano"
    episodes: int = 0
    memory_gb: float = 0.0
    vocab: int = 2048
    device: str = "auto"
    dtype: str = "auto"
    threads: int = 0
    context_level: float = 1.0
    starts: int = 24
    divide: bool = True
    watch: Watch = field(default_factory=Watch)
    model: ModelShape = field(default_factory=ModelShape)
    representation: RepresentationConfig = field(default_factory=RepresentationConfig)
    rae: RAEConfig = field(default_factory=RAEConfig)
    encoder: EncoderTraining = field(default_factory=EncoderTraining)
    encoder_loop: LoopConfig = field(default_factory=lambda: LoopConfig(900, ema=0.995))
    decoder_loop: LoopConfig = field(default_factory=lambda: LoopConfig(350, warmup=50, ema=0.995))
    mixture: Mixture = field(default_factory=Mixture)
    core: CoreTraining = field(default_factory=CoreTraining)
    core_loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(4000, lr=2e-3, warmup=50, ema=0.998)
    )
