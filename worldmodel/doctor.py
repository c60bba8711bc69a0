"""`worldmodel doctor`: what is installed, which device will be used and why, what is missing."""

import importlib.metadata
import importlib.util
import os
import platform
import shutil
import sys
from dataclasses import dataclass


@dataclass(frozen=True)
class Need:
    """A package, what it is for, and how to get it."""

    package: str
    module: str
    purpose: str
    get: str = "pip install -e ."


NEEDS = (
    Need("torch", "torch", "the model"),
    Need("tokenizers", "tokenizers", "text"),
    Need("safetensors", "safetensors", "checkpoints"),
    Need("pygame-ce", "pygame", "the viewer"),
    Need("av", "av", "MP4 recording"),
    Need("zarr", "zarr", "stores"),
    Need("hydra-core", "hydra", "settings"),
    Need("opencv-python-headless", "cv2", "images"),
    Need("vizdoom", "vizdoom", "the Doom world (collecting; play does not need it)"),
    Need("tensorboard", "tensorboard", "training logs"),
    Need("gymnasium", "gymnasium", "Gymnasium environments"),
)
OPTIONAL = (
    Need(
        "habitat-sim",
        "habitat_sim",
        "the Habitat world",
        "conda install habitat-sim headless -c conda-forge -c aihabitat (or from its source)",
    ),
    Need("trimesh", "trimesh", "the scenes of habitat:rooms", "pip install 'worldmodel[habitat]'"),
    Need("transformers", "transformers", "SigLIP 2 and DINOv2", "pip install 'worldmodel[hub]'"),
    Need("diffusers", "diffusers", "pretrained VAEs", "pip install 'worldmodel[hub]'"),
    Need("lpips", "lpips", "the metric LPIPS", "pip install 'worldmodel[metrics]'"),
    Need("torch-fidelity", "torch_fidelity", "the metric FID", "pip install 'worldmodel[metrics]'"),
    Need("dreamsim", "dreamsim", "the metric DreamSim", "pip install 'worldmodel[metrics]'"),
)


def main() -> int:
    """Print the report; exit code 1 if something that is needed is missing."""
    print(f"python      {platform.python_version()} on {platform.system()} {platform.machine()}")
    print(f"executable  {sys.executable}")
    missing = 0
    for need in NEEDS:
        missing += not _report(need, "MISSING")
    for need in OPTIONAL:
        _report(need, "optional")
    if importlib.util.find_spec("torch"):
        _report_device()
    _report_checkpoints()
    _report_display()
    print("all that is needed is there" if not missing else f"{missing} packages are missing")
    return 1 if missing else 0


def _report(need: Need, word: str) -> bool:
    there = importlib.util.find_spec(need.module) is not None
    if there:
        try:
            version = importlib.metadata.version(need.package)
        except importlib.metadata.PackageNotFoundError:
            version = "?"
        print(f"  {need.package:24}{version:14}{need.purpose}")
    else:
        print(f"  {need.package:24}{word:14}{need.purpose}; get it with: {need.get}")
    return there


def _report_device() -> None:
    from worldmodel.devices import choose_device, choose_dtype

    device, reason = choose_device("auto")
    dtype = str(choose_dtype("auto", device)).removeprefix("torch.")
    print(f"device      {device} ({reason}), {dtype}")


def _report_checkpoints() -> None:
    from worldmodel.checkpoint import bundled_names

    names = bundled_names()
    print(f"checkpoints {', '.join(names) or 'none bundled'}")


def _report_display() -> None:
    if sys.platform.startswith("linux"):
        there = os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")
        hint = there or "none: `worldmodel play` needs headless=true, or Xvfb"
        found = "Xvfb installed" if shutil.which("Xvfb") else "Xvfb not installed"
        print(f"display     {hint} ({found})")
