"""Action text: what is written is read back as the same action, in every form."""

import itertools
import json

import pytest

from worldmodel.actions import FORMS, IDLE_PHRASES, Action, ActionRow, ActionTable
from worldmodel.errors import UserError

TABLE = ActionTable(
    (
        ActionRow("forward", "w", "walk", dx=0.5, phrases=("step forward", "go ahead")),
        ActionRow("back", "s", "walk", dx=-0.5, phrases=("step back",)),
        ActionRow("left", "a", "turn", dyaw=11.25, unit="deg", phrases=("turn left",)),
        ActionRow("right", "d", "turn", dyaw=-11.25, unit="deg", phrases=("turn right",)),
        ActionRow("strafe left", "q", "walk", dy=0.5, phrases=("step left", "slide left")),
        ActionRow("strafe right", "e", "walk", dy=-0.5, phrases=("step right",)),
    )
)
WITH_EVENT = ActionTable((*TABLE.rows, ActionRow("use", "f", "open a door", phrases=("use it",))))
COMBINATIONS = [
    "".join(keys) for n in range(7) for keys in itertools.combinations("wsadqe", n)
]  # all 64


@pytest.mark.parametrize("form", FORMS)
def test_text_of_every_key_combination_is_read_back(form):
    for keys, pick in itertools.product(COMBINATIONS, range(4)):
        action = TABLE.press(keys)
        text = TABLE.text(action, form, pick)
        assert text.startswith("action: ")
        assert TABLE.parse(text) == action, (keys, text)


@pytest.mark.parametrize("form", ["keys", "phrase"])
def test_keys_that_move_nothing_are_read_back_too(form):
    for keys in COMBINATIONS:
        action = WITH_EVENT.press(keys + "f")
        assert "f" in action.keys
        assert WITH_EVENT.parse(WITH_EVENT.text(action, form)) == action


def test_forms_say_what_they_should():
    action = TABLE.press(["a", "w"])  # the table's order counts, not the order of pressing
    assert TABLE.text(action, "metric") == "action: dx=+0.50 dy=+0.00 dyaw=+11.2"
    assert TABLE.text(action, "keys") == "action: w+a"
    assert TABLE.text(action, "phrase") == "action: step forward and turn left"
    assert TABLE.text(action, "phrase", pick=1) == "action: go ahead and turn left"
    assert TABLE.text(Action(), "keys") == "action: none"
    assert TABLE.text(Action(), "metric") == "action: dx=+0.00 dy=+0.00 dyaw=+0.0"
    with pytest.raises(ValueError, match="metric"):
        TABLE.text(action, "words")


@pytest.mark.parametrize("pick", range(2 * len(IDLE_PHRASES)))
def test_every_way_to_say_nothing_is_idle(pick):
    assert TABLE.parse(TABLE.text(Action(), "phrase", pick)).idle


@pytest.mark.parametrize(
    ("held", "left"),
    [("ws", ""), ("ad", ""), ("qe", ""), ("wsa", "a"), ("wsadqe", ""), ("wad", "w"), ("wq", "wq")],
)
def test_opposite_keys_cancel_and_the_others_add_up(held, left):
    assert TABLE.press(held) == TABLE.press(left)
    assert TABLE.press(held).keys == tuple(left)


def test_keys_that_are_no_exact_opposites_add_up():
    table = ActionTable((ActionRow("run", "w", "", dx=0.5), ActionRow("back", "s", "", dx=-0.25)))
    assert table.press("ws") == Action(("w", "s"), dx=0.25)


def test_masks_name_the_same_keys():
    for mask in range(64):
        action = TABLE.from_mask(mask)
        assert TABLE.from_mask(TABLE.mask(action)) == action
    assert TABLE.mask(TABLE.press("wd")) == 0b1001


