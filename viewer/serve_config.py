"""What `worldmodel serve` can be told."""

import ipaddress
from dataclasses import dataclass

from worldmodel.errors import UserError

LEAST_TOKEN = 12
FORMATS = ("jpeg", "webp")


@dataclass(frozen=True)
class ServeConfig:
    """Settings of the server; conf/serve.yaml says what each one means."""

    checkpoint: str = "doom-nano"
    device: str = "auto"
    dtype: str = "auto"
    denoise_steps: int = 2
    guidance: float = 1.5
    seed: int = 0
    host: str = "127.0.0.1"
    port: int = 8765
    token: str = ""
    sessions: int = 4
    fps: float = 12.0
    quality: int = 90
    format: str = "jpeg"
    history: int = 512
    grace_s: float = 120.0
    idle_s: float = 60.0

    def __post_init__(self) -> None:
        whole = {"port": (0, 65535), "sessions": (1, 256), "quality": (1, 100)}
        whole |= {"denoise_steps": (1, 64), "history": (1, 1 << 20)}
        for name, (least, most) in whole.items():
            value = getattr(self, name)
            if not least <= value <= most:
                raise UserError(f"{name} must be {least} to {most}, got {value}.")
        if not 0 < self.fps <= 60:
            raise UserError(f"fps must be above 0 and at most 60, got {self.fps}.")
        if self.format not in FORMATS:
            raise UserError(f"format must be {' or '.join(FORMATS)}, not '{self.format}'.")
        if self.grace_s < 0 or self.idle_s <= 0:
            raise UserError("grace_s must not be negative, and idle_s must be positive.")
        if self.token and len(self.token) < LEAST_TOKEN:
            raise UserError(
                f"The token has {len(self.token)} characters, which can be guessed; give at least "
                f"{LEAST_TOKEN}, or none and a good one is made."
            )


def is_loopback(host: str) -> bool:
    """Whether only this machine can reach a server at `host`."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False
