"""What training draws: from several stores, by schedule, by rank, ahead of time, from disk."""

import hashlib
import importlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.checkpoint import load
from worldmodel.cli import compose
from worldmodel.datasets.store import EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.sequence import Frame, Text
from worldmodel.text import TextTokenizer, train_tokenizer
from worldmodel.train.config import TrainConfig
from worldmodel.train.core import CoreTask, CoreTraining
from worldmodel.train.data import StoreFrames, join, load_recordings, load_stores
from worldmodel.train.loader import Loader, Processes
from worldmodel.train.mixture import StoreMixture, store_shares
from worldmodel.train.run import main
from worldmodel.train.samples import KINDS, Mixture, Sampler, bounds, pick
from worldmodel.transformer import Core, CoreConfig
from worldmodel.world import Annotation, Episode, WorldSpec

NOTHING = {kind: 0.0 for kind in KINDS}
WALK = ActionTable((ActionRow("forward", "w", "go", dx=0.5, phrases=("go forward",)),))
SWIM = ActionTable((ActionRow("dive", "q", "dive", dy=0.5, phrases=("dive down",)),))
PROSE = ["plain english is read too", "and more of it"]


def make_store(path: Path, table: ActionTable, first: int, size: int = 16) -> Path:
    writer = EpisodeWriter(path, WorldSpec(path.stem, table, size, size))
    for seed in range(first, first + 3):
        steps = 20 + seed
        frames = np.random.default_rng(seed).integers(0, 256, (steps + 1, size, size, 3), np.uint8)
        notes = (Annotation("caption", 2, 2, f"a {path.stem}"),)
        moves = np.zeros((steps, 3), np.float32), np.ones(steps, np.uint16)
        for split in ("train", "val"):
            writer.write(Episode(frames, *moves, {}, notes, {"seed": seed, "split": split}))
    return path


@pytest.fixture(scope="module")
def stores(tmp_path_factory) -> list[str]:
    folder = tmp_path_factory.mktemp("stores")
    walk, swim = (
        make_store(folder / "walk.zarr", WALK, 0),
        make_store(folder / "swim.zarr", SWIM, 7),
    )
    return [str(walk), str(swim)]


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    said = [t.text(t.from_mask(1), form) for t in (WALK, SWIM) for form in ("keys", "phrase")]
    return train_tokenizer([*said, "a walk", "a swim", *PROSE] * 9, 330)


def mix(stores: list[str], tokenizer: TextTokenizer, weights=(), **mixture) -> StoreMixture:
    parts = load_stores(stores, "train")
    chosen = Mixture(**(NOTHING | mixture))
    return StoreMixture([Sampler(part, tokenizer, chosen, PROSE) for part in parts], weights)


def task(sampler, frames: int, tokenizer: TextTokenizer, ranks=1, **changes) -> CoreTask:
    torch.manual_seed(0)
    shape = {"width": 32, "depth": 1, "heads": 2, "kv_heads": 1, "hidden": 32, "experts": 4}
    core = Core(CoreConfig(tokenizer.vocab_size, (4, 4), 4, merge=2, window=3, **shape))
    latents = torch.randn(frames, 16, 4)
    config = CoreTraining(rows=3, length=96, own_past_from=2, shortcut_from=2, **changes)
    return CoreTask(core, sampler, latents, config, ranks=ranks)


# --- several stores ---


def test_each_store_is_drawn_by_weight_and_speaks_its_own_actions(stores, tokenizer):
    mixed = mix(stores, tokenizer, (3, 1), action=1, clip=4, forms=(0, 0, 1), drop_action=0)
    border = len(mixed.samplers[0].recordings.frames)
    rng, seen = np.random.default_rng(0), Counter()
    for _ in range(800):
        _, document = mixed.draw(rng)
        second = {span.latent >= border for span in document if isinstance(span, Frame)}
        assert len(second) == 1, "a document is of one store"
        words = tokenizer.decode([i for s in document if isinstance(s, Text) for i in s.ids])
        assert ("dive" in words) == second.pop()
        seen["dive" in words] += 1
    assert seen[True] / 800 == pytest.approx(0.25, abs=0.05)


