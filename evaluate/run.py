"""`worldmodel eval`: measure a checkpoint on held-out episodes, write a scorecard and a report."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldmodel import __version__
from worldmodel.checkpoint import find
from worldmodel.datasets.disk import place
from worldmodel.datasets.store import EpisodeStore
from worldmodel.datasets.url import Url
from worldmodel.errors import UserError, suggest
from worldmodel.evaluate.agents import run_policy
from worldmodel.evaluate.compare import compare, load_cards, table
from worldmodel.evaluate.compare_page import load_sheets, render
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.drift import WINDOW
from worldmodel.evaluate.imaginer import Guest, invite
from worldmodel.evaluate.inverse_dynamics import InverseDynamics, load_idm, train_idm
from worldmodel.evaluate.language import unseen_prose
from worldmodel.evaluate.perceptual import load_perceptual
from worldmodel.evaluate.pose import PoseReader, has_pose, load_pose, train_pose
from worldmodel.evaluate.quick import Outcome, run_quick
from worldmodel.evaluate.report import write_report
from worldmodel.evaluate.rollouts import sample_clips
from worldmodel.evaluate.scorecard import Scorecard, git_commit, weights_hash
from worldmodel.evaluate.sheets import save_sheets
from worldmodel.evaluate.skills import bundled_suite, load_suite, run_scenarios, suites
from worldmodel.evaluate.triples import SomeReader, fingerprint, save_reader, trained_on
from worldmodel.world import WorldSpec

SUITES = {"metrics": run_quick}
"""The suites that measure on a store; others are folders of scenarios."""

_DREAMS = ("denoise_steps", "guidance")  # settings of a dream
_GUESTS = ("imaginer", "weights", "checkpoint")  # of a guest; the checkpoint's encoder measures
_SETTINGS = ("clips", "context", "horizon", "starts")


def main(config: EvalConfig) -> int:
    """Run a suite and write `out`; return 0, whether or not the model does well.

    Raises:
        UserError: an unknown suite, a scenario, store, split, checkpoint or reader that is
            missing or unfit.
    """
    _check(config)
    if config.compare:
        return _compare(config)
    if config.policy:
        return _play_policy(config)
    if config.scenario or config.suite not in SUITES:
        return _play_scenarios(config)
    store = open_store(config)
    # Before anything that takes long: is there enough to measure on?
    longest = max(config.horizon, config.drift)
    sample_clips(store, config.split, 1, config.context, longest, config.seed)
    if config.prose:
        unseen_prose(config.prose, config.split)

    dream = _load(config)
    check_same_world(dream.spec, store.spec, config)
    perceptual = load_perceptual(config, str(dream.device))
    idm = find_idm(config, store)
    model = _scored(config, dream)
    pose = find_pose(config, store)
    outcome = SUITES[config.suite](model, dream.encoder, store, idm, config, pose, perceptual)
    card = make_scorecard(config, outcome, model)
    return _report(card, outcome, config)


def _compare(config: EvalConfig) -> int:
    """Lay scorecards side by side, as text and as a page."""
    cards = load_cards(config.compare)
    rows = compare(cards)
    path = Path(config.out) / "compare.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        page = render(cards, rows, load_sheets(config.compare))
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise UserError(f"The report cannot be written to {path}: {error}.") from error
    print(table(cards, rows))
    print(f"\nreport: {path}")
    return 0


def _play_scenarios(config: EvalConfig) -> int:
    """Play the scenarios of a file, a folder or a bundled suite, and judge them."""
    place = Path(config.scenario)
    scenarios = load_suite(place) if config.scenario else bundled_suite(config.suite)
    dream = _load(config)
    model = _scored(config, dream)
    outcome = run_scenarios(model, dream.encoder, scenarios, config)
    suite = place.stem if config.scenario else config.suite
    config = replace(config, suite=suite, store="", split="")
    return _report(make_scorecard(config, outcome, model, ("starts",)), outcome, config)


def _play_policy(config: EvalConfig) -> int:
    """Let a policy act in the real world and in the imagination."""
    model = _scored(config, _load(config))
    outcome = run_policy(model, config)
    config = replace(config, suite="policy", store="")
    settings = ("policy", "world", "reward", "starts", "horizon")
    return _report(make_scorecard(config, outcome, model, settings), outcome, config)


def _load(config: EvalConfig) -> Any:
    from worldmodel.dream import Dream  # heavy, and a bad config should be told at once

    dream = Dream.load(
        config.checkpoint, device=config.device, dtype=config.dtype,
        denoise_steps=config.denoise_steps, guidance=config.guidance, seed=config.seed,
    )  # fmt: skip
    print(f"{dream.device}: {dream.device_reason}")
    return dream


def _scored(config: EvalConfig, dream: Any) -> Any:
    """Return what is scored: the dream, or the model of another make that the config names."""
    if not config.imaginer:
        return dream
    guest = invite(config.imaginer, config.weights, dream.spec, dream.device)
    print(f"scoring {guest.name}, in the encoder's space of {config.checkpoint}")
    return guest


def _report(card: Scorecard, outcome: Outcome, config: EvalConfig) -> int:
    write(card, outcome, Path(config.out))
    print(summary(card))
    print(f"\nreport: {Path(config.out) / 'index.html'}")
    return 0


def open_store(config: EvalConfig) -> EpisodeStore:
    """Open the store, or say how to get one."""
    if not place(config.store).exists():
        raise UserError(
            f"There is no store at {config.store}. Collect one first: "
            f"worldmodel collect env=doom out={config.store}, or give another with store=PATH."
        )
    return EpisodeStore(config.store)


def check_same_world(model: WorldSpec, data: WorldSpec, config: EvalConfig) -> None:
    """Refuse a store whose frames or keys are not the model's."""
    theirs, ours = (data.height, data.width), (model.height, model.width)
    if theirs != ours:
        raise UserError(
            f"{config.store} holds frames of {theirs[1]}x{theirs[0]} pixels, but "
            f"{config.checkpoint} imagines {ours[1]}x{ours[0]}. Use a store of that size."
        )
    if data.actions.keys != model.actions.keys:
        raise UserError(
            f"{config.store} has the keys {', '.join(data.actions.keys)}, but "
            f"{config.checkpoint} knows {', '.join(model.actions.keys)}. Use the world it was "
            "trained on."
        )


