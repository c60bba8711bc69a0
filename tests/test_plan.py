"""Planning on a grid whose optimum is known, its metrics by hand, and the command end to end."""

import dataclasses
import json

import numpy as np
import pytest
import torch
from PIL import Image

from worldmodel.actions import Action, ActionRow, ActionTable
from worldmodel.checkpoint import Checkpoint, save
from worldmodel.cli import main
from worldmodel.datasets.store import EpisodeWriter
from worldmodel.dream import Dream
from worldmodel.encoders.rae import RAE, RAEConfig
from worldmodel.envs import make_world
from worldmodel.errors import UserError
from worldmodel.evaluate import plan_measure
from worldmodel.evaluate.plan_config import PlanConfig
from worldmodel.evaluate.plan_measure import closed_loop, find_tasks, reached, walk
from worldmodel.evaluate.planning import (
    ImageGoal,
    Planner,
    WordsGoal,
    choices_of,
    held,
    imagine_plans,
    integrate,
    path_error,
    search,
)
from worldmodel.text import train_tokenizer
from worldmodel.transformer import Core, CoreConfig
from worldmodel.world import Episode, Step, WorldSpec

SIZE = 16
TABLE = ActionTable(
    (
        ActionRow("forward", "w", "go", dx=1.0, phrases=("go",)),
        ActionRow("back", "s", "go back", dx=-1.0, phrases=("go back",)),
        ActionRow("left", "q", "go left", dy=1.0, phrases=("go left",)),
        ActionRow("right", "e", "go right", dy=-1.0, phrases=("go right",)),
    )
)
SPEC = WorldSpec("grid", TABLE, SIZE, SIZE)


def frame_of(x, y):
    frame = np.zeros((SIZE, SIZE, 3), np.uint8)
    frame[x, y] = 255
    return frame


