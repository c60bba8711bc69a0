"""Checks and suites of skills: the real world passes, a copy of the first frame and noise fail."""

import dataclasses
import json
import math
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml

from worldmodel.actions import Action, ActionRow, ActionTable
from worldmodel.errors import UserError
from worldmodel.evaluate import run as run_
from worldmodel.evaluate import skills
from worldmodel.evaluate.checks import RULES, Ground, Seen, judge
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.cues import compile_lanes
from worldmodel.evaluate.scenario import CHECKS, Check, load_scenario, parse_scenario
from worldmodel.evaluate.scorecard import Scorecard
from worldmodel.world import Step, WorldSpec

SIZE = 32
TABLE = ActionTable(
    (
        ActionRow("forward", "w", "step forward", dx=0.5, phrases=("step forward",)),
        ActionRow("back", "s", "step back", dx=-0.5, phrases=("step back",)),
        ActionRow("left", "a", "turn left", dyaw=22.5, unit="deg", phrases=("turn left",)),
        ActionRow("right", "d", "turn right", dyaw=-22.5, unit="deg", phrases=("turn right",)),
    )
)
SEEDS = [0, 1, 2]


class Torus:
    """A texture that scrolls: 16 turns go all the way round, 6 steps ahead is a wall."""

    spec = WorldSpec("torus", TABLE, SIZE, SIZE)

    def reset(self, seed=None):
        rng = np.random.default_rng(seed)
        self.texture = rng.integers(0, 200, (8, 8, 3), dtype=np.uint8).repeat(4, 0).repeat(4, 1)
        self.x = self.yaw = 0
        return self.show()

    def step(self, action):
        self.x = min(self.x + round(action.dx * 2), 6)
        self.yaw += round(action.dyaw / 22.5)
        return self.show()

    def show(self):
        return Step(np.roll(self.texture, (2 * self.x, 2 * self.yaw), axis=(0, 1)))

    def close(self):
        pass


class Ideal(Torus):
    """A model that imagines the truth, and does what it is told."""

    def reset(self, seed=None, frames=None, actions=None):
        return super().reset(seed)

    def say(self, text):
        self.told = text
        return text or ""

    def step(self, action):
        if action is None:
            action = TABLE.parse(self.told)
        return super().step(action)


class Deaf(Ideal):
    """Turns left, whatever it is told."""

    def step(self, action):
        return super().step(TABLE.press("a"))


class Frozen(Ideal):
    """Shows its first frame for ever."""

    def step(self, action):
        return super().step(Action())


