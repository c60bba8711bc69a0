"""Perceptual metrics of others: LPIPS, DreamSim, FID, FVD; each needs weights that are given.

None of these weights comes with the package, and nothing is downloaded: a metric is measured where
its config key names the file or folder, and not at all otherwise. The networks are those of the
packages of the extra `metrics`; FVD's is a TorchScript file, which is a program: take it from
where it is published only.

Letters in shapes: K clips, T steps, H W 3 a frame, D features.
"""

import importlib
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from worldmodel.encoders.hub import repair_torchvision
from worldmodel.errors import UserError
from worldmodel.evaluate import metrics
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.frechet import frechet_distance, frechet_estimate
from worldmodel.evaluate.scorecard import Metric, metric

WINDOW = 16
"""Steps that FID and FVD take together."""

Distance = Callable[[np.ndarray, np.ndarray], np.ndarray]
"""Distances float [n] of two batches of frames, uint8 [n, H, W, 3]."""

Features = Callable[[np.ndarray], np.ndarray]
"""Features float [K, samples, D] of windows uint8 [K, WINDOW, H, W, 3]."""

_BATCH = 32


@dataclass(frozen=True)
class Published:
    """Weights that are published somewhere.

    Attributes:
        key: of the config. package: that has the network.
        files: what has to be there, each in its folder. place: where they are from.
    """

    key: str
    package: str
    files: tuple[str, ...]
    place: str

    def find(self, given: str) -> Path:
        """Return the one file, or the folder of several, that the config names.

        Raises:
            UserError: it is not there.
        """
        path = Path(given).expanduser()
        if len(self.files) == 1 and path.is_file():
            return path
        missing = [name for name in self.files if not (path / name).exists()]
        if missing:
            raise UserError(
                f"{self.key}={given} must be a folder with {' and '.join(self.files)}"
                f"{', or the file itself' if len(self.files) == 1 else ''}; "
                f"{' and '.join(missing)} is not there. Published at {self.place}. "
                f"Leave {self.key}= empty to go without."
            )
        return path / self.files[0] if len(self.files) == 1 else path

    def damaged(self, error: Exception) -> UserError:
        """Return what to say of a file that is not what it should be."""
        reason = (str(error).splitlines() or [type(error).__name__])[0][:120]
        return UserError(
            f"The weights that {self.key}= names are damaged or of something else ({reason}). "
            f"Take {' and '.join(self.files)} from {self.place}."
        )


LPIPS = Published(
    "lpips",
    "lpips",
    ("alexnet-owt-7be5be79.pth",),
    "https://download.pytorch.org/models/alexnet-owt-7be5be79.pth",
)
DREAMSIM = Published(
    "dreamsim",
    "dreamsim",
    ("open_clip_vitb32_pretrain.pth.tar", "open_clip_vitb32_single_lora"),
    "https://github.com/ssundaram21/dreamsim/releases (dreamsim_open_clip_vitb32_checkpoint.zip)",
)
FID = Published(
    "fid",
    "torch-fidelity",
    ("weights-inception-2015-12-05-6726825d.pth",),
    "https://github.com/toshas/torch-fidelity/releases (v0.2.0)",
)
FVD = Published(
    "fvd",
    "torch",
    ("i3d_torchscript.pt",),
    "https://www.dropbox.com/s/ge9e5ujwgetktms/i3d_torchscript.pt (StyleGAN-V)",
)


@dataclass(frozen=True)
class Perceptual:
    """The metrics whose weights are at hand, by name.

    Attributes:
        distances: of pairs of frames. features: for distances of distributions.
    """

    distances: Mapping[str, Distance] = field(default_factory=dict)
    features: Mapping[str, Features] = field(default_factory=dict)


