"""The scenario file: what it accepts, what it refuses and how, what it compiles to."""

import pytest

from worldmodel.actions import ActionRow, ActionTable
from worldmodel.errors import UserError
from worldmodel.evaluate.cues import Cue, compile_scenario
from worldmodel.evaluate.scenario import Branch, Start, load_scenario, parse_scenario

TABLE = ActionTable(
    tuple(ActionRow(f"key {k}", k, f"does {k}", dx=float(i)) for i, k in enumerate("wasd"))
)

EXAMPLE = """
checkpoint: doom-nano
start: {seed: 3}
seed: 0
steps: 12
events:
  - {at: 0, hold: w, for: 3}
  - {at: 2, hold: "a+w", for: 2}
  - {at: 5, press: a}
  - {at: 6, say: "get out of the shadow"}
  - {at: 6, say: "is it dark?"}
  - {at: 7, say: "what is ahead? "}
  - {at: 7, say: "暗いですか？"}
  - {at: 8, clear: true}
  - {at: 9, rewind: 2}
  - {at: 10, hold: s}
checks: []
"""


def test_compiles_to_one_cue_per_step(tmp_path):
    path = tmp_path / "scenario.yaml"
    path.write_text(EXAMPLE, encoding="utf-8")
    scenario = load_scenario(path)
    assert (scenario.checkpoint, scenario.start, scenario.seed) == ("doom-nano", Start(seed=3), 0)
    cues = compile_scenario(scenario, TABLE)
    assert len(cues) == 12
    assert [cue.keys for cue in cues[:6]] == [("w",), ("w",), ("w", "a"), ("w", "a"), (), ("a",)]
    assert cues[6] == Cue(say="get out of the shadow", ask=("is it dark?",))
    assert cues[7] == Cue(ask=("what is ahead? ", "暗いですか？"))
    assert cues[8] == Cue(clear=True)
    assert cues[9] == Cue(rewind=2)
    assert [cue.keys for cue in cues[10:]] == [("s",), ("s",)]


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({"stepps": 3}, ["'stepps'", "Did you mean 'steps'"]),
        ({}, ["'steps' is missing"]),
        ({"steps": "many"}, ["'steps'", "whole number", "many"]),
        ({"steps": 0}, ["'steps'", "1 to"]),
        ({"steps": True}, ["'steps'", "true/false"]),
        (["steps"], ["the scenario", "a list"]),
        (None, ["the scenario", "nothing"]),
        ({"steps": 3, "seed": 1.5}, ["'seed'", "whole number"]),
        ({"steps": 3, "events": {"at": 1}}, ["'events'", "list"]),
        ({"steps": 3, "events": [{"at": 1, "prss": "w"}]}, ["events[0]", "'press'"]),
        ({"steps": 3, "events": [{"press": "w"}]}, ["events[0]", "'at'"]),
        ({"steps": 3, "events": [{"at": 3, "press": "w"}]}, ["events[0].at", "step 2"]),
        ({"steps": 3, "events": [{"at": 1}]}, ["exactly one of", "none"]),
        ({"steps": 3, "events": [{"at": 1, "say": "x", "hold": "w"}]}, ["exactly one of"]),
        ({"steps": 3, "events": [{"at": 1, "say": "  "}]}, ["empty", "clear: true"]),
        ({"steps": 3, "events": [{"at": 1, "press": 4}]}, ["events[0].press", "text"]),
        ({"steps": 3, "events": [{"at": 1, "press": "w++a"}]}, ["w+a"]),
        ({"steps": 3, "events": [{"at": 1, "press": "w", "for": 2}]}, ["'hold' only"]),
        ({"steps": 3, "events": [{"at": 1, "clear": "yes"}]}, ["must be true"]),
        ({"steps": 3, "start": {"sed": 1}}, ["'sed'", "Did you mean 'seed'"]),
        ({"steps": 3, "start": {"store": "x", "image": "y"}}, ["one of store, image"]),
        ({"steps": 3, "start": {"episode": 2}}, ["start.store"]),
    ],
)
def test_refuses_with_the_place_and_the_remedy(data, parts):
    with pytest.raises(UserError) as caught:
        parse_scenario(data)
    for part in parts:
        assert part in str(caught.value)


def test_refuses_keys_that_the_world_lacks():
    unknown = parse_scenario({"steps": 2, "events": [{"at": 0, "hold": "w+x"}]})
    with pytest.raises(UserError, match="Unknown key 'x'"):
        compile_scenario(unknown, TABLE)
    fork = parse_scenario({"steps": 2, "events": [{"at": 1, "fork": ["w", "x"]}]})
    with pytest.raises(UserError, match="Unknown key 'x'"):
        compile_scenario(fork, TABLE)


def test_a_fork_is_open_until_the_next_event_and_its_first_branch_goes_on():
    events = [
        {"at": 0, "hold": "s"},
        {"at": 1, "say": "turn right"},
        {"at": 2, "fork": ["w", "a", {"say": "turn left"}]},
        {"at": 5, "press": "a"},
        {"at": 6, "fork": [{"say": "go"}, "d"]},
    ]
    cues = compile_scenario(parse_scenario({"steps": 8, "events": events}), TABLE)
    assert [cue.keys for cue in cues] == [
        *[("s",), ("s",), ("w",), ("w",), ("w",), ("w", "a"), (), ()],
    ]
    assert [len(cue.fork) for cue in cues] == [0, 0, 3, 0, 0, 0, 2, 0]
    assert [i for i, cue in enumerate(cues) if cue.pick] == [5]  # the other is open to the end
    assert cues[2].fork[2] == Branch(say="turn left")
    assert (cues[2].clear, cues[6].say) == (True, "go")
    crowded = [{"at": 2, "fork": ["w", "a"]}, {"at": 2, "say": "go"}]
    with pytest.raises(UserError, match="step 2 has another event in the same step"):
        compile_scenario(parse_scenario({"steps": 8, "events": crowded}), TABLE)


@pytest.mark.parametrize(
    ("content", "part"),
    [(b"steps: [3", "line"), (b"\xff\xfe\x00", "UTF-8"), (b"steps: 3\x07", "not YAML")],
)
def test_refuses_files_that_are_no_yaml(tmp_path, content, part):
    path = tmp_path / "bad.yaml"
    path.write_bytes(content)
    with pytest.raises(UserError, match=part):
        load_scenario(path)


def test_refuses_a_missing_file(tmp_path):
    with pytest.raises(UserError, match="No such file"):
        load_scenario(tmp_path / "none.yaml")
