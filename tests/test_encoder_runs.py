"""Runs with frame encoders of every kind: from a store to a dream, and what users get wrong."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

import worldmodel.train.core
from worldmodel.actions import ActionRow, ActionTable
from worldmodel.checkpoint import load
from worldmodel.cli import compose, main
from worldmodel.datasets.latents import LatentCache, encoder_hash
from worldmodel.datasets.store import EpisodeWriter
from worldmodel.dream import Dream
from worldmodel.encoders.files import KINDS, load_encoder
from worldmodel.encoders.hub import library
from worldmodel.encoders.pretrained import load_pretrained
from worldmodel.encoders.vae import load_vae
from worldmodel.errors import UserError
from worldmodel.train.config import TrainConfig
from worldmodel.train.data import load_recordings
from worldmodel.train.encoder import DecoderTask, EncoderTraining, measure_latents
from worldmodel.train.loop import LoopConfig, fit
from worldmodel.train.run import cache_latents
from worldmodel.train.run import main as train
from worldmodel.world import Annotation, Episode, WorldSpec

SPEC = WorldSpec(
    "toy", ActionTable((ActionRow("forward", "w", "go", dx=0.5, phrases=("go",)),)), 16, 16
)
Models = Callable[[str], Path]


@pytest.fixture(scope="module")
def store(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("store") / "toy.zarr"
    writer = EpisodeWriter(path, SPEC)
    coarse = torch.rand(14, 3, 4, 4, generator=torch.Generator().manual_seed(3))
    fine = (F.interpolate(coarse, (16, 16), mode="bilinear") * 255).to(torch.uint8)
    pictures = fine.permute(0, 2, 3, 1).numpy()
    for seed, split in enumerate(("train", "train", "val")):
        notes = (Annotation("caption", 2, 2, "a dark room"), Annotation("caption", 4, 4, "light"))
        keys, moved = np.ones(13, np.uint16), np.zeros((13, 3), np.float32)
        shown = np.roll(pictures, seed, axis=0)
        writer.write(Episode(shown, moved, keys, {}, notes, {"seed": seed, "split": split}))
    return path


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize("kind", ["siglip2", "dinov2-registers"])
def test_a_decoder_of_a_frozen_encoder_learns(kind, cached, hub_model, store, tmp_path):
    data = load_recordings(str(store), "train")
    encoder = load_pretrained(
        kind.split("-")[0], str(hub_model(kind)), (16, 16), 4, (16, 2, 1)
    ).eval()
    measure_latents(encoder, data.frames)
    latents = cache_latents(encoder, data, tmp_path, torch.float32) if cached else None
    before = {k: v.clone() for k, v in encoder.encoder.state_dict().items()}
    task = DecoderTask(encoder, data, EncoderTraining(batch=8), latents=latents)
    with torch.no_grad():
        first = task.losses(999)["pixel"].item()
    fit(task, LoopConfig(40, lr=3e-3, warmup=5), tmp_path)
    with torch.no_grad():
        assert task.losses(999)["pixel"].item() < 0.8 * first
    for name, value in encoder.encoder.state_dict().items():
        assert torch.equal(before[name], value)


# --- the command, from a store to a dream ---

TINY = [
    *("device=cpu", "threads=1", "vocab=300", "starts=1", "encoder.batch=4", "dtype=float32"),
    *("rae.size=16", "rae.patch=4", "rae.channels=4", "rae.width=16", "rae.heads=2"),
    *("rae.encoder_depth=1", "rae.decoder_depth=1", "decoder_loop.steps=2", "encoder_loop.steps=2"),
    *("model.width=32", "model.depth=1", "model.heads=2", "model.kv_heads=1", "model.hidden=32"),
    *("model.granularity=2", "model.experts=4", "core.rows=1", "core.length=160"),
    *("core_loop.steps=2", "core.shortcut_from=1", "core.own_past_from=1"),
]


def settings(store: Path, out: Path, *more: str) -> TrainConfig:
    return compose("train", [f"store={store}", f"out={out}", *TINY, *more], TrainConfig)


def asked(kind: str, hub_model: Models) -> list[str]:
    words = [f"representation.kind={kind}"]
    if kind in ("siglip2", "dinov2", "vae"):
        words += [f"representation.source={hub_model(kind)}"]
    if kind != "rae":
        words += ["representation.grid=4"]
    return words


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_and_dreams(kind, hub_model, store, tmp_path, monkeypatch, capsys):
    dimensions = []
    real = worldmodel.train.core.draw_levels

    def watched(count: int, dimension: int, *rest: Any) -> Any:
        dimensions.append(dimension)
        return real(count, dimension, *rest)

    monkeypatch.setattr(worldmodel.train.core, "draw_levels", watched)
    monkeypatch.setattr("worldmodel.train.run.python_prose", lambda: ["some plain english"])
    assert train(settings(store, tmp_path, *asked(kind, hub_model))) == 0
    checkpoint = load(str(tmp_path / "checkpoint"))
    encoder = checkpoint.encoder
    assert (encoder.kind, encoder.grid) == (kind, (4, 4))
    said = f"encoder: {kind}, 4x4 latents of {encoder.channels} channels"
    narrow = 4 * encoder.channels > 32  # a token of the core is four of them
    assert said + ("; note: model.width=32 is less" if narrow else "\n") in capsys.readouterr().out
    # The signal levels are shifted by the dimension of this encoder's latents.
    assert set(dimensions) == {16 * encoder.channels}
    dream = Dream.load(str(tmp_path / "checkpoint"), device="cpu")
    dream.reset(seed=1)
    frame = dream.step(SPEC.actions.press("w")).frame
    assert (frame.shape, frame.dtype) == ((16, 16, 3), np.uint8)
    # Stages that are done are not done again, whatever has become of the source.
    before = (tmp_path / "encoder.safetensors").read_bytes()
    assert train(settings(store, tmp_path, *asked(kind, hub_model), "stage=encoder")) == 0
    assert (tmp_path / "encoder.safetensors").read_bytes() == before


def test_a_decoder_of_the_hub_is_not_trained(hub_model, store, tmp_path):
    words = ["representation.kind=dinov2", f"representation.source={hub_model('dinov2-wide')}"]
    words += [f"representation.decoder={hub_model('rae-dinov2')}", *grid(4)]
    for stage in ("encoder", "decoder"):
        assert train(settings(store, tmp_path, f"stage={stage}", *words)) == 0
    assert not (tmp_path / "decoder").exists()
    files = [load_encoder(tmp_path / f"{name}.safetensors") for name in ("encoder", "decoder")]
    first, second = (file.state_dict() for file in files)
    assert all(torch.equal(first[name], second[name]) for name in first)
    with pytest.raises(UserError, match="its decoder_source is tiny-rae-dinov2, not "):
        train(settings(store, tmp_path, "stage=decoder", *words[:2], *grid(4)))


def test_a_store_keeps_the_latents_of_every_kind(hub_model, store, tmp_path, capsys):
    for kind in ("siglip2", "vae", "pixels"):
        out = tmp_path / kind
        assert train(settings(store, out, "stage=encoder", *asked(kind, hub_model))) == 0
        file = out / "encoder.safetensors"
        assert main(["data", "encode", f"store={store}", f"encoder={file}", "device=cpu"]) == 0
        encoder, data = load_encoder(file), load_recordings(str(store), "train")
        digest = encoder_hash(encoder)
        assert f"{digest} of 3 episodes, 3 of them new" in capsys.readouterr().out
        # A run with this encoder takes them; where they are large they stay on disk.
        kept = cache_latents(encoder, data, out, torch.float32, memory_gb=1e-9)
        assert f"latents: {digest}, from the store" in capsys.readouterr().out
        stored = np.array(LatentCache(store, digest).read(data.sources[0][1]))
        assert torch.equal(kept[:14], torch.from_numpy(stored))


# --- mistakes ---


def refusal(store: Path, out: Path, *words: str) -> str:
    with pytest.raises(UserError) as caught:
        train(settings(store, out, "stage=encoder", *words))
    message = str(caught.value)
    assert "\n" not in message
    return message


def test_mistakes_are_one_sentence(hub_model, store, tmp_path):
    def told(kind: str, source: Path | str, *more: str) -> str:
        words = [f"representation.kind={kind}", f"representation.source={source}", *more]
        return refusal(store, tmp_path / "run", *words)

    bare, wrong = tmp_path / "bare", tmp_path / "wrong"
    for folder in (bare, wrong):
        folder.mkdir()
    assert "no config.json" in told("siglip2", bare)
    (bare / "config.json").write_text("{")
    assert "config.json of" in told("siglip2", bare)
    config = (hub_model("dinov2") / "config.json").read_text()
    (bare / "config.json").write_text(config)
    (bare / "pytorch_model.bin").write_bytes(b"pickle")
    assert "never unpickled" in told("dinov2", bare)
    (bare / "model.safetensors").write_bytes(b"no")
    assert "do not fit its config.json" in told("dinov2", bare)
    (bare / "model.safetensors").write_bytes((hub_model("vae") / WEIGHTS).read_bytes())
    assert "do not fit its config.json" in told("dinov2", bare)
    (bare / "config.json").write_text(config.replace('"patch_size": 4', '"patch_size": "x"'))
    assert "does not describe a model" in told("dinov2", bare)
    assert "type 'dinov2', but representation.kind=siglip2" in told("siglip2", hub_model("dinov2"))
    assert "no diffusion_pytorch_model" in told("vae", hub_model("dinov2"))
    assert "There is no folder '/no/where'" in told("vae", "/no/where")
    small, drawn = hub_model("dinov2"), f"representation.decoder={hub_model('rae-dinov2')}"
    assert "with 4x4 tokens of 64 channels, but" in told("dinov2", small, drawn, *grid(4))
    drawn = f"representation.decoder={hub_model('vae')}"
    assert "representation.decoder takes an AutoencoderRAE" in told("dinov2", small, drawn)
    assert "setting of the kinds siglip2, dinov2, not of vae" in told("vae", "null", drawn)
    assert "source is a setting of the kinds" in told("rae", small)
    assert "Did you mean 'siglip2'" in told("siglip", bare)
    assert "model.merge=2 does not divide" in told("dinov2", hub_model("dinov2"), *grid(3))
    assert "cannot be cut into 5 rows" in told("pixels", "null", *grid(5))
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


WEIGHTS = "diffusion_pytorch_model.safetensors"


def grid(rows: int) -> list[str]:
    return [f"representation.grid={rows}"]


def test_a_vae_that_does_not_divide_the_frames_is_refused(hub_model):
    with pytest.raises(UserError, match=r"multiples of 2 pixels, not 15x16\. Set representation"):
        load_vae(str(hub_model("vae")), (16, 15))


def test_a_run_with_another_encoder_is_refused(hub_model, store, tmp_path):
    first = asked("pixels", hub_model)
    assert train(settings(store, tmp_path, "stage=encoder", *first)) == 0
    with pytest.raises(UserError, match="its kind is pixels, not siglip2"):
        train(settings(store, tmp_path, "stage=decoder", *asked("siglip2", hub_model)))
    for stage in ("encoder", "decoder"):
        with pytest.raises(UserError, match="its grid is 4, not 2"):
            train(settings(store, tmp_path, f"stage={stage}", first[0], *grid(2)))
    words = asked("dinov2", hub_model)
    assert train(settings(store, tmp_path / "other", "stage=encoder", *words)) == 0
    words += ["stage=decoder", "rae.decoder_depth=2"]
    with pytest.raises(UserError, match="its decoder_depth is 1, not 2"):
        train(settings(store, tmp_path / "other", *words))


@pytest.mark.parametrize(("kind", "package"), [("siglip2", "transformers"), ("vae", "diffusers")])
def test_a_missing_package_is_named(kind, package, hub_model, store, tmp_path, monkeypatch):
    words = asked(kind, hub_model)
    assert train(settings(store, tmp_path, "stage=encoder", *words)) == 0
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError) as caught:  # what is in the file needs it too
        load_encoder(tmp_path / "encoder.safetensors")
    for message in (str(caught.value), refusal(store, tmp_path / "other", *words)):
        assert f"need the package {package}" in message
        assert "pip install 'worldmodel[hub]'" in message


def test_a_name_of_the_hub_is_found_where_it_was_downloaded_before(
    hub_model, store, tmp_path, monkeypatch
):
    """The folder is laid out as the hub's own cache, with the VAE inside of a larger model."""
    constants = library("huggingface_hub", "vae").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    name = tmp_path / "hub" / "models--someone--painter"
    shutil.copytree(hub_model("vae"), name / "snapshots" / "0123" / "vae")
    shutil.copytree(hub_model("dinov2"), name / "snapshots" / "0123", dirs_exist_ok=True)
    (name / "refs").mkdir()
    (name / "refs" / "main").write_text("0123")
    for kind, source in (("vae", "someone/painter/vae"), ("dinov2", "someone/painter")):
        words = [f"representation.kind={kind}", f"representation.source={source}", *grid(4)]
        assert train(settings(store, tmp_path / kind, "stage=encoder", *words)) == 0
        encoder = load_encoder(tmp_path / kind / "encoder.safetensors")
        assert encoder.describe()["source"] == source


def test_without_a_network_a_hub_name_is_one_sentence(store, tmp_path, monkeypatch, capsys):
    constants = library("huggingface_hub", "dinov2").constants
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)  # read from HF_HUB_OFFLINE=1
    words = [f"out={tmp_path / 'run'}", "stage=encoder", "representation.kind=dinov2"]
    assert main(["train", f"store={store}", *TINY, *words]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "'facebook/dinov2-with-registers-base' is no folder here" in line
    assert "HF_HUB_OFFLINE=1" in line


def test_the_embedded_shape_still_says_where_a_patch_does_not_fit(store, tmp_path):
    assert "rae.patch=5 does not divide rae.size=16" in refusal(store, tmp_path, "rae.patch=5")
    assert "but rae.size is 8" in refusal(store, tmp_path, "rae.size=8")
