"""Checkpoints: what is loaded is what was saved, and damage is told in one sentence."""

import ast
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

import worldmodel
from worldmodel import checkpoint as checkpoints
from worldmodel.actions import ActionRow, ActionTable
from worldmodel.checkpoint import FILES, Checkpoint, load, save
from worldmodel.dream import Dream
from worldmodel.encoders.rae import RAE, RAEConfig
from worldmodel.errors import UserError
from worldmodel.stream import Engine
from worldmodel.text import train_tokenizer
from worldmodel.transformer import Core, CoreConfig
from worldmodel.world import WorldSpec

ROOT = Path(worldmodel.__file__).parents[1]
FOLDERS = ("worldmodel", "envs", "datasets", "evaluate", "train", "viewer")
SPEC = WorldSpec(
    "toy",
    ActionTable((ActionRow("forward", "w", "go", dx=0.5, phrases=("go", "walk")),)),
    height=16,
    width=16,
    fps=5.0,
    objects=("red pillar",),
)


def make() -> Checkpoint:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["action: w", "action: none"] * 9, 300)
    shape = {"width": 32, "depth": 2, "heads": 2, "kv_heads": 1, "hidden": 32, "experts": 6}
    core = Core(
        CoreConfig(tokenizer.vocab_size, (4, 4), latent_channels=4, merge=2, window=3, **shape)
    )
    for head in (core.say, core.paint):
        torch.nn.init.normal_(head.weight, std=0.1)
    core.blocks[0].feed_forward.router.bias.normal_()
    encoder = RAE(RAEConfig(16, 4, 4, width=16, heads=2, encoder_depth=1, decoder_depth=1))
    encoder.mean.normal_()
    rng = np.random.default_rng(0)
    return Checkpoint(
        name="tiny",
        core=core.eval(),
        encoder=encoder.eval(),
        tokenizer=tokenizer,
        spec=SPEC,
        start_frames=rng.integers(0, 256, (2, 3, 16, 16, 3), dtype=np.uint8),
        start_keys=np.array([[1, 0], [0, 1]], np.int32),
        context_level=0.9,
        details={"licence": "Apache-2.0", "metrics": {"psnr": 1.5}},
    )


@pytest.fixture(scope="module")
def original() -> Checkpoint:
    return make()


@pytest.fixture
def folder(original, tmp_path) -> Path:
    path = tmp_path / "tiny"
    save(original, path)
    return path


def imagine(checkpoint: Checkpoint) -> np.ndarray:
    dream = Dream(Engine(checkpoint, torch.device("cpu"), torch.float32), denoise_steps=2)
    dream.reset(seed=1)
    dream.say("go")
    keys = [SPEC.actions.press("w"), None, SPEC.actions.press("w")]
    return np.stack([dream.step(action).frame for action in keys]).astype(int)


def refusal(folder: Path) -> str:
    with pytest.raises(UserError) as caught:
        load(str(folder))
    message = str(caught.value)
    assert "\n" not in message
    assert message.endswith(".")
    return message


def test_in_full_precision_the_dream_is_the_same(original, tmp_path):
    save(original, tmp_path / "full", half=False)
    loaded = load(str(tmp_path / "full"))
    assert np.array_equal(imagine(original), imagine(loaded))


def test_in_half_precision_the_dream_is_nearly_the_same(original, folder):
    loaded = load(str(folder))
    state = loaded.core.state_dict()
    assert all(v.dtype == torch.float32 for v in state.values())
    for name, value in original.core.state_dict().items():
        assert torch.allclose(state[name], value, atol=1e-3, rtol=1e-3), name
    difference = np.abs(imagine(original) - imagine(loaded))
    assert difference.max() <= 3
    once = tuple(p.half().float() for p in original.core.parameters())
    assert all(torch.equal(a, b) for a, b in zip(once, loaded.core.parameters(), strict=True))


def test_everything_else_comes_back(original, folder):
    loaded = load(str(folder))
    assert loaded.name == "tiny"
    assert loaded.folder == folder
    assert loaded.spec == SPEC
    assert loaded.core.config == original.core.config
    assert loaded.encoder.config == original.encoder.config
    assert loaded.tokenizer.to_json() == original.tokenizer.to_json()
    assert np.array_equal(loaded.start_frames, original.start_frames)
    assert np.array_equal(loaded.start_keys, original.start_keys)
    assert loaded.start_frames.dtype == np.uint8
    assert (loaded.context_level, loaded.details) == (0.9, original.details)
    assert not loaded.core.training


def test_an_encoder_of_no_kind_is_the_embedded_one(original, folder):
    """The first checkpoints did not say a kind."""
    config = json.loads((folder / "config.json").read_text())
    assert config["encoder"].pop("kind") == "rae"
    (folder / "config.json").write_text(json.dumps(config))
    loaded = load(str(folder))
    assert loaded.encoder.describe() == original.encoder.describe()
    config["encoder"]["kind"] = "raee"
    (folder / "config.json").write_text(json.dumps(config))
    assert "no frame encoder of the kind 'raee'. Did you mean 'rae'?" in refusal(folder)


