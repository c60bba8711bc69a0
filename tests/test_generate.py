"""Text from streams and frames from text: what is sampled, and that asking changes nothing."""

import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from worldmodel.errors import UserError
from worldmodel.flow import sample
from worldmodel.generate import Sampling, choose, generate, look, picture, role, say
from worldmodel.passes import Pass, Reader
from worldmodel.sequence import Frame, Text, attention_mask, pack
from worldmodel.stream import Engine, Stream
from worldmodel.text import BOI, BOS, EOI, EOS, PAD

TINY = runpy.run_path(str(Path(__file__).with_name("test_dream.py")))
make_dream, TABLE = TINY["make_dream"], TINY["TABLE"]


# The cache against whole forwards


def whole(engine, document, latents, noises):
    """Logits after a document that ends in text or a frame, by one forward over all of it."""
    core = engine.core
    batch = pack([document], [0], core.config.grid, core.config.window, 512)
    level = torch.full((len(latents),), engine.checkpoint.context_level)
    shown = torch.zeros(0, core.config.frame_tokens, core.config.channels)
    if latents:
        share = engine.checkpoint.context_level
        shown = share * torch.stack(latents) + (1 - share) * torch.cat(noises)
    with torch.no_grad():
        x = core.embed(batch.ids)
        strides = torch.full((len(latents),), core.config.strides - 1)
        frames = core.embed_frames(shown, level, strides, batch.last_frames(shown))[0].flatten(0, 1)
        x = x.flatten(0, 1).index_copy(0, batch.visual, frames).view_as(x)
        hidden = core(x, batch.vision, batch.position, attention_mask(batch))
    return core.say(hidden[0, int((batch.doc[0] == 0).sum()) - 1])


def recomputed(engine, document, latents, noises, prompt, tokens):
    """Greedy text after a document, every token by a forward over everything before it."""
    ids, chosen, logits = list(prompt), [], []
    while len(chosen) < tokens:
        text = [Text(tuple(ids))] if ids else []
        logits.append(whole(engine, [*document, *text], latents, noises))
        token = int(choose(logits[-1].unsqueeze(0), torch.zeros(1), Sampling())[0])
        if token in (EOS, BOI):
            break
        chosen.append(token)
        ids.append(token)
    return tuple(chosen), logits


def rollout(dream):
    """Steps over window slides, an instruction and text of its own; yields what a step left."""
    engine = dream.engine
    encode = engine.checkpoint.tokenizer.encode
    document = [
        Frame(0, target=False),
        *(
            part
            for i, text in ((1, "action: w"), (2, "action: a"))
            for part in (Text(tuple(encode(text)), "action"), Frame(i, target=False))
        ),
    ]
    latents = [*engine.see(engine.checkpoint.start_frames[0])]
    plan = [("w", "turn left"), (None, None), ("a", None), ("w+a", "go"), ("d", None), (None, None)]
    for number, (keys, sentence) in enumerate(plan):
        if sentence:
            spoken = dream.say(sentence)
            document = [*document, Text(tuple(encode(spoken)), "instruction")]
        if number == 3:
            told = Text(tuple(encode("a left turn")))
            dream._streams[-1] = dream._stream.told(told)
            document = [*document, told]
        noises = [dream._noise(i)[1] for i in range(len(latents))]
        yield dream._stream, document, latents, noises
        action = None if keys is None else TABLE.press(keys.split("+"))
        if action is not None:
            document = [*document, Text(tuple(encode(TABLE.text(action))), "action")]
        dream.step(action)
        document = [*document, Frame(len(latents), target=False)]
        latents = [*latents, dream._stream.latent]


@pytest.mark.parametrize("changes", [{}, {"ffn": "dense"}, {"positions": "1d"}])
def test_greedy_text_on_the_cache_equals_whole_forwards(changes):
    """After given and imagined frames, window slides, instructions, text, and with no prompt."""
    dream = make_dream(**changes)
    engine = dream.engine
    prompt = engine.checkpoint.tokenizer.encode("action: turn")
    for stream, document, latents, noises in rollout(dream):
        for start in (prompt, []):
            known, logits = recomputed(engine, document, latents, noises, start, 5)
            (said,) = say(engine, [stream], [start], Sampling(max_tokens=5))
            assert said.ids == known
            reader = Reader(engine, [stream], 64)
            first = [i for words in stream.unread for i in words.ids] + list(start)
            fed = [first, *([token] for token in known)]
            for row, expected in zip(fed, logits, strict=False):
                assert (reader.read([row])[0] - expected).abs().max() < 1e-4


