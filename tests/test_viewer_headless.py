"""The whole viewer without a display, as a process: scripts, recordings, reports, bad input."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import av
import numpy as np
import pytest
import yaml
from PIL import Image

TOY = Path(__file__).with_name("viewer_toy.py")

SCRIPT = """
start: {seed: 3}
seed: 7
steps: 24
events:
  - {at: 0, hold: w, for: 8}
  - {at: 4, hold: a, for: 2}
  - {at: 10, say: "turn right é 打"}
  - {at: 20, clear: true}
"""


def play(folder, *arguments, env=None, script=SCRIPT, timeout_s=60):
    (folder / "script.yaml").write_text(script, encoding="utf-8")
    return subprocess.run(
        [sys.executable, TOY, "headless=true", "script=script.yaml", *arguments],
        cwd=folder,
        env=bare_environment() | (env or {}),
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )


def bare_environment():
    hidden = ("DISPLAY", "WAYLAND_DISPLAY", "SDL_VIDEODRIVER", "SDL_AUDIODRIVER")
    return {key: value for key, value in os.environ.items() if key not in hidden}


def test_a_script_runs_without_a_display_and_leaves_everything(tmp_path):
    outputs = ["record=out/o.mp4", "frames=f.npz", "report=r.json", "screenshot=s.png"]
    done = play(tmp_path, *outputs)
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith("device: cpu (no CUDA device found), float32")
    assert lines[1].startswith("first imagined frame after ")
    assert done.stderr == ""

    frames = np.load(tmp_path / "f.npz")["frames"]
    assert (frames.shape, frames.dtype) == ((24, 48, 64, 3), np.uint8)
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    assert (report["device"], report["dtype"], report["checkpoint"]) == ("cpu", "float32", "toy")
    assert (report["frames"], report["start"]) == (24, 3)
    assert report["fps"] > 0
    assert 0 < report["latency_ms"]["median"] <= report["latency_ms"]["p95"]
    assert 0 < report["start_s"] < 30
    assert report["peak_memory_mb"] > 10
    texts = [event["text"] for event in report["events"]]
    assert texts[:9] == ["action: w"] * 4 + ["action: w+a"] * 2 + ["action: w"] * 2 + [
        "action: none"
    ]
    assert texts[10:20] == ["instruction: turn right é 打"] * 10
    assert texts[20:] == ["action: none"] * 4

    with av.open(str(tmp_path / "out" / "o.mp4")) as video:
        stream = video.streams.video[0]
        assert stream.frames == 24
        assert min(stream.width, stream.height) >= 512
        shown = [picture.to_ndarray(format="rgb24") for picture in video.decode(stream)]
    assert len(shown) == 24
    small = shown[-1][5::11, 5::11].astype(int)
    assert np.abs(small - frames[-1].astype(int)).mean() < 12
    with Image.open(tmp_path / "s.png") as screenshot:
        assert screenshot.size == (1000, 800)
    assert not [path for path in tmp_path.rglob("*") if ".part" in path.name]


def test_answers_stand_in_the_report_where_they_were_asked_for(tmp_path):
    script = """
steps: 6
events:
  - {at: 0, hold: w}
  - {at: 2, say: "what is ahead?"}
  - {at: 4, say: "turn right"}
  - {at: 4, say: "is it dark?"}
"""
    done = play(tmp_path, "report=r.json", script=script)
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    events = [(e["step"], e["text"], e.get("answer")) for e in report["events"]]
    assert report["frames"] == 6
    assert events[:4] == [
        (0, "action: w", None),
        (1, "action: w", None),
        (2, "what is ahead?", "3 words after 2 steps"),
        (2, "action: w", None),
    ]
    assert events[5] == (4, "is it dark?", "3 words after 4 steps")
    assert events[6] == (4, "instruction: turn right\naction: w", None)
    assert len(events) == 8


def test_a_fork_of_a_script_is_imagined_filmed_as_a_grid_and_its_first_branch_goes_on(tmp_path):
    script = """
steps: 8
events:
  - {at: 0, hold: d}
  - {at: 2, fork: [w, a, {say: turn right}]}
  - {at: 5, press: a}
  - {at: 6, fork: [s, w]}
