"""What pyproject.toml says about the package is what lies in the tree."""

import os
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

import worldmodel
from worldmodel.envs.gym_config import PRESETS

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
SETUP = PROJECT["tool"]["setuptools"]
FOLDERS = ("worldmodel", "envs", "datasets", "evaluate", "train", "viewer")
TEXTS = {".py", ".md", ".yaml", ".yml", ".toml", ".cfg", ".txt", ""}


def our_files() -> Iterator[Path]:
    """All files that belong to the project: those that git knows or would take."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"]
    if (ROOT / ".git").exists():
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, check=True).stdout
        names = [os.fsdecode(name) for name in listed.split(b"\0") if name]
    else:
        tops = (*FOLDERS, "tests", "docs", "benchmarks", "pyproject.toml", "Makefile")
        names = [str(p.relative_to(ROOT)) for t in tops for p in [ROOT / t, *(ROOT / t).rglob("*")]]
    for name in names:
        path = ROOT / name
        if path.is_file() and not path.is_symlink() and "__pycache__" not in path.parts:
            yield path


def package_of(folder: Path) -> str:
    parts = folder.relative_to(ROOT).parts
    return ".".join(parts if parts[0] == "worldmodel" else ("worldmodel", *parts))


def folder_of(package: str) -> Path:
    parts = package.split(".")
    return ROOT.joinpath(*(parts[1:] if parts[1:2] and parts[1] in FOLDERS[1:] else parts))


def test_the_list_of_packages_is_the_tree():
    """A folder that is not listed works in an editable install and is missing in the wheel."""
    found = {package_of(p.parent) for f in FOLDERS for p in (ROOT / f).rglob("__init__.py")}
    data = {package_of(p.parent) for f in FOLDERS for p in (ROOT / f).rglob("*.yaml")} - found
    assert len(set(SETUP["packages"])) == len(SETUP["packages"])
    assert set(SETUP["packages"]) - data == found
    for folder in FOLDERS:
        for path in (ROOT / folder).rglob("*.py"):
            assert (path.parent / "__init__.py").exists(), f"{path} lies in no package"


def test_top_level_folders_are_mapped_below_the_package():
    assert SETUP["package-dir"] == {
        ("worldmodel" if folder == "worldmodel" else f"worldmodel.{folder}"): folder
        for folder in FOLDERS
    }


@pytest.mark.parametrize("folder", FOLDERS[1:])
def test_a_mapped_package_is_the_folder(folder):
    __import__(f"worldmodel.{folder}")
    module = getattr(worldmodel, folder)
    assert Path(str(module.__file__)).resolve() == (ROOT / folder / "__init__.py").resolve()


def test_every_config_and_checkpoint_is_package_data():
    for package, patterns in SETUP["package-data"].items():
        base = folder_of(package)
        shipped = {p for pattern in patterns for p in base.glob(pattern) if p.is_file()}
        if package == "worldmodel.conf":
            assert shipped == set(base.rglob("*.yaml"))
            assert len(shipped) >= 7
        elif package == "worldmodel.envs.presets":
            assert shipped == {base / f"{name}.yaml" for name in PRESETS}
        elif package.startswith("worldmodel.evaluate.suites."):
            assert shipped == set(base.iterdir())
        elif package == "worldmodel.checkpoints":
            assert {p for p in base.rglob("*") if p.is_file()} <= shipped
        elif package == "worldmodel.viewer":
            assert shipped == {base / f"page{rest}" for rest in (".html", ".css", ".js", "_map.js")}
        else:
            assert shipped == {base / "py.typed"}
    yamls = {p for f in FOLDERS for p in (ROOT / f).rglob("*.y*ml")}
    places = (
        ROOT / "worldmodel" / "conf",
        ROOT / "envs" / "presets",
        ROOT / "evaluate" / "suites",
    )
    assert all(any(p.is_relative_to(place) for place in places) for p in yamls)


def test_links_for_type_checkers_lead_to_the_folders():
    links = ROOT / ".typings" / "worldmodel"
    assert PROJECT["tool"]["pyright"]["stubPath"] == ".typings"
    assert sorted(p.name for p in links.iterdir()) == sorted(FOLDERS[1:])
    for folder in FOLDERS[1:]:
        assert (links / folder).resolve() == (ROOT / folder).resolve()


def test_the_script_and_the_version_exist():
    assert PROJECT["project"]["scripts"] == {"worldmodel": "worldmodel.cli:main"}
    assert worldmodel.__version__ == PROJECT["project"]["version"]


def test_no_file_is_too_long():
    counts = {
        path.relative_to(ROOT): path.read_text(encoding="utf-8").count("\n")
        for path in our_files()
        if path.suffix == ".py"
    }
    assert len(counts) > 50
    assert {str(path): lines for path, lines in counts.items() if lines > 520} == {}  # "about 500"


def test_no_file_speaks_of_somebodys_machine():
    places = re.compile(r"(?<![\w.:/])/(work|root|farm|Users|home/\w+)/")
    found = []
    for path in our_files():
        if path.suffix not in TEXTS or path == Path(__file__).resolve():
            continue
        try:
            lines = path.read_text(encoding="utf-8").splitlines()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{i}" for i, s in enumerate(lines, 1) if places.search(s)
        ]
    assert found == []
