"""The command line: its help is complete, and a mistake is one sentence and exit code 2."""

import ast
import dataclasses
import importlib
import itertools
import subprocess
import sys
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import worldmodel
from worldmodel.checkpoint import bundled_names
from worldmodel.cli import CONF, VERBS, compose, main, to_dataclass
from worldmodel.errors import UserError
from worldmodel.train.run import require_core

ROOT = Path(worldmodel.__file__).parents[1]
CONFIGURED = [name for name, verb in VERBS.items() if verb.config]


def config_of(verb: str) -> type:
    module, name = str(VERBS[verb].config).split(":")
    return getattr(importlib.import_module(module), name)


def keys_of(kind: type, prefix: str = "") -> Iterator[tuple[str, str]]:
    """(dotted path, last name) of all settings."""
    hints = typing.get_type_hints(kind)
    for field in dataclasses.fields(kind):
        yield f"{prefix}{field.name}", field.name
        if dataclasses.is_dataclass(hints[field.name]):
            yield from keys_of(hints[field.name], f"{prefix}{field.name}.")


def refusal(capsys, *words: str) -> str:
    """Run a command that must fail; return its one line on stderr."""
    assert main(words) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith("worldmodel: ")
    assert printed.err.count("\n") == 1
    assert printed.out == ""
    return printed.err


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_the_overview_names_every_verb(capsys, words):
    assert main(words) == 0
    lines = capsys.readouterr().out.splitlines()
    for name, verb in VERBS.items():
        assert any(line.split()[:1] == [name] and verb.does in line for line in lines)


def test_the_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"worldmodel {worldmodel.__version__}\n"


@pytest.mark.parametrize("verb", VERBS)
def test_help_lists_every_setting_with_its_default(capsys, verb):
    assert main([verb, "--help"]) == 0
    text = capsys.readouterr().out
    assert text.startswith(f"worldmodel {verb} [key=value ...]: ")
    if VERBS[verb].config is None:
        return
    lines = [line.strip() for line in text.splitlines()]
    for path, name in keys_of(config_of(verb)):
        assert any(line.startswith(f"{name}:") for line in lines), f"{path} is not in the help"


@pytest.mark.parametrize("verb", CONFIGURED)
def test_the_yaml_has_the_defaults_of_the_dataclass(verb):
    assert compose(verb, [], config_of(verb)) == config_of(verb)()


@pytest.mark.parametrize("path", sorted(CONF.rglob("*.yaml")), ids=lambda p: p.stem)
def test_every_top_level_key_of_a_verb_is_explained(path):
    if path.parent != CONF:
        return
    lines = path.read_text(encoding="utf-8").splitlines()
    for before, line in itertools.pairwise(lines):
        if line[:1].isalpha() and not line.startswith("defaults:"):
            group = line.rstrip().endswith(":")
            assert before.startswith("#") or group, f"{path.name}: no comment above '{line}'"


def test_every_size_of_the_model_has_every_knob():
    sizes = {p.stem: yaml.safe_load(p.read_text()) for p in (CONF / "model").glob("*.yaml")}
    names = {field.name for field in dataclasses.fields(config_of("train")().model)}
    assert {"nano", "small"} <= sizes.keys()
    for name, size in sizes.items():
        assert set(size) == names
        assert size["name"] == name
        chosen = compose("train", [f"model={name}"], config_of("train"))
        assert dataclasses.asdict(chosen.model) == size


EXPERIMENTS = sorted(path.stem for path in (CONF / "experiment").glob("*.yaml"))


@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_is_whole_and_settings_beside_it_win(name):
    kind = config_of("train")
    config = compose("train", [f"experiment={name}"], kind)
    own = yaml.safe_load((CONF / "experiment" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert {"store", "out", "checkpoint"} <= own.keys()
    assert (config.store, config.out) == (own["store"], own["out"])
    require_core(config)
    words = ["core_loop.steps=7", "model=small", "out=runs/other"]
    changed = compose("train", [*words, f"experiment={name}"], kind)
    assert (changed.core_loop.steps, changed.out) == (7, "runs/other")
    assert changed.model.name == "small"
    assert changed.mixture == config.mixture


def test_each_bundled_checkpoint_has_its_experiment():
    made = {compose("train", [f"experiment={n}"], config_of("train")).checkpoint: n
            for n in EXPERIMENTS if n.startswith("ship-")}  # fmt: skip
    assert set(bundled_names()) <= made.keys()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["train", "experiment=ship-dom"], "no experiment=ship-dom. Did you mean 'ship-doom'"),
        (["play", "experiment=ship-doom"], "`worldmodel play` has no setting 'experiment'"),
        (["eval", "model=nano"], "`worldmodel eval` has no setting 'model'"),
    ],
)
def test_an_experiment_that_does_not_exist_is_one_sentence(capsys, words, message):
    assert main(words) == 2
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


@pytest.mark.parametrize("verb", CONFIGURED)
def test_every_setting_is_read_somewhere(verb):
    """A setting that nobody reads is a lie."""
    read = set()
    for folder in ("worldmodel", "envs", "datasets", "evaluate", "train", "viewer"):
        for path in (ROOT / folder).rglob("*.py"):
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                    read.add(node.attr)
    by_name = {f"mixture.{kind}" for kind in ("text", "caption", "imagine", "question", "video")}
    by_name |= {f"mixture.{kind}" for kind in ("action", "instructed", "commanded")}
    for path, name in keys_of(config_of(verb)):
        assert path in by_name or name in read, f"nobody reads {path}"


