"""The tokenizer reads any text and gives it back; specials and numbers are safe."""

import json
import unicodedata

import pytest

from worldmodel.errors import UserError
from worldmodel.text import (
    MAX_SENTENCE_CHARS,
    SPECIALS,
    TextTokenizer,
    clean_sentence,
    train_tokenizer,
)

LINES = [
    "action: w+a",
    "action: dx=+0.50 dy=+0.00 dyaw=-11.2",
    "instruction: go to the red pillar",
    "caption: a dark room, 12 steps from a wall",
    "a <boi> and an <eoi> in the text <pad>",
] * 40


@pytest.fixture(scope="module")
def tokenizer() -> TextTokenizer:
    return train_tokenizer(LINES, 400)


@pytest.mark.parametrize(
    "text",
    [
        "go to the red pillar",
        "  leading, trailing  and   inner   space  ",
        "tab\tnewline\ncarriage\r\nreturn",
        "",
        "Grüße, Ærø, 北京, Ελλάδα, עברית, عربى",
        "🌉 👩‍👩‍👧‍👦 🏳️‍🌈 e\u0301 \u202eright to left\u202c \ufeff",
        "\x00\x01\x07\x1b[31m\x7f\x80\x9f",
        "١٢٣ ½ ² 𝟙𝟚",
        "\U0010ffff\U000e0001\ue000",
        "a" * 3000,
    ],
)
def test_any_text_comes_back(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_all_of_unicode_comes_back(tokenizer):
    points = [c for c in range(0, 0x110000, 53) if not 0xD800 <= c < 0xE000]
    for first in range(0, len(points), 2000):
        text = "".join(map(chr, points[first : first + 2000]))
        assert tokenizer.decode(tokenizer.encode(text)) == text


@pytest.mark.parametrize(
    "text", [*SPECIALS, "<boi><eoi>", "a <boi> b", " <pad>", "".join(SPECIALS) * 20]
)
def test_specials_never_come_out_of_typed_text(tokenizer, text):
    again = TextTokenizer.from_json(tokenizer.to_json())
    for t in (tokenizer, again):
        ids = t.encode(text)
        assert min(ids) >= len(SPECIALS)
        assert t.decode(ids) == text


def test_specials_are_left_out_of_what_is_read(tokenizer):
    ids = tokenizer.encode("turn left")
    assert tokenizer.decode([1, 3, *ids, 4, 2, 0]) == "turn left"


def test_numbers_are_made_of_digits(tokenizer):
    for text in ("dx=+12.50", "1234567890", "at 42 and 007", "-3.25"):
        pieces = [tokenizer.decode([i]) for i in tokenizer.encode(text)]
        assert "".join(pieces) == text
        for piece in pieces:
            assert piece in "0123456789+-" or not any(c in "0123456789+-" for c in piece), pieces


def test_frequent_words_are_short(tokenizer):
    assert len(tokenizer.encode("action:")) == 1
    assert len(tokenizer.encode(" dyaw=")) == 1


def test_vocabulary_is_complete_and_reproducible(tokenizer):
    assert 256 + len(SPECIALS) < tokenizer.vocab_size <= 400
    again = train_tokenizer(LINES, 400)
    assert json.loads(again.to_json()) == json.loads(tokenizer.to_json())


def test_a_saved_tokenizer_is_the_same(tokenizer, tmp_path):
    path = tmp_path / "tokenizer.json"
    path.write_text(tokenizer.to_json())
    loaded = TextTokenizer.load(path)
    assert loaded.encode("go to 12 🌉") == tokenizer.encode("go to 12 🌉")
    assert loaded.vocab_size == tokenizer.vocab_size


@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "other json", "bytes"])
def test_a_damaged_tokenizer_file_is_a_clear_error(tokenizer, tmp_path, damage):
    path = tmp_path / "tokenizer.json"
    good = tokenizer.to_json().encode()
    content = {
        "empty": b"",
        "truncated": good[: len(good) // 2],
        "other json": b'{"a": 1}',
        "bytes": b"\xff\xfe\x00",
    }
    if damage in content:
        path.write_bytes(content[damage])
    with pytest.raises(UserError, match="not a readable tokenizer file") as caught:
        TextTokenizer.load(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("typed", "clean"),
    [
        ("turn left", "turn left"),
        ("  turn \n\t left \r\n", "turn left"),
        ("turn\u00a0left\u2003now", "turn left now"),
        ("a\x00b\x07c\x1b[0m", "abc[0m"),
        ("zero\u200bwidth \u202eother way", "zerowidth other way"),
        ("cafe\u0301", "café"),
        ("🌉 ok", "🌉 ok"),
        ("lone \ud800 surrogate", "lone surrogate"),
        ("<boi>", "<boi>"),
    ],
)
def test_a_typed_sentence_is_cleaned(typed, clean):
    assert clean_sentence(typed) == clean
    assert clean_sentence(clean) == clean
    assert not any(unicodedata.category(c).startswith("C") for c in clean)


@pytest.mark.parametrize("typed", ["", "   ", "\n\t", "\x00\x07", "\u200b\u202e"])
def test_an_empty_sentence_is_refused(typed):
    with pytest.raises(UserError, match="empty"):
        clean_sentence(typed)


def test_a_sentence_may_be_just_so_long():
    assert len(clean_sentence("x" * MAX_SENTENCE_CHARS)) == MAX_SENTENCE_CHARS
    with pytest.raises(UserError, match=f"{MAX_SENTENCE_CHARS + 1} characters"):
        clean_sentence("x" * (MAX_SENTENCE_CHARS + 1))
