"""`worldmodel eval`: measure a checkpoint on held-out episodes, write a scorecard and a report."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from worldmodel import __version__
from worldmodel.checkpoint import find
from worldmodel.datasets.disk import place
from worldmodel.datasets.store import EpisodeStore
from worldmodel.datasets.url import Url
from worldmodel.errors import UserError, suggest
from worldmodel.evaluate.compare import compare, load_cards, render, table
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.inverse_dynamics import (
    InverseDynamics,
    fingerprint,
    load_idm,
    save_idm,
    train_idm,
    trained_on,
)
from worldmodel.evaluate.language import unseen_prose
from worldmodel.evaluate.quick import Outcome, run_quick
from worldmodel.evaluate.report import write_report
from worldmodel.evaluate.rollouts import sample_clips
from worldmodel.evaluate.scorecard import Scorecard, git_commit, weights_hash
from worldmodel.evaluate.skills import bundled_suite, load_suite, run_scenarios, suites
from worldmodel.world import WorldSpec

SUITES = {"quick": run_quick}
"""The suites that measure on a store; others are folders of scenarios."""

_SETTINGS = ("denoise_steps", "guidance", "clips", "context", "horizon", "starts")


def main(config: EvalConfig) -> int:
    """Run a suite and write `out`; return 0, whether or not the model does well.

    Raises:
        UserError: an unknown suite, a scenario, store, split, checkpoint or reader that is
            missing or unfit.
    """
    _check(config)
    if config.compare:
        return _compare(config)
    if config.scenario or config.suite not in SUITES:
        return _play_scenarios(config)
    store = open_store(config)
    # Before anything that takes long: is there enough to measure on?
    sample_clips(store, config.split, 1, config.context, config.horizon, config.seed)
    if config.prose:
        unseen_prose(config.prose, config.split)

    dream = _load(config)
    check_same_world(dream.spec, store.spec, config)
    idm = find_idm(config, store)
    outcome = SUITES[config.suite](dream, dream.encoder, store, idm, config)
    card = make_scorecard(config, outcome, dream)
    return _report(card, outcome, config)


def _compare(config: EvalConfig) -> int:
    """Lay scorecards side by side, as text and as a page."""
    cards = load_cards(config.compare)
    rows = compare(cards)
    path = Path(config.out) / "compare.html"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(render(cards, rows), encoding="utf-8")
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
    outcome = run_scenarios(dream, dream.encoder, scenarios, config)
    suite = place.stem if config.scenario else config.suite
    config = replace(config, suite=suite, store="", split="")
    settings = ("denoise_steps", "guidance", "starts")
    return _report(make_scorecard(config, outcome, dream, settings), outcome, config)


def _load(config: EvalConfig) -> Any:
    from worldmodel.dream import Dream  # heavy, and a bad config should be told at once

    dream = Dream.load(
        config.checkpoint, device=config.device, dtype=config.dtype,
        denoise_steps=config.denoise_steps, guidance=config.guidance, seed=config.seed,
    )  # fmt: skip
    print(f"{dream.device}: {dream.device_reason}")
    return dream


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
    """Return the inverse-dynamics model that the config names.

    `auto` is the checkpoint's own `idm.safetensors`; without one, the one cached beside the
    store (of a store at a URL: in `out`) if it was trained on the store's present episodes; else
    one trained now, and cached.
    """
    bundled = find(config.checkpoint) / "idm.safetensors"
    store_at = place(config.store).absolute()
    if isinstance(store_at, Url):  # beside which it may not be possible to write
        store_at = Path(config.out).absolute() / store_at.name
    cached = store_at.with_suffix(".idm.safetensors")
    if config.idm != "auto":
        idm = load_idm(Path(config.idm))
    elif bundled.exists():
        idm = load_idm(bundled)
    elif trained_on(cached) == fingerprint(store):
        idm = load_idm(cached)
    else:
        print("Training an inverse-dynamics model on the store's train split (a minute or two)…")
        idm = train_idm(store)
        save_idm(idm, cached, fingerprint(store))
    fits = (store.spec.actions.keys, store.spec.height, store.spec.width)
    if (idm.keys, idm.height, idm.width) != fits:
        raise UserError(
            f"The inverse-dynamics model reads the keys {', '.join(idm.keys)} from "
            f"{idm.width}x{idm.height} frames, which {config.store} does not have. "
            "Give another with idm=PATH."
        )
    return idm


def make_scorecard(
    config: EvalConfig, outcome: Outcome, dream: Any, settings: Sequence[str] = _SETTINGS
) -> Scorecard:
    """Put what was found together with what it was found with: these keys of the config."""
    return Scorecard(
        suite=config.suite,
        checkpoint=config.checkpoint,
        checkpoint_hash=weights_hash(find(config.checkpoint)),
        store=config.store,
        split=config.split,
        seed=config.seed,
        commit=git_commit(),
        version=__version__,
        device=str(dream.device),
        dtype=str(dream.dtype),
        settings={key: getattr(config, key) for key in settings},
        metrics=outcome.metrics,
        verdicts=outcome.verdicts,
    )


def write(card: Scorecard, outcome: Outcome, out: Path) -> None:
    """Write scorecard.json, index.html and the contact sheets into `out`."""
    try:
        card.save(out / "scorecard.json")
        for sheet in outcome.sheets:
            (out / f"{sheet.name}.png").write_bytes(sheet.png)
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
    else:
        rows = [f"{'steps ahead':>28}{'model':>10}{'copy':>10}{'decoder':>10}"]
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
    known = (*SUITES, *suites())
    if config.suite not in known:
        raise UserError(f"Unknown suite '{config.suite}'.{suggest(config.suite, known)}")
    least = {"clips": 2, "context": 2, "horizon": 1, "starts": 1, "key_steps": 2, "batch": 1}
    for name, limit in {**least, "texts": 0, "questions": 0, "denoise_steps": 1}.items():
        if getattr(config, name) < limit:
            raise UserError(f"{name}={getattr(config, name)} is too small; at least {limit}.")
