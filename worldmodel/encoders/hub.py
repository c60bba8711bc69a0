"""Models of the Hugging Face hub: their libraries, and the folder where one of them is."""

import importlib
import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from worldmodel.errors import UserError

# What a model's folder holds that is read. Weights come as safetensors only: the pickles (.bin)
# that some repositories have beside them could run code.
_WEIGHTS = {
    "transformers": ("model.safetensors", "model-*-of-*.safetensors"),
    "diffusers": ("diffusion_pytorch_model.safetensors",),
}
# Both libraries import their parts when they are first asked for; these lead to nearly all of them.
_PARTS = {"transformers": "PreTrainedModel", "diffusers": "AutoencoderKL"}
_repaired: list[torch.library.Library] = []  # operators live as long as their library object


def library(name: str, kind: str) -> ModuleType:
    """Import transformers, diffusers or huggingface_hub for encoders of `kind`.

    Raises:
        UserError: it is not installed, or does not go together with the installed torch.
    """
    try:
        repair_torchvision()
        module = importlib.import_module(name)
        if name in _PARTS:
            getattr(module, _PARTS[name])
        return module
    except (ImportError, RuntimeError) as error:  # of what they import, in turn
        raise UserError(
            f"Encoders of the kind '{kind}' need the package {name}, which cannot be imported "
            f"({str(error).splitlines()[0]}). Install it with: pip install 'worldmodel[hub]'"
        ) from None


def model_folder(source: str, kind: str, package: str) -> tuple[Path, dict[str, Any]]:
    """Return where a model is and what its config.json says; one of the hub is downloaded first.

    Args:
        source: a folder, or a name like 'google/siglip2-base-patch16-256'; what follows its second
            part is a folder inside, as in 'black-forest-labs/FLUX.1-schnell/vae'.
        kind: the kind of encoder, for messages.
        package: the library that the model is for: transformers or diffusers.

    Raises:
        UserError: it is neither; no network; config.json or the weights are missing.
    """
    folder = Path(source).expanduser()
    if not folder.is_dir():
        if source.startswith((".", "/", "~")):
            raise UserError(
                f"There is no folder '{source}'. representation.source is a folder with a model "
                "for Hugging Face's libraries, or a name on the hub like 'facebook/dinov2-base'."
            )
        folder = _download(source, kind, _WEIGHTS[package])
    try:
        config = json.loads((folder / "config.json").read_text())
        if not isinstance(config, dict):
            raise ValueError("it holds no settings")
    except FileNotFoundError:
        raise UserError(f"'{source}' is no Hugging Face model: it has no config.json.") from None
    except (OSError, ValueError) as error:
        raise UserError(f"The config.json of '{source}' cannot be read ({error}).") from None
    if not any(next(folder.glob(pattern), None) for pattern in _WEIGHTS[package]):
        raise UserError(
            f"'{source}' has no {_WEIGHTS[package][0]}. Weights are read from safetensors only, "
            "never unpickled; save the model with safe_serialization=True, or give another one."
        )
    return folder, config


def source_name(source: str) -> str:
    """Return what a checkpoint says of where its encoder is from; of a folder, its name only."""
    folder = Path(source).expanduser()
    return folder.resolve().name if folder.is_dir() else source


@contextmanager
def quiet(package: ModuleType) -> Iterator[None]:
    """Keep transformers or diffusers from reporting on stderr what is checked here anyway."""
    logging = package.utils.logging
    before = logging.get_verbosity()
    bars = logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(before)
        if bars:
            logging.enable_progress_bar()


def _download(source: str, kind: str, weights: tuple[str, ...]) -> Path:
    hub = library("huggingface_hub", kind)
    owner, *rest = source.split("/")
    name, inside = "/".join([owner, *rest[:1]]), "/".join(rest[1:])
    wanted = ["config.json", *weights, "model.safetensors.index.json"]
    patterns = [f"{inside}/{file}" if inside else file for file in wanted]
    try:
        return Path(hub.snapshot_download(name, allow_patterns=patterns)) / inside
    except Exception as error:  # no such name, no rights, no network, switched off, a full disk
        raise UserError(
            f"'{source}' is no folder here, and could not be had from the Hugging Face hub "
            f"({str(error).splitlines()[0].rstrip('.')}). Check the name and the network (with "
            "HF_HUB_OFFLINE=1 only what was downloaded before is found), or set "
            "representation.source to a folder with the model."
        ) from None


def repair_torchvision() -> None:
    """Let `import torchvision` succeed where its compiled part does not fit the installed torch.

    With a torch for CPUs and a torchvision for CUDA, the import fails on the operator nms, and the
    imports of transformers and diffusers with it, though neither needs nms here: it is declared.
    """
    if "torchvision" in sys.modules or _repaired:
        return
    try:
        importlib.import_module("torchvision")
    except ImportError:
        return  # the libraries do without it
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in [n for n in sys.modules if n.partition(".")[0] == "torchvision"]:
            del sys.modules[name]
        operators = torch.library.Library("torchvision", "FRAGMENT")
        _repaired.append(operators)
        for name in ("nms", "qnms"):
            operators.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
