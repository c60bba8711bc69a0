"""What a world may be told: phrases to complete with, and how long a sentence may be."""

from collections.abc import Callable
from typing import Any

from worldmodel.text import clean_sentence
from worldmodel.world import World, WorldSpec


def known_phrases(spec: WorldSpec) -> tuple[str, ...]:
    """Return sentences that a model of this world may have been trained on, shortest first."""
    from worldmodel.envs.grammar import INSTRUCTIONS

    # Where the keys move nothing by a known amount, instructions are the keys' own phrases.
    walked = any(row.moves for row in spec.actions.rows) or not spec.actions.rows
    told = INSTRUCTIONS.values() if walked or spec.objects else ()
    forms = [form for forms in told for form in forms.seen]
    plain = [form for form in forms if "{" not in form]
    slotted = [
        form.replace("{object}", thing)
        for form in forms
        if form.count("{") == form.count("{object}") == 1
        for thing in spec.objects
    ]
    rows = [phrase for row in spec.actions.rows for phrase in row.phrases]
    return tuple(sorted(dict.fromkeys((*rows, *plain, *slotted)), key=len))


def token_counter(world: World) -> tuple[Callable[[str], int] | None, int]:
    """Return what counts the tokens of an instruction, and how many the world reads at most.

    The count comes with the world's own tokenizer; None where it has none.
    """
    checkpoint: Any = getattr(getattr(world, "engine", None), "checkpoint", None)
    if checkpoint is None:
        return None, 0
    from worldmodel.dream import MAX_INSTRUCTION_TOKENS

    def count(text: str) -> int:
        sentence = f"instruction: {clean_sentence(text).lower()}"
        return len(checkpoint.tokenizer.encode(sentence))

    return count, MAX_INSTRUCTION_TOKENS


def fitting(text: str, count: Callable[[str], int] | None, most: int) -> int:
    """Return how many characters of a sentence are read; all where nothing counts them."""
    if count is None or not text.strip() or count(text) <= most:
        return len(text)
    low, high = 0, len(text)
    while low < high:  # the longest part that still fits
        middle = (low + high + 1) // 2
        part = text[:middle]
        fits = not part.strip() or count(part) <= most
        low, high = (middle, high) if fits else (low, middle - 1)
    return low
