"""The inverse-dynamics model learns a moving pattern, and comes back from its files."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.errors import UserError
from worldmodel.evaluate import inverse_dynamics as idm_
from worldmodel.evaluate import triples
from worldmodel.world import Episode, WorldSpec

TABLE = ActionTable(
    (
        ActionRow("up", "w", "up", dx=0.5),
        ActionRow("turn left", "a", "left", dyaw=10.0, unit="deg"),
        ActionRow("turn right", "d", "right", dyaw=-10.0, unit="deg"),
    )
)
SPEC = WorldSpec("scroll", TABLE, height=32, width=32)
SHIFTS = {0: (0, 0), 1: (3, 0), 2: (0, 3), 4: (0, -3), 3: (3, 3), 5: (3, -3)}


def episode(seed, steps=40):
    """A blurred random texture on a torus that scrolls as the keys say."""
    rng = np.random.default_rng(seed)
    texture = rng.integers(0, 256, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
    keys = rng.choice(list(SHIFTS), steps).astype(np.uint16)
    frames = [texture]
    for key in keys:
        frames.append(np.roll(frames[-1], SHIFTS[int(key)], axis=(0, 1)))
    moves = np.zeros((steps, 3), np.float32)
    return Episode(np.stack(frames), moves, keys, {}, (), {"split": "train"})


def memory_store(count=30):
    episodes = {f"e{i}": episode(i) for i in range(count)}
    select = lambda split: list(episodes) if split == "train" else []  # noqa: E731
    return SimpleNamespace(spec=SPEC, select=select, read=episodes.__getitem__)


@pytest.fixture(scope="module")
def trained():
    return idm_.train_idm(memory_store(), triples.ReaderConfig(steps=120, batch=32))


def test_it_reads_a_moving_pattern_that_it_has_not_seen(trained):
    held_out = [episode(1000 + i) for i in range(6)]
    frames = np.stack([e.frames for e in held_out])
    told = np.stack([e.keys[1:] for e in held_out])
    read = trained.predict(frames)
    assert read.shape == told.shape
    assert idm_.exact_accuracy(read, told).mean() > 0.95
    hits, total = idm_.key_counts(read, told)
    assert hits.mean() / total.mean() > 0.95
    # Frames that do not move carry no key.
    assert (trained.predict(np.repeat(frames[:, :1], 5, axis=1)) == 0).mean() > 0.9


def test_training_is_deterministic_and_leaves_the_global_generator_alone():
    config = triples.ReaderConfig(steps=3, batch=8)
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    one, two = (idm_.train_idm(memory_store(3), config) for _ in range(2))
    assert torch.equal(before, torch.random.get_rng_state())
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)


def test_saved_and_loaded_it_reads_the_same(trained, tmp_path):
    path = tmp_path / "sub" / "idm.safetensors"
    triples.save_reader(trained, path, "data-1")
    again = idm_.load_idm(path)
    frames = episode(77).frames
    assert np.array_equal(again.predict(frames), trained.predict(frames))
    assert (again.keys, again.masks) == (trained.keys, trained.masks)
    assert triples.trained_on(path) == "data-1"
    assert triples.trained_on(tmp_path / "none.safetensors") == ""


@pytest.mark.parametrize("harm", ["truncate", "json", "missing"])
def test_damaged_or_missing_files_give_one_sentence(trained, tmp_path, harm):
    path = tmp_path / "idm.safetensors"
    triples.save_reader(trained, path)
    if harm == "truncate":
        path.write_bytes(path.read_bytes()[:1000])
    elif harm == "json":
        path.with_suffix(".json").write_text("{")
    else:
        path.unlink()
    with pytest.raises(UserError, match="idm=auto"):
        idm_.load_idm(path)


def test_a_store_without_a_train_split_is_refused():
    with pytest.raises(UserError, match="no 'train' split"):
        idm_.train_idm(memory_store(0))


def test_exact_accuracy_and_key_f1_of_a_known_case():
    told = np.array([[0b01, 0b11, 0b00, 0b10]], np.uint16)
    read = np.array([[0b01, 0b01, 0b00, 0b01]], np.uint16)
    assert idm_.exact_accuracy(read, told).tolist() == [0.5]
    hits, total = idm_.key_counts(read, told)
    # 2 hits; one key missed, one swapped for another: 3 errors.
    assert (hits[0], total[0]) == (2, 3.5)


def test_mirrored_classes_swap_left_and_right():
    partner = idm_._mirror_classes(TABLE, [0, 1, 2, 4, 3, 5])
    assert partner.tolist() == [0, 1, 3, 2, 5, 4]
    assert idm_._mirror_classes(TABLE, [0, 2]).tolist() == [0, -1]
