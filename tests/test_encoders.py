"""Frame encoders of every kind: what they see is what their libraries see, and they come back.

Models of Hugging Face's libraries are small and random here, but saved in the real format.
"""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.checkpoint import Checkpoint, load, save
from worldmodel.datasets.latents import encoder_hash
from worldmodel.encoders import FrameEncoder
from worldmodel.encoders.files import KINDS, load_encoder, remake, save_encoder
from worldmodel.encoders.hub import library
from worldmodel.encoders.pixels import Pixels, PixelsConfig
from worldmodel.encoders.pretrained import load_pretrained
from worldmodel.encoders.rae import RAE, RAEConfig
from worldmodel.encoders.representation import Decoder
from worldmodel.encoders.vae import load_vae
from worldmodel.errors import UserError
from worldmodel.text import train_tokenizer
from worldmodel.train.encoder import measure_latents
from worldmodel.transformer import Core, CoreConfig
from worldmodel.world import WorldSpec

SPEC = WorldSpec("toy", ActionTable((ActionRow("forward", "w", "go", dx=0.5),)), 16, 16)
DECODER = (16, 2, 1)
Models = Callable[[str], Path]


def make(kind: str, hub_model: Models, size: tuple[int, int] = (16, 16)) -> FrameEncoder:
    torch.manual_seed(1)
    if kind == "rae":
        return RAE(RAEConfig(16, 4, 8, *DECODER, 1)).eval()
    if kind == "pixels":
        return Pixels(PixelsConfig(*size, 4)).eval()
    if kind.startswith("vae"):
        return load_vae(str(hub_model(kind)), size).eval()
    return load_pretrained(kind.split("-")[0], str(hub_model(kind)), size, 4, DECODER).eval()


def frames(count: int = 6, size: tuple[int, int] = (16, 16)) -> torch.Tensor:
    """Smooth random pictures, uint8 [count, H, W, 3]."""
    generator = torch.Generator().manual_seed(3)
    coarse = torch.rand(count, 3, 4, 4, generator=generator)
    fine = F.interpolate(coarse, size, mode="bilinear")
    return (fine * 255).to(torch.uint8).permute(0, 2, 3, 1).contiguous()


# --- what is seen ---

PRETRAINED = ("siglip2", "siglip2-vision", "siglip2-naflex", "dinov2", "dinov2-registers")


@pytest.mark.parametrize("kind", PRETRAINED)
def test_tokens_are_those_of_the_library(kind, hub_model):
    """Without resizing, raw latents are the patch tokens before the last norm's affine part."""
    tf = library("transformers", kind)
    whole = tf.AutoModel.from_pretrained(hub_model(kind)).eval()
    pixels = frames(3).permute(0, 3, 1, 2).float() / 255
    with torch.no_grad():
        if kind.startswith("dinov2"):
            norm, outside = whole.layernorm, 1 + getattr(whole.config, "num_register_tokens", 0)
            mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]])
            seen = whole((pixels - mean.view(3, 1, 1)) / std.view(3, 1, 1)).last_hidden_state
            seen = seen[:, outside:]
        else:
            vision = getattr(whole, "vision_model", whole)
            norm = vision.post_layernorm
            if kind == "siglip2-naflex":
                processor = tf.Siglip2ImageProcessor(patch_size=4, max_num_patches=16)
                given = dict(processor([f.numpy() for f in frames(3)], return_tensors="pt"))
                assert given["spatial_shapes"].tolist() == [[4, 4]] * 3
            else:
                given = {"pixel_values": (pixels - 0.5) / 0.5}
            seen = vision(**given).last_hidden_state
        want = (seen - norm.bias) / norm.weight
        encoder = make(kind, hub_model)
        raw = encoder.see(pixels * 2 - 1)
    assert (encoder.kind, encoder.grid, encoder.channels) == (kind.split("-")[0], (4, 4), 32)
    torch.testing.assert_close(raw, want, atol=2e-4, rtol=1e-3)
    assert raw.mean(-1).abs().max() < 1e-4
    assert (raw.var(-1, unbiased=False) - 1).abs().max() < 1e-2


