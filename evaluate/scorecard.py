"""The result of a suite: metrics, verdicts, and what they were measured with."""

import dataclasses
import hashlib
import json
import math
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from worldmodel.errors import UserError
from worldmodel.evaluate.metrics import Estimate


@dataclass(frozen=True)
class Metric:
    """One measured number.

    Attributes:
        name: for instance 'ssim'; the same for all horizons.
        value: the mean over n samples; low and high bound its 95 % bootstrap interval.
        n: independent samples (clips, rollouts or sentences).
        unit: 'dB', 'frames/s', ''…
        better: 'higher', 'lower', or '' where neither is.
        horizon: steps ahead, or None.
        baselines: the same number for something else, by name: copy, reconstruction…
    """

    name: str
    value: float
    low: float
    high: float
    n: int
    unit: str = ""
    better: str = ""
    horizon: int | None = None
    baselines: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Verdict:
    """One requirement: what was asked, what was found, whether it holds."""

    name: str
    required: str
    found: str
    passed: bool


@dataclass(frozen=True)
class Scorecard:
    """All that one evaluation found.

    Attributes:
        suite, checkpoint, store, split, seed: as configured.
        checkpoint_hash: SHA-256 of the checkpoint's weights and tokenizer.
        commit: of the git checkout that ran, None outside of one.
        version: of the package.
        device, dtype: what the model ran on.
        settings: the other settings (denoising steps, guidance, clips…).
        metrics, verdicts: the results.
    """

    suite: str
    checkpoint: str
    checkpoint_hash: str
    store: str
    split: str
    seed: int
    commit: str | None
    version: str
    device: str
    dtype: str
    settings: Mapping[str, Any]
    metrics: tuple[Metric, ...]
    verdicts: tuple[Verdict, ...]

    def get(self, name: str, horizon: int | None = None) -> Metric:
        """Return one metric.

        Raises:
            KeyError: there is none of that name and horizon.
        """
        for metric in self.metrics:
            if metric.name == name and metric.horizon == horizon:
                return metric
        raise KeyError(f"no metric {name!r} at horizon {horizon}")

    def curve(self, name: str) -> list[Metric]:
        """Return a metric at all its horizons, in order."""
        found = [m for m in self.metrics if m.name == name and m.horizon is not None]
        return sorted(found, key=lambda m: m.horizon or 0)

    def save(self, path: Path) -> None:
        """Write the scorecard as JSON; a number that is not finite becomes null."""
        path.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps(_plain(dataclasses.asdict(self)), indent=1, allow_nan=False)
        path.write_text(text + "\n")

    @staticmethod
    def load(path: Path) -> "Scorecard":
        """Return the scorecard that `save` wrote.

        Raises:
            UserError: no such file, or not a scorecard.
        """
        try:
            data = json.loads(path.read_text())
            metrics = tuple(Metric(**_numbers(m)) for m in data.pop("metrics"))
            verdicts = tuple(Verdict(**v) for v in data.pop("verdicts"))
            return Scorecard(**data, metrics=metrics, verdicts=verdicts)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a scorecard ({error}).") from error


def metric(name: str, found: Estimate, **more: Any) -> Metric:
    """Return an estimate as a metric."""
    return Metric(name, found.value, found.low, found.high, found.n, **more)


def git_commit() -> str | None:
    """Return the commit of the checkout that this package lies in, None if in none."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 over names and bytes of a checkpoint's weights and tokenizer.

    Not of `config.json`, which may be given these very metrics, nor of an inverse-dynamics model.
    """
    digest = hashlib.sha256()
    for path in sorted([*folder.glob("*.safetensors"), *folder.glob("tokenizer.json")]):
        if path.stem != "idm":
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _plain(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(v) for v in value]
    return value


def _numbers(data: dict[str, Any]) -> dict[str, Any]:
    nan = float("nan")
    lost = {k: nan for k in ("value", "low", "high") if data[k] is None}
    baselines = {k: nan if v is None else v for k, v in data["baselines"].items()}
    return {**data, **lost, "baselines": baselines}
