"""What several test files share."""

import os
import select
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest


@pytest.fixture(scope="module")
def display() -> Iterator[str]:
    """A screen of its own, on a number that the server finds free itself."""
    if missing := [tool for tool in ("Xvfb", "xdotool") if not shutil.which(tool)]:
        pytest.skip(f"not installed: {' and '.join(missing)}")
    read, write = os.pipe()
    command = ["Xvfb", "-displayfd", str(write), "-screen", "0", "1280x1024x24", "-nolisten", "tcp"]
    command.append("-noreset")  # or it starts again, unreachable for a moment, after each window
    server = subprocess.Popen(command, pass_fds=(write,), stderr=subprocess.DEVNULL)
    os.close(write)
    try:
        assert select.select([read], [], [], 30)[0], "Xvfb does not start"
        yield f":{os.read(read, 16).decode().strip()}"
    finally:
        os.close(read)
        server.terminate()
        server.wait(10)


@pytest.fixture(scope="session")
def hub_model(tmp_path_factory) -> Callable[[str], Path]:
    """Small random models of Hugging Face's libraries by kind, in folders as they save them."""
    made: dict[str, Path] = {}

    def folder(kind: str) -> Path:
        if kind not in made:
            made[kind] = tmp_path_factory.mktemp("models") / f"tiny-{kind}"
            _save_model(kind, made[kind])
        return made[kind]

    return folder


def _save_model(kind: str, folder: Path) -> None:
    import torch

    from worldmodel.encoders.hub import library

    shape = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(0)
    if kind.startswith("vae"):
        diffusers = library("diffusers", kind)
        model = diffusers.AutoencoderKL(
            down_block_types=("DownEncoderBlock2D",) * 2,
            up_block_types=("UpDecoderBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            use_quant_conv=kind == "vae",  # FLUX has none
            use_post_quant_conv=kind == "vae",
        )
    elif kind == "rae-dinov2":
        model = library("diffusers", kind).AutoencoderRAE(
            encoder_hidden_size=64,
            encoder_patch_size=4,
            encoder_num_hidden_layers=1,
            decoder_hidden_size=32,
            decoder_num_hidden_layers=2,
            decoder_num_attention_heads=2,
            decoder_intermediate_size=48,
            patch_size=6,
            encoder_input_size=16,
        )
    else:
        tf = library("transformers", kind)
        vision = {**shape, "intermediate_size": 48, "patch_size": 4}
        words = {**shape, "intermediate_size": 48, "vocab_size": 40}
        if kind == "siglip2":  # the whole model, as checkpoints of fixed size are
            config = tf.SiglipConfig(text_config=words, vision_config={**vision, "image_size": 16})
            model = tf.SiglipModel(config)
        elif kind == "siglip2-naflex":
            config = tf.Siglip2Config(text_config=words, vision_config={**vision, "num_patches": 9})
            model = tf.Siglip2Model(config)
        elif kind == "siglip2-vision":
            model = tf.SiglipVisionModel(tf.SiglipVisionConfig(**vision, image_size=16))
        elif kind in ("dinov2-registers", "dinov2-wide"):
            wide = {"hidden_size": 64} if kind == "dinov2-wide" else {}
            config = tf.Dinov2WithRegistersConfig(**{**shape, **wide}, image_size=20, patch_size=4)
            model = tf.Dinov2WithRegistersModel(config)
        else:
            model = tf.Dinov2Model(tf.Dinov2Config(**shape, image_size=16, patch_size=4))
    with torch.no_grad():  # biases and norms of a new model are zero and one, which hides mistakes
        for parameter in model.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    model.save_pretrained(folder)
