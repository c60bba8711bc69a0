"""Which device and number format to use, and why: said aloud, never silently guessed."""

import torch

from worldmodel.errors import UserError, suggest

DEVICES = ("auto", "cpu", "cuda", "mps")
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}


def choose_device(name: str = "auto") -> tuple[torch.device, str]:
    """Return the device and the reason for it, for instance 'no CUDA device found'.

    Raises:
        UserError: an unknown device, or one that this machine does not have.
    """
    kind = name.split(":")[0]
    if kind not in DEVICES:
        raise UserError(f"Unknown device '{name}'.{suggest(name, DEVICES)}")
    if kind == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda"), f"found {torch.cuda.get_device_name()}"
        count = torch.get_num_threads()
        return torch.device("cpu"), f"no CUDA device found, {count} thread{'s' * (count != 1)}"
    if kind == "cuda" and not torch.cuda.is_available():
        raise UserError(
            f"device={name} was asked for, but this PyTorch finds no CUDA device. Use device=cpu, "
            "or install a CUDA build of torch and check nvidia-smi."
        )
    if kind == "mps" and not torch.backends.mps.is_available():
        raise UserError(
            f"device={name} was asked for, but there is no Metal device. Use device=cpu."
        )
    return torch.device(name), "as asked"


def choose_dtype(name: str, device: torch.device) -> torch.dtype:
    """Return the number format; 'auto' takes bfloat16 where the device computes in it.

    Raises:
        UserError: an unknown name.
    """
    if name == "auto":
        fast = device.type == "cuda" or (device.type == "cpu" and has_fast_bfloat16())
        return torch.bfloat16 if fast else torch.float32
    if name not in DTYPES:
        raise UserError(f"Unknown dtype '{name}'.{suggest(name, (*DTYPES, 'auto'))}")
    return DTYPES[name]


def mixed_precision(device: torch.device, dtype: torch.dtype) -> torch.autocast:
    """Run matrix products in `dtype` within this context; float32 changes nothing."""
    return torch.autocast(device.type, torch.bfloat16, enabled=dtype != torch.float32)


def moved(tensor: torch.Tensor, device: torch.device | str) -> torch.Tensor:
    """Return the tensor on `device`; to a GPU the host need not wait for it to arrive."""
    if torch.device(device).type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


def has_fast_bfloat16() -> bool:
    """Whether this CPU multiplies bfloat16 matrices in hardware (AVX512-BF16 or AMX)."""
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)
