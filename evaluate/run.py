"""`worldmodel eval`: measure a checkpoint on held-out episodes, write a scorecard and a report."""

from pathlib import Path
from typing import Any

from worldmodel import __version__
from worldmodel.checkpoint import find
from worldmodel.datasets.disk import place
from worldmodel.datasets.store import EpisodeStore
from worldmodel.datasets.url import Url
from worldmodel.errors import UserError, suggest
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
from worldmodel.world import WorldSpec

SUITES = {"quick": run_quick}


def main(config: EvalConfig) -> int:
    """Run a suite and write `out`; return 0, whether or not the model does well.

    Raises:
        UserError: an unknown suite, a missing or unfit store, split, checkpoint or reader.
    """
    _check(config)
    store = open_store(config)
    # Before anything that takes long: is there enough to measure on?
    sample_clips(store, config.split, 1, config.context, config.horizon, config.seed)
    if config.prose:
        unseen_prose(config.prose, config.split)

    from worldmodel.dream import Dream  # heavy, and a bad config should be told at once

    dream = Dream.load(
        config.checkpoint, device=config.device, dtype=config.dtype,
        denoise_steps=config.denoise_steps, guidance=config.guidance, seed=config.seed,
    )  # fmt: skip
    print(f"{dream.device}: {dream.device_reason}")
    check_same_world(dream.spec, store.spec, config)
    idm = find_idm(config, store)
    outcome = SUITES[config.suite](dream, dream.encoder, store, idm, config)
    card = make_scorecard(config, outcome, dream)
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


def make_scorecard(config: EvalConfig, outcome: Outcome, dream: Any) -> Scorecard:
    """Put what was found together with what it was found with."""
    settings = {
        key: getattr(config, key)
        for key in ("denoise_steps", "guidance", "clips", "context", "horizon", "starts")
    }
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
        settings=settings,
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
    if config.suite not in SUITES:
        raise UserError(f"Unknown suite '{config.suite}'.{suggest(config.suite, SUITES)}")
    least = {"clips": 2, "context": 2, "horizon": 1, "starts": 1, "key_steps": 2, "batch": 1}
    for name, limit in {**least, "texts": 0, "questions": 0, "denoise_steps": 1}.items():
        if getattr(config, name) < limit:
            raise UserError(f"{name}={getattr(config, name)} is too small; at least {limit}.")
