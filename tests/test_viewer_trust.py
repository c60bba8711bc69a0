"""The viewer's instruments on real models: the trust meter, the drift, the experts."""

import os
import runpy
import time
from collections import Counter
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

os.environ.setdefault("PYGAME_HIDE_SUPPORT_PROMPT", "1")

from worldmodel.dream import Dream
from worldmodel.encoders.pixels import Pixels, PixelsConfig
from worldmodel.moe import routers
from worldmodel.stream import Engine as Model
from worldmodel.transformer import Core
from worldmodel.viewer.commands import Advance, Denoise, Experts, Jump, Pause, Rewind
from worldmodel.viewer.engine import Engine
from worldmodel.viewer.instruments import SHARE, Instruments
from worldmodel.viewer.script import SessionPlayer
from worldmodel.viewer.tape import Tape
from worldmodel.viewer.trust import EVERY, STARTS, Gauge

make_dream = runpy.run_path(str(Path(__file__).with_name("test_dream.py")))["make_dream"]
W = Advance(("w",))


def a_toy() -> Dream:
    """A small model that sees pixels, in a world of smooth shades."""
    made = make_dream().engine.checkpoint
    core = Core(replace(made.core.config, latent_channels=192)).eval()
    shades = np.linspace(0, 255, 64, dtype=np.uint8)
    frames = np.stack([np.roll(shades, 5 * i)[None, :, None].repeat(64, 0) for i in range(6)])
    frames = frames.repeat(3, axis=-1).reshape(2, 3, 64, 64, 3)
    checkpoint = replace(made, core=core, encoder=Pixels(PixelsConfig()), start_frames=frames)
    dream = Dream(Model(checkpoint, torch.device("cpu"), torch.float32), denoise_steps=2)
    dream.reset(seed=0)
    return dream


def shows(dream: Dream, latent: torch.Tensor) -> None:
    """Let the dream be at a frame that has this latent [N, C]."""
    frame = dream.engine.show(latent[None])[0]
    dream._streams[-1] = replace(dream._stream, latent=latent, frame=frame)


def calibrated(dream: Dream) -> Gauge:
    """A gauge that has done its work."""
    gauge = Gauge(dream.engine)
    while gauge.pending((dream.denoise_steps, dream.guidance)):
        gauge.work()
    return gauge


@pytest.fixture(scope="module")
def doom() -> Dream:
    return Dream.load("doom-nano", device="cpu", guidance=2.0)


@pytest.mark.parametrize("name", ["toy", "doom-nano"])
def test_real_frames_are_green_and_noise_is_red(name, request):
    dream = a_toy() if name == "toy" else request.getfixturevalue("doom")
    gauge = calibrated(dream)
    starts = dream.engine.checkpoint.start_frames
    if len(starts) > STARTS:  # those that it was not calibrated on
        used = np.linspace(0, len(starts) - 1, STARTS).round().astype(int)
        starts = np.delete(starts, used, axis=0)
    for latents, light in (
        (dream.engine.see(starts[:, -1]), "green"),
        (dream.engine.noise(5)[0].repeat(4, 1, 1), "red"),
    ):
        for latent in latents:
            shows(dream, latent)
            gauge.forget()
            reading = gauge.read(dream)
            assert reading is not None
            assert reading.light == light, reading
    gauge.close()


def test_drift_is_small_among_real_clips_and_grows_in_a_world_of_one_colour(doom):
    gauge = calibrated(doom)
    engine, starts = doom.engine, doom.engine.checkpoint.start_frames
    drifts = []
    for frames in (starts[::3].reshape(-1, 64, 64, 3), np.full((16, 64, 64, 3), 90, np.uint8)):
        gauge.forget()
        last = None
        for latent in engine.see(frames):
            shows(doom, latent)
            last = gauge.read(doom) or last
        assert last is not None
        drifts.append(last.drift)
    gauge.close()
    assert drifts[0] < 3 < drifts[1]


def test_instability_needs_two_passes_and_is_calibrated_for_each_number_of_them():
    dream = make_dream(guidance=2.0)
    gauge = Gauge(dream.engine)
    step = partial(dream.step, dream.spec.actions.press(("w",)))
    kinds = []
    for steps in (1, 2, 4):
        dream.denoise_steps = steps
        gauge.forget()
        if steps != 1:
            step()
            assert gauge.read(dream) is None  # not before the work for these settings is done
        while kind := gauge.pending((steps, 2.0)):
            gauge.work()
            kinds.append(kind)
        gauge.begin()
        step()
        reading = gauge.read(dream)
        assert reading is not None
        assert (reading.instability is None) == (steps == 1)
    starts, frames = dream.engine.checkpoint.start_frames.shape[:2]
    assert Counter(kinds) == {
        "_look": starts * frames,
        "_settle": 1,
        "_tell": starts * (frames - 1),
        "_imagine": 2 * starts,
    }
    gauge.close()


