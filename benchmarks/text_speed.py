"""Text tokens per second on the cache, against a forward over the whole sequence for each token.

python benchmarks/text_speed.py [checkpoint] [threads]

Both start from the same frames and prompt and choose greedily; the tokens must be the same. The
two take turns, so that a busy machine slows both.
"""

import statistics
import sys
import time

import torch

from worldmodel.dream import Dream
from worldmodel.generate import Sampling, choose
from worldmodel.passes import Reader
from worldmodel.sequence import Frame, Text, attention_mask, pack
from worldmodel.stream import Stream

TOKENS, ROUNDS, BATCH = 48, 5, 8
PROMPT = "caption: a dark room,"
GREEDY, CHANCE = Sampling(), torch.zeros(1)


def main() -> None:
    checkpoint = sys.argv[1] if len(sys.argv) > 1 else "doom-nano"
    if len(sys.argv) > 2:
        torch.set_num_threads(int(sys.argv[2]))
    dream = Dream.load(checkpoint)
    engine = dream.engine
    prompt = engine.checkpoint.tokenizer.encode(PROMPT)
    print(
        f"{dream.device} ({dream.device_reason}), {dream.dtype}, {torch.get_num_threads()} threads"
    )
    print(f"{len(prompt)} tokens of prompt, {TOKENS} sampled, {ROUNDS} rounds")
    for frames in (1, engine.window):
        compare(dream, engine.see(engine.checkpoint.start_frames[:frames, 0]), prompt)


def compare(dream: Dream, latents: torch.Tensor, prompt: list[int]) -> None:
    """Time both after the same frames, latents [F, N, C], and print it."""
    stream = Stream()
    for latent in latents:
        noise = dream.engine.noise(stream.step)
        (stream,) = dream.engine.follow([stream], [()], noise, given=latent.unsqueeze(0))
    batched = f"cache, {BATCH} streams"
    seconds: dict[str, list[float]] = {"cache": [], batched: [], "recompute": []}
    said: dict[str, list[int]] = {}
    runs = {
        "cache": lambda: on_cache(dream, [stream], prompt),
        batched: lambda: on_cache(dream, [stream] * BATCH, prompt),
        "recompute": lambda: by_recomputing(dream, latents, prompt),
    }
    for _ in range(ROUNDS + 1):
        for name, run in runs.items():
            begin = time.perf_counter()
            said[name] = run()
            seconds[name].append(time.perf_counter() - begin)
    same = "same tokens" if said["cache"] == said["recompute"] else "tokens differ by rounding"
    print(f"\nafter {len(latents)} frame(s); {same}\n{'':20}  tokens/s   ms/token")
    for name, spent in seconds.items():
        middle = statistics.median(spent[1:])  # the first round warms up
        count = TOKENS * (BATCH if name == batched else 1)
        print(f"{name:20} {count / middle:9.1f} {1e3 * middle / TOKENS:10.2f}")
    pairs = list(zip(seconds["cache"], seconds["recompute"], strict=True))[1:]
    ratio = statistics.median(slow / fast for fast, slow in pairs)
    print(f"cache over recompute: {ratio:.1f}x")


def on_cache(dream: Dream, streams: list[Stream], prompt: list[int]) -> list[int]:
    """Greedy tokens after a prompt, never ending; those of the first stream."""
    reader = Reader(dream.engine, streams, len(prompt) + TOKENS)
    said, rows = [], [prompt] * len(streams)
    for _ in range(TOKENS):
        chosen = choose(reader.read(rows), CHANCE.expand(len(rows)), GREEDY).tolist()
        said.append(chosen[0])
        rows = [[token] for token in chosen]
    return said


@torch.inference_mode()
def by_recomputing(dream: Dream, latents: torch.Tensor, prompt: list[int]) -> list[int]:
    """The same by whole forwards over the frames and all words."""
    engine, core, config = dream.engine, dream.engine.core, dream.engine.core.config
    count, share = len(latents), engine.checkpoint.context_level
    noise = torch.cat([engine.noise(i)[1] for i in range(count)])
    shown = (share * latents + (1 - share) * noise).to(engine.dtype)
    level = torch.full((count,), share, device=shown.device)
    stride = torch.full((count,), config.strides - 1, device=shown.device)
    frames = [Frame(i, target=False) for i in range(count)]
    said: list[int] = []
    for _ in range(TOKENS):
        words = Text((*prompt, *said))
        length = 1 + count * (2 + config.frame_tokens) + len(words.ids)
        batch = pack([[*frames, words]], [0], config.grid, config.window, length).to(shown.device)
        seen = core.embed_frames(shown, level, stride, batch.last_frames(shown))[0].flatten(0, 1)
        x = core.embed(batch.ids).flatten(0, 1).index_copy(0, batch.visual, seen).unsqueeze(0)
        hidden = core(x, batch.vision, batch.position, attention_mask(batch))
        said.append(int(choose(core.say(hidden[:, -1]), CHANCE, GREEDY)[0]))
    return said


if __name__ == "__main__":
    main()