def test_joined_recordings_are_both_stores(stores):
    parts = load_stores(stores, "train")
    whole = join(parts)
    lazy = join(load_stores(stores, "train", memory_gb=1e-9))
    assert isinstance(lazy.frames, StoreFrames)
    for joined in (whole, lazy):
        border = len(parts[0].frames)
        assert np.array_equal(joined.frames[:border], parts[0].frames)
        assert np.array_equal(joined.frames[border:], parts[1].frames)
        assert joined.starts.tolist() == [0, 21, 43, 66, 94, 123, 153]
        assert [text for _, text in joined.captions()] == ["a walk"] * 3 + ["a swim"] * 3
        assert [frame for frame, _ in joined.captions()] == [2, 23, 45, 68, 96, 125]


def test_frames_on_disk_are_those_in_memory(stores):
    data = load_recordings(stores[0], "train")
    lazy = load_recordings(stores[0], "train", in_memory=False)
    assert isinstance(lazy.frames, StoreFrames)
    assert lazy.frames.shape == data.frames.shape
    rng = np.random.default_rng(0)
    keys = [slice(0, 66), slice(5, 60, 7), slice(40, 43), rng.integers(66, size=50), 3, 65]
    keys += [np.array([22, 21, 20]), np.array([20, 21, 22]), slice(3, 3), np.zeros(0, int)]
    for key in keys:
        assert np.array_equal(lazy.frames[key], data.frames[key])
    with pytest.raises(IndexError):
        lazy.frames[np.array([66])]
    for name in ("keys", "actions", "starts"):
        assert np.array_equal(getattr(lazy, name), getattr(data, name))
    assert lazy.annotations == data.annotations


@pytest.mark.parametrize("weights", [(1,), (1, -1), (0, 0), (1, float("nan"))])
def test_weights_that_make_no_sense_are_refused(weights):
    with pytest.raises(UserError, match="weight"):
        store_shares(weights, 2)
    assert store_shares((), 2).tolist() == [0.5, 0.5]


def test_stores_of_different_sizes_are_refused(stores, tmp_path):
    other = make_store(tmp_path / "big.zarr", WALK, 0, size=24)
    with pytest.raises(UserError, match=r"big.zarr' are 24x24 pixels, but those of .*16x16"):
        load_stores([stores[0], str(other)], "train")


# --- the mixture ---


def test_a_stride_is_for_frames_without_words(stores, tokenizer):
    sampler = mix(stores[:1], tokenizer, video=1, action=1, clip=4, stride=3).samplers[0]
    rng = np.random.default_rng(0)
    for _ in range(200):
        kind, document = sampler.draw(rng)
        frames = [span.latent for span in document if isinstance(span, Frame)]
        assert len(frames) == 4
        assert set(np.diff(frames)) == ({3} if KINDS[kind] == "video" else {1})
        starts = sampler.recordings.starts
        episode = np.searchsorted(starts, frames, side="right")
        assert len(set(episode.tolist())) == 1


def test_shares_follow_the_schedule(stores, tokenizer):
    schedule = ((100, {"video": 1}), (300, {"video": 0, "caption": 1}))
    plain = Mixture(**NOTHING, schedule=schedule)
    at = {step: dict(zip(KINDS, plain.shares_at(step), strict=True)) for step in (0, 100, 150, 999)}
    assert at[0] == at[100]
    assert at[100]["video"] == 1
    assert (at[150]["video"], at[150]["caption"]) == (0.75, 0.25)
    assert at[999]["caption"] == 1
    sampler = mix(stores, tokenizer, schedule=schedule)
    rng = np.random.default_rng(0)
    assert {KINDS[sampler.draw(rng, 50)[0]] for _ in range(20)} == {"video"}
    assert {KINDS[sampler.draw(rng, 200)[0]] for _ in range(50)} == {"video", "caption"}
    assert {KINDS[sampler.draw(rng, 400)[0]] for _ in range(20)} == {"caption"}


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ("mixture.video=-1", "share of 'video' is -1.0"),
        ("mixture.clip=0", "at least 1"),
        ("mixture.stride=0", "at least 1"),
        ("mixture.schedule=[[0,{vidio: 1}]]", "unknown sample kind 'vidio'. Did you mean 'video'"),
        ("mixture.schedule=[[0,{video: -2}]]", "share of 'video' is -2"),
        ("mixture.schedule=[[5,{video: 1}],[5,{action: 1}]]", "growing steps"),
        ("mixture.schedule=[[video,1]]", "does not fit"),
        ("mixture.vidio=1", "no setting 'mixture.vidio'"),
    ],
)
def test_mistakes_in_the_mixture_are_named(setting, says):
    with pytest.raises(UserError) as caught:
        compose("train", [setting], TrainConfig)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_schedule_that_leaves_nothing_to_draw_is_refused(stores, tokenizer):
    with pytest.raises(UserError, match="need annotations"):
        mix(stores, tokenizer, video=1, schedule=((0, {}), (10, {"video": 0, "question": 1})))


