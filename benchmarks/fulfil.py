"""How often the viewer finds an instruction fulfilled, by kind, and how often with another told.

    python benchmarks/fulfil.py --starts 8 --steps 64

Walks through held-out levels of the real world give starts at which an instruction is not yet
fulfilled, by the world's own facts: a dark place for "get out of the shadow", an object that is
far for "go to the ...". The model dreams on from there under the instruction, and is watched as
in the viewer (`worldmodel.viewer.fulfil`). The same starts again, watched for the same, while it
is told something else, show the false alarms.
"""

import argparse
from collections.abc import Callable, Iterable, Iterator

import numpy as np

from worldmodel.dream import Dream
from worldmodel.envs import make_policy, make_world
from worldmodel.viewer.fulfil import Fulfilment
from worldmodel.viewer.session import Session
from worldmodel.viewer.starts import Context
from worldmodel.world import Facts

GIVEN, WALK = 8, 160  # frames that the model gets; steps of a walk

Seen = list[tuple[Context, list[Facts]]]

# What is told, what is told instead, and whether a start fits; those about an object k.
Fits = Callable[[list[Facts], int], bool]
PLAIN: dict[str, tuple[str, Fits]] = {
    "turn left": ("turn right", lambda seen, k: True),
    "turn right": ("turn left", lambda seen, k: True),
    "turn around": ("go forward", lambda seen, k: True),
    "get out of the shadow": ("stand still", lambda seen, k: bool(seen[-1]["light"] < 0.3)),
    "go into the dark": ("stand still", lambda seen, k: bool(seen[-1]["light"] > 0.45)),
}
ABOUT: dict[str, tuple[str, Fits]] = {
    "go to the {}": ("step back", lambda seen, k: bool(seen[-1]["distance"][k] > 5)),
    "walk toward the {}": ("step back", lambda seen, k: bool(seen[-1]["distance"][k] > 5)),
    "look at the {}": ("stand still", lambda seen, k: bool(abs(seen[-1]["bearing"][k]) > 18)),
    "find the {}": (
        "stand still",
        lambda seen, k: np.isnan(seen[-1]["distance"][k]) and not np.isnan(seen[0]["distance"][k]),
    ),
}


def main() -> None:
    """Measure, and print a table in Markdown."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--checkpoint", default="doom-nano")
    parser.add_argument("--world", default="doom", help="a real world of the checkpoint's frames")
    parser.add_argument("--starts", type=int, default=8)
    parser.add_argument("--steps", type=int, default=64)
    asked = parser.parse_args()

    dream = Dream.load(asked.checkpoint, denoise_steps=2, guidance=1.5)
    things = dream.spec.objects
    walks = [list(walk(asked.world, dream.spec.height, seed)) for seed in range(2 * asked.starts)]
    watch = Fulfilment.of(dream.engine)
    print(f"| told | fulfilled within {asked.steps} | at step | told instead | fulfilled |")
    print("|---|---|---|---|---|", flush=True)
    for form, (other, fits) in {**PLAIN, **ABOUT}.items():
        objects = range(len(things)) if form in ABOUT else [0]
        starts = [s for seen in walks if (s := find(seen, objects, fits))][: asked.starts]
        sentences = [(form.format(things[k]), context) for context, k in starts]
        own = [dreamt(dream, watch, text, text, c, asked.steps) for text, c in sentences]
        odd = [dreamt(dream, watch, other, text, c, asked.steps) for text, c in sentences]
        when, wrong = ([step for step in row if step] for row in (own, odd))
        print(
            f"| {form.format('...')} | {len(when)} of {len(own)} | {' '.join(map(str, when))} "
            f"| {other} | {len(wrong)} of {len(odd)} |",
            flush=True,
        )


def walk(world: str, size: int, seed: int) -> Iterator[tuple[Context, list[Facts]]]:
    """Yield the last frames and facts at each fourth step of a walk through a level."""
    real, policy = make_world(world, split="val", size=size), make_policy("mix", seed)
    if hasattr(policy, "attach"):
        getattr(policy, "attach")(real)  # noqa: B009  (not in the Protocol)
    policy.reset(seed)
    steps, actions = [real.reset(seed=seed)], []
    while len(steps) < WALK:
        actions.append(policy.act(steps[-1], real.spec))
        steps.append(real.step(actions[-1]))
    real.close()
    for end in range(GIVEN, WALK, 4):
        last = steps[end - GIVEN : end]
        given = Context(np.stack([s.frame for s in last]), tuple(actions[end - GIVEN : end - 1]))
        yield given, [s.facts for s in last]


def find(seen: Seen, objects: Iterable[int], fits: Fits) -> tuple[Context, int] | None:
    """Return the first start of a walk that fits, and the object that it is about."""
    for context, facts in seen:
        for k in objects:
            if fits(facts, k):
                return context, k
    return None


def dreamt(
    dream: Dream, watch: Fulfilment, told: str, watched: str, context: Context, steps: int
) -> int:
    """Return the step at which it was found fulfilled, 0 for never."""
    session = Session(dream, 0, context)
    session.say(told)
    for step in range(1, steps + 1):
        session.advance()
        if watch.read(session, watched):
            return step
    return 0


if __name__ == "__main__":
    main()