def test_a_fork_says_what_its_own_past_lets_it_say():
    dream = make_dream()
    left, right = dream.fork(2)
    for _ in range(5):
        left.step(TABLE.press(["a"]))
        right.step(TABLE.press(["w"]))
    engine, prompts = dream.engine, [[20, 30], [20, 30]]
    sampling = Sampling(max_tokens=8)
    both = say(engine, [left._stream, right._stream], prompts, sampling)
    alone = [say(engine, [b._stream], [[20, 30]], sampling)[0] for b in (left, right)]
    assert both == alone
    assert both[0] != both[1]


def test_rows_of_different_lengths_say_what_they_say_alone():
    dream = make_dream()
    engine = dream.engine
    young = dream._stream
    for _ in range(5):
        dream.step(TABLE.press(["w", "a"]))
    told = dream._stream.told(Text((40, 41, 42), "instruction"))
    streams = [Stream(), young, told, dream._stream]
    prompts = [[9, 8, 7, 6, 5], [30], [], [50, 51]]
    for temperature in (0.0, 1.5):
        sampling = Sampling(seed=3, temperature=temperature, max_tokens=12)
        together = say(engine, streams, prompts, sampling)
        for i, (stream, prompt) in enumerate(zip(streams, prompts, strict=True)):
            alone = say(engine, [stream], [prompt], replace(sampling, seed=3 + i))
            assert together[i] == alone[0]
        assert len({one.ids for one in together}) > 2


def test_a_picture_is_predicted_as_in_training():
    """The document `T I`: its one frame, from noise, on the cache and in a whole forward."""
    engine = make_dream().engine
    core = engine.core
    ids = tuple(engine.checkpoint.tokenizer.encode("caption: a left turn"))
    z, t, d = torch.randn(1, 16, 32), torch.tensor([0.4]), torch.tensor([3])
    with torch.inference_mode():
        cached = Pass(engine, [Stream()], [[BOS, *ids, BOI]]).predict(z, t, d)
    batch = pack([[Text(ids), Frame(0)]], [0], core.config.grid, core.config.window, 128)
    shown, level, stride = z.expand(2, -1, -1), t.expand(2), d.expand(2)
    with torch.no_grad():
        x = core.embed(batch.ids)
        last = batch.last_frames(shown)
        frames, kept = core.embed_frames(shown, level, stride, last)
        x = x.flatten(0, 1).index_copy(0, batch.visual, frames.flatten(0, 1)).view_as(x)
        hidden = core(x, batch.vision, batch.position, attention_mask(batch))
        hidden = hidden.flatten(0, 1)[batch.visual[-16:]].unsqueeze(0)
        full = core.draw(hidden, kept[-1:], z, t)
    assert (full - cached).abs().max() < 1e-4


# Sampling


def table(shares, rows=1):
    """Logits where tokens from 10 on have these probabilities, and specials would win."""
    logits = torch.full((rows, 20), float("-inf"))
    logits[:, 10 : 10 + len(shares)] = torch.tensor(shares).log()
    logits[:, [PAD, BOS, EOI]] = 50.0
    return logits