"""
    outputs = ["record=o.mp4", "frames=f.npz", "report=r.json", "scenario=p.yaml"]
    done = play(tmp_path, *outputs, script=script)
    assert done.returncode == 0, done.stderr
    events = json.loads((tmp_path / "r.json").read_text())["events"]
    told = [(event.get("branch", 0), event["text"].removeprefix("action: ")) for event in events]
    first = [(1, "w"), (2, "a"), (3, "instruction: turn right")]
    second = [(1, "s"), (2, "w")]
    assert told == [(0, "d"), (0, "d"), *first * 3, (0, "w+a"), *second * 2]
    path = yaml.safe_load((tmp_path / "p.yaml").read_text())
    assert path["steps"] == 8  # along the first branches
    assert path["events"][-1] == {"at": 6, "hold": "s", "for": 2}

    frames = np.load(tmp_path / "f.npz")["frames"].astype(int)
    assert len(frames) == len(events)
    with av.open(str(tmp_path / "o.mp4")) as video:
        shown = [p.to_ndarray(format="rgb24").astype(int) for p in video.decode(video=0)]
    assert len(shown) == 8  # one picture per step
    height, width = shown[0].shape[:2]
    assert np.abs(shown[0][5::11, 5::11] - frames[0]).mean() < 12
    quarter = shown[2][: height // 2, : width // 2]  # the first of three futures
    factor = 5
    top, left = (height - 2 * 48 * factor) // 2, (width - 2 * 64 * factor) // 2
    tile = quarter[top + 2 :: factor, left + 2 :: factor][:48, :64]
    assert np.abs(tile - frames[2]).mean() < 12
    assert shown[2][-height // 3 :, -width // 3 :].mean() < 5  # there is no fourth


def test_the_same_script_gives_the_same_frames(tmp_path):
    for name in ("a.npz", "b.npz"):
        assert play(tmp_path, f"frames={name}").returncode == 0
    first, second = (np.load(tmp_path / name)["frames"] for name in ("a.npz", "b.npz"))
    assert np.array_equal(first, second)


@pytest.mark.parametrize(
    ("arguments", "env", "script", "parts"),
    [
        ([], {}, "stepps: 3", ["'stepps'", "Did you mean 'steps'"]),
        ([], {}, "steps: 3\nevents: [{at: 0, hold: x}]", ["Unknown key 'x'"]),
        ([], {}, "steps: 3\nevents: [{at: 1, fork: [w, x]}]", ["Unknown key 'x'"]),
        ([], {}, f"steps: 3\nevents: [{{at: 0, say: '{'x' * 10_000}'}}]", ["10000 characters"]),
        ([], {}, "steps: 3\nevents: [{at: 0, say: ''}]", ["empty"]),
        ([], {"TOY_FAIL": "missing"}, SCRIPT, ["Unknown checkpoint", "Did you mean"]),
        (["record=/proc/no/o.mp4"], {}, SCRIPT, ["Cannot make the folder"]),
        (["report=."], {}, SCRIPT, ["is a folder"]),
    ],
)
def test_bad_input_is_one_sentence(tmp_path, arguments, env, script, parts):
    done = play(tmp_path, *arguments, env=env, script=script)
    assert done.returncode == 2, done.stdout + done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    for part in parts:
        assert part in done.stderr


def test_no_display_names_the_way_out(tmp_path):
    for env, part in (({}, "There is no display"), ({"DISPLAY": ":7654"}, ":7654")):
        done = subprocess.run(
            [sys.executable, TOY],
            env=bare_environment() | env,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.returncode == 2, done.stdout + done.stderr
        assert part in done.stderr
        assert "headless=true" in done.stderr


def test_a_model_that_breaks_ends_a_script_with_its_own_error(tmp_path):
    done = play(tmp_path, "record=o.mp4", env={"TOY_FAIL": "step"})
    assert done.returncode == 1
    assert "RuntimeError: out of memory" in done.stderr
    with av.open(str(tmp_path / "o.mp4")) as video:
        assert video.streams.video[0].frames == 2


def test_a_killed_recording_plays_up_to_the_last_second(tmp_path):
    (tmp_path / "o.mp4").write_bytes(b"an older recording")
    (tmp_path / "script.yaml").write_text("steps: 100000", encoding="utf-8")
    process = subprocess.Popen(
        [sys.executable, TOY, "headless=true", "script=script.yaml", "record=o.mp4", "fps=10"],
        cwd=tmp_path,
        env=bare_environment() | {"TOY_DELAY_S": "0.005"},
        stdout=subprocess.DEVNULL,
    )
    part = tmp_path / "o.part.mp4"
    end = time.monotonic() + 60
    while not (part.exists() and part.stat().st_size > 60_000):
        assert time.monotonic() < end, "the recording does not grow"
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait(10)
    with av.open(str(part)) as video:
        assert sum(1 for _ in video.decode(video=0)) >= 10
    assert (tmp_path / "o.mp4").read_bytes() == b"an older recording"