class AngleEncoder:
    """Two tokens of two channels: the row and the column of the bright cell, as angles."""

    def encode(self, frames):
        cell = frames[..., 0].flatten(1).argmax(dim=1)
        place = torch.stack([cell // SIZE, cell % SIZE], dim=1) * (np.pi / 2 / SIZE)
        return torch.stack([place.cos(), place.sin()], dim=-1)

    def decode(self, latents):
        raise NotImplementedError


class Grid:
    """A cell that keys move, stopped by the border: a world, and a perfect dream of it."""

    spec, encoder = SPEC, AngleEncoder()

    def __init__(self, poses=True):
        self.poses, self.cell = poses, (8, 8)

    def reset(self, seed=None, frames=None, actions=None):
        self.cell = (8, 8)
        if frames is not None:
            assert actions is not None
            assert len(actions) == len(frames) - 1
            self.cell = tuple(int(v) for v in np.argwhere(frames[-1, ..., 0])[0])
        return self.look()

    def look(self):
        facts = {"pose": np.array([*self.cell, 0], np.float32)} if self.poses else {}
        return Step(frame_of(*self.cell), facts=facts)

    def step(self, action):
        x, y = self.cell
        self.cell = tuple(int(np.clip(v, 0, SIZE - 1)) for v in (x + action.dx, y + action.dy))
        return self.look()

    def fork(self, k):
        copies = [Grid(self.poses) for _ in range(k)]
        for copy in copies:
            copy.cell = self.cell
        return copies

    @staticmethod
    def batch_step(dreams, actions):
        return [dream.step(action) for dream, action in zip(dreams, actions, strict=True)]

    def close(self):
        pass


def grid_planner(**changes):
    knobs = {"horizon": 8, "hold": 1, "candidates": 40, "elites": 6, "iterations": 5, "batch": 7}
    return Planner(choices_of(TABLE, pairs=False), **(knobs | changes))


GOAL = ImageGoal(frame_of(14, 6), Grid.encoder)  # 6 steps ahead and 2 to the right


def test_the_search_finds_the_optimum_where_random_shooting_does_not():
    found = [grid_planner().plan(Grid(), GOAL, seed) for seed in range(6)]
    shot = [grid_planner(candidates=200, iterations=1).plan(Grid(), GOAL, s) for s in range(6)]
    assert {p.found.tried for p in [*found, *shot]} == {200}
    costs, others = ([p.found.cost for p in some] for some in (found, shot))
    assert sum(cost < 1e-6 for cost in costs) >= 4
    assert np.mean(costs) < 0.5 * np.mean(others)
    best = found[int(np.argmin(costs))]
    assert np.array_equal(best.frames[-1], frame_of(14, 6))
    assert np.array_equal(integrate(best.actions)[-1], [6, -2, 0])
    assert all(list(p.found.best) == sorted(p.found.best, reverse=True) for p in found)


def test_a_seed_gives_the_same_plan_and_the_dream_stays_where_it_was():
    dream = Grid()
    first, again = (grid_planner().plan(dream, GOAL, 3) for _ in range(2))
    assert first.actions == again.actions
    assert first.found.best == again.found.best
    assert first.found.best != grid_planner().plan(dream, GOAL, 4).found.best
    assert dream.cell == (8, 8)


def test_no_plan_is_imagined_twice_and_a_small_space_is_searched_whole():
    seen = []

    def costs(plans):
        seen.extend(map(tuple, plans.tolist()))
        return np.abs(plans - [1, 2]).sum(axis=1).astype(float)

    found = search(costs, blocks=2, choices=3, candidates=4, elites=2, iterations=5)
    assert sorted(seen) == [(i, j) for i in range(3) for j in range(3)]
    assert found.tried == 9
    assert found.cost == 0
    assert found.plan.tolist() == [1, 2]
    assert found.best[-1] == 0


def test_choices_are_nothing_keys_and_pairs_that_go_together():
    assert [a.keys for a in choices_of(TABLE, pairs=False)] == [(), ("w",), ("s",), ("q",), ("e",)]
    pairs = {a.keys for a in choices_of(TABLE)} - {a.keys for a in choices_of(TABLE, pairs=False)}
    assert pairs == {("w", "q"), ("w", "e"), ("s", "q"), ("s", "e")}
    some = choices_of(TABLE, pairs=False)
    actions = held(np.array([1, 3]), some, hold=2, horizon=3)
    assert [a.keys for a in actions] == [("w",), ("w",), ("q",)]


def test_a_path_follows_its_actions():
    quarter = Action((), dx=1.0, dyaw=90.0)
    poses = integrate([Action((), dx=2.0), quarter, Action((), dy=1.0)], start=(1, 1, 90))
    middle = np.sqrt(0.5)
    end = (1 - middle, 3 + middle)
    assert poses == pytest.approx(
        np.array([(1, 1, 90), (1, 3, 90), (*end, 180), (end[0], end[1] - 1, 180)])
    )


def test_path_errors_are_those_computed_by_hand():
    truth = np.array([(0, 0, 0), (1, 0, 0), (2, 0, 90), (2, 1, 90)], float)
    path = np.array([(0, 0, 0), (1, 0, 0), (2, 0, 0), (3, 0, -180)], float)
    error = path_error(path, truth)
    assert error.ate == pytest.approx(np.sqrt((0 + 0 + 2) / 3))
    # Each stride is (1, 0) in its own frame, though the last goes another way.
    assert error.rpe == pytest.approx(0)
    assert error.position == pytest.approx(np.sqrt(2))
    assert error.yaw == pytest.approx(90)
    still = path_error(np.zeros((4, 3)), truth)
    assert still.ate == pytest.approx(np.sqrt((1 + 4 + 5) / 3))
    assert still.rpe == pytest.approx(1)
    with pytest.raises(ValueError, match="share a shape"):
        path_error(path[:-1], truth)


WALK = PlanConfig(
    world="grid", episodes=3, context=2, horizon=6, hold=1, pairs=False, candidates=40,
    iterations=6, steps=12, lead=2, policy="random", near_metres=0.5, replan=2,
)  # fmt: skip


def test_the_closed_loop_reaches_what_the_path_reached_and_random_walks_do_not():
    outcome = closed_loop(Grid(), Grid(), WALK, lambda t: ImageGoal(t.goal.frame, Grid.encoder))
    success = outcome.metrics[0]
    assert (success.name, success.value, success.n) == ("success", 1, 3)
    assert success.baselines["path"] == 1
    assert success.baselines["random"] < 1
    by_name = {m.name: m for m in outcome.metrics}
    assert by_name["final_distance"].value < 0.5
    assert by_name["goal_cost"].value == pytest.approx(0, abs=1e-6)
    assert len({row.frames.shape for row in outcome.rows}) == 1


def test_a_goal_of_ones_own_is_planned_for_to_the_last_step_and_only_its_cost_is_told():
    config = dataclasses.replace(WALK, goal="there.png", episodes=2, steps=6)
    mine = ImageGoal(frame_of(12, 8), Grid.encoder)
    outcome = closed_loop(Grid(), Grid(), config, lambda task: mine)
    (cost,) = outcome.metrics
    assert cost.name == "goal_cost"
    assert cost.value < 0.01 < cost.baselines["random"]
    assert all(np.array_equal(row.frames[-1], frame_of(12, 8)) for row in outcome.rows)


def test_tasks_are_not_done_where_they_start():
    tasks = find_tasks(Grid(), WALK)
    assert len({task.seed for task in tasks}) == 3
    for task in tasks:
        assert np.linalg.norm(task.start.facts["pose"] - task.goal.facts["pose"]) > 0.5
        assert (len(task.lead), len(task.path)) == (2, 6)


def test_worlds_that_cannot_be_judged_are_refused():
    with pytest.raises(UserError, match="tells no poses"):
        find_tasks(Grid(poses=False), WALK)
    with pytest.raises(UserError, match=r"Only 0 of 3 tasks .*policy=goto"):
        find_tasks(Grid(), dataclasses.replace(WALK, near_metres=99.0))
    task, world = find_tasks(Grid(), WALK)[0], Grid()
    moved = dataclasses.replace(task, start=Step(task.start.frame, facts={"pose": np.zeros(3)}))
    with pytest.raises(UserError, match="does not repeat itself"):
        walk(world, moved, lambda *_: [Action()], WALK)


def test_an_object_to_reach_is_ahead_at_the_end_of_the_path_and_not_at_its_start():
    config = PlanConfig(world="doom", goal="object", policy="goto", episodes=2, steps=8)
    world = make_world("doom", split="val", size=16)
    try:
        tasks = find_tasks(world, config)
        for task in tasks:
            assert task.object in world.spec.objects
            assert not reached(task.start, task, world.spec, config)
            assert reached(task.goal, task, world.spec, config)
        path = list(tasks[0].path)
        assert walk(world, tasks[0], lambda *_: path, config).reached
    finally:
        world.close()


def save_tiny(folder, spec, zero_heads=True):
    """A checkpoint of a tiny model that was never trained."""
    torch.manual_seed(0)
    tokenizer = train_tokenizer(["action: w", "caption: a red torch ahead"] * 9, 300)
    shape = CoreConfig(
        tokenizer.vocab_size, (4, 4), latent_channels=4, merge=2, width=32, depth=1, heads=2,
        kv_heads=1, hidden=32, experts=4,
    )  # fmt: skip
    core = Core(shape)
    if not zero_heads:
        for head in (core.say, core.paint):
            torch.nn.init.normal_(head.weight, std=0.3)
    rae = RAE(RAEConfig(16, 4, 4, width=16, heads=2, encoder_depth=1, decoder_depth=1))
    starts = np.zeros((1, 3, SIZE, SIZE, 3), np.uint8), np.zeros((1, 2), np.int32)
    save(Checkpoint(folder.name, core, rae, tokenizer, spec, *starts, 0.9, {}), folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder with stores of the grid (with and without poses), checkpoints and images."""
    folder = tmp_path_factory.mktemp("plan")
    for name in ("grid", "poseless"):
        writer = EpisodeWriter(folder / f"{name}.zarr", SPEC)
        for seed in range(3):
            keys = np.random.default_rng(seed).choice([0, 1, 2, 4, 8], 14).astype(np.uint16)
            moves = [TABLE.from_mask(int(key)) for key in keys]
            world = Grid()
            steps = [world.reset(), *map(world.step, moves)]
            poses = {"pose": np.stack([s.facts["pose"] for s in steps])}
            facts = poses if name == "grid" else {}
            actions = np.array([(m.dx, m.dy, m.dyaw) for m in moves], np.float32)
            frames = np.stack([s.frame for s in steps])
            info = {"seed": seed, "split": "val"}
            writer.write(Episode(frames, actions, keys, facts, (), info))
    save_tiny(folder / "tiny", SPEC)
    save_tiny(folder / "loud", SPEC, zero_heads=False)
    save_tiny(folder / "doomed", dataclasses.replace(make_world("doom").spec, height=16, width=16))
    Image.fromarray(frame_of(1, 1)).resize((20, 24)).save(folder / "large.png")
    (folder / "words.png").write_text("no image")
    return folder


QUICK = [
    "device=cpu", "dtype=float32", "episodes=2", "context=2", "horizon=3", "candidates=3",
    "elites=2", "iterations=2", "replan=2", "steps=4", "lead=2",
]  # fmt: skip


def test_batches_cost_what_single_plans_cost(made):
    dream = Dream.load(str(made / "loud"), "cpu", "float32")
    planner = Planner(choices_of(TABLE), horizon=4, hold=2)
    plans = [planner.random(seed) for seed in range(5)]
    together, alone = (imagine_plans(dream, plans, batch) for batch in (3, 1))
    assert together.shape == (5, 4, SIZE, SIZE, 3)
    assert np.abs(together.astype(int) - alone.astype(int)).max() <= 1
    assert len({frames.tobytes() for frames in alone}) > 1, "the plans make no difference"
    goal = ImageGoal(dream.frame, dream.encoder)
    found = dataclasses.replace(planner, candidates=20, batch=6).plan(dream, goal)
    (again,) = imagine_plans(dream, [found.actions])
    assert np.abs(again.astype(int) - found.frames.astype(int)).max() <= 1
    for goal in (ImageGoal(dream.frame, dream.encoder), WordsGoal("a red torch", dream)):
        ends = together[:, -1]
        single = np.concatenate([goal.costs(end[None]) for end in ends])
        assert goal.costs(ends) == pytest.approx(single, abs=1e-4)


def test_words_cost_the_models_own_surprise(made):
    silent = Dream.load(str(made / "tiny"), "cpu", "float32")  # finds all tokens equally likely
    frames = np.zeros((2, SIZE, SIZE, 3), np.uint8)
    even = np.log(silent.engine.core.config.vocab)
    for sentence in ("a red torch ahead", "What is ahead? A red torch"):
        assert WordsGoal(sentence, silent).costs(frames) == pytest.approx([even, even], rel=1e-4)
    loud = Dream.load(str(made / "loud"), "cpu", "float32")
    (said,) = loud.captions(frames[:1], max_tokens=1)
    if said.isascii() and said.strip():
        assert WordsGoal(said, loud).costs(frames)[0] < even
    for wrong in ("", "what is ahead?"):
        with pytest.raises(UserError):
            WordsGoal(wrong, loud)


def test_the_command_compares_plans_with_recorded_paths(made, tmp_path, capsys):
    words = ["plan", f"checkpoint={made / 'tiny'}", f"store={made / 'grid.zarr'}", *QUICK]
    assert main([*words, f"out={tmp_path}"]) == 0
    card = json.loads((tmp_path / "plan.json").read_text())
    assert card["seed"] == 0
    assert card["settings"]["candidates"] == 3
    assert len(card["checkpoint_hash"]) == 64
    found = {m["name"]: m for m in card["metrics"]}
    assert list(found) == ["ate", "rpe", "final_position", "final_yaw", "goal_cost"]
    for m in card["metrics"]:
        assert m["low"] <= m["value"] <= m["high"]
        assert m["n"] == 2
    assert set(found["ate"]["baselines"]) == {"random", "straight", "still", "recorded"}
    assert found["ate"]["baselines"]["recorded"] == pytest.approx(0, abs=1e-6)
    with Image.open(tmp_path / "strip.png") as strip:
        assert strip.width > 6 * 96
    page = (tmp_path / "index.html").read_text()
    assert "<h1>" in page
    assert "data:video/mp4" in page
    printed = capsys.readouterr().out
    assert "smaller ATE than random" in printed
    assert "strip.png" in printed
    first = {**card, "settings": {}}
    assert main([*words, f"out={tmp_path}"]) == 0
    again = json.loads((tmp_path / "plan.json").read_text())
    assert {**again, "settings": {}} == first


@pytest.mark.parametrize("goal", ["frame", "what is ahead? a red torch"])
def test_the_command_plans_in_a_live_world(made, tmp_path, monkeypatch, goal):
    monkeypatch.setattr(plan_measure, "RANDOM", 1)  # each walk starts the engine
    words = ["plan", f"checkpoint={made / 'doomed'}", "world=doom", *QUICK, f"goal={goal}"]
    assert main([*words, f"out={tmp_path}"]) == 0
    card = json.loads((tmp_path / "plan.json").read_text())
    found = {m["name"]: m for m in card["metrics"]}
    assert set(found["goal_cost"]["baselines"]) == {"random", "straight", "path"}
    assert card["store"] == "doom"
    if goal == "frame":
        assert found["success"]["baselines"]["path"] == 1
    else:
        assert list(found) == ["goal_cost"]
    assert (tmp_path / "strip.png").read_bytes()[1:4] == b"PNG"


CASES = {
    "no store": (["store=nowhere.zarr"], "no store at nowhere.zarr"),
    "no poses": (["store=poseless.zarr"], "poseless.zarr holds no poses"),
    "one clip": (["store=grid.zarr", "context=2", "horizon=13", "split=train"], "split 'train'"),
    "a goal offline": (["goal=object"], "needs a live world"),
    "a word": (["world=doom", "goal=objekt"], "neither 'frame' nor 'object'"),
    "no file": (["checkpoint=doomed", "world=doom", "goal=gone.png"], "no image 'gone.png'"),
    "no image": (["checkpoint=doomed", "world=doom", "goal=words.png"], "cannot be read"),
    "size": (["checkpoint=doomed", "world=doom", "goal=large.png"], "20x24 pixels"),
    "no answer": (["checkpoint=doomed", "world=doom", "goal=what is it?"], "without an answer"),
    "no world": (["checkpoint=doomed", "world=dooom"], "Unknown world 'dooom'"),
    "other keys": (["checkpoint=tiny", "world=doom"], "The world 'doom' has the keys"),
    "too small": (["episodes=1"], "episodes=1 is too small"),
    "replan": (["horizon=3", "replan=4"], "replan=4 steps are more"),
}


@pytest.mark.parametrize(("words", "message"), CASES.values(), ids=CASES.keys())
def test_mistakes_are_one_clear_sentence(made, monkeypatch, capsys, words, message):
    monkeypatch.chdir(made)
    assert main(["plan", "device=cpu", f"out={made / 'out'}", *words]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
    assert not (made / "out").exists()