@pytest.mark.parametrize(
    ("sampling", "expected"),
    [
        (Sampling(temperature=1), [0.1, 0.5, 0.15, 0.25]),
        (Sampling(temperature=1, top_p=0.8), [0, 0.5, 0.15, 0.25]),
        (Sampling(temperature=1, top_p=0.5), [0, 1, 0, 0]),
        (Sampling(temperature=1, top_k=2), [0, 0.5, 0, 0.25]),
        (Sampling(temperature=2), [0.1**0.5, 0.5**0.5, 0.15**0.5, 0.25**0.5]),
        (Sampling(temperature=0.5, top_k=3), [0, 0.5**2, 0.15**2, 0.25**2]),
    ],
)
def test_frequencies_follow_the_distribution(sampling, expected):
    count = 20_000
    chance = torch.rand(count, generator=torch.Generator().manual_seed(0))
    chosen = choose(table([0.1, 0.5, 0.15, 0.25], count), chance, sampling)
    found = torch.bincount(chosen, minlength=20)
    assert found[:10].sum() == 0  # specials never
    hoped = torch.tensor(expected, dtype=torch.float64)
    hoped = hoped / hoped.sum() * count
    there = hoped > 0
    assert found[10:14][~there].sum() == 0
    chi2 = ((found[10:14][there] - hoped[there]).square() / hoped[there]).sum()
    assert chi2 < 16.3  # 3 degrees of freedom, one in a thousand


def test_the_ends_of_chance_stay_inside():
    """Neither a cut-off token nor one of no probability comes out at the very ends."""
    chance = torch.tensor([0.0, 1.0 - 2**-24])
    for sampling in (Sampling(temperature=1, top_p=0.6), Sampling(temperature=1e-6)):
        chosen = choose(table([0.1, 0.5, 0.15, 0.25], 2), chance, sampling)
        assert set(chosen.tolist()) <= {11, 13}


def test_little_choice_is_greedy_and_seeds_reproduce():
    dream = make_dream()
    for _ in range(2):
        dream.step(TABLE.press(["a"]))
    greedy = dream.complete("turn", max_tokens=16)
    assert greedy
    assert greedy == dream.complete("turn", seed=9, max_tokens=16)
    assert greedy == dream.complete("turn", temperature=1, top_p=1e-9, max_tokens=16)
    assert greedy == dream.complete("turn", temperature=2, top_k=1, max_tokens=16)
    said = [dream.complete("turn", temperature=2, seed=s, max_tokens=16) for s in (0, 0, 1, 2)]
    assert said[0] == said[1]
    assert len(set(said)) == 3


def test_a_text_ends_where_the_model_ends_it_or_at_the_limit():
    dream = make_dream()
    weight = dream.engine.core.say.weight
    (stream,) = dream.engine.settle([dream._stream])
    assert stream.hidden is not None
    with torch.no_grad():
        weight[EOS] = 0
    engine = again(dream.engine)
    (said,) = say(engine, [stream], [[20]], Sampling(max_tokens=7))
    assert (len(said.ids), said.end) == (7, None)
    assert say(engine, [stream], [[20]], Sampling(max_tokens=0))[0].ids == ()
    for token in (EOS, BOI):
        with torch.no_grad():
            weight.zero_()
            weight[token] = stream.hidden
        (said,) = say(again(dream.engine), [stream], [[]], Sampling())
        assert (said.ids, said.end) == ((), token)


def again(engine: Engine) -> Engine:
    """An engine of the same model, as its weights are now."""
    return Engine(engine.checkpoint, engine.device, engine.dtype)


