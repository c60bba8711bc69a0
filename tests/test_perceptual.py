"""LPIPS, FID, FVD and DreamSim with random weights in the files that are published."""

import importlib
import json
import sys

import numpy as np
import pytest
import torch

from worldmodel.encoders.hub import repair_torchvision
from worldmodel.errors import UserError
from worldmodel.evaluate import perceptual
from worldmodel.evaluate.config import EvalConfig
from worldmodel.evaluate.perceptual import DREAMSIM, FID, LPIPS, load_perceptual


def frames(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*shape, 64, 64, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def lpips(tmp_path_factory):
    repair_torchvision()
    pytest.importorskip("lpips")
    from torchvision.models import alexnet

    folder = tmp_path_factory.mktemp("lpips")
    torch.manual_seed(0)
    whole = alexnet().state_dict()
    weights = {k: v for k, v in whole.items() if k.startswith("features.")}
    torch.save(weights, folder / LPIPS.files[0])
    return folder


class VideoNet(torch.nn.Module):
    """What FVD's file can be asked for."""

    def forward(self, x: torch.Tensor, rescale: bool, resize: bool, return_features: bool):
        assert bool(rescale & resize & return_features)
        return torch.cat([x.mean((2, 3, 4)), x.std((2, 3, 4)), x.diff(dim=2).std((2, 3, 4))], 1)


@pytest.fixture(scope="module")
def i3d(tmp_path_factory):
    path = tmp_path_factory.mktemp("fvd") / "i3d_torchscript.pt"
    torch.jit.script(VideoNet()).save(str(path))
    return path


def test_lpips_is_zero_for_equal_frames_symmetric_and_as_the_package_has_it(lpips):
    distance = perceptual.load_lpips(str(lpips))
    a, b = frames(3), frames(3, seed=1)
    assert distance(a, a) == pytest.approx([0, 0, 0], abs=1e-7)
    assert distance(a, b) == pytest.approx(distance(b, a), abs=1e-6)
    near = np.clip(a.astype(int) + 4, 0, 255).astype(np.uint8)
    assert np.all(distance(a, near) > 0)
    assert np.all(distance(a, near) < distance(a, b))
    # The whole network in one, backbone included, as torchvision and the package make it.
    module = importlib.import_module("lpips")
    net = module.LPIPS(net="alex", pnet_rand=True, verbose=False).eval()
    weights = torch.load(lpips / LPIPS.files[0])
    for name, value in net.net.state_dict().items():
        value.copy_(weights[f"features.{name.partition('.')[2]}"])
    x, y = (torch.from_numpy(v).permute(0, 3, 1, 2) / 127.5 - 1 for v in (a, b))
    with torch.no_grad():
        assert distance(a, b) == pytest.approx(net(x, y).flatten().numpy(), abs=1e-5)
    one_file = perceptual.load_lpips(str(lpips / LPIPS.files[0]))
    assert one_file(a, b) == pytest.approx(distance(a, b))


def test_by_horizon_beside_baselines_and_fvd_by_windows(lpips, i3d):
    config = EvalConfig(lpips=str(lpips), fvd=str(i3d), horizon=32)
    loaded = load_perceptual(config)
    assert (list(loaded.distances), list(loaded.features)) == (["lpips"], ["fvd"])
    truth = frames(5, 32)
    found = perceptual.measure_perceptual(
        loaded, truth, truth // 2, {"copy": np.repeat(truth[:, :1], 32, 1), "reconstruction": truth}
    )
    curves = {name: [m for m in found if m.name == name] for name in ("lpips", "fvd")}
    assert [m.horizon for m in curves["lpips"]] == list(range(1, 33))
    assert [m.horizon for m in curves["fvd"]] == [16, 32]
    for m in found:
        assert m.baselines["reconstruction"] == pytest.approx(0, abs=1e-6)
        assert m.value > 0.001
        assert m.low <= m.value <= m.high
        assert m.n == 5
    assert curves["lpips"][0].baselines["copy"] == pytest.approx(0, abs=1e-7)
    assert curves["fvd"][0].baselines["copy"] > curves["fvd"][0].baselines["reconstruction"]


def test_fid_takes_the_published_format_frame_by_frame(tmp_path, monkeypatch):
    repair_torchvision()
    pytest.importorskip("torch_fidelity")
    module = importlib.import_module("torch_fidelity.feature_extractor_inceptionv3")
    kind = module.FeatureExtractorInceptionV3
    with monkeypatch.context() as patch:  # a network that has not been given weights yet
        patch.setattr(module, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        torch.manual_seed(0)
        torch.save(kind("inception-v3-compat", ["2048"]).state_dict(), tmp_path / FID.files[0])
    features = perceptual.load_inception(str(tmp_path))
    windows = frames(1, 2)
    found = features(windows)
    assert found.shape == (1, 2, 2048)
    assert np.isfinite(found).all()
    assert features(windows[:, ::-1]) == pytest.approx(found[:, ::-1], rel=1e-3, abs=1e-5)


@pytest.mark.parametrize("key", ["lpips", "fid", "fvd", "dreamsim"])
def test_weights_that_are_not_there_are_asked_for_by_name_and_place(tmp_path, key):
    config = EvalConfig(**{key: str(tmp_path)})
    published = {p.key: p for p in (LPIPS, DREAMSIM, FID, perceptual.FVD)}[key]
    with pytest.raises(UserError) as told:
        load_perceptual(config)
    for part in (*published.files, published.place, f"{key}="):
        assert part in str(told.value)


@pytest.mark.parametrize("key", ["lpips", "fid", "fvd"])
def test_a_file_of_something_else_is_told_in_a_sentence(tmp_path, key):
    published = {p.key: p for p in (LPIPS, FID, perceptual.FVD)}[key]
    (tmp_path / published.files[0]).write_bytes(b"not weights at all")
    with pytest.raises(UserError, match="damaged or of something else"):
        load_perceptual(EvalConfig(**{key: str(tmp_path)}))
    torch.save({"features.0.weight": torch.zeros(2)}, tmp_path / published.files[0])
    with pytest.raises(UserError, match="damaged or of something else"):
        load_perceptual(EvalConfig(**{key: str(tmp_path)}))


def test_nothing_is_loaded_where_nothing_is_named_and_short_horizons_are_refused(i3d):
    loaded = load_perceptual(EvalConfig())
    assert not loaded.distances
    assert not loaded.features
    with pytest.raises(UserError, match="windows of 16"):
        load_perceptual(EvalConfig(fvd=str(i3d), horizon=8))


def test_a_package_that_is_missing_is_named(lpips, monkeypatch):
    monkeypatch.setitem(sys.modules, "lpips", None)
    with pytest.raises(UserError, match=r"worldmodel\[metrics\]"):
        perceptual.load_lpips(str(lpips))


@pytest.mark.slow
def test_dreamsim_is_zero_for_equal_frames_and_symmetric(tmp_path):
    repair_torchvision()
    pytest.importorskip("dreamsim")
    from dreamsim.feature_extraction import vision_transformer
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    net = vision_transformer.vit_base(32)
    net.pos_drop = torch.nn.LayerNorm(net.embed_dim)
    weights = {**net.state_dict(), "proj": torch.randn(768, 512) / 28}
    torch.save({"state_dict": weights}, tmp_path / DREAMSIM.files[0])
    module = importlib.import_module("dreamsim.model")
    settings = module.dreamsim_args["model_config"]["open_clip_vitb32"]
    net = module.PerceptualModel(**settings, device="cpu", load_dir=str(tmp_path))
    lora = LoraConfig(r=4, lora_alpha=4, lora_dropout=0.0, bias="none", target_modules=["qkv"])
    get_peft_model(net, lora).save_pretrained(tmp_path / DREAMSIM.files[1])
    assert json.loads((tmp_path / DREAMSIM.files[1] / "adapter_config.json").read_text())["r"] == 4
    distance = perceptual.load_dreamsim(str(tmp_path))
    a, b = frames(2), frames(2, seed=1)
    assert distance(a, a) == pytest.approx([0, 0], abs=1e-5)
    assert distance(a, b) == pytest.approx(distance(b, a), abs=1e-5)
    assert np.all(distance(a, b) > 1e-6)
