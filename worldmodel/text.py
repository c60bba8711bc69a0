"""The tokenizer: byte-level BPE that reads any Unicode, with the special tokens of the stream.

Numbers are split into single digits and signs, so that a distance the model never saw is made
of pieces that it did; `action:` and `dx=` are pieces of their own.
"""

import unicodedata
from collections.abc import Iterable
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

from worldmodel.errors import UserError

SPECIALS = ("<pad>", "<bos>", "<eos>", "<boi>", "<eoi>")
PAD, BOS, EOS, BOI, EOI = range(len(SPECIALS))

MAX_SENTENCE_CHARS = 2000
_PIECES = r" ?[A-Za-z]+[:=]?|[+-]|\d| ?[^\sA-Za-z\d]+|\s+"


class TextTokenizer:
    """Text to token ids and back. Special tokens never come out of user text."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self._tokenizer = tokenizer

    @property
    def vocab_size(self) -> int:
        """Number of ids, specials included."""
        return self._tokenizer.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        """Return the ids of `text`, without specials."""
        return self._tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids: Iterable[int]) -> str:
        """Return the text of `ids`; specials are left out."""
        return self._tokenizer.decode([i for i in ids if i >= len(SPECIALS)])

    def to_json(self) -> str:
        """Return the tokenizer as the JSON of the `tokenizers` library."""
        return self._tokenizer.to_str()

    def save(self, path: Path) -> None:
        """Write `to_json` into a file that appears whole."""
        temporary = path.with_suffix(".tmp")
        temporary.write_text(self.to_json())
        temporary.replace(path)

    @staticmethod
    def from_json(text: str) -> "TextTokenizer":
        """Return the tokenizer that `to_json` wrote."""
        return TextTokenizer(Tokenizer.from_str(text))

    @staticmethod
    def load(path: Path) -> "TextTokenizer":
        """Read a `tokenizer.json`.

        Raises:
            UserError: the file is missing or is not a tokenizer.
        """
        try:
            return TextTokenizer(Tokenizer.from_file(str(path)))
        except Exception as error:  # the library raises bare Exception
            raise UserError(f"'{path}' is not a readable tokenizer file: {error}") from None


def train_tokenizer(lines: Iterable[str], vocab_size: int = 2048) -> TextTokenizer:
    """Learn a byte-level BPE from `lines`; every byte is in the vocabulary."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.train_from_iterator(
        lines,
        trainers.BpeTrainer(
            vocab_size=vocab_size,
            special_tokens=list(SPECIALS),
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    # Specials are ids that only the layout writes; typed text that spells one stays text.
    plain = Tokenizer.from_str(_without_added_tokens(tokenizer.to_str()))
    return TextTokenizer(plain)


def _without_added_tokens(text: str) -> str:
    import json

    data = json.loads(text)
    data["added_tokens"] = []
    return json.dumps(data)


def is_question(sentence: str) -> bool:
    """Return whether a typed sentence asks: whether it ends with a question mark."""
    return sentence.rstrip().endswith(("?", "\uff1f", "\u061f"))  # of Latin, CJK, Arabic


def clean_sentence(text: str) -> str:
    """Return a typed sentence as the model is to see it: one line, no control characters.

    Any Unicode is kept (normalised to NFC); runs of white space become one space.

    Raises:
        UserError: nothing is left, or the sentence is longer than `MAX_SENTENCE_CHARS`.
    """
    if len(text) > MAX_SENTENCE_CHARS:
        raise UserError(
            f"The sentence has {len(text)} characters; at most {MAX_SENTENCE_CHARS} are read. "
            "Say it shorter."
        )
    spaced = "".join(" " if c.isspace() else c for c in unicodedata.normalize("NFC", text))
    kept = "".join(c for c in spaced if unicodedata.category(c) not in ("Cc", "Cf", "Cs", "Co"))
    sentence = " ".join(kept.split())
    if not sentence:
        raise UserError("The sentence is empty. Type what is to happen, for example: turn right")
    return sentence
