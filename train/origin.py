"""Begin a run from a finished checkpoint instead of from nothing."""

from dataclasses import asdict
from pathlib import Path

from worldmodel import checkpoint as checkpoints
from worldmodel.encoders.files import save_encoder
from worldmodel.errors import UserError
from worldmodel.transformer import Core


def take_over(name: str, folder: Path, size: tuple[int, int]) -> None:
    """Leave a checkpoint's tokenizer, encoder and decoder in a run's folder, as stages would.

    What is there already stays, so that a run goes on with what it began with.

    Args:
        name: bundled name or folder of the checkpoint.
        folder: of the run.
        size: height and width of the frames to train on, in pixels.

    Raises:
        UserError: no such checkpoint, or its frames have another size.
    """
    found = checkpoints.load(name)
    seen = found.spec.height, found.spec.width
    if seen != size:
        raise UserError(
            f"init={name} sees frames of {seen[1]}x{seen[0]} pixels, but the store has "
            f"{size[1]}x{size[0]}. Collect frames of that size, or train without init."
        )
    tokenizer = folder / "tokenizer.json"
    if not tokenizer.exists():
        found.tokenizer.save(tokenizer)
    for stage in ("encoder", "decoder"):
        path = folder / f"{stage}.safetensors"
        if not path.exists():
            save_encoder(found.encoder, path)


def take_weights(core: Core, name: str) -> Core:
    """Give a core the weights of a checkpoint's, and return it.

    Only `window` may differ, and `motion` and `unet`, whose weights are then new.

    Raises:
        UserError: no such checkpoint, or another shape; names what differs.
    """
    found = checkpoints.load(name).core
    ours, theirs = asdict(core.config), asdict(found.config)
    for key in ours:
        if key not in ("window", "motion", "unet") and ours[key] != theirs[key]:
            raise UserError(
                f"init={name} has model.{key}={theirs[key]}, but this run asks for {ours[key]}. "
                "Give its value, or train without init."
            )
    state = core.state_dict()
    for key, value in found.state_dict().items():
        if key in state and state[key].shape == value.shape:
            state[key] = value
    core.load_state_dict(state)
    return core
