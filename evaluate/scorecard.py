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

import numpy as np

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
        samples: the n values that `value` is the mean of, in the order of the clips; empty where
            it is no plain mean.
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
    samples: tuple[float, ...] = field(default=(), compare=False, repr=False)


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
        data: SHA-256 of what was measured on. Where two scorecards have the same, the samples of
            a metric belong together one by one. Empty where that is unknown.
        tables: other findings of plain values, by name.
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
    data: str = ""
    tables: Mapping[str, Any] = field(default_factory=dict)

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
        """Write the scorecard as JSON; a number that is not finite becomes null.

        The samples go to `samples.json` beside it, with six digits.
        """
        path.parent.mkdir(parents=True, exist_ok=True)
        data = _plain(dataclasses.asdict(self))
        samples = [metric.pop("samples") for metric in data["metrics"]]
        path.write_text(json.dumps(data, indent=1, allow_nan=False) + "\n")
        rows = [
            {"name": m.name, "horizon": m.horizon, "samples": [_short(v) for v in values]}
            for m, values in zip(self.metrics, samples, strict=True)
            if values
        ]
        lines = ",\n".join(json.dumps(row, allow_nan=False) for row in rows)
        head = json.dumps(self._identity())
        _beside(path).write_text(f'{{"of": {head}, "metrics": [\n{lines}\n]}}\n')

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
            card = Scorecard(**data, metrics=metrics, verdicts=verdicts)
            beside = _beside(path)
            return card._with_samples(json.loads(beside.read_text())) if beside.exists() else card
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is not a scorecard ({error}).") from error

    def _identity(self) -> list[str]:
        """Return what tells whether samples are this scorecard's."""
        return [self.suite, self.checkpoint_hash, self.data]

    def _with_samples(self, found: dict[str, Any]) -> "Scorecard":
        """Return the scorecard with the samples of a file, if they are its own."""
        if found["of"] != self._identity():
            return self
        samples = {
            (m["name"], m["horizon"]): tuple(math.nan if v is None else v for v in m["samples"])
            for m in found["metrics"]
        }
        metrics = tuple(
            dataclasses.replace(m, samples=samples.get((m.name, m.horizon), ()))
            for m in self.metrics
        )
        return dataclasses.replace(self, metrics=metrics)


def metric(name: str, found: Estimate, **more: Any) -> Metric:
    """Return an estimate as a metric."""
    return Metric(name, found.value, found.low, found.high, found.n, samples=found.samples, **more)


def data_hash(*parts: np.ndarray | str) -> str:
    """Return the SHA-256 of what is measured on: arrays, and texts such as other hashes."""
    digest = hashlib.sha256()
    for part in parts:
        digest.update(part.encode() if isinstance(part, str) else np.ascontiguousarray(part).data)
    return digest.hexdigest()


def git_commit() -> str | None:
    """Return the commit of the checkout that this package lies in, None if in none."""
    command = ["git", "-C", str(Path(__file__).parent), "rev-parse", "HEAD"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def weights_hash(folder: Path) -> str:
    """Return the SHA-256 over names and bytes of a checkpoint's weights and tokenizer, or a file.

    Not of `config.json`, which may be given these very metrics, nor of readers of frames.
    """
    digest = hashlib.sha256()
    files = [*folder.glob("*.safetensors"), *folder.glob("tokenizer.json")]
    for path in [folder] if folder.is_file() else sorted(files):
        if path.stem not in ("idm", "pose"):
            digest.update(path.name.encode())
            digest.update(path.read_bytes())
    return digest.hexdigest()


def _beside(path: Path) -> Path:
    return path.with_name("samples.json")


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.6g}")


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
