"""Frame encoders behind one interface: frames to latents and back."""

from worldmodel.encoders.frame_encoder import FrameEncoder

__all__ = ["FrameEncoder"]