class Blocks:
    """Latents are the means of 2x2 blocks."""

    def encode(self, frames):
        blocks = frames.float().unflatten(2, (-1, 2)).unflatten(1, (-1, 2)).mean((2, 4))
        return (blocks.flatten(1, 2) - 100) / 58

    def decode(self, latents):
        grid = (latents * 58 + 100).unflatten(1, (SIZE // 2, SIZE // 2))
        return grid.repeat_interleave(2, 1).repeat_interleave(2, 2).round().to(torch.uint8)


CASES = {
    "still": {"steps": 12},
    "returns": {"steps": 8, "events": [{"at": 0, "hold": "a", "for": 4}, {"at": 4, "hold": "d"}]},
    "stops": {"steps": 20, "events": [{"at": 0, "hold": "w"}]},
    "goes_on": {"steps": 10, "events": [{"at": 0, "hold": "d"}]},
    "same": {"steps": 8, "events": [{"at": 0, "fork": ["d", {"say": "turn right", "means": "d"}]}]},
    "differs": {"steps": 6, "events": [{"at": 0, "fork": ["a", "d", "s"]}]},
    "follows": {
        "steps": 6,
        "events": [{"at": 0, "fork": ["s", {"say": "turn right", "means": "d"}]}],
    },
}


def scenario(name, **more):
    start = {"start": {"world": "torus"}, "seeds": SEEDS}
    return parse_scenario({**start, **CASES[name], "checks": [name], **more})


@pytest.fixture
def torus(monkeypatch):
    """Let the scenarios find the world of this file."""
    monkeypatch.setattr(skills, "open_world", lambda start, spec: Torus())


@pytest.mark.parametrize("name", CASES)
def test_the_real_world_passes_and_a_frozen_or_random_one_fails(name, torus):
    outcome = skills.run_scenarios(Ideal(), Blocks(), {"it": scenario(name)}, EvalConfig())
    (found,) = outcome.metrics
    assert found.name == f"it: {name}"
    assert found.n == 3
    assert found.value == pytest.approx(found.baselines["real"])
    assert found.value > 0.9
    assert outcome.verdicts[0].passed
    mark = found.baselines["pass mark"]
    assert mark == pytest.approx(RULES[name].share * found.baselines["real"])
    assert found.baselines["noise"] < mark
    assert (found.baselines["copy"] < mark) == (name != "still")  # standing still is still
    frozen = skills.run_scenarios(Frozen(), Blocks(), {"it": scenario(name)}, EvalConfig())
    assert frozen.metrics[0].value == pytest.approx(found.baselines["copy"], abs=1e-6)


@pytest.mark.parametrize("name", ["still", "returns", "stops", "differs", "follows"])
def test_a_model_that_does_not_listen_fails(name, torus):
    outcome = skills.run_scenarios(Deaf(), Blocks(), {"it": scenario(name)}, EvalConfig())
    assert not outcome.verdicts[0].passed


def lit(*levels):
    """Frames as bright as told, one rollout."""
    frames = np.ones((1, 1, len(levels), SIZE, SIZE, 3)) * np.reshape(levels, (-1, 1, 1, 1))
    return Seen(
        frames.astype(np.uint8),
        np.ones((1, 1, len(levels), 4, 4)),
        np.ones((1, 1, len(levels)), bool),
    )


def test_brightness_stays_or_rises():
    dark, rising = lit(*[20] * 9), lit(*range(20, 65, 5))
    noise = dataclasses.replace(lit(20, *[127] * 8), views=np.array([[[True] + [False] * 8]]))
    ground = Ground(real=dark, light=70.0)
    hands = {"rising": rising, "noise": noise}
    stays = judge(Check("brightness"), dark, hands, ground)
    assert stays.passed
    assert stays.score.value == pytest.approx(1)
    assert max(stays.others["rising"], stays.others["noise"]) < stays.mark
    rises = judge(Check("brightens"), rising, {"copy": dark, "noise": noise}, ground)
    assert rises.passed
    assert rises.score.value == pytest.approx((57.5 - 20) / 50)
    assert rises.others["copy"] == rises.others["noise"] == 0
    assert math.isnan(rises.others["real"])  # nobody knows which keys lead to the light


def test_every_check_that_may_be_written_has_a_rule():
    assert set(CHECKS) == set(RULES)


def test_a_fork_becomes_lanes_that_share_what_was_before():
    data = {
        "steps": 6,
        "events": [
            {"at": 0, "hold": "w"},
            {"at": 1, "say": "turn left"},
            {"at": 3, "fork": ["a", {"say": "turn right", "means": "d"}]},
            {"at": 5, "press": "s"},
        ],
    }
    first, second = compile_lanes(parse_scenario(data), TABLE)
    assert (first.label, second.label) == ("a", "turn right")
    assert first.cues[:3] == second.cues[:3]
    assert [cue.keys for cue in first.cues[3:]] == [("a",), ("a",), ("s", "a")]
    assert first.cues[3].clear
    assert [cue.keys for cue in second.cues[3:]] == [(), (), ()]
    assert second.cues[3].say == "turn right"
    plan = skills.real_plan(second, TABLE)
    assert [action.keys for action in plan] == [("w",)] * 3 + [("d",)] * 3


def test_a_rewind_leaves_the_path_that_was_gone_in_the_end():
    data = {
        "steps": 6,
        "events": [
            {"at": 0, "hold": "w", "for": 3},
            {"at": 2, "say": "turn left"},
            {"at": 3, "rewind": 2},
            {"at": 3, "hold": "a"},
        ],
    }
    (lane,) = compile_lanes(parse_scenario(data), TABLE)
    assert [cue.keys for cue in lane.cues] == [("w",), ("a",), ("a",), ("a",)]
    assert [cue.say for cue in lane.cues] == [None, "turn left", None, None]  # it stays in force


@pytest.mark.parametrize(
    ("data", "parts"),
    [
        ({"checks": ["stil"]}, ["Unknown check 'stil'", "Did you mean 'still'"]),
        ({"checks": [{"returns": {"awya": 2}}]}, ["'awya'", "checks[0].returns", "'away'"]),
        ({"checks": [{"returns": {"away": 9}}]}, ["checks[0].returns.away", "1 to 4"]),
        ({"checks": [3]}, ["checks[0]", "name of a check"]),
        ({"seeds": [1], "start": {"seed": 2}}, ["'seeds' or 'start.seed'"]),
        ({"seeds": [1], "start": {"image": "a.png"}}, ["'seeds' goes with"]),
        ({"start": {"split": "val"}}, ["'start.split' needs 'start.world'"]),
        ({"events": [{"at": 0, "hold": "w", "means": "w"}]}, ["'say' only"]),
        ({"events": [{"at": 0, "fork": ["w", {"say": " "}]}]}, ["is empty"]),
    ],
)
def test_a_wrong_scenario_is_told_in_a_sentence(data, parts):
    with pytest.raises(UserError) as caught:
        parse_scenario({"steps": 4, **data})
    for part in parts:
        assert part in str(caught.value)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"checks": ["follows"], "start": {"seed": 0}}, "Scenario 'it': The check 'follows' comp"),
        ({"checks": ["same"]}, "needs a fork"),
        ({"checks": ["follows"], "events": [{"at": 1, "press": "w"}]}, "the same keys held"),
        ({"events": [{"at": 0, "fork": ["w", "x"]}]}, "Unknown key 'x'"),
        ({"events": [{"at": 0, "say": "go", "means": "x"}]}, "Unknown key 'x'"),
        ({"events": [{"at": i, "fork": ["w", "a"]} for i in (0, 1)]}, "at most one fork"),
    ],
)
def test_what_cannot_be_judged_is_told_before_anything_is_played(data, message):
    one = parse_scenario({"steps": 4, "start": {"world": "torus", "seed": 0}, **data})
    with pytest.raises(UserError, match=message):
        skills.run_scenarios(Ideal(), Blocks(), {"it": one}, EvalConfig())


