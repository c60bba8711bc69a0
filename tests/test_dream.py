"""The incremental path equals the full forward, and a rollout can be forked and rewound."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from worldmodel import stream
from worldmodel.actions import Action, ActionRow, ActionTable
from worldmodel.checkpoint import Checkpoint
from worldmodel.dream import STILL_GUIDANCE, Dream
from worldmodel.encoders.rae import RAE, RAEConfig
from worldmodel.errors import UserError
from worldmodel.passes import Pass
from worldmodel.sequence import Frame, Text, attention_mask, pack
from worldmodel.stream import Engine
from worldmodel.text import BOI, train_tokenizer
from worldmodel.transformer import Core, CoreConfig
from worldmodel.world import WorldSpec

TABLE = ActionTable(
    (
        ActionRow("forward", "w", "go", dx=0.5, phrases=("go forward",)),
        ActionRow("left", "a", "turn", dyaw=11.25, phrases=("turn left",)),
        ActionRow("right", "d", "turn", dyaw=-11.25, phrases=("turn right",)),
    )
)


def make_dream(guidance: float = 1.0, **changes) -> Dream:
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["action: w+a", "action: none", "instruction: turn left"] * 9, 400)
    shape = {
        "vocab": tokenizer.vocab_size,
        "merge": 2,
        "width": 64,
        "depth": 3,
        "heads": 2,
        "kv_heads": 1,
        "hidden": 64,
        "experts": 6,
        "window": 3,
        "latent_channels": 8,
    }
    core = Core(CoreConfig(**(shape | changes)))
    for head in (core.say, core.paint):  # heads start at zero; a test needs them to speak
        torch.nn.init.normal_(head.weight, std=0.1)
    rng = np.random.default_rng(0)
    checkpoint = Checkpoint(
        name="tiny",
        core=core.eval(),
        encoder=RAE(RAEConfig(channels=8, width=32, heads=2, encoder_depth=1, decoder_depth=1)),
        tokenizer=tokenizer,
        spec=WorldSpec("toy", TABLE),
        start_frames=rng.integers(0, 255, (2, 3, 64, 64, 3), dtype=np.uint8),
        start_keys=np.array([[1, 2], [0, 4]], np.int32),
        context_level=0.9,
        details={},
    )
    engine = Engine(checkpoint, torch.device("cpu"), torch.float32)
    dream = Dream(engine, denoise_steps=2, guidance=guidance)
    dream.reset(seed=0)
    return dream


VARIANTS = {
    "dense": {"ffn": "dense"},
    "modality": {"ffn": "modality"},
    "moe": {},
    "no shared expert": {"shared": "none"},
    "velocity": {"prediction": "v", "motion": -1},
    "flat positions": {"positions": "1d"},
    "geometric positions": {"positions": "2d"},
    "no QK norm": {"qk_norm": False},
    "every head its own keys": {"kv_heads": 2},
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_incremental_equals_full_forward(changes):
    """Predictions on the cache, over window slides and an instruction, equal the full forward."""
    dream = make_dream(**changes)
    engine, core = dream.engine, dream.engine.core
    encode = engine.checkpoint.tokenizer.encode
    seen: list[torch.Tensor] = [*engine.see(engine.checkpoint.start_frames[0])]
    words: list[list] = [[], [("action: w", "action")], [("action: a", "action")]]
    plan = [("w", None), ("a", "turn left"), (None, None), ("w+a", None), (None, "go"), ("d", None)]
    errors = []
    for keys, sentence in plan:
        spans = []
        if sentence:
            spans.append((dream.say(sentence), "instruction"))
        action = None if keys is None else TABLE.press(keys.split("+"))
        if action is not None:
            spans.append((TABLE.text(action), "action"))
        z, t, d = torch.randn(1, 16, 32), torch.tensor([0.3]), torch.tensor([3])
        # The prediction for a noised frame, on the cache ...
        stream = dream._stream
        told = [i for words in stream.pending for i in words.ids]
        ids = [*told, *(encode(TABLE.text(action)) if action is not None else []), BOI]
        with torch.inference_mode():
            cached = Pass(engine, [stream], [ids]).predict(z, t, d)
        # ... and as the target of the last frame in one forward over everything.
        words.append(spans)
        document = []
        for i in range(len(seen) + 1):
            document += [Text(tuple(encode(text)), role) for text, role in words[i]]
            document.append(Frame(i, target=i == len(seen)))
        batch = pack([document], [0], core.config.grid, core.config.window, 512)
        level = torch.full((len(batch.source),), 0.9)
        noise = torch.cat([dream._noise(i)[1] for i in range(len(seen))])
        shown = torch.zeros(len(batch.source), 16, 32)
        shown[: len(seen)] = 0.1 * noise + 0.9 * torch.stack(seen)
        shown[-1], level[-1] = z, t
        with torch.no_grad():
            x = core.embed(batch.ids)
            strides = torch.full((len(level),), 3)
            last = batch.last_frames(shown)
            frames, kept = core.embed_frames(shown, level, strides, last)
            frames = frames.flatten(0, 1)
            x = x.flatten(0, 1).index_copy(0, batch.visual, frames).view_as(x)
            hidden = core(x, batch.vision, batch.position, attention_mask(batch))
            hidden = hidden.flatten(0, 1)[batch.visual[-16:]].unsqueeze(0)
            full = core.draw(hidden, kept[-1:], z, t)
        errors.append((full - cached).abs().max().item())
        dream.step(action)
        seen.append(dream._stream.latent)
    assert max(errors) < 1e-4, errors


def test_words_and_past_that_are_filled_up_change_nothing():
    """As on a GPU, where passes of equal shapes are recorded once (`worldmodel.graphs`)."""
    plain, filled = make_dream(guidance=2.0), make_dream(guidance=2.0)
    filled.engine.words_by, filled.engine.past_by = 8, 64
    for number in range(6):
        for dream in (plain, filled):
            if number == 1:
                dream.say("turn left")
            dream.step(TABLE.press(["w"]) if number % 2 else None)
        assert torch.allclose(plain.latent, filled.latent, atol=1e-4)
    assert plain.describe() == filled.describe()


def test_fork_batch_equals_single():
    """Branches stepped as one batch equal the same branches stepped alone."""
    dream = make_dream()
    dream.say("turn left")
    dream.step(None)
    keys = [TABLE.press(["w"]), None, TABLE.press(["w", "a"])]
    together, alone = dream.fork(3), dream.fork(3)
    for _ in range(4):
        batched = Dream.batch_step(together, keys)
        single = [branch.step(action) for branch, action in zip(alone, keys, strict=True)]
        for a, b in zip(batched, single, strict=True):
            assert np.abs(a.frame.astype(int) - b.frame).max() <= 1
            assert a.text == b.text
    assert not np.array_equal(together[0].frame, together[2].frame)
    assert dream.length == 1  # the parent did not move


def test_rewind_and_replay_give_identical_frames():
    dream = make_dream()
    frames = [dream.step(TABLE.press(["w"])).frame for _ in range(6)]
    back = dream.rewind(4)
    assert np.array_equal(back.frame, frames[1])
    again = [dream.step(TABLE.press(["w"])).frame for _ in range(4)]
    assert all(np.array_equal(a, b) for a, b in zip(frames[2:], again, strict=True))
    dream.rewind(99)
    assert dream.length == 0


def test_seed_decides_the_dream():
    a, b = make_dream(), make_dream()
    assert np.array_equal(a.step(None).frame, b.step(None).frame)
    b.reset(seed=2)  # the same bundled start (of two), other noise
    assert not np.array_equal(a.rewind(1).frame, b.step(None).frame)


def test_guidance_changes_the_frame_only_with_words():
    plain, led = make_dream(), make_dream(guidance=3.0)
    assert np.array_equal(plain.step(None).frame, led.step(None).frame)
    action = TABLE.press(["a"])
    assert not np.array_equal(plain.step(action).frame, led.step(action).frame)


def test_guidance_compares_with_a_frame_that_was_told_nothing():
    """The twin sees neither the words that go in now nor the instruction, old or new."""
    dream = make_dream(guidance=3.0)
    engine = dream.engine
    for sentence in ("go on", "turn left", None):  # new, replaced, in the past
        if sentence:
            dream.say(sentence)
        for keys in ("w", "a"):
            now, predicted = dream._stream, []
            z = engine.noise(0, 0, now.step)[0]
            engine.watch = predicted.append
            dream.step(TABLE.press([keys]))
            engine.watch = None
            untold = replace(now.untold(), pending=())
            with torch.inference_mode():
                start = (z, torch.zeros(1), torch.tensor([1]))
                alone = Pass(engine, [untold], [[BOI]]).predict(*start)
            led, free = predicted[0]
            assert torch.allclose(free, alone[0], atol=1e-4)
            assert not torch.allclose(led, free, atol=1e-3)
            assert [len(found) for found in predicted] == [2, 1]  # only the first pass is guided


@pytest.mark.parametrize("denoise_steps", [1, 2, 4])
def test_a_step_takes_a_pass_for_each_denoising_step(denoise_steps):
    dream = make_dream(guidance=2.0)
    dream.denoise_steps = denoise_steps
    engine, compute, passes = dream.engine, dream.engine.compute, []
    engine.compute = lambda *given: passes.append(1) or compute(*given)
    dream.step(TABLE.press(["w"]))
    assert len(passes) == denoise_steps


def test_reading_a_frame_at_once_changes_nothing():
    """It goes in with the next step, or before it where somebody asks for words."""
    dream = make_dream(guidance=2.0)
    dream.say("turn left")
    dream.step(TABLE.press(["w"]))
    free = dream._stream
    dream.say("go on")  # the frame still has seen the instruction before
    told = dream._stream
    engine, ids = dream.engine, dream.engine.checkpoint.tokenizer.encode("action: a")
    for owing in (free, told):
        (settled,) = engine.settle([owing])
        assert (owing.owed, settled.owed) == (True, False)
        assert engine.settle([settled]) == [settled]
        noise = engine.noise(7)
        # Alone, and in a batch in which one owes a frame and the other does not.
        batch = [owing, settled]
        together = engine.follow(batch, [ids] * 2, noise.expand(-1, 2, -1, -1), guidance=(2.0, 2.0))
        for other in together:
            (alone,) = engine.follow([owing], [ids], noise, guidance=(2.0,))
            assert torch.allclose(alone.latent, other.latent, atol=1e-4)


def test_where_nothing_can_be_laid_out_play_is_the_same(monkeypatch):
    fast = make_dream()
    monkeypatch.setattr(stream, "can_pack", lambda device: False)
    plain = make_dream()
    assert plain.engine.run is plain.engine.core
    for keys in ("w", "a", "w"):
        a, b = (dream.step(TABLE.press([keys])).frame for dream in (fast, plain))
        assert np.abs(a.astype(int) - b).max() <= 1


def test_standing_still_is_guided_less():
    """More than `STILL_GUIDANCE` would dissolve the view, step after step."""
    led, most = make_dream(guidance=3.0), make_dream(guidance=STILL_GUIDANCE)
    assert np.array_equal(led.step(Action()).frame, most.step(Action()).frame)
    plain, mixed = make_dream(), make_dream(guidance=3.0).fork(2)
    still, moved = Dream.batch_step(mixed, [Action(), TABLE.press(["a"])])  # row by row
    assert np.abs(still.frame.astype(int) - led.rewind(0).frame).max() <= 1
    assert not np.array_equal(moved.frame, plain.step(TABLE.press(["a"])).frame)
    led.say("turn left")
    most.say("turn left")
    assert not np.array_equal(led.step(Action()).frame, most.step(Action()).frame)


def test_what_hardly_changes_stays_to_the_bit_when_nobody_moves(monkeypatch):
    dream = make_dream()
    core, last = dream.engine.core, dream.latent
    cells = core.split(last[None])
    moved = cells.clone()
    moved[0, 0] = -cells[0, 0]
    moved[0, 1] += 1e-4 * cells[0, 1].norm() * torch.randn_like(cells[0, 1])
    kept = core.split(stream._settled(core, core.merge(moved)[0], last)[None])
    assert torch.equal(kept[0, 0], moved[0, 0])
    assert torch.equal(kept[0, 1:], cells[0, 1:])
    monkeypatch.setattr(stream, "STILL", 2.1)  # above any distance
    for keys, stays in (([], True), (["w"], False)):
        before = dream.latent
        dream.step(dream.spec.actions.press(keys))
        assert torch.equal(dream.latent, before) is stays
    dream.say("turn left")
    before = dream.latent
    dream.step(None)
    assert not torch.equal(dream.latent, before)


@pytest.mark.parametrize("text", ["", "   ", "\x00\x07", "x" * 10_000, "word " * 300])
def test_bad_sentences_are_refused_and_leave_the_dream_alone(text):
    dream = make_dream()
    dream.say("turn left")
    with pytest.raises(UserError):
        dream.say(text)
    assert dream.instruction == "instruction: turn left"
    dream.step(None)


def test_any_unicode_is_taken():
    dream = make_dream()
    assert (
        dream.say("geh \u202eüber\x1b[0m die Brücke 🌉\n")
        == "instruction: geh über[0m die brücke 🌉"
    )
    assert dream.step(None).text.startswith("instruction: geh")
    assert dream.say(None) == ""
    assert dream.step(None).text == ""


def test_wrong_frames_are_refused():
    dream = make_dream()
    with pytest.raises(UserError, match="64, 64"):
        dream.reset(frames=np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match="uint8"):
        dream.reset(frames=np.zeros((2, 64, 64, 3), np.float32))
    with pytest.raises(UserError, match="need 1 actions"):
        dream.reset(frames=np.zeros((2, 64, 64, 3), np.uint8), actions=[])