def test_saving_again_replaces_what_was_there(original, folder):
    other = make()
    with torch.no_grad():
        other.core.paint.bias.fill_(0.5)
    save(other, folder)
    assert load(str(folder)).core.paint.bias.tolist() == [0.5] * 16
    assert sorted(p.name for p in folder.iterdir()) == sorted([*FILES, "config.json"])


@pytest.mark.parametrize("file", FILES)
def test_a_missing_file_is_named(folder, file):
    (folder / file).unlink()
    assert f"{file}' is missing" in refusal(folder)


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["truncated", "flipped", "empty"])
def test_a_damaged_file_is_named(folder, file, damage):
    content = bytearray((folder / file).read_bytes())
    if damage == "flipped":
        content[len(content) // 2] ^= 1
    else:
        del content[0 if damage == "empty" else len(content) // 2 :]
    (folder / file).write_bytes(content)
    assert f"{file}' is damaged" in refusal(folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b"3", b"null", b"{}", b"\xff\xfe\x00", b'{"format": 1}']
)
def test_a_config_that_cannot_be_read_is_named(folder, content):
    (folder / "config.json").write_bytes(content)
    assert "config.json' is damaged" in refusal(folder)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("core", {"width": 32}),
        ("core", {"vocab": 300, "latent_grid": [4, 4], "wings": 2}),
        ("core", []),
        ("encoder", {"size": "large"}),
        ("world", {"name": "toy"}),
        ("files", []),
        ("files", {}),
        ("files", {"core.safetensors": 3}),
    ],
)
def test_a_config_that_makes_no_sense_is_named(folder, key, value):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, key: value}))
    assert "damaged" in refusal(folder)


def test_a_config_of_another_shape_is_refused(folder):
    config = json.loads((folder / "config.json").read_text())
    config["core"]["width"] = 64
    (folder / "config.json").write_text(json.dumps(config))
    assert "does not fit config.json" in refusal(folder)


@pytest.mark.parametrize("number", [0, 2, "1"])
def test_another_format_is_refused_with_both_numbers(folder, number):
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "format": number}))
    message = refusal(folder)
    assert f"format {number}" in message
    assert "format 1" in message


def test_a_checkpoint_whose_saving_was_cut_off_is_none(folder):
    (folder / "config.json").unlink()
    assert "no config.json" in refusal(folder)


def test_a_bundled_name_is_found_and_an_unknown_one_gets_a_suggestion(
    folder, tmp_path, monkeypatch
):
    bundled = tmp_path / "bundled"
    for name in ("racing-nano", "doom-nano"):
        shutil.copytree(folder, bundled / name)
    monkeypatch.setattr(checkpoints, "BUNDLED", bundled)
    assert checkpoints.bundled_names() == ["doom-nano", "racing-nano"]
    for name in checkpoints.bundled_names():
        assert load(name).name == name
    said = refusal(Path("doom-nan"))
    assert "no checkpoint 'doom-nan'. Did you mean 'doom-nano'?" in said
    assert "doom-nano, racing-nano" in said
    monkeypatch.setattr(checkpoints, "BUNDLED", tmp_path / "nowhere")
    assert "(none)" in refusal(Path("doom-nano"))


def test_nothing_is_ever_pickled_or_unpickled():
    """Files from others are read by formats that cannot run code.

    The NWM layout is an exception, whose poses are pickles: its unpickler knows plain arrays only,
    which tests/test_importers.py attacks. So are the published weights of perceptual metrics, for
    which PyTorch's own unpickler of tensors alone is asked for.
    """
    forbidden = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "cPickle"}
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.relative_to(ROOT) == Path("datasets/importers/nwm.py"):
                continue
            for node in ast.walk(ast.parse(path.read_text())):
                where = f"{path.name}:{getattr(node, 'lineno', 0)}"
                if isinstance(node, ast.Import):
                    names = {alias.name.split(".")[0] for alias in node.names}
                    assert not names & forbidden, where
                elif isinstance(node, ast.ImportFrom):
                    assert (node.module or "").split(".")[0] not in forbidden, where
                elif isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                    assert path.relative_to(ROOT) == Path("evaluate/perceptual.py"), where
                    assert "weights_only=True" in ast.unparse(node), where
                elif isinstance(node, ast.Attribute):
                    call = ast.unparse(node)
                    assert call not in ("torch.save", "np.save"), where
                elif isinstance(node, ast.keyword):
                    assert node.arg != "allow_pickle" or ast.unparse(node.value) == "False", where


def test_a_tokenizer_of_another_size_is_refused_with_both(original, tmp_path):
    other = train_tokenizer(["action: w", "something else altogether"] * 9, 280)
    assert other.vocab_size != original.core.config.vocab
    save(replace(original, tokenizer=other), tmp_path / "mixed")
    with pytest.raises(UserError) as caught:
        load(str(tmp_path / "mixed"))
    assert str(other.vocab_size) in str(caught.value)
    assert str(original.core.config.vocab) in str(caught.value)