def test_the_bundled_suite_is_sound():
    """Every file is read, has checks, and has what they compare, for doom's keys."""
    from worldmodel.envs.doom.world import ACTIONS
    from worldmodel.envs.grammar import held_out

    suite = skills.bundled_suite("skills")
    assert len(suite) >= 10
    assert {check.name for one in suite.values() for check in one.checks} == set(CHECKS)
    for one in suite.values():
        lanes = compile_lanes(one, ACTIONS)
        skills.require(one, lanes)
        assert one.checks
        assert one.start.split == "val"
        assert len(one.seeds) >= 8
    for side in ("left", "right"):
        (lane,) = compile_lanes(suite[f"instructions-combined-{side}"], ACTIONS)
        assert held_out(lane.cues[0].say or "") == "combination"
    reworded = {lane.label for lane in compile_lanes(suite["instructions-reworded"], ACTIONS)}
    assert {held_out(label) for label in reworded} == {"phrasing"}
    seen = {lane.label for lane in compile_lanes(suite["instructions"], ACTIONS)}
    assert {held_out(label) for label in seen} == {None}


def test_the_racing_suite_is_sound():
    from worldmodel.actions import ActionTable
    from worldmodel.envs.gym_config import load_preset

    table = ActionTable(tuple(row.row for row in load_preset("carracing").rows))
    for one in skills.bundled_suite("racing").values():
        skills.require(one, compile_lanes(one, table))
        assert (one.start.world, one.start.split) == ("carracing", "val")
        assert one.checks
        assert len(one.seeds) >= 8


def test_quick_and_full_are_the_skills_from_fewer_starts_and_with_more_to_do():
    assert skills.suites() == ("full", "quick", "racing", "skills")
    every, quick, full = (skills.bundled_suite(name) for name in ("skills", "quick", "full"))
    assert quick.keys() == every.keys() < full.keys()
    assert all(one.seeds == every[name].seeds[:2] for name, one in quick.items())
    assert full["stand-still-long"].steps == 128


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("include: [skils]", "Did you mean 'skills'"),
        ("includes: [skills]", "Did you mean 'include'"),
        ("starts: none", "Suite file .*whole number"),
        ("include: [", "suite file .*is not YAML"),
    ],
)
def test_a_wrong_suite_file_is_told_in_a_sentence(tmp_path, text, message):
    (tmp_path / "suite.yaml").write_text(text)
    with pytest.raises(UserError, match=message):
        skills.load_suite(tmp_path)


def test_a_suite_of_ones_own_can_build_on_a_bundled_one(tmp_path):
    (tmp_path / "suite.yaml").write_text("include: [skills]\nstarts: 3\n")
    (tmp_path / "stand-still.yaml").write_text("{start: {seed: 1}, steps: 2, checks: [still]}")
    found = skills.load_suite(tmp_path)
    assert found.keys() == skills.bundled_suite("skills").keys()
    assert found["stand-still"].steps == 2
    assert len(found["wishes"].seeds) == 3


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    from worldmodel.checkpoint import save
    from worldmodel.envs.doom.world import ACTIONS

    folder = tmp_path_factory.mktemp("checkpoints") / "tiny"
    make = runpy.run_path(str(Path(__file__).parent / "test_checkpoint.py"))["make"]
    made = make()
    spec = dataclasses.replace(made.spec, actions=ACTIONS)
    save(dataclasses.replace(made, spec=spec), folder)
    return str(folder)