# --- order ---


def batches(one: CoreTask, numbers: range) -> list[dict[str, torch.Tensor]]:
    drawn = [one._prepare(number)[2:4] for number in numbers]
    return [{"clean": clean, "ids": batch.ids, "source": batch.source} for batch, clean in drawn]


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize("workers", [1, 3])
def test_losses_are_the_same_with_any_number_of_workers(stores, tokenizer, workers):
    def make(workers: int) -> CoreTask:
        return task(mix(stores, tokenizer, action=1, video=1), 153, tokenizer, workers=workers)

    plain, ahead = make(0), make(workers)
    for step in (0, 1, 2, 3, 4, 9, 10, 3):
        want, got = plain.losses(step), ahead.losses(step)
        assert want.keys() == got.keys()
        for name in want:
            assert torch.equal(want[name], got[name]), (step, name)


def test_ranks_share_one_stream(stores, tokenizer):
    def make(ranks: int) -> CoreTask:
        sampler = mix(stores, tokenizer, action=1, video=1)
        return task(sampler, 153, tokenizer, ranks)

    alone = batches(make(1), range(6))
    for ranks in (2, 3):
        parts = [batches(make(ranks), range(rank, 6, ranks)) for rank in range(ranks)]
        together = [parts[i % ranks][i // ranks] for i in range(6)]
        assert all(same(a, b) for a, b in zip(alone, together, strict=True))
    assert not any(same(alone[i], alone[j]) for i in range(6) for j in range(i))


def test_the_loader_works_ahead_and_raises_at_the_right_step():
    made, gate = [], threading.Event()

    def make(step: int) -> int:
        if step == 3:
            raise UserError("step three")
        made.append(step)
        if step > 0:
            gate.wait(10)
        return step * step

    loader = Loader(make, workers=2)
    assert loader(0) == 0
    deadline = time.monotonic() + 10
    while sorted(made) != [0, 1, 2] and time.monotonic() < deadline:
        time.sleep(0.001)
    assert sorted(made) == [0, 1, 2], "prepared while nobody asked"
    gate.set()
    assert [loader(1), loader(2)] == [1, 4]
    with pytest.raises(UserError, match="step three"):
        loader(3)
    assert loader(100) == 10000
    loader.close()


@pytest.fixture
def processes(monkeypatch):
    monkeypatch.syspath_prepend(Path(__file__).parent)
    started = Processes(importlib.import_module("loader_toy").squared, 2)
    yield started
    started.close()


def test_processes_make_what_is_asked_and_send_errors_back(processes):
    made = [processes(number) for number in (0, 5, 7)]
    assert [square for square, _ in made] == [0, 25, 49]
    assert os.getpid() not in {pid for _, pid in made}
    with pytest.raises(UserError) as caught:
        processes(3)
    assert str(caught.value) == "number three"
    assert "in squared" in "".join(caught.value.__notes__)
    assert processes(4)[0] == 16, "an error is of its number only"


def test_a_killed_process_is_named_at_its_number(processes):
    loader = Loader(processes, workers=2)
    os.kill(loader(0)[1], signal.SIGKILL)
    said = r"exit code -9\) at batch \d+.* fewer core.workers"
    with pytest.raises(UserError, match=said):  # of two processes, one is asked in any case
        [loader(number) for number in range(4, 20)]
    loader.close()


@pytest.mark.parametrize("how", ["close", "exit", "kill"])
def test_processes_end_with_whom_they_work_for(how):
    code = f"""
import os, signal
from loader_toy import squared
from worldmodel.train.loader import Processes
made = Processes(squared, 2)
print(made(1)[1], *(worker.process.pid for worker in made._all), flush=True)
if "{how}" == "close":
    made.close()
    input()
elif "{how}" == "kill":
    os.kill(os.getpid(), signal.SIGKILL)
"""
    here = str(Path(__file__).parent)
    with subprocess.Popen(
        [sys.executable, "-c", code],
        env=os.environ | {"PYTHONPATH": here},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    ) as parent:
        assert parent.stdout is not None
        pids = {int(pid) for pid in parent.stdout.readline().split()}
        assert len(pids) == 2
        deadline = time.monotonic() + 30
        while (left := {p for p in pids if Path(f"/proc/{p}").exists()}) and (
            time.monotonic() < deadline
        ):
            time.sleep(0.02)
        assert not left
        parent.communicate()


def test_a_number_stands_for_the_same_batch_for_ever(stores):
    """A change here means that runs of before do not go on as they would have."""
    letters = train_tokenizer([], 261)  # of bytes alone
    mixed = mix(stores, letters, (2, 1), text=1, caption=1, imagine=1, video=1, action=2, clip=4)
    for forcing, known in (("teacher", "2e1bdcb5574707ec"), ("diffusion", "b827e642bb7f5a73")):
        drawn = task(mixed, 153, letters, forcing=forcing, own_past=0)._packer
        digest = hashlib.sha256()
        for number in (0, 1, 1000):
            _, seed, batch = drawn(number)
            digest.update(str(seed).encode())
            for field in fields(batch):
                digest.update(getattr(batch, field.name).numpy().astype("<i8").tobytes())
        assert digest.hexdigest()[:16] == known, forcing


def test_pick_draws_what_numpy_does():
    shares = np.array([0.1, 0.0, 0.65, 0.25])
    ours, theirs = (np.random.default_rng(5) for _ in range(2))
    ends = bounds(shares)
    for _ in range(999):
        assert pick(ends, ours) == theirs.choice(4, p=shares)


# --- from the command's settings to a checkpoint ---


def settings(out: Path, *more: str) -> TrainConfig:
    rae = {"size": 16, "patch": 4, "channels": 4, "width": 16, "heads": 2}
    rae |= {"encoder_depth": 1, "decoder_depth": 1}
    model = {"width": 32, "depth": 1, "heads": 2, "kv_heads": 1, "hidden": 32, "granularity": 2}
    words = [f"rae.{k}={v}" for k, v in rae.items()]
    words += [f"model.{k}={v}" for k, v in (model | {"experts": 4}).items()]
    words += ["device=cpu", "threads=1", "vocab=300", "starts=2", "encoder.batch=8"]
    words += ["encoder_loop.steps=2", "decoder_loop.steps=2", "core_loop.steps=4"]
    words += ["core.rows=2", "core.length=130", "core_loop.warmup=1"]
    return compose("train", [f"out={out}", *words, *more], TrainConfig)


def test_two_stores_on_disk_with_workers_train_like_in_memory(stores, tmp_path, monkeypatch):
    monkeypatch.setattr("worldmodel.train.run.python_prose", lambda: PROSE)
    both = f"stores=[{','.join(stores)}]"
    schedule = "mixture.schedule=[[0,{video: 1}],[4,{video: 0}]]"
    more = [both, "weights=[1,2]", "mixture.stride=2", "mixture.clip=3", schedule]
    a, b = tmp_path / "a", tmp_path / "b"
    assert main(settings(a, *more)) == 0
    assert main(settings(b, *more, "memory_gb=0.000001", "core.workers=2")) == 0
    for file in ("encoder", "decoder", "core"):
        name = f"{file}.safetensors"
        assert (a / name).read_bytes() == (b / name).read_bytes()
    loaded = load(str(a / "checkpoint"))
    assert loaded.spec.name == "walk"
    assert loaded.details["data"] == {"world": "walk and swim", "episodes": 6, "frames": 153}
    config = json.loads((a / "checkpoint/config.json").read_text())
    assert config["details"]["training"]["mixture"]["stride"] == 2


def test_a_wrong_number_of_weights_is_refused_at_once(stores, tmp_path):
    config = replace(settings(tmp_path), stores=tuple(stores), weights=(1.0,))
    with pytest.raises(UserError, match="weights has 1 numbers, but stores has 2"):
        main(config)