@pytest.mark.parametrize("kind", ["vae", "vae-plain"])
def test_the_vae_is_that_of_the_library(kind, hub_model):
    vae = library("diffusers", "vae").AutoencoderKL.from_pretrained(hub_model(kind)).eval()
    encoder = make(kind, hub_model)
    assert (encoder.grid, encoder.channels) == ((8, 8), 4)
    pixels = frames(3).permute(0, 3, 1, 2).float() / 127.5 - 1
    with torch.no_grad():
        want = vae.encode(pixels).latent_dist.mode()
        raw = encoder.see(pixels)
        torch.testing.assert_close(raw, want.flatten(2).transpose(1, 2), atol=1e-5, rtol=1e-4)
        torch.testing.assert_close(encoder.draw(raw), vae.decode(want).sample, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("size", [(24, 24), (16, 16)])
def test_a_decoder_of_the_hub_is_that_of_the_library(size, hub_model, tmp_path):
    """It draws 4 x 4 patches of 6 pixels, which are resized to the frame."""
    whole = library("diffusers", "rae").AutoencoderRAE.from_pretrained(hub_model("rae-dinov2"))
    sources = str(hub_model("dinov2-wide")), str(hub_model("rae-dinov2"))
    encoder = load_pretrained("dinov2", sources[0], size, 4, decoder_source=sources[1]).eval()
    raw = torch.randn(2, 16, 64)
    with torch.no_grad():
        want = whole.eval().decode(raw.transpose(1, 2).unflatten(2, (4, 4))).sample
        want = F.interpolate(want, size, mode="bilinear", antialias=True) * 2 - 1
        torch.testing.assert_close(encoder.draw(raw), want, atol=1e-5, rtol=1e-4)
    assert not any(p.requires_grad for p in encoder.parameters())
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    loaded = load_encoder(tmp_path / "encoder.safetensors")
    assert torch.equal(loaded.decode(raw), encoder.decode(raw))
    assert loaded.describe()["decoder_source"] == "tiny-rae-dinov2"


@pytest.mark.parametrize("size", [(16, 16), (8, 24)])
def test_pixels_lose_nothing(size):
    encoder = Pixels(PixelsConfig(*size, 4))
    generator = torch.Generator().manual_seed(0)
    given = torch.randint(0, 256, (5, *size, 3), generator=generator, dtype=torch.uint8)
    measure_latents(encoder, given.numpy())
    latents = encoder.encode(given)
    assert latents.shape == (5, size[0] * size[1] // 16, 48)
    assert torch.equal(encoder.decode(latents), given)
    assert torch.equal(encoder.decode(latents.half()), given)  # as caches keep them


@pytest.mark.parametrize("size", [(16, 16), (12, 20), (30, 40)])
@pytest.mark.parametrize("kind", ["siglip2", "siglip2-naflex", "dinov2-registers", "vae"])
def test_frames_of_any_size_are_resized_and_come_back(kind, size, hub_model):
    if kind == "vae":
        encoder = load_vae(str(hub_model(kind)), size, 4).eval()
    else:
        encoder = make(kind, hub_model, size)
    assert encoder.grid == (4, round(4 * size[1] / size[0]))
    latents = encoder.encode(frames(2, size))
    assert latents.shape == (2, encoder.grid[0] * encoder.grid[1], encoder.channels)
    drawn = encoder.decode(latents)
    assert drawn.shape == (2, *size, 3)
    assert drawn.dtype == torch.uint8


def test_a_token_says_what_is_at_its_place(hub_model):
    """Rows and columns of the grid are those of the frame, not transposed."""
    for kind in ("siglip2", "siglip2-naflex", "dinov2-registers", "vae", "pixels", "rae"):
        encoder = make(kind, hub_model)
        plain = torch.full((1, 16, 16, 3), 90, dtype=torch.uint8)
        spot = plain.clone()
        spot[:, :4, 12:] = 250  # above, on the right
        moved = (encoder.encode(spot) - encoder.encode(plain)).norm(dim=-1)[0]
        rows, columns = divmod(int(moved.argmax()), encoder.grid[1])
        assert rows < encoder.grid[0] / 2, kind
        assert columns >= encoder.grid[1] / 2, kind


# --- statistics, projection ---


@pytest.mark.parametrize("kind", KINDS)
def test_latents_have_zero_mean_and_unit_variance(kind, hub_model):
    encoder, given = make(kind, hub_model), frames(70)
    measure_latents(encoder, given.numpy())
    latents = encoder.encode(given)
    assert latents.mean(dim=(0, 1)).abs().max() < 1e-3
    assert (latents.std(dim=(0, 1)) - 1).abs().max() < 1e-3
    raw = encoder.restore(latents)
    torch.testing.assert_close(encoder.normalise(raw), latents, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_projecting_keeps_what_the_encoder_gives(kind, hub_model):
    encoder, given = make(kind, hub_model), frames(20)
    measure_latents(encoder, given.numpy())
    latents = encoder.encode(given)
    torch.testing.assert_close(encoder.project(latents), latents, atol=5e-3, rtol=1e-3)


def test_projecting_takes_shades_that_no_frame_has_from_pixels(hub_model):
    encoder = make("pixels", hub_model)
    measure_latents(encoder, frames(20).numpy())
    drifted = encoder.encode(frames(20)) + 0.3 * torch.randn(20, 16, 48)
    once = encoder.project(drifted)
    torch.testing.assert_close(encoder.encode(encoder.decode(drifted)), once)
    assert (once - drifted).abs().max() > 1e-3


def test_a_decoder_draws_what_its_tokens_cover():
    """An even number of pixels a token; a frame that is no multiple of it is shrunk to."""
    for size, grid, patch in (((16, 16), (4, 4), 4), ((30, 40), (4, 5), 8), ((16, 18), (4, 5), 4)):
        decoder = Decoder(grid, 8, size, *DECODER)
        assert decoder.patch == patch
        tokens = torch.randn(1, grid[0] * grid[1], 8)
        assert decoder(tokens).shape == (1, 3, *size)


# --- files and checkpoints ---


@pytest.mark.parametrize("kind", [*KINDS, "siglip2-naflex", "dinov2-registers"])
def test_an_encoder_comes_back_from_its_file(kind, hub_model, tmp_path):
    encoder, given = make(kind, hub_model), frames()
    measure_latents(encoder, given.numpy())
    save_encoder(encoder, tmp_path / "encoder.safetensors")
    loaded = load_encoder(tmp_path / "encoder.safetensors")
    assert loaded.describe() == encoder.describe()
    assert torch.equal(loaded.encode(given), encoder.encode(given))
    latents = encoder.encode(given)
    assert torch.equal(loaded.decode(latents), encoder.decode(latents))
    assert encoder_hash(loaded) == encoder_hash(encoder)
    assert not any(p.requires_grad for n, p in loaded.named_parameters() if frozen(kind, n))


def frozen(kind: str, name: str) -> bool:
    return kind not in ("rae", "pixels") and (kind == "vae" or not name.startswith("decoder."))


@pytest.mark.parametrize("kind", KINDS)
def test_a_checkpoint_needs_nothing_but_itself(kind, hub_model, tmp_path):
    if kind in ("siglip2", "dinov2", "vae"):
        shutil.copytree(hub_model(kind), tmp_path / "source")
    encoder, given = make(kind, lambda _: tmp_path / "source"), frames()
    shutil.rmtree(tmp_path / "source", ignore_errors=True)
    measure_latents(encoder, given.numpy())
    tokenizer = train_tokenizer(["action: w"] * 9, 300)
    shape = {"width": 32, "depth": 1, "heads": 2, "kv_heads": 1, "hidden": 32, "experts": 4}
    grid = encoder.grid
    core = Core(CoreConfig(tokenizer.vocab_size, grid, encoder.channels, merge=2, **shape))
    starts = given[:3].numpy()[None], np.zeros((1, 2), np.int32)
    original = Checkpoint("tiny", core, encoder, tokenizer, SPEC, *starts, 0.9, {})
    save(original, tmp_path / "tiny", half=False)
    want, loaded = encoder.encode(given), load(str(tmp_path / "tiny")).encoder
    assert loaded.describe() == encoder.describe()
    assert torch.equal(loaded.encode(given), want)
    assert torch.equal(loaded.decode(want), encoder.decode(want))
    save(original, tmp_path / "half")
    near = load(str(tmp_path / "half")).encoder
    torch.testing.assert_close(near.encode(given), want, atol=0.05, rtol=0.0)


def test_the_names_of_the_hub_are_those_in_the_file(hub_model):
    """transformers may rename its parameters; files must not change with them."""
    names = make("dinov2", hub_model).tensors()
    assert "encoder.encoder.layer.0.attention.attention.query.weight" in names
    names = make("siglip2", hub_model).tensors()
    assert "encoder.vision_model.encoder.layers.0.self_attn.q_proj.weight" in names
    assert not any("text_model" in name or "vision_model.head" in name for name in names)


def test_a_file_without_some_of_the_weights_is_refused(hub_model, tmp_path):
    encoder = make("dinov2", hub_model)
    tensors = encoder.tensors()
    del tensors["encoder.encoder.layer.1.norm1.weight"]
    with pytest.raises(ValueError, match="1 tensors are missing"):
        remake(encoder.describe()).fill(tensors)


def test_the_hash_tells_apart_what_tensors_do_not_show(hub_model):
    fine = load_pretrained("dinov2", str(hub_model("dinov2")), (16, 16), 4, DECODER)
    coarse = load_pretrained("dinov2", str(hub_model("dinov2")), (16, 16), 2, DECODER)
    drawn = load_pretrained("dinov2", str(hub_model("dinov2")), (16, 16), 4, (32, 2, 1))
    assert encoder_hash(fine) == encoder_hash(drawn)  # how it draws does not matter
    assert encoder_hash(fine) != encoder_hash(coarse)
    vae = make("vae", hub_model)
    before = encoder_hash(vae)
    with torch.no_grad():
        next(vae.get_submodule("decoder").parameters()).add_(1)
    assert encoder_hash(vae) == before


def test_an_unknown_kind_is_refused_with_the_known_ones():
    with pytest.raises(UserError, match=r"kind 'pixel'\. Did you mean 'pixels'"):
        remake({"kind": "pixel"})