def test_the_command_judges_scenarios_and_reports_them(tiny, tmp_path, capsys):
    folder = tmp_path / "mine"
    folder.mkdir()
    away = {"steps": 4, "events": [{"at": 0, "hold": "a", "for": 2}, {"at": 2, "hold": "d"}]}
    real = {**away, "start": {"world": "doom", "split": "val"}, "seeds": [0, 1]}
    real["checks"] = ["returns", "brightness"]
    (folder / "real.yaml").write_text(yaml.safe_dump(real))
    bundled = {"steps": 3, "start": {"seed": 0}, "checks": ["still"]}
    (folder / "bundled.yaml").write_text(yaml.safe_dump(bundled))
    out = tmp_path / "out"
    config = EvalConfig(
        scenario=str(folder), checkpoint=tiny, out=str(out), denoise_steps=1, device="cpu"
    )
    assert run_.main(config) == 0
    card = Scorecard.load(out / "scorecard.json")
    assert card.suite == "mine"
    assert {m.name for m in card.metrics} == {
        "real: returns", "real: brightness", "bundled: still",
    }  # fmt: skip
    assert card.get("real: returns").baselines["real"] == pytest.approx(1, abs=1e-3)
    assert math.isnan(card.get("bundled: still").baselines["real"])
    assert card.get("bundled: still").baselines["pass mark"] == 0.5
    assert {"denoise_steps", "guidance", "starts"} == set(card.settings)
    page = (out / "index.html").read_text()
    assert "<h2>Skills</h2>" in page
    assert page.count("data:image/webp") == 2
    assert (out / "skill_real.png").read_bytes()[1:4] == b"PNG"
    assert "real: returns" in capsys.readouterr().out
    assert json.loads((out / "scorecard.json").read_text())["store"] == ""


def test_a_session_that_was_kept_runs_as_a_scenario(tiny, tmp_path):
    """The same model imagines the same frames as in the viewer."""
    from worldmodel.dream import Dream
    from worldmodel.viewer.journal import Head, scenario_of, to_yaml
    from worldmodel.viewer.session import Session

    options = {"device": "cpu", "dtype": "float32", "denoise_steps": 1}
    session = Session(Dream.load(tiny, seed=5, **options))
    played = [session.now.frame]
    played += [session.advance(keys).frame for keys in (["w"], ["w"], ["a"])]
    session.say("turn left")
    played += [session.advance().frame, session.advance(["d"]).frame]
    session.say("")
    played.append(session.advance().frame)
    head = Head(checkpoint=tiny, seed=5)
    path = tmp_path / "kept.yaml"
    path.write_text(
        to_yaml(scenario_of(session.tree, session.at, head, session.start_of(session.at)))
    )

    kept = load_scenario(path)
    dream = skills.seeded(Dream.load(tiny, seed=0, **options), kept)
    lanes = compile_lanes(kept, dream.spec.actions)
    frames = skills.play(dream, [(kept.start.seed or 0, None)], lanes)
    np.testing.assert_array_equal(frames[0, 0], np.stack(played))

    config = EvalConfig(
        scenario=str(path), checkpoint=tiny, out=str(tmp_path / "out"), denoise_steps=1,
        device="cpu", dtype="float32",
    )  # fmt: skip
    assert run_.main(config) == 0
    assert (tmp_path / "out" / "skill_kept.png").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"suite": "skils"}, "Did you mean 'skills'"),
        ({"scenario": "nowhere.yaml"}, "No such file"),
    ],
)
def test_a_wrong_suite_or_file_is_told_before_the_model_is_loaded(changes, message):
    with pytest.raises(UserError, match=message):
        run_.main(EvalConfig(checkpoint="nowhere", **changes))


def test_scorecards_are_laid_side_by_side(tmp_path, torus, capsys):
    for name, model in (("a", Ideal), ("b", Deaf)):
        many = scenario("follows", seeds=list(range(8)))
        outcome = skills.run_scenarios(model(), Blocks(), {"it": many}, EvalConfig())
        card = Scorecard(
            suite="mine", checkpoint=name, checkpoint_hash="", store="", split="", seed=0,
            commit=None, version="0", device="cpu", dtype="float32", settings={},
            metrics=outcome.metrics, verdicts=outcome.verdicts,
        )  # fmt: skip
        card.save(tmp_path / name / "scorecard.json")
    places = (str(tmp_path / "a"), str(tmp_path / "b" / "scorecard.json"))
    assert run_.main(EvalConfig(compare=places, out=str(tmp_path))) == 0
    printed = capsys.readouterr().out
    assert "-1.000*" in printed  # all read right, none: the intervals do not overlap
    assert '<span class="mark no">-1.000' in (tmp_path / "compare.html").read_text()
    assert run_.main(EvalConfig(compare=(places[0], places[0]), out=str(tmp_path))) == 0
    assert "+0.000 " in capsys.readouterr().out
    with pytest.raises(UserError, match="two scorecards or more"):
        run_.main(EvalConfig(compare=places[:1]))
    with pytest.raises(UserError, match="not a scorecard"):
        run_.main(EvalConfig(compare=(places[0], str(tmp_path / "none.json"))))