@pytest.mark.parametrize(
    "action",
    [
        Action((), 0.25, 0.0, 15.0),
        Action((), -1.5, 0.13, -180.0),
        Action((), 123.45, -0.01, 359.9),
    ],
)
def test_motion_that_no_keys_make_has_the_metric_form_only(action):
    for form in FORMS:
        text = TABLE.text(action, form)
        assert text.startswith("action: dx=")
        read = TABLE.parse(text)
        assert read.keys == ()
        assert (read.dx, read.dy, read.dyaw) == pytest.approx((action.dx, action.dy, action.dyaw))


@pytest.mark.parametrize("tiny", [0.0, -0.0, -0.001, 0.004, -0.0049])
def test_metric_text_never_says_minus_zero(tiny):
    text = TABLE.text(Action((), tiny, tiny, tiny * 10), "metric")
    assert text == "action: dx=+0.00 dy=+0.00 dyaw=+0.0"
    assert TABLE.parse("action: dx=-0.00 dy=-0.00 dyaw=-0.0").idle


def test_reading_is_easy_about_case_and_space():
    assert TABLE.parse("  W+A ") == TABLE.press("wa")
    assert TABLE.parse("action:   Turn   LEFT") == TABLE.press("a")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ("step forwrd", "step forward"),
        ("action: turn lef", "turn left"),
        ("w+x", "w"),
        ("dx=1 dy=2 dyaw=3", "Known"),
        ("", "Known"),
    ],
)
def test_what_is_no_action_is_refused_with_the_nearest_one(text, hint):
    with pytest.raises(UserError, match="is not an action") as caught:
        TABLE.parse(text)
    assert hint in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_is_refused_with_the_nearest_one():
    with pytest.raises(UserError, match=r"Unknown key 'ww'\. Did you mean 'w'\?") as caught:
        TABLE.press(["a", "ww"])
    assert "Known: a, d, e, q, s, w." in str(caught.value)


def test_the_table_survives_json():
    assert ActionTable.from_json(json.loads(json.dumps(WITH_EVENT.to_json()))) == WITH_EVENT


def test_an_action_that_moves_nothing_has_no_metric_form():
    held = WITH_EVENT.press("wf")
    assert WITH_EVENT.text(held, "metric") == "action: w+f"
    assert WITH_EVENT.text(WITH_EVENT.press("w"), "metric") == WITH_EVENT.text(
        TABLE.press("w"), "metric"
    )
    assert WITH_EVENT.text(Action(), "metric") == "action: dx=+0.00 dy=+0.00 dyaw=+0.0"
    buttons = ActionTable((ActionRow("fire", "f", "fire", phrases=("fire",)),))
    assert buttons.text(Action(), "metric") == "action: none"
    for form, keys in itertools.product(FORMS, ("", "f", "wf", "wsf", "qaf")):
        action = WITH_EVENT.press(keys)
        assert WITH_EVENT.parse(WITH_EVENT.text(action, form)) == action
        assert WITH_EVENT.from_mask(WITH_EVENT.mask(action)) == action


def test_keys_that_cannot_be_held_together_give_way():
    """As in a world that does one thing at a time: the row further down counts."""
    rows = (
        ActionRow("up", "w", "up", phrases=("go up",), joins=("d",)),
        ActionRow("right", "d", "right", phrases=("go right",), joins=("w",)),
        ActionRow("take", "f", "take", phrases=("take it",), joins=()),
        ActionRow("look", "l", "look", phrases=("look",)),
    )
    table = ActionTable(rows)
    held = {keys: table.press(keys).keys for keys in ("w", "wd", "wf", "wdf", "wl", "fl")}
    assert held == {
        "w": ("w",), "wd": ("w", "d"), "wf": ("f",), "wdf": ("f",), "wl": ("l",), "fl": ("l",),
    }  # fmt: skip
    assert ActionTable.from_json(json.loads(json.dumps(table.to_json()))) == table
    assert "joins" not in table.to_json()[3]  # tables without it are stored as they always were