def find_idm(config: EvalConfig, store: EpisodeStore) -> InverseDynamics:
    """Return the inverse-dynamics model that the config names, see `_find_reader`."""
    idm = _find_reader(config, store, "idm", config.idm, load_idm, train_idm)
    fits = (store.spec.actions.keys, store.spec.height, store.spec.width)
    if (idm.keys, idm.height, idm.width) != fits:
        raise UserError(
            f"The inverse-dynamics model reads the keys {', '.join(idm.keys)} from "
            f"{idm.width}x{idm.height} frames, which {config.store} does not have. "
            "Give another with idm=PATH."
        )
    return idm


def find_pose(config: EvalConfig, store: EpisodeStore) -> PoseReader | None:
    """Return the pose regressor that the config names; None for 'none' or without poses."""
    if config.pose == "none" or not has_pose(store):
        return None
    reader = _find_reader(config, store, "pose", config.pose, load_pose, train_pose)
    if (reader.height, reader.width) != (store.spec.height, store.spec.width):
        raise UserError(
            f"The pose regressor reads frames of {reader.width}x{reader.height} pixels, which "
            f"{config.store} does not have. Give another with pose=PATH."
        )
    return reader


def _find_reader(
    config: EvalConfig,
    store: EpisodeStore,
    kind: str,
    named: str,
    load: Callable[[Path], SomeReader],
    train: Callable[[EpisodeStore], SomeReader],
) -> SomeReader:
    """Return the reader of frames of a kind, 'idm' or 'pose', that the config names.

    `auto` is the checkpoint's own `KIND.safetensors`; without one, the one cached beside the
    store (of a store at a URL: in `out`) if it was trained on the store's present episodes; else
    one trained now, and cached.
    """
    bundled = find(config.checkpoint) / f"{kind}.safetensors"
    store_at = place(config.store).absolute()
    if isinstance(store_at, Url):  # beside which it may not be possible to write
        store_at = Path(config.out).absolute() / store_at.name
    cached = store_at.with_suffix(f".{kind}.safetensors")
    if named != "auto":
        return load(Path(named))
    if bundled.exists():
        return load(bundled)
    if trained_on(cached) == fingerprint(store):
        return load(cached)
    print(f"Training {kind}= on the store's train split (a minute or two)…")
    reader = train(store)
    save_reader(reader, cached, fingerprint(store))
    return reader