@pytest.mark.parametrize(
    "wrong",
    [
        {"temperature": -1.0},
        {"temperature": float("nan")},
        {"top_p": 0.0},
        {"top_p": 1.5},
        {"top_k": -1},
        {"max_tokens": -1},
        {"seed": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        Sampling(**wrong)


# Asking, and pictures


def test_asking_leaves_the_rollout_as_it_is():
    asked, plain = make_dream(), make_dream()
    for dream in (asked, plain):
        dream.say("turn left")
    for keys in ("w", "a", None, "w", "d"):
        action = None if keys is None else TABLE.press([keys])
        stream = asked._stream
        asked.describe()
        asked.answer("what is ahead?", temperature=1.0)
        asked.complete("action:")
        asked.picture("a left turn")
        asked.generate(max_frames=2, temperature=2.0, max_tokens=5)
        assert asked._stream is stream
        assert np.array_equal(asked.step(action).frame, plain.step(action).frame)
    assert asked.length == plain.length


def test_the_frame_is_asked_about_as_it_stands_in_training():
    """A question sees the current frame and nothing else of the rollout."""
    dream = make_dream()
    frame = dream.step(TABLE.press(["w"])).frame
    latent = dream._stream.latent
    fresh = look(dream.engine, latent.unsqueeze(0))
    ids = dream.engine.checkpoint.tokenizer.encode("question: what is left? answer:")
    expected = say(dream.engine, fresh, [ids], Sampling(max_tokens=10))[0]
    text = dream.engine.checkpoint.tokenizer.decode(expected.ids).strip()
    assert dream.answer("What is  LEFT?", max_tokens=10) == text
    many = dream.answers(np.stack([frame] * 3), ["what is left?"] * 3, max_tokens=10)
    assert len(many) == 3
    assert len(set(many)) == 1
    assert len(dream.captions(np.stack([frame, frame]))) == 2


def test_pictures_come_from_their_text_and_seed():
    dream = make_dream()
    three = dream.picture("a left turn", n=3, seed=5)
    assert (three.shape, three.dtype) == ((3, 64, 64, 3), np.uint8)
    alone = dream.picture("A  left turn\n", seed=6)
    assert np.abs(three[1].astype(int) - alone[0]).max() <= 1
    assert not np.array_equal(three[0], three[1])
    others = [
        dream.picture("action", seed=6),
        dream.picture("a left turn", seed=6, guidance=3.0),
        dream.picture("a left turn", seed=6, guidance=1.0),
        dream.picture("a left turn", seed=6, denoise_steps=2),
        dream.picture("a left turn", seed=6, shift=2.0),
    ]
    assert all(not np.array_equal(alone, other) for other in others)


@pytest.mark.parametrize(
    ("shift", "levels", "stride"),
    [(1.0, [0, 1 / 4, 1 / 2, 3 / 4], 2), (2.0, [0, 1 / 7, 1 / 3, 3 / 5], 3)],
)
def test_shifted_denoising_steps_are_smaller_near_noise(shift, levels, stride):
    clean, seen = torch.randn(2, 4, 3), []

    def predict(z, t, d):
        seen.append((t, d))
        return clean

    found = sample(predict, torch.randn(2, 4, 3), 4, 4, shift)
    assert (found - clean).abs().max() < 1e-6
    assert torch.allclose(torch.stack([t for t, _ in seen]), torch.tensor([levels] * 2).T)
    assert all(d.tolist() == [stride] * 2 for _, d in seen)


def test_guidance_of_a_picture_goes_on_from_one_without_text():
    dream = make_dream()
    engine = dream.engine
    bare = engine.follow([Stream()], [()], engine.noise(6), denoise_steps=1)[0].latent
    led = picture(engine, "caption: a left turn", 1, 6, 1, guidance=0.0)
    assert np.abs(led.astype(int) - engine.show(bare.unsqueeze(0))).max() <= 1


def test_guidance_is_over_after_half_of_the_passes():
    engine, rows = make_dream().engine, []
    engine.watch = lambda drawn: rows.append(len(drawn))
    for steps in (1, 2, 3, 4):
        engine.follow([Stream()], [()], engine.noise(6), denoise_steps=steps, guidance=[2.0])
    assert rows == [2, 2, 1, 2, 2, 1, 2, 2, 1, 1]


@pytest.mark.parametrize("method", ["answer", "picture"])
@pytest.mark.parametrize("text", ["", " \n", "\x00", "word " * 390])
def test_bad_sentences_are_refused(method, text):
    with pytest.raises(UserError):
        getattr(make_dream(), method)(text)


@pytest.mark.parametrize(
    "wrong", [{"n": 0}, {"seed": -1}, {"denoise_steps": 0}, {"shift": 0.0}, {"shift": float("nan")}]
)
def test_pictures_that_cannot_be_are_refused_by_name(wrong):
    with pytest.raises(UserError, match=next(iter(wrong))):
        make_dream().picture("a left turn", **wrong)


def test_frames_that_do_not_fit_are_refused():
    dream = make_dream()
    with pytest.raises(UserError, match="64, 64"):
        dream.captions(np.zeros((2, 32, 32, 3), np.uint8))
    with pytest.raises(UserError, match="uint8"):
        dream.answers(np.zeros((1, 64, 64, 3), np.float32), ["is it dark?"])
    with pytest.raises(UserError, match="2 frames need as many questions, not 1"):
        dream.answers(np.zeros((2, 64, 64, 3), np.uint8), ["is it dark?"])


def test_special_tokens_neither_go_in_nor_come_out_as_text():
    dream = make_dream()
    ids = dream.engine.checkpoint.tokenizer.encode("<eos><boi><pad>")
    assert min(ids) > EOI
    for seed in range(5):
        said = dream.complete("<boi>", temperature=3.0, seed=seed, max_tokens=30)
        assert not any(special in said for special in ("<pad>", "<bos>", "<eos>", "<eoi>"))


# Free generation


@pytest.fixture(scope="module")
def storyteller():
    """A tiny model that has learned one story by heart: words, frame, words, two frames, words."""
    dream = make_dream()
    core, encode = dream.engine.core, dream.engine.checkpoint.tokenizer.encode
    story = [
        Text(tuple(encode("instruction: go on"))),
        Frame(0, target=False),
        Text(tuple(encode("action: a")), "action"),
        Frame(1, target=False),
        Frame(2, target=False),
        Text((*encode("the end"), EOS)),
    ]
    torch.manual_seed(1)
    batch = pack([story] * 4, [0] * 4, core.config.grid, core.config.window, 128)
    mask, there = attention_mask(batch), batch.next_id >= 0
    frames = len(batch.source)
    strides, level = torch.full((frames,), 3), torch.full((frames,), 0.9)
    optimiser = torch.optim.AdamW(core.parameters(), lr=3e-3)
    for _ in range(60):
        shown = torch.randn(frames, core.config.frame_tokens, core.config.channels)
        x = core.embed(batch.ids)
        tokens = core.embed_frames(shown, level, strides, batch.last_frames(shown))[0].flatten(0, 1)
        x = x.flatten(0, 1).index_copy(0, batch.visual, tokens).view_as(x)
        logits = core.say(core(x, batch.vision, batch.position, mask)[there])
        loss = F.cross_entropy(logits, batch.next_id[there])
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.1
    return again(dream.engine)


def test_free_generation_switches_to_frames_and_back(storyteller):
    """It says `<boi>` by itself, imagines, and goes on in words after `<eoi>`, up to `<eos>`."""
    engine = storyteller
    spans = list(generate(engine, Stream(), Sampling(), 9, 2, 1.0))
    words = [span if isinstance(span, str) else "frame" for span in spans]
    assert words == ["instruction: go on", "frame", "action: a", "frame", "frame", "the end"]
    frames = [span for span in spans if not isinstance(span, str)]
    assert all((f.shape, f.dtype) == ((64, 64, 3), np.uint8) for f in frames)
    assert not np.array_equal(frames[0], frames[1])
    again = list(generate(engine, Stream(), Sampling(), 9, 2, 1.0))
    assert all(np.array_equal(a, b) for a, b in zip(spans, again, strict=True))


@pytest.mark.parametrize(
    ("max_frames", "max_tokens", "kinds"),
    [(0, 48, "t"), (1, 48, "tft"), (2, 48, "tftf"), (9, 3, "t")],
)
def test_free_generation_stops_at_its_limits(storyteller, max_frames, max_tokens, kinds):
    sampling = Sampling(max_tokens=max_tokens)
    spans = list(generate(storyteller, Stream(), sampling, max_frames, 2, 1.0))
    assert "".join("t" if isinstance(span, str) else "f" for span in spans) == kinds


def test_what_the_model_says_itself_is_remembered_as_in_training():
    assert [role(t) for t in ("action: w", " instruction: go", "caption: x", "actions")] == [
        "action",
        "instruction",
        "text",
        "text",
    ]
    dream = make_dream()
    first, second = (Text((20 + i,), "instruction") for i in range(2))
    stream = dream.engine.follow([dream._stream.told(first)], [()], dream.engine.noise(0))[0]
    assert [s.instruction for s in stream.segments].count(True) == 1
    # From the next step on: what the last frame has seen stays as it was.
    assert [s.expire for s in stream.told(second).segments if s.instruction] == [stream.step]
    assert stream.told(second).pending == (second,)
    assert stream.told(Text((9,))).segments == stream.segments
