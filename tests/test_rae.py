"""The embedded representation autoencoder."""

import pytest
import torch

from worldmodel.encoders.rae import RAE, RAEConfig


@pytest.fixture
def rae() -> RAE:
    torch.manual_seed(0)
    rae = RAE(RAEConfig(channels=8, width=32, heads=2, encoder_depth=1, decoder_depth=1))
    rae.mean.copy_(torch.randn(8))
    rae.std.copy_(torch.rand(8) + 0.5)
    return rae.eval()


def test_projecting_keeps_what_the_encoder_gives(rae: RAE) -> None:
    frames = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    latents = rae.encode(frames)
    assert torch.allclose(rae.project(latents), latents, atol=2e-3)


def test_projecting_brings_drifted_latents_back(rae: RAE) -> None:
    frames = torch.randint(0, 256, (3, 64, 64, 3), dtype=torch.uint8)
    latents = rae.encode(frames)
    # Raw latents that were scaled and shifted alike in all channels are fully restored.
    raw = latents * rae.std + rae.mean
    drifted = (1.7 * raw + 0.4 - rae.mean) / rae.std
    assert not torch.allclose(drifted, latents, atol=0.1)
    assert torch.allclose(rae.project(drifted), latents, atol=2e-3)
    other = torch.randn(2, 64, 8)
    once = rae.project(other)
    assert torch.allclose(rae.project(once), once, atol=2e-3)
    assert not torch.allclose(once, other, atol=0.1)
