"""Who may import whom, and that importing the package costs nothing."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
MAY_IMPORT = {
    "worldmodel": set(),
    "envs": {"worldmodel"},
    "datasets": {"worldmodel"},
    "evaluate": {"worldmodel", "envs", "datasets"},
    "train": {"worldmodel", "envs", "datasets", "evaluate"},
    "viewer": {"worldmodel", "envs", "datasets", "evaluate"},
}
HOMES = {
    "zarr": ("datasets/",),
    "numcodecs": ("datasets/",),
    "pygame": ("viewer/",),
    "hydra": ("worldmodel/cli.py",),
    "omegaconf": ("worldmodel/cli.py",),
    "vizdoom": ("envs/doom/",),
    "gymnasium": ("envs/",),
    "crafter": ("envs/",),
    "pyglet": ("envs/",),
    "habitat_sim": ("envs/habitat/simulator.py",),
    "magnum": ("envs/habitat/simulator.py",),
    "trimesh": ("envs/habitat/rooms.py",),
    "tensorboard": ("train/",),
    "wandb": ("train/watch.py",),
    "av": ("viewer/", "datasets/"),
    "h5py": ("datasets/",),
    "pyarrow": ("datasets/",),
    "ray": ("datasets/ray_pool.py",),
    "websockets": ("viewer/serve.py", "viewer/remote.py"),
    "stable_baselines3": ("evaluate/agents.py",),
}
DOOR = "worldmodel/cli.py"  # hands folders to each other; the one exception


def sources(folder: str) -> Iterator[tuple[str, ast.Module]]:
    for path in sorted((ROOT / folder).rglob("*.py")):
        yield path.relative_to(ROOT).as_posix(), ast.parse(path.read_text(encoding="utf-8"))


def imported(tree: ast.AST) -> Iterator[str]:
    """Full names of all modules that are imported anywhere in a file."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports are absolute"
            yield node.module or ""
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def folder_of(module: str) -> str | None:
    """The top-level folder that a module of ours lies in."""
    parts = module.split(".")
    if parts[0] != "worldmodel":
        return None
    return parts[1] if len(parts) > 1 and parts[1] in MAY_IMPORT else "worldmodel"


def breaches(folder: str, name: str, tree: ast.AST) -> list[str]:
    found = []
    for module in imported(tree):
        target = folder_of(module)
        if target not in (None, "worldmodel", folder, *MAY_IMPORT[folder]) and name != DOOR:
            found.append(f"{name} imports {module}: not allowed for {folder}/")
        top = module.split(".")[0]
        if top in MAY_IMPORT and top != "worldmodel":
            found.append(f"{name} imports {module}: write worldmodel.{module}")
        if top in HOMES and not name.startswith(HOMES[top]):
            found.append(f"{name} imports {module}: its home is {', '.join(HOMES[top])}")
    return found


@pytest.mark.parametrize("folder", MAY_IMPORT)
def test_imports_go_in_the_right_direction(folder):
    found = [breach for name, tree in sources(folder) for breach in breaches(folder, name, tree)]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("folder", "line"),
    [
        ("worldmodel", "from worldmodel.datasets.store import EpisodeStore"),
        ("envs", "import worldmodel.datasets"),
        ("datasets", "from worldmodel import envs"),
        ("train", "from worldmodel.viewer import app"),
        ("viewer", "def f():\n    import worldmodel.train.loop"),
        ("train", "import datasets"),
        ("viewer", "from envs.doom import world"),
        ("worldmodel", "import gymnasium as gym"),
        ("train", "from omegaconf import DictConfig"),
        ("evaluate", "import zarr"),
    ],
)
def test_a_breach_would_be_found(folder, line):
    assert breaches(folder, f"{folder}/planted.py", ast.parse(line))


def test_tests_use_the_installed_names():
    for name, tree in [*sources("tests"), *sources("benchmarks"), *sources("docs")]:
        for module in imported(tree):
            assert module.split(".")[0] not in set(MAY_IMPORT) - {"worldmodel"}, name


def test_folders_do_not_import_each_other_in_a_circle():
    graph = {
        folder: {
            target
            for name, tree in sources(folder)
            if name != DOOR
            for module in imported(tree)
            if (target := folder_of(module)) not in (None, folder)
        }
        for folder in MAY_IMPORT
    }
    assert graph["worldmodel"] == set()
    while graph:
        free = [folder for folder, needs in graph.items() if not needs & graph.keys()]
        assert free, f"a circle among {sorted(graph)}"
        for folder in free:
            del graph[folder]


LIGHT = """
import sys, time
began = time.process_time()
import worldmodel
took = time.process_time() - began
assert "gymnasium" not in sys.modules
import worldmodel.cli, worldmodel.errors, worldmodel.envs, worldmodel.datasets
import worldmodel.evaluate, worldmodel.train, worldmodel.viewer
heavy = {"torch", "zarr", "pygame", "hydra", "vizdoom", "cv2", "av", "tokenizers"}
print(took, *sorted(heavy & sys.modules.keys()))
"""


def test_importing_the_package_is_light(tmp_path):
    run = subprocess.run(
        [sys.executable, "-c", LIGHT], cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert run.returncode == 0, run.stderr
    took, *heavy = run.stdout.split()
    assert heavy == []
    assert float(took) < 0.5
