"""The collection over Ray: a cluster of two nodes on this machine, real actors, a real SIGKILL.

Slow: the nodes and their Python processes take longer to start than the episodes to play.
"""

import importlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from worldmodel.datasets.collect import CollectConfig, main
from worldmodel.datasets.commands import DataConfig
from worldmodel.datasets.commands import main as data
from worldmodel.datasets.store import EpisodeStore
from worldmodel.errors import UserError

TOY = '''
import os
import signal
import sys
import time
from pathlib import Path

import numpy as np

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets.collect import CollectConfig, main
from worldmodel.world import Step, WorldSpec

SPEC = WorldSpec("toy", ActionTable((ActionRow("on", "w", "go", dx=0.5),)), 16, 16)


class Toy:
    """A pattern that moves; 'fatal' kills its process in seed 2, 'FILE' once, and leaves a note."""

    spec = SPEC

    def __init__(self, name):
        self.name = name

    def reset(self, seed=None):
        self.seed, self.t = seed, 0
        self.pattern = np.random.default_rng(seed).integers(0, 256, (16, 16, 3), np.uint8)
        return Step(self.pattern)

    def step(self, action):
        self.t += 1
        if self.name == "slow":
            time.sleep(0.02)
        note = Path(self.name)
        if self.seed == 2 and self.t == 3 and (self.name == "fatal" or note.is_absolute()):
            if self.name == "fatal" or not note.exists():
                note.is_absolute() and note.write_text(str(os.getpid()))
                os.kill(os.getpid(), signal.SIGKILL)
        self.pattern = np.roll(self.pattern, 1 + len(action.keys), 1)
        return Step(self.pattern)

    def close(self):
        pass


class Random:
    def reset(self, seed):
        self.rng = np.random.default_rng(seed)

    def act(self, step, spec):
        return spec.actions.from_mask(int(self.rng.integers(0, 2)))


def make_world(name, split="train"):
    return Toy(name)


def make_policy(name, seed):
    return Random()


def annotate(episode, spec, seed):
    return ()


if __name__ == "__main__":
    import toy_for_ray as toy

    config = CollectConfig("slow", sys.argv[1], 1000, steps=40, ray=sys.argv[2])
    sys.exit(main(config, toy.make_world, toy.make_policy, toy.annotate))
'''


def test_a_cluster_that_is_not_there_is_one_sentence(tmp_path: Path) -> None:
    pytest.importorskip("ray")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]  # taken, and nobody listens
        address = f"127.0.0.1:{port}"
        for wrong in (address, "nonsense"):
            config = CollectConfig(out=str(tmp_path / "x.zarr"), ray=wrong)
            with pytest.raises(UserError, match=f"ray={wrong} cannot be reached"):
                main(config, print, print, print)  # type: ignore[arg-type]


def test_without_ray_it_says_what_to_install(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not installed
    with pytest.raises(UserError, match=r"pip install 'worldmodel\[ray\]'"):
        main(CollectConfig(out=str(tmp_path / "x.zarr"), ray="auto"), print, print, print)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    code = tmp_path_factory.mktemp("code")
    (code / "toy_for_ray.py").write_text(TOY)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(code))
        patch.setenv("PYTHONPATH", os.pathsep.join([str(code), os.environ.get("PYTHONPATH", "")]))
        yield importlib.import_module("toy_for_ray")


@pytest.fixture(scope="module")
def address(toy: ModuleType) -> Iterator[str]:
    """A cluster of two nodes with a CPU each; they find the toy by PYTHONPATH."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    cluster = Cluster(
        initialize_head=True,
        head_node_args={"num_cpus": 1, "include_dashboard": False, "object_store_memory": 1 << 27},
    )
    try:
        cluster.add_node(num_cpus=1, object_store_memory=1 << 27)
        yield cluster.address
    finally:
        cluster.shutdown()


def collect(toy: ModuleType, out: Path, **options) -> int:
    config = CollectConfig(out=str(out), **({"env": "toy", "steps": 40, "episodes": 6} | options))
    return main(config, toy.make_world, toy.make_policy, toy.annotate)


def seeds(out: Path) -> list[int]:
    store = EpisodeStore(out)
    return [store.describe(name).seed for name in store.ids]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_cluster_collects_what_this_machine_would(
    toy: ModuleType, address: str, tmp_path: Path
) -> None:
    assert collect(toy, tmp_path / "local.zarr") == 0
    assert collect(toy, tmp_path / "ray.zarr", ray=address) == 0
    local, ray = EpisodeStore(tmp_path / "local.zarr"), EpisodeStore(tmp_path / "ray.zarr")
    assert len(local) == 6
    assert local.ids == ray.ids  # an id holds a digest of frames, actions and info
    assert collect(toy, tmp_path / "ray.zarr", ray=address, episodes=7) == 0  # goes on
    assert seeds(tmp_path / "ray.zarr") == list(range(7))


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_killed_worker_loses_nothing_unless_its_episode_kills_twice(
    toy: ModuleType, address: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    note = tmp_path / "note"
    assert collect(toy, tmp_path / "x.zarr", env=str(note), ray=address) == 0
    assert note.exists()  # a worker was killed
    assert seeds(tmp_path / "x.zarr") == list(range(6))
    assert "seed 2 is tried again" in capfd.readouterr().err
    assert collect(toy, tmp_path / "y.zarr", env="fatal", ray=address) == 1
    assert seeds(tmp_path / "y.zarr") == [0, 1, 3, 4, 5]
    said = capfd.readouterr().err
    assert "the episode with seed 2 is not stored" in said
    assert "Traceback" not in said
    for name in ("x.zarr", "y.zarr"):
        assert data(DataConfig("validate", str(tmp_path / name))) == 0


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ctrl_c_ends_cleanly_on_a_cluster(toy: ModuleType, address: str, tmp_path: Path) -> None:
    out = tmp_path / "x.zarr"
    process = subprocess.Popen(
        [sys.executable, str(toy.__file__), str(out), address],
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    end = time.monotonic() + 200
    while not (out / "zarr.json").exists() or len(EpisodeStore(out)) < 2:
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end, "it never came"
        time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=100)
    assert process.returncode == 130, said
    assert "Traceback" not in said
    assert f"{len(EpisodeStore(out))} of 1000 episodes are safe" in said
    assert data(DataConfig("validate", str(out))) == 0
    assert not any(name.startswith(".") for name in os.listdir(out / "episodes"))
