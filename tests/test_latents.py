"""Latents that a store keeps: computed once, never another encoder's, noticed when damaged."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
import zarr

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.cli import main
from worldmodel.datasets.latents import LatentCache, encode_store, encoder_hash
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.encoders.files import load_encoder, save_encoder
from worldmodel.encoders.rae import RAE, RAEConfig
from worldmodel.errors import UserError
from worldmodel.train.data import load_recordings
from worldmodel.train.run import cache_latents
from worldmodel.world import Episode, WorldSpec

SPEC = WorldSpec("toy", ActionTable((ActionRow("forward", "w", "walk", dx=0.5),)), 16, 16)
SHAPE = RAEConfig(16, 4, 4, width=16, heads=2, encoder_depth=1, decoder_depth=1)


def make_rae(seed: int = 0) -> RAE:
    torch.manual_seed(seed)
    return RAE(SHAPE).eval()


@pytest.fixture
def store(tmp_path: Path) -> EpisodeStore:
    writer = EpisodeWriter(tmp_path / "x.zarr", SPEC)
    for seed in range(3):
        frames = np.random.default_rng(seed).integers(0, 256, (20 + seed, 16, 16, 3), np.uint8)
        still = np.zeros((19 + seed, 3), np.float32), np.zeros(19 + seed, np.uint16)
        writer.write(Episode(frames, *still, {}, (), {"seed": seed}))
    return EpisodeStore(tmp_path / "x.zarr")


def encode(store: EpisodeStore, file: Path, *more: str) -> int:
    return main(["data", "encode", f"store={store.path}", f"encoder={file}", "device=cpu", *more])


def test_the_hash_is_of_what_decides_the_latents() -> None:
    plain = encoder_hash(make_rae())
    assert plain == encoder_hash(make_rae())
    assert plain != encoder_hash(make_rae(1))
    assert plain != encoder_hash(make_rae().half())
    drawn, shifted = make_rae(), make_rae()
    with torch.no_grad():
        drawn.decoder.head.bias += 1
        shifted.mean += 1
    assert plain == encoder_hash(drawn)
    assert plain != encoder_hash(shifted)


def test_encode_goes_on_where_it_was_and_the_latents_are_right(tmp_path, store, capsys) -> None:
    rae = make_rae()
    save_encoder(rae, tmp_path / "encoder.safetensors")
    loaded = load_encoder(tmp_path / "encoder.safetensors")
    assert encoder_hash(loaded) == encoder_hash(rae)
    assert encode_store(store, rae, store.ids[:1]) == 1  # and there it was stopped
    assert encode(store, tmp_path / "encoder.safetensors") == 0
    assert f"{encoder_hash(rae)} of 3 episodes, 2 of them new" in capsys.readouterr().out
    cache = LatentCache(store.path, encoder_hash(rae))
    for name in store.ids:
        want = rae.encode(torch.from_numpy(store.frames(name))).half().numpy()
        got = cache.read(name)
        assert got.dtype == np.float16
        np.testing.assert_allclose(got, want, atol=2e-3)
        # Any Zarr reader sees the same.
        np.testing.assert_array_equal(zarr.open_array(cache.folder / name, mode="r")[:], got)
    assert main(["data", "info", f"store={store.path}"]) == 0
    assert f"latents {encoder_hash(rae)} of 3 of 3 episodes" in capsys.readouterr().out


def test_training_takes_the_latents_of_its_own_encoder_only(tmp_path, store, monkeypatch) -> None:
    rae, data = make_rae(), load_recordings(str(store.path), "train")
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
    own = cache_latents(rae, data, tmp_path / "a", torch.float32)
    encode_store(store, rae, store.ids[:2])

    def refuse(self: RAE, frames: torch.Tensor) -> torch.Tensor:
        raise AssertionError("it encodes")

    with monkeypatch.context() as patched:
        patched.setattr(RAE, "encode", refuse)
        with pytest.raises(AssertionError, match="it encodes"):  # two of three are not enough
            cache_latents(rae, data, tmp_path / "b", torch.float32)
    encode_store(store, rae, store.ids)
    with monkeypatch.context() as patched:
        patched.setattr(RAE, "encode", refuse)
        kept = cache_latents(rae, data, tmp_path / "b", torch.float32)
        with pytest.raises(AssertionError, match="it encodes"):
            cache_latents(make_rae(1), data, tmp_path / "b", torch.float32)
    np.testing.assert_allclose(kept, own, atol=2e-3)
    on_disk = load_recordings(str(store.path), "train", in_memory=False)
    mapped = cache_latents(rae, on_disk, tmp_path / "c", torch.float32)
    assert torch.equal(mapped, kept)


DAMAGE = {
    "flipped byte": lambda f: (f / "c/0/0/0").write_bytes(
        bytes([(f / "c/0/0/0").read_bytes()[0] ^ 1]) + (f / "c/0/0/0").read_bytes()[1:]
    ),
    "truncated": lambda f: os.truncate(f / "c/0/0/0", 100),
    "file missing": lambda f: (f / "c/0/0/0").unlink(),
    "metadata damaged": lambda f: (f / "zarr.json").write_text("{"),
    "of another encoder": lambda f: (f / "zarr.json").write_text(
        json.dumps(
            json.loads((f / "zarr.json").read_text())
            | {"attributes": {"encoder": "0" * 12, "file": {"bytes": 1, "crc32": ""}}}
        )
    ),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_found_moved_aside_and_mended(tmp_path, store, capsys, damage) -> None:
    rae = make_rae()
    save_encoder(rae, tmp_path / "encoder.safetensors")
    encode_store(store, rae, store.ids)
    words = [f"store={store.path}"]
    assert main(["data", "validate", *words]) == 0
    DAMAGE[damage](store.path / "latents" / encoder_hash(rae) / store.ids[1])
    assert main(["data", "validate", *words]) == 1
    said = capsys.readouterr().out
    assert f"latents {encoder_hash(rae)} of episode {store.ids[1]} are damaged" in said
    assert "1 problems" in said
    assert main(["data", "repair", *words]) == 0
    assert main(["data", "validate", *words]) == 0
    assert len(EpisodeStore(store.path)) == 3  # the episodes stay
    capsys.readouterr()
    assert encode(store, tmp_path / "encoder.safetensors") == 0
    assert "1 of them new" in capsys.readouterr().out


def test_other_commands_do_not_mind_latents(tmp_path, store, capsys) -> None:
    encode_store(store, make_rae(), store.ids)
    other, both = EpisodeWriter(tmp_path / "y.zarr", SPEC), tmp_path / "z.zarr"
    other.write(store.read(store.ids[0]))
    assert main(["data", "merge", f"stores=[{store.path},{other.path}]", f"out={both}"]) == 0
    assert main(["data", "split", f"store={store.path}", f"out={tmp_path / 's.zarr'}"]) == 0
    assert len(EpisodeStore(both)) == len(EpisodeStore(tmp_path / "s.zarr")) == 3
    # An episode that goes takes nothing with it: its latents are left unread.
    for path in [store.path / "episodes" / store.ids[0]]:
        path.rename(tmp_path / "gone")
    assert main(["data", "validate", f"store={store.path}"]) == 0
    assert main(["data", "info", f"store={store.path}"]) == 0
    assert "of 2 of 2 episodes" in capsys.readouterr().out


def test_mistakes_are_one_sentence(tmp_path, store) -> None:
    with pytest.raises(UserError, match="frames of 8x8 pixels, but"):
        encode_store(store, RAE(RAEConfig(8, 4, 4, 16, 2, 1, 1)), store.ids)
    (tmp_path / "bad.safetensors").write_bytes(b"no")
    with pytest.raises(UserError, match="no encoder that"):
        load_encoder(tmp_path / "bad.safetensors")
    assert encode(store, tmp_path / "missing.safetensors") == 2
    assert main(["data", "encode", f"store={store.path}"]) == 2
    assert encode(store, tmp_path / "bad.safetensors", "checkpoint=doom-nano") == 2
    assert not (store.path / "latents").exists()
