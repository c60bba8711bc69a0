"""The command line: `worldmodel <verb> [key=value ...]`.

Each verb has a Hydra configuration in `worldmodel/conf/<verb>.yaml`; it is composed here, at
the door, and becomes the verb's frozen dataclass. Nobody behind the door sees Hydra. The
verb's package is imported only when the verb is called.
"""

import dataclasses
import importlib
import itertools
import os
import sys
import textwrap
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from worldmodel.errors import UserError, suggest

CONF = Path(__file__).parent / "conf"


@dataclasses.dataclass(frozen=True)
class Verb:
    """Where a verb lives: its function and the dataclass that it takes.

    Attributes:
        does: what it does, for the overview.
        main: the function. config: its dataclass.
        commands: whether its first word may be a command, as in `data info`.
        listed: a setting that may be said as a word with a list after it: `eval compare A B`.
    """

    does: str
    main: str
    config: str | None = None
    commands: bool = False
    listed: str = ""


VERBS = {
    "play": Verb(
        "drive the imagined world with keys and sentences",
        "worldmodel.viewer.app:main",
        "worldmodel.viewer.config:PlayConfig",
    ),
    "serve": Verb(
        "let people play from other machines and in browsers",
        "worldmodel.viewer.serve:main",
        "worldmodel.viewer.serve_config:ServeConfig",
    ),
    "collect": Verb(
        "let a policy play a world and store what it sees",
        "worldmodel.cli:collect",
        "worldmodel.datasets.collect:CollectConfig",
    ),
    "data": Verb(
        "look at stores, care for them, bring data in and out",
        "worldmodel.datasets.commands:main",
        "worldmodel.datasets.commands:DataConfig",
        commands=True,
    ),
    "train": Verb(
        "train tokenizer, encoder, decoder and core from a store",
        "worldmodel.train.run:main",
        "worldmodel.train.config:TrainConfig",
    ),
    "eval": Verb(
        "measure a checkpoint on held-out levels",
        "worldmodel.evaluate.run:main",
        "worldmodel.evaluate.config:EvalConfig",
        listed="compare",
    ),
    "plan": Verb(
        "reach goals by planning in the imagination",
        "worldmodel.evaluate.plan_run:main",
        "worldmodel.evaluate.plan_config:PlanConfig",
    ),
    "doctor": Verb("say what is installed and which device will be used", "worldmodel.doctor:main"),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run a verb; a user's mistake is one sentence on stderr and exit code 2."""
    words = list(sys.argv[1:] if argv is None else argv)
    try:
        return _run(words)
    except UserError as error:
        print(f"worldmodel: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("worldmodel: stopped.", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output left, as `| head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0


def _run(words: list[str]) -> int:
    if not words or words[0] in ("-h", "--help", "help"):
        print(_overview())
        return 0
    if words[0] in ("-V", "--version"):
        from worldmodel import __version__

        print(f"worldmodel {__version__}")
        return 0
    name, *rest = words
    if name not in VERBS:
        raise UserError(f"Unknown command '{name}'.{suggest(name, VERBS)}")
    verb = VERBS[name]
    if any(word in ("-h", "--help") for word in rest):
        print(_help(name, verb))
        return 0
    if verb.config is None:
        if rest:
            raise UserError(f"`worldmodel {name}` takes no settings, got '{rest[0]}'.")
        return _resolve(verb.main)()
    if verb.commands and rest and "=" not in rest[0]:
        rest[0] = f"command={rest[0]}"
    if verb.listed and rest[:1] == [verb.listed]:
        rest = _as_list(name, *rest)
    config = compose(name, rest, _resolve(verb.config))
    return _resolve(verb.main)(config)


def _as_list(verb: str, key: str, *words: str) -> list[str]:
    """Return `KEY A B ...` as the setting KEY=[A,B], and the settings that follow."""
    items = list(itertools.takewhile(lambda word: "=" not in word, words))
    if not items:
        raise UserError(f"What to {key} is missing, for instance: worldmodel {verb} {key} A B.")
    quoted = ("'" + item.replace("'", "\\'") + "'" for item in items)
    return [f"{key}=[{','.join(quoted)}]", *words[len(items) :]]


def collect(config: Any) -> int:
    """Hand the collector its worlds, policies and language; those folders do not meet."""
    from worldmodel.envs import annotate, make_policy, make_world

    if config.policy == "human":
        from worldmodel.viewer.human import main as play

        return play(config, make_world, annotate)
    from worldmodel.datasets.collect import main as run

    return run(config, make_world, make_policy, annotate)


def compose(verb: str, overrides: Sequence[str], kind: type) -> Any:
    """Compose `conf/<verb>.yaml` with overrides into the dataclass `kind`.

    Raises:
        UserError: an override that is not key=value, an unknown key, a value of a wrong type.
    """
    from hydra import compose as hydra_compose
    from hydra import initialize_config_module
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    for word in overrides:
        if "=" not in word:
            raise UserError(
                f"'{word}' is not a setting; settings look like key=value. See: "
                f"worldmodel {verb} --help"
            )
    groups = _groups(verb)
    try:
        with initialize_config_module("worldmodel.conf", version_base=None):
            plain = hydra_compose(verb)
            known = {*_paths(OmegaConf.to_container(plain)), *groups}
            for word in overrides:
                key, value = word.split("=", 1)
                key = key.lstrip("+~")
                if key not in known:
                    raise UserError(
                        f"`worldmodel {verb}` has no setting '{key}'.{suggest(key, known)}"
                    )
                if key in groups and value not in _choices(key):
                    raise UserError(f"There is no {word}.{suggest(value, _choices(key))}")
            words = [_literal(word, plain) for word in overrides]
            composed = hydra_compose(verb, overrides=words)
        data = OmegaConf.to_container(composed, resolve=True)
    except (HydraException, OmegaConfBaseException) as error:
        lines = [line for line in str(error).splitlines() if line.strip()]
        raise UserError(f"The settings could not be read: {' '.join(lines[:3])}") from None
    return to_dataclass(data, kind)


def _literal(word: str, plain: Any) -> str:
    """Return a setting with its text in quotes where it has a '#', as links have."""
    from omegaconf import OmegaConf

    key, value = word.split("=", 1)
    text = isinstance(OmegaConf.select(plain, key.lstrip("+~")), str)
    if not text or "#" not in value or value[:1] in "'\"":
        return word
    quoted = value.replace("'", "\\'")
    return f"{key}='{quoted}'"


def to_dataclass(data: Any, kind: Any, where: str = "") -> Any:
    """Convert plain data to a (nested) dataclass, checking every name and type."""
    if dataclasses.is_dataclass(kind):
        if not isinstance(data, Mapping):
            raise UserError(f"'{where[:-1]}' must be a group of settings, got {data!r}.")
        hints = typing.get_type_hints(kind)
        names = {field.name for field in dataclasses.fields(kind)}
        for key in data:
            if key not in names:
                raise UserError(f"Unknown setting '{where}{key}'.{suggest(str(key), names)}")
        values = {k: to_dataclass(v, hints[k], f"{where}{k}.") for k, v in data.items()}
        return typing.cast(Callable[..., Any], kind)(**values)
    return _to_plain(data, kind, where.rstrip("."))


def _to_plain(data: Any, kind: Any, where: str) -> Any:
    origin, inner = typing.get_origin(kind), typing.get_args(kind)
    if origin in (typing.Union, types.UnionType):
        if data is None and type(None) in inner:
            return None
        kind = next(t for t in inner if t is not type(None))
        return _to_plain(data, kind, where)
    if origin is tuple:
        if not isinstance(data, list | tuple):
            raise UserError(f"'{where}' must be a list like [a,b], got {data!r}.")
        many = len(inner) == 2 and inner[1] is Ellipsis
        kinds = [inner[0]] * len(data) if many else list(inner)
        if len(kinds) != len(data):
            raise UserError(f"'{where}' must have {len(kinds)} values, got {len(data)}.")
        return tuple(_to_plain(v, k, where) for v, k in zip(data, kinds, strict=True))
    if kind is float and isinstance(data, int) and not isinstance(data, bool):
        return float(data)
    if kind is str and isinstance(data, int | float) and not isinstance(data, bool):
        return str(data)  # Hydra reads out=2024 as a number
    if kind is not Any and (not isinstance(data, kind) or (kind is int and isinstance(data, bool))):
        raise UserError(f"'{where}' must be {_kind_name(kind)}, got {data!r}.")
    return data


def _kind_name(kind: type) -> str:
    names = {int: "a whole number", float: "a number", bool: "true or false", str: "a text"}
    return names.get(kind, kind.__name__)


def _paths(data: Any, prefix: str = "") -> list[str]:
    paths = []
    for key, value in data.items():
        paths.append(f"{prefix}{key}")
        if isinstance(value, Mapping):
            paths += _paths(value, f"{prefix}{key}.")
    return paths


def _resolve(path: str) -> Any:
    module, name = path.split(":")
    return getattr(importlib.import_module(module), name)


def _overview() -> str:
    lines = ["worldmodel <command> [key=value ...]", ""]
    lines += [f"  {name:9}{verb.does}" for name, verb in VERBS.items()]
    lines += ["", "worldmodel <command> --help lists a command's settings."]
    return "\n".join(lines)


def _help(name: str, verb: Verb) -> str:
    head = f"worldmodel {name} [key=value ...]: {verb.does}\n"
    path = CONF / f"{name}.yaml"
    if not path.exists():
        return head
    text = head + "\nSettings and their defaults:\n\n" + path.read_text().rstrip()
    for group in _groups(name):
        text += f"\n\n# {group}=NAME is one of: {', '.join(_choices(group))}"
    if "model" in _groups(name):
        text += "\nmodel:\n"
        text += textwrap.indent((CONF / "model" / "nano.yaml").read_text().rstrip(), "  ")
    return text


def _groups(verb: str) -> list[str]:
    """Return what a verb takes whole files of settings for, as `model`."""
    import yaml

    settings = yaml.safe_load((CONF / f"{verb}.yaml").read_text())
    named = [entry for entry in settings.get("defaults", []) if isinstance(entry, dict)]
    return [group for entry in reversed(named) for group in entry]


def _choices(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


if __name__ == "__main__":
    sys.exit(main())