def make_scorecard(
    config: EvalConfig, outcome: Outcome, dream: Any, settings: Sequence[str] = _SETTINGS
) -> Scorecard:
    """Put what was found together with what it was found with: these keys of the config."""
    name, how, weights = config.checkpoint, _DREAMS, str(find(config.checkpoint))
    if isinstance(dream, Guest):
        name, how, weights = dream.name, _GUESTS, config.weights
    return Scorecard(
        suite=config.suite,
        checkpoint=name,
        checkpoint_hash=weights_hash(Path(weights)) if weights else "",
        store=config.store,
        split=config.split,
        seed=config.seed,
        commit=git_commit(),
        version=__version__,
        device=str(dream.device),
        dtype=str(dream.dtype),
        settings={key: getattr(config, key) for key in (*how, *settings)},
        metrics=outcome.metrics,
        verdicts=outcome.verdicts,
        tables=outcome.tables,
        data=outcome.data,
    )


def write(card: Scorecard, outcome: Outcome, out: Path) -> None:
    """Write scorecard.json, samples.json, index.html and the contact sheets into `out`."""
    try:
        card.save(out / "scorecard.json")
        save_sheets(outcome.sheets, out)
        write_report(card, outcome.sheets, out / "index.html")
    except OSError as error:
        raise UserError(f"The report cannot be written to {out}: {error}.") from error


def summary(card: Scorecard) -> str:
    """Return a short table of the main figures and the verdicts."""
    skills = [m for m in card.metrics if "pass mark" in m.baselines]
    columns = ("pass mark", "real", "copy", "noise")
    if skills:
        heads = "".join(f"{name:>10}" for name in ("model", *columns))
        rows = [f"{'check':>34}{heads}"]
        rows += [
            f"{m.name:>34}{m.value:10.2f}"
            + "".join(f"{m.baselines[name]:10.2f}" for name in columns)
            for m in skills
        ]
    elif card.curve("ssim"):
        rows = [f"{'steps ahead':>28}{'model':>10}{'copy':>10}{'decoder':>10}"]
    else:  # a policy was scored
        names = ("random", "ahead", "still")
        rows = [f"{'a step earns':>22}{'policy':>10}" + "".join(f"{name:>10}" for name in names)]
        rows += [
            f"{m.name:>22}{m.value:10.3f}" + "".join(f"{m.baselines[name]:10.3f}" for name in names)
            for m in card.metrics
            if m.name in ("reward_real", "reward_dream")
        ]
    for name in ("ssim", "encoder_distance", "psnr"):
        for m in card.curve(name):
            if m.horizon in (1, 4, 16, 32):
                values = (m.value, m.baselines["copy"], m.baselines["reconstruction"])
                cells = "".join(f"{v:10.3f}" for v in values)
                rows.append(f"{name:>22}{m.horizon:6d}{cells}")
    rows.append("")
    rows += [
        f"{'yes' if verdict.passed else 'no':>4}  {verdict.name}: {verdict.found}"
        for verdict in card.verdicts
    ]
    return "\n".join(rows)


def _check(config: EvalConfig) -> None:
    if config.weights and not config.imaginer:
        raise UserError(
            "weights= is what an imaginer loads; name one with imaginer=, or give a checkpoint of "
            "this project with checkpoint=."
        )
    known = (*SUITES, *suites())
    if config.suite not in known:
        raise UserError(f"Unknown suite '{config.suite}'.{suggest(config.suite, known)}")
    least = {"clips": 2, "context": 2, "horizon": 1, "starts": 1, "key_steps": 2, "batch": 1}
    none = dict.fromkeys(("texts", "questions", "drift", "experts"), 0)
    for name, limit in {**least, **none, "denoise_steps": 1}.items():
        if getattr(config, name) < limit:
            raise UserError(f"{name}={getattr(config, name)} is too small; at least {limit}.")
    if 0 < config.drift < WINDOW:
        raise UserError(
            f"drift={config.drift} is shorter than a window of {WINDOW} frames; ask for more "
            "steps, or for none with drift=0."
        )
