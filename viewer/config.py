"""What `worldmodel play` can be told."""

from dataclasses import dataclass

from worldmodel.errors import UserError


@dataclass(frozen=True)
class PlayConfig:
    """Settings of the viewer; conf/play.yaml says what each one means."""

    checkpoint: str = "doom-nano"
    world: str = "dream"
    beside: str = ""
    pose: str = "auto"
    device: str = "auto"
    dtype: str = "auto"
    denoise_steps: int = 2
    guidance: float = 1.5
    seed: int = 0
    start: int = 0
    image: str = ""
    camera: str = ""
    fps: float = 12.0
    adapt: bool = True
    fulfil: bool = True
    headless: bool = False
    script: str = ""
    session: str = ""
    node: str = ""
    sessions: str = "sessions"
    record: str = ""
    frames: str = ""
    report: str = ""
    scenario: str = ""
    store: str = ""
    screenshot: str = ""
    width: int = 1000
    height: int = 800
    fullscreen: bool = False
    smooth: bool = True
    keymap: str = ""
    clip_s: float = 10.0
    remote: str = ""
    token: str = ""

    def __post_init__(self) -> None:
        if self.script and self.session:
            raise UserError("Give either script=FILE or session=FILE, not both.")
        if self.headless and not (self.script or self.session):
            raise UserError(
                "headless=true needs script=FILE, a scenario that says which keys and sentences to "
                "give and when, or session=FILE to play a session again."
            )
        if self.node and not self.session:
            raise UserError("node= names a frame of a session; it needs session=FILE.")
        starts = [name for name in ("image", "camera", "beside") if getattr(self, name)]
        if len(starts) > 1:
            raise UserError(
                f"A dream begins in one place: give one of {' and '.join(starts)}, not more."
            )
        if starts and self.world != "dream":
            raise UserError(
                f"{starts[0]}= goes with an imagined world: leave world= at 'dream', "
                f"not '{self.world}'."
            )
        if self.clip_s <= 0:
            raise UserError(f"clip_s must be a positive number of seconds, got {self.clip_s}.")
        if self.denoise_steps < 1:
            raise UserError(f"denoise_steps must be at least 1, got {self.denoise_steps}.")
        if not 0 <= self.fps <= 240:
            raise UserError(f"fps must be 0 (as fast as possible) to 240, got {self.fps}.")
        if not (160 <= self.width <= 16384 and 120 <= self.height <= 16384):
            raise UserError(
                f"The window must be 160x120 to 16384x16384, got {self.width}x{self.height}."
            )