def load_perceptual(config: EvalConfig, device: str = "cpu") -> Perceptual:
    """Load the networks that the config names weights for.

    Raises:
        UserError: weights that are missing or damaged, a package that is not installed, or a
            horizon too short for FID and FVD.
    """
    given = {
        "lpips": config.lpips,
        "dreamsim": config.dreamsim,
        "fid": config.fid,
        "fvd": config.fvd,
    }
    for key in ("fid", "fvd"):
        if given[key] and config.horizon < WINDOW:
            raise UserError(
                f"{key}= compares windows of {WINDOW} frames; horizon={config.horizon} is shorter."
            )
    distances = {"lpips": load_lpips, "dreamsim": load_dreamsim}
    features = {"fid": load_inception, "fvd": load_i3d}
    return Perceptual(
        {key: load(given[key], device) for key, load in distances.items() if given[key]},
        {key: load(given[key], device) for key, load in features.items() if given[key]},
    )


def measure_perceptual(
    perceptual: Perceptual,
    truth: np.ndarray,
    imagined: np.ndarray,
    others: Mapping[str, np.ndarray],
    seed: int = 0,
) -> list[Metric]:
    """Return every loaded metric by horizon.

    FID and FVD compare all clips' frames of `WINDOW` steps with the true ones of these steps; their
    horizon is the window's last step. Few samples make both too large: they are to be compared
    with the baselines, of as many samples, not with published values.

    Args:
        perceptual: what is loaded.
        truth: the true frames, uint8 [K, T, H, W, 3].
        imagined: the model's.
        others: the baselines', by name.
        seed: of the bootstrap.
    """
    found = []
    for name, distance in perceptual.distances.items():
        model = _by_step(distance, imagined, truth)
        beside = {key: _by_step(distance, frames, truth) for key, frames in others.items()}
        for h in range(model.shape[1]):
            at = {key: float(values[:, h].mean()) for key, values in beside.items()}
            value = metrics.estimate(model[:, h], seed)
            found.append(metric(name, value, better="lower", horizon=h + 1, baselines=at))
    for name, features in perceptual.features.items():
        for end in range(WINDOW, truth.shape[1] + 1, WINDOW):
            at = slice(end - WINDOW, end)
            real = _flat(features(truth[:, at]))
            value = frechet_estimate(features(imagined[:, at]), real, seed)
            beside = {
                key: frechet_distance(_flat(features(frames[:, at])), real)
                for key, frames in others.items()
            }
            found.append(metric(name, value, better="lower", horizon=end, baselines=beside))
    return found