def test_overrides_arrive(tmp_path):
    config = compose(
        "train",
        ["stage=core", "core.rows=3", "core_loop.lr=2", "model.ffn=dense", "mixture.forms=[1,0,2]",
         f"out={tmp_path}", "checkpoint=2024"],
        config_of("train"),
    )  # fmt: skip
    assert config.stage == "core"
    assert config.core.rows == 3
    assert config.core_loop.lr == 2.0
    assert isinstance(config.core_loop.lr, float)
    assert config.model.ffn == "dense"
    assert config.model.width == config_of("train")().model.width
    assert config.mixture.forms == (1.0, 0.0, 2.0)
    assert config.out == str(tmp_path)
    assert config.checkpoint == "2024", "a name made of digits is a name"


def test_optional_settings_take_null_and_a_value():
    data = config_of("data")
    assert compose("data", ["split=null"], data).split is None
    assert compose("data", ["split=val"], data).split == "val"


def test_the_second_word_of_data_is_its_command(monkeypatch):
    seen = []
    monkeypatch.setattr("worldmodel.datasets.commands.main", lambda c: seen.append(c) or 0)
    assert main(["data", "validate", "store=x.zarr"]) == 0
    assert main(["data", "store=x.zarr"]) == 0
    assert [c.command for c in seen] == ["validate", "info"]
    assert seen[0].store == "x.zarr"


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["pley"], ["Unknown command 'pley'.", "Did you mean 'play'?"]),
        (["xyz"], ["Unknown command 'xyz'.", "Known: collect, data"]),
        (["play", "chekpoint=x"], ["no setting 'chekpoint'.", "Did you mean 'checkpoint'?"]),
        (["train", "core.lenght=3"], ["no setting 'core.lenght'.", "'core.length'?"]),
        (["train", "+new=3"], ["no setting 'new'."]),
        (["collect", "episodes"], ["'episodes' is not a setting", "key=value", "collect --help"]),
        (["data", "info", "store"], ["'store' is not a setting"]),
        (["play", "=3"], ["no setting ''"]),
        (["train", "vocab=many"], ["'vocab' must be a whole number, got 'many'."]),
        (["train", "vocab=1.5"], ["'vocab' must be a whole number, got 1.5."]),
        (["train", "core.rows=true"], ["'core.rows' must be a whole number, got True."]),
        (["train", "core_loop.lr=fast"], ["'core_loop.lr' must be a number, got 'fast'."]),
        (["train", "core_loop.lr="], ["'core_loop.lr' must be a number"]),
        (["play", "smooth=7"], ["'smooth' must be true or false, got 7."]),
        (["play", "script=[a,b]"], ["'script' must be a text"]),
        (["eval", "clips=null"], ["'clips' must be a whole number, got None."]),
        (["eval", "instructions=left"], ["'instructions' must be a list like [a,b], got 'left'."]),
        (["train", "mixture.forms=[1,2]"], ["'mixture.forms' must have 3 values, got 2."]),
        (["train", "core=5"], ["'core' must be a group of settings, got 5."]),
        (["train", "model=nanno"], ["no model=nanno. Did you mean 'nano'?", "small"]),
        (["play", "script={unclosed"], ["could not be read"]),
        (["play", "seed=1,2"], ["could not be read"]),
        (["doctor", "seed=1"], ["`worldmodel doctor` takes no settings, got 'seed=1'."]),
    ],
    ids=lambda value: " ".join(value) if isinstance(value[0], str) else None,
)
def test_mistakes_are_one_sentence_with_what_was_expected(capsys, words, parts):
    message = refusal(capsys, *words)
    for part in parts:
        assert part in message


@dataclasses.dataclass(frozen=True)
class Group:
    size: int = 1


@dataclasses.dataclass(frozen=True)
class Settings:
    group: Group = dataclasses.field(default_factory=Group)
    many: tuple[int, ...] = ()


def test_plain_data_becomes_a_nested_dataclass():
    made = to_dataclass({"group": {"size": 3}, "many": [1, 2]}, Settings)
    assert made == Settings(Group(3), (1, 2))
    with pytest.raises(UserError, match=r"Unknown setting 'group\.sise'\. Did you mean 'size'"):
        to_dataclass({"group": {"sise": 3}}, Settings)
    with pytest.raises(UserError, match="'many' must be a whole number"):
        to_dataclass({"many": ["x"]}, Settings)


def run(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "worldmodel.cli", *words],
        cwd=folder,
        capture_output=True,
        text=True,
        timeout=120,
    )


def test_a_real_process_tells_a_mistake_and_exits_with_2(tmp_path):
    done = run("trian", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("worldmodel: Unknown command 'trian'. Did you mean 'train'?")
    assert done.stderr.count("\n") == 1


def test_a_real_process_refuses_a_setting_and_leaves_nothing_behind(tmp_path):
    done = run("collect", "episods=3", folder=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert "no setting 'episods'. Did you mean 'episodes'?" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == [], "Hydra makes no folders"


def test_a_reader_that_leaves_is_no_error(tmp_path):
    command = f"{sys.executable} -m worldmodel.cli train --help | head -n 1"
    done = subprocess.run(
        command, shell=True, cwd=tmp_path, capture_output=True, text=True, timeout=60
    )
    assert done.stdout.startswith("worldmodel train")
    assert done.stderr == ""


def test_ctrl_c_is_told_and_exits_with_130(capsys, monkeypatch):
    def interrupted(config):
        raise KeyboardInterrupt

    monkeypatch.setattr("worldmodel.datasets.commands.main", interrupted)
    assert main(["data"]) == 130
    assert capsys.readouterr().err == "worldmodel: stopped.\n"
