"""`worldmodel data info|validate|preview`."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.datasets.commands import DataConfig, main
from worldmodel.datasets.store import EpisodeStore, EpisodeWriter
from worldmodel.errors import UserError
from worldmodel.world import Annotation, Episode, WorldSpec

TABLE = ActionTable(
    (
        ActionRow("forward", "w", "walk", dx=0.5, phrases=("step forward",)),
        ActionRow("left", "a", "turn", dyaw=10.0, phrases=("turn left",)),
    )
)
SPEC = WorldSpec("toy", TABLE, 16, 16, fps=10.0, objects=("red torch",))
SAID = (
    Annotation("caption", 0, 0, "a dark corridor that has a great many words said about it " * 4),
    Annotation("caption", 5, 5, "日本語 \U0001f3ae ünï"),
    Annotation("question", 2, 2, "where is the red torch?", "to the left"),
    Annotation("instruction", 1, 9, "walk to the red torch"),
)


@pytest.fixture
def store(tmp_path: Path) -> Path:
    writer = EpisodeWriter(tmp_path / "x.zarr", SPEC, licence="CC0-1.0", command="make it")
    for seed in range(4):
        steps = 30 if seed else 3
        keys = (np.arange(steps) % 4).astype(np.uint16)
        actions = np.array([_move(k) for k in keys.tolist()], np.float32)
        frames = np.random.default_rng(seed).integers(0, 256, (steps + 1, 16, 16, 3), np.uint8)
        info = {"seed": seed, "split": "val" if seed == 3 else "train", "policy": "mix"}
        writer.write(Episode(frames, actions, keys, {}, SAID if seed else (), info))
    return writer.path


def _move(mask: int) -> tuple[float, float, float]:
    action = TABLE.from_mask(mask)
    return action.dx, action.dy, action.dyaw


def run(command: str, store: Path, **options) -> int:
    return main(DataConfig(command, str(store), **options))


def test_info(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("info", store) == 0
    text = capsys.readouterr().out
    for said in (
        "toy, 16x16 pixels, 10 steps/s",
        "4 (train 3, val 1)",
        "97 in 93 steps",
        "red torch",
        "none 26.9 %",
        "w+a 22.6 %",
        "caption 6, instruction 3, question 3",
        "mix 4",
        "CC0-1.0",
        "make it",
    ):
        assert said in text, f"{said} is not in {text}"
    assert run("info", store, split="val") == 0
    assert "31 in 30 steps" in capsys.readouterr().out


def test_validate_names_what_is_damaged(store: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run("validate", store) == 0
    assert "4 episodes checked, all intact" in capsys.readouterr().out
    ids = EpisodeStore(store).ids
    shard = store / "episodes" / ids[1] / "frames/c/0/0/0/0"
    data = bytearray(shard.read_bytes())
    data[100] ^= 1
    shard.write_bytes(data)
    (store / "episodes" / ids[2] / "packed/c/0").unlink()
    (store / "episodes" / "notes").mkdir()
    assert run("validate", store) == 1
    text = capsys.readouterr().out
    assert f"'frames' of episode {ids[1]}" in text
    assert f"'packed' of episode {ids[2]}" in text
    assert "notes is not an episode" in text
    assert "4 episodes checked, 3 problems" in text
    assert run("info", store) == 0
    assert "1 episodes: see" in capsys.readouterr().out  # info does not read the frames
    assert run("validate", store, split="val") == 1  # the stray folder is of no split


def test_validate_finds_any_flipped_byte(store: Path) -> None:
    name = EpisodeStore(store).ids[0]
    rng = np.random.default_rng(0)
    for file in ("frames/c/0/0/0/0", "frames/zarr.json", "packed/c/0", "packed/zarr.json"):
        path = store / "episodes" / name / file
        intact = path.read_bytes()
        for position in rng.integers(0, len(intact), 12):
            damaged = bytearray(intact)
            damaged[position] ^= 1 << int(rng.integers(0, 8))
            path.write_bytes(damaged)
            with pytest.raises(UserError, match="damaged"):
                EpisodeStore(store).check(name)
        path.write_bytes(intact)
    EpisodeStore(store).check(name)


def test_validate_tells_of_leftovers_and_removes_them(
    store: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    left = store / "episodes" / ".tmp-something"
    left.mkdir()
    assert run("validate", store) == 0
    assert "1 unfinished episodes" in capsys.readouterr().out
    assert left.exists()
    assert run("validate", store, clean=True) == 0
    assert "Removed 1" in capsys.readouterr().out
    assert not left.exists()


def test_preview_shows_frames_and_text(store: Path, tmp_path: Path) -> None:
    out = tmp_path / "deep" / "sheet.png"
    assert run("preview", store, out=str(out), episodes=9, columns=5, every=3) == 0
    sheet = np.asarray(Image.open(out).convert("RGB"))
    assert sheet.shape[0] > 4 * 192
    assert sheet.shape[1] > 5 * 192
    opened = EpisodeStore(store)
    enlarged = np.kron(opened.frames(opened.ids[0])[3], np.ones((12, 12, 1), np.uint8))
    left = 12 + (192 + 12)  # the second frame of the first row
    np.testing.assert_array_equal(sheet[30:222, left : left + 192], enlarged)
    reds = np.all(sheet[222:245, left : left + 192] == (176, 42, 30), axis=-1)
    assert reds.sum() > 20  # the action under it
    assert len(np.unique(sheet[245:300].reshape(-1, 3), axis=0)) == 1  # nothing said about it


def test_preview_of_what_cannot_be_shown(store: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="columns=0"):
        run("preview", store, columns=0)
    (tmp_path / "file").write_text("x")
    with pytest.raises(UserError, match="cannot be written"):
        run("preview", store, out=str(tmp_path / "file" / "x.png"))
    empty = EpisodeWriter(tmp_path / "empty.zarr", SPEC).path
    with pytest.raises(UserError, match="no episodes to show"):
        run("preview", empty)
    assert run("info", empty) == 0
    assert run("validate", empty) == 0


def test_mistakes_suggest_what_was_meant(store: Path) -> None:
    with pytest.raises(UserError, match=r"command 'prewiew'\. Did you mean 'preview'\?"):
        run("prewiew", store)
    with pytest.raises(UserError, match=r"no split 'trian'\. Did you mean 'train'\?"):
        run("info", store, split="trian")
    with pytest.raises(UserError, match="There is no store at"):
        run("info", store.parent / "none.zarr")