def test_the_instruments_change_nothing_and_let_go_of_the_model():
    def play(instruments: Instruments | None) -> tuple[list[np.ndarray], list[int]]:
        dream = make_dream(guidance=2.0)
        if instruments is None:
            instruments = Instruments(None)
        else:
            instruments = Instruments(dream.engine)
            assert instruments.watch() == ""
        frames, read = [], []
        for i in range(3 * EVERY):
            instruments.begin()
            frames.append(dream.step(dream.spec.actions.press(("w",))).frame)
            if instruments.after(dream, alone=True):
                read.append(i)
            while i == 2 and instruments.work_s is not None:
                instruments.work()
        instruments.close()
        core = dream.engine.core
        assert dream.engine.watch is None
        assert not any(module._forward_hooks for module in core.modules())
        assert not any(module._forward_pre_hooks for module in core.modules())
        return frames, read

    plain, none = play(None)
    watched, read = play(Instruments(None))
    assert np.array_equal(plain, watched)
    assert none == []
    assert read == [3, 3 + EVERY, 3 + 2 * EVERY]


def test_calibration_takes_a_share_of_the_time_of_steps_or_what_time_is_to_spare(monkeypatch):
    # Processor time: what others do on this machine is not to count.
    clock = SimpleNamespace(perf_counter=time.thread_time)
    monkeypatch.setattr("worldmodel.viewer.instruments.time", clock)
    dream = make_dream(guidance=2.0)
    instruments = Instruments(dream.engine)
    assert instruments.work_s is None  # the first frame is not to wait for the meter
    spent, pieces = 0.0, 0
    while not (pieces and instruments.work_s is None):
        instruments.after(dream, alone=True, step_s=0.01)
        spent += 0.01 * SHARE
        if instruments.overdue:
            begin_s = time.thread_time()
            instruments.work()
            pieces += 1
            spent -= time.thread_time() - begin_s
            assert instruments.dials.calibrating == (instruments.work_s is not None)
    assert pieces > 8
    assert spent > -0.5  # no more than it may, but for the last pieces
    instruments.close()


@pytest.mark.parametrize("guidance", [1.0, 2.0])
def test_the_picks_of_the_experts_add_up(guidance):
    dream = make_dream(guidance=guidance)
    engine, config = dream.engine, dream.engine.core.config
    instruments = Instruments(engine)
    instruments.watch()
    instruments.begin()
    text = dream.step(dream.spec.actions.press(("w",))).text
    instruments.after(dream, alone=True)
    routing = instruments.dials.routing
    assert routing is not None
    router = routers(engine.core)[0]
    words = len(engine.checkpoint.tokenizer.encode(text)) + 2  # <boi>, and <eoi> of the last frame
    frames = dream.denoise_steps + 1  # each pass's, and the last one as it goes in
    if guidance > 1:  # imagined once more in the first pass, with a <boi> of its own
        words, frames = words + 1, frames + 1
    assert len(routing.picks) == config.depth
    for layer_text, layer_vision in routing.picks:
        assert len(layer_text) == len(layer_vision) == config.experts
        assert sum(layer_text) == words * router.top_k
        assert sum(layer_vision) == frames * config.frame_tokens * router.top_k
    assert not router.load.any()  # training's own counts
    assert instruments.watch() == ""
    assert instruments.dials.routing is None
    instruments.close()


def test_a_model_without_experts_says_so():
    instruments = Instruments(make_dream(ffn="dense").engine)
    assert "no experts" in instruments.watch()
    assert "no experts" in Instruments(None).watch()
    assert not instruments.dials.watching


def test_a_person_who_plays_or_pauses_gets_readings_in_the_end():
    engine = Engine(lambda: make_dream(), fps=50)
    engine.start()

    def until(met) -> None:
        end = time.monotonic() + 60
        while not met(engine.snapshot):
            assert engine.snapshot.failure is None
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.002)

    try:
        until(lambda now: now.dials.calibrating)
        engine.post(Pause(True))
        until(lambda now: not now.dials.calibrating)  # while nothing else is to be done
        assert engine.snapshot.dials.trust is None
        engine.post(Pause(False))
        until(lambda now: now.dials.trust)
        engine.post(Denoise(finer=True))
        until(lambda now: now.dials.calibrating)
        until(lambda now: now.dials.trust)
    finally:
        assert engine.stop()


def test_readings_stand_on_screen_and_in_the_report():
    tape = Tape(keep_frames=False, keep_events=True, fps=12.0, steady=True)
    engine = Engine(
        lambda: make_dream(), lockstep=True, on_step=tape.add, on_reading=tape.add_reading
    )
    engine.start()

    def play(*commands) -> None:
        player = SessionPlayer(commands)
        end = time.monotonic() + 60
        while not player.tick(engine, engine.snapshot, 0.0):
            assert engine.snapshot.failure is None
            assert time.monotonic() < end, "waited in vain"
            time.sleep(0.002)

    try:
        play(*[W] * 6, Experts(), W)
        dials = engine.snapshot.dials
        assert dials.measures
        assert dials.watching
        assert dials.trust is not None
        assert len(dials.trend) == 2
        play(Rewind(3))
        assert engine.snapshot.dials.trust is None  # that was another frame's
        play(W, Jump(7), Experts())
        assert not engine.snapshot.dials.watching
    finally:
        assert engine.stop()
    measured = [i for i, event in enumerate(tape.events) if "trust" in event]
    assert measured == [1, 5, 7]
    assert set(tape.events[1]["trust"]) == {
        *("light", "score", "round_trip", "instability", "drift")
    }