def load_lpips(given: str, device: str = "cpu") -> Distance:
    """Return LPIPS 0.1 (Zhang et al., arXiv 1801.03924) on AlexNet: 0 for equal frames.

    The linear heads are the package's own; the weights of AlexNet are given, as torchvision
    publishes them.

    Raises:
        UserError: see `load_perceptual`.
    """
    path, module = LPIPS.find(given), _package("lpips", LPIPS)
    with warnings.catch_warnings():  # it calls torchvision as one did years ago
        warnings.simplefilter("ignore")
        net = module.LPIPS(net="alex", pnet_rand=True, verbose=False)
    try:
        weights = torch.load(path, map_location="cpu", weights_only=True)
        for part in range(1, net.net.N_slices + 1):
            for number, layer in getattr(net.net, f"slice{part}").named_children():
                prefix = f"features.{number}."
                layer.load_state_dict(
                    {k[len(prefix) :]: v for k, v in weights.items() if k.startswith(prefix)}
                )
    except Exception as error:  # torch, zipfile and pickle each have their own
        raise LPIPS.damaged(error) from error
    net = net.eval().to(device)

    def measure(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return net(_pixels(a, device), _pixels(b, device), normalize=True).flatten().cpu().numpy()

    return _batched(measure)


def load_dreamsim(given: str, device: str = "cpu") -> Distance:
    """Return DreamSim (Fu et al., arXiv 2306.09344), its single model on OpenCLIP ViT-B/32.

    The package fetches code of others from the network for its ensemble and for DINO; not for this.

    Raises:
        UserError: see `load_perceptual`.
    """
    path, module = DREAMSIM.find(given), _package("dreamsim", DREAMSIM)
    try:
        net, _ = module.dreamsim(
            pretrained=True, device=device, cache_dir=str(path), dreamsim_type="open_clip_vitb32"
        )
    except Exception as error:
        raise DREAMSIM.damaged(error) from error

    def resized(frames: np.ndarray) -> torch.Tensor:
        pixels = _pixels(frames, device)
        return F.interpolate(pixels, (224, 224), mode="bicubic", antialias=True).clamp(0, 1)

    def measure(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return net(resized(a), resized(b)).flatten().cpu().numpy()

    return _batched(measure)


def load_inception(given: str, device: str = "cpu") -> Features:
    """Return the 2048 pooled features of the Inception of FID, frame by frame.

    Raises:
        UserError: see `load_perceptual`.
    """
    path = FID.find(given)
    module = _package("torch_fidelity.feature_extractor_inceptionv3", FID)
    try:
        torch.load(path, map_location="cpu", weights_only=True)  # the package would run a pickle
        net = module.FeatureExtractorInceptionV3("inception-v3-compat", ["2048"], str(path))
    except Exception as error:
        raise FID.damaged(error) from error
    net = net.to(device)

    @torch.inference_mode()
    def features(windows: np.ndarray) -> np.ndarray:
        frames = torch.from_numpy(np.ascontiguousarray(windows.reshape(-1, *windows.shape[2:])))
        frames = frames.permute(0, 3, 1, 2)
        parts = [net(part.to(device))[0].cpu().numpy() for part in frames.split(_BATCH)]
        return np.concatenate(parts).reshape(*windows.shape[:2], -1)

    return features


def load_i3d(given: str, device: str = "cpu") -> Features:
    """Return the features of the I3D network of FVD (arXiv 1812.01717), one sample a window.

    Raises:
        UserError: see `load_perceptual`.
    """
    path = FVD.find(given)
    try:
        net = torch.jit.load(str(path), map_location=device).eval()
    except Exception as error:
        raise FVD.damaged(error) from error

    @torch.inference_mode()
    def features(windows: np.ndarray) -> np.ndarray:
        clips = torch.from_numpy(np.ascontiguousarray(windows)).permute(0, 4, 1, 2, 3).float()
        parts = [
            net(part.to(device), rescale=True, resize=True, return_features=True).cpu().numpy()
            for part in clips.split(4)
        ]
        return np.concatenate(parts)[:, None]

    return features


def _package(name: str, weights: Published) -> Any:
    """Import a package of the extra `metrics`.

    Raises:
        UserError: it is not installed.
    """
    try:
        repair_torchvision()
        return importlib.import_module(name)
    except ImportError as error:
        raise UserError(
            f"{weights.key}= needs the package {weights.package}, which cannot be imported "
            f"({error}). Install it with: pip install 'worldmodel[metrics]'"
        ) from None


def _pixels(frames: np.ndarray, device: str) -> torch.Tensor:
    """Return uint8 [n, H, W, 3] as float [n, 3, H, W] in 0..1."""
    return torch.from_numpy(np.ascontiguousarray(frames)).to(device).permute(0, 3, 1, 2) / 255


def _batched(measure: Distance) -> Distance:
    @torch.inference_mode()
    def whole(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        starts = range(0, len(a), _BATCH)
        parts = [measure(a[i : i + _BATCH], b[i : i + _BATCH]) for i in starts]
        return np.concatenate(parts).astype(float)

    return whole


def _by_step(distance: Distance, a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return distances [K, T] of frames uint8 [K, T, H, W, 3]."""
    x, y = (v.reshape(-1, *v.shape[2:]) for v in (a, b))
    return distance(x, y).reshape(a.shape[:2])


def _flat(features: np.ndarray) -> np.ndarray:
    return features.reshape(-1, features.shape[-1])
