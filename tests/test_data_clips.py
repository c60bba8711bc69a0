"""Clips: windows by number, shuffled orders, reading."""

import numpy as np
import pytest

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets.clips import ClipIndex, permute, splits
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.world import Episode, WorldSpec

SPEC = WorldSpec("toy", ActionTable((ActionRow("forward", "w", "walk", dx=0.5),)), 4, 4)
STEPS = {0: 40, 1: 3, 2: 15, 3: 100}  # of each seed; seed 3 is of the split val


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> EpisodeStore:
    path = tmp_path_factory.mktemp("clips") / "x.zarr"
    writer = EpisodeWriter(path, SPEC)
    for seed, steps in STEPS.items():
        rng = np.random.default_rng(seed)
        frames = rng.integers(0, 256, (steps + 1, 4, 4, 3), np.uint8)
        actions = rng.normal(size=(steps, 3)).astype(np.float32)
        keys = np.arange(steps, dtype=np.uint16)
        info = {"seed": seed, "split": "val" if seed == 3 else "train"}
        writer.write(Episode(frames, actions, keys, {}, (), info))
    return EpisodeStore(path)


def test_windows_are_all_runs_of_consecutive_frames(store: EpisodeStore) -> None:
    index = ClipIndex(store, 16, split="train")
    expected = [(0, start) for start in range(41 - 15)] + [(2, 0)]
    windows = [index.window(number) for number in range(len(index))]
    assert [(store.describe(w.name).seed, w.start) for w in windows] == expected
    assert all(w.stop - w.start == 16 for w in windows)
    for number in (-1, len(index)):
        with pytest.raises(IndexError):
            index.window(number)


def test_every_sets_the_distance_of_starts(store: EpisodeStore) -> None:
    index = ClipIndex(store, 10, every=10)
    windows = [index.window(number) for number in range(len(index))]
    starts = [(store.describe(w.name).seed, w.start) for w in windows]
    assert starts == [(0, s) for s in (0, 10, 20, 30)] + [(2, 0)] + [
        (3, s) for s in range(0, 91, 10)
    ]


def test_read_gives_what_the_episode_holds(store: EpisodeStore) -> None:
    index = ClipIndex(store, 9)
    for window in list(index.order(0))[:20]:
        clip, episode = index.read(window), store.read(window.name)
        np.testing.assert_array_equal(clip.frames, episode.frames[window.start : window.stop])
        np.testing.assert_array_equal(clip.actions, episode.actions[window.start :][:8])
        np.testing.assert_array_equal(clip.keys, np.arange(window.start, window.start + 8))


def test_an_order_has_every_window_once_and_follows_from_seed_and_epoch(
    store: EpisodeStore,
) -> None:
    index = ClipIndex(store, 4, seed=3)
    first = list(index.order(0))
    assert first == list(ClipIndex(store, 4, seed=3).order(0))
    everything = {index.window(number) for number in range(len(index))}
    assert len(first) == len(everything)
    assert set(first) == everything
    others = [list(index.order(1)), list(ClipIndex(store, 4, seed=4).order(0))]
    in_order = [index.window(number) for number in range(len(index))]
    for other in [*others, in_order]:
        assert sum(a == b for a, b in zip(first, other, strict=True)) < len(first) // 10
    assert index.at(0, 17) == first[17]


def test_ranks_share_an_order(store: EpisodeStore) -> None:
    index = ClipIndex(store, 4)
    shares = [list(index.order(2, rank, 3)) for rank in range(3)]
    assert [w for trio in zip(*shares, strict=False) for w in trio] == (
        list(index.order(2))[: 3 * min(map(len, shares))]
    )
    assert sum(map(len, shares)) == len(index)


@pytest.mark.parametrize("count", [1, 2, 3, 5, 16, 17, 100, 1025])
def test_permute_is_a_permutation(count: int) -> None:
    for key in ((0, 0), (0, 1), (-5, 2**70)):
        assert sorted(permute(i, count, key) for i in range(count)) == list(range(count))
    with pytest.raises(IndexError):
        permute(count, count, (0,))


def test_permute_looks_random() -> None:
    count, epochs = 50, 2000
    first = np.array([permute(0, count, (0, epoch)) for epoch in range(epochs)])
    shares = np.bincount(first, minlength=count) / epochs
    assert np.abs(shares - 1 / count).max() < 0.012  # 3.8 standard deviations
    order = np.array([permute(i, 5000, (1, 1)) for i in range(5000)])
    assert abs(np.corrcoef(order, np.arange(5000))[0, 1]) < 0.05


def test_splits_and_too_long_clips(store: EpisodeStore) -> None:
    assert splits(store) == {"train": 3, "val": 1}
    with pytest.raises(UserError, match=r"no episode of the split 'nope' .*splits: train, val"):
        ClipIndex(store, 4, split="nope")
    with pytest.raises(UserError, match="no episode with 500 frames"):
        ClipIndex(store, 500)
    with pytest.raises(ValueError):
        ClipIndex(store, 0)
