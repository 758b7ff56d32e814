# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights know their network: what is saved is what is loaded, and nothing else is taken for it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import torch.nn as nn
from monai.bundle import ConfigParser

import monai_usfm
from monai_usfm import build_network, load_network, network_options, read_card, save_network, write_card
from monai_usfm.cards import average_networks, card_path, find_card, require_classes
from monai_usfm.cli import main
from monai_usfm.networks import UltrasoundSegmenter, UltrasoundViT, apply_lora, to_usfm_state_dict, usfm_vit

SMALL = {
    "network_size": "custom",
    "hidden_size": 32,
    "mlp_dim": 48,
    "num_layers": 4,
    "num_heads": 2,
    "spatial_size": 32,
    "patch_size": 8,
}
BUNDLES = Path(__file__).parents[1] / "bundles"


@pytest.mark.parametrize(
    ("task", "options"),
    [
        ("segmentation", {"num_classes": 3}),
        ("segmentation", {"head": "upernet", "width": 16, "auxiliary": True, "norm": ["group", {"num_groups": 8}]}),
        ("segmentation", {"head": "segvit", "width": 32}),
        ("segmentation", {"spatial_dims": 3, "spatial_size": [8, 16, 16], "patch_size": [4, 8, 8]}),
        ("classification", {"pool": "attention", "pos_embed": "sincos", "layer_scale": 0}),
        ("enhancement", {"in_channels": 3, "out_channels": 3, "finest": 2}),
        ("features", {"pos_embed": "relative_per_block"}),
    ],
)
def test_what_is_saved_is_loaded_without_naming_an_option(tmp_path, task, options):
    network = build_network(task, **{**SMALL, **options}).eval()
    save_network(tmp_path / "x.pt", network, half=False)
    again = load_network(tmp_path / "x.pt")
    image = torch.rand(1, network.encoder.in_channels, *network.encoder.img_size)
    torch.testing.assert_close(again(image), network(image), rtol=0, atol=0)
    assert not again.training


@pytest.mark.parametrize("task", ["segmentation", "classification", "enhancement", "features"])
def test_built_networks_compile(task):
    network = build_network(task, **SMALL).eval()
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))


@pytest.mark.parametrize("wrap", [nn.Module.eval, torch.compile, nn.DataParallel])
def test_a_network_built_by_hand_has_a_card_too(tmp_path, wrap):
    network = UltrasoundSegmenter(UltrasoundViT(32, 8, hidden_size=32, mlp_dim=64, num_layers=4, num_heads=2), 2)
    save_network(tmp_path / "x.pt", wrap(network))
    assert read_card(tmp_path / "x.pt")["network"]["hidden_size"] == 32
    assert isinstance(load_network(tmp_path / "x.pt"), UltrasoundSegmenter)


def test_the_card_keeps_what_the_outputs_mean(tmp_path):
    save_network(
        tmp_path / "x.pt", build_network("segmentation", **SMALL), class_names=["none", "lesion"], label_values=[0, 255]
    )
    network = load_network(tmp_path / "x.pt")
    save_network(tmp_path / "y.pt", network, temperature=1.5)
    card = read_card(tmp_path / "y.pt")
    assert (card["class_names"], card["label_values"], card["temperature"]) == (["none", "lesion"], [0, 255], 1.5)


def test_training_inherits_no_class_or_temperature(tmp_path):
    save_network(tmp_path / "x.pt", build_network("segmentation", **SMALL), temperature=2.0, data="ours", license="MIT")
    network = build_network("segmentation", tmp_path / "x.pt")
    assert "temperature" not in network.card
    assert network.card["start"]["data"] == "ours"


def test_a_card_of_other_weights_is_refused(tmp_path):
    save_network(tmp_path / "x.pt", build_network("features", **SMALL))
    save_network(tmp_path / "y.pt", build_network("features", **SMALL))
    shutil.copy(tmp_path / "y.pt", tmp_path / "x.pt")  # what a run killed between two renames leaves behind
    with pytest.raises(ValueError, match=r"x\.json does not belong to .*x\.pt"):
        load_network(tmp_path / "x.pt")
    with pytest.raises(ValueError, match="does not belong"):
        build_network("segmentation", tmp_path / "x.pt")


def test_an_option_that_contradicts_the_card_is_named_with_it(tmp_path):
    save_network(tmp_path / "x.pt", build_network("segmentation", **SMALL))
    with pytest.raises(ValueError, match=r"head upernet \(the card says pyramid\).*x\.pt"):
        load_network(tmp_path / "x.pt", head="upernet")
    load_network(tmp_path / "x.pt", "segmentation", head="pyramid", spatial_size=[32, 32], patch_size=8)


@pytest.mark.parametrize("pos_embed", ["relative", "relative_per_block", "sincos", "learnable"])
@pytest.mark.parametrize("card", [True, False])
def test_another_size_than_the_card_says_resizes_the_positions(tmp_path, pos_embed, card):
    options = {**SMALL, "pos_embed": pos_embed}
    save_network(tmp_path / "x.pt", build_network("segmentation", width=16, **options), half=False)
    if not card:
        (tmp_path / "x.json").unlink()
    named = {} if card else {"width": 16, "num_heads": 2}
    network = load_network(tmp_path / "x.pt", "segmentation", spatial_size=[48, 64], **named)
    assert network.card["network"]["spatial_size"] == [48, 64]
    expected = build_network("segmentation", tmp_path / "x.pt", spatial_size=[48, 64], **named).encoder.state_dict()
    for name, tensor in network.encoder.state_dict().items():
        assert torch.equal(tensor, expected[name]), name
    image = torch.rand(1, 1, 48, 64)  # another grid than the native one is resized in every forward
    native = load_network(tmp_path / "x.pt", "segmentation", **named)
    torch.testing.assert_close(network(image), native(image), rtol=1e-4, atol=1e-5)
    save_network(tmp_path / "y.pt", network)
    assert load_network(tmp_path / "y.pt").encoder.img_size == (48, 64)


@pytest.mark.parametrize("size", [[32, 32, 32], [30, 30]])
def test_a_size_that_the_weights_cannot_have_is_refused(tmp_path, size):
    save_network(tmp_path / "x.pt", build_network("segmentation", **SMALL))
    with pytest.raises(ValueError, match="spatial_size"):
        load_network(tmp_path / "x.pt", spatial_size=size)


def test_weights_of_another_task_are_refused(tmp_path):
    save_network(tmp_path / "x.pt", build_network("segmentation", **SMALL))
    with pytest.raises(ValueError, match=r"x\.pt holds weights for segmentation .*, not for classification"):
        load_network(tmp_path / "x.pt", "classification")


def test_weights_without_a_card_load_by_options(tmp_path):
    network = build_network("segmentation", head="upernet", width=16, **SMALL).eval()
    torch.save(network.state_dict(), tmp_path / "x.pt")
    image = torch.rand(1, 1, 32, 32)
    options = {"head": "upernet", "width": 16, "num_heads": 2}
    torch.testing.assert_close(load_network(tmp_path / "x.pt", "segmentation", **options)(image), network(image))
    with pytest.raises(ValueError, match=r"x\.pt has no card"):
        load_network(tmp_path / "x.pt")
    with pytest.raises(ValueError, match=r"x\.pt does not hold the weights of this UltrasoundSegmenter"):
        load_network(tmp_path / "x.pt", "segmentation")


def test_nan_is_neither_written_nor_loaded(tmp_path):
    network = build_network("features", **SMALL)
    save_network(tmp_path / "x.pt", network)
    before = (tmp_path / "x.pt").read_bytes()
    with torch.no_grad():
        network.encoder.norm.weight[0] = float("nan")
    with pytest.raises(ValueError, match=r"nothing was written to .*x\.pt.*encoder\.norm\.weight"):
        save_network(tmp_path / "x.pt", network)
    assert (tmp_path / "x.pt").read_bytes() == before
    torch.save(network.state_dict(), tmp_path / "y.pt")
    with pytest.raises(ValueError, match=r"y\.pt is unusable.*NaN"):
        load_network(tmp_path / "y.pt", "features")


@pytest.mark.parametrize("content", [b"", b"these are not weights\n"])
def test_a_file_of_something_else_is_named(tmp_path, content):
    (tmp_path / "x.pt").write_bytes(content)
    for act in (
        lambda: load_network(tmp_path / "x.pt", "features"),
        lambda: build_network("features", tmp_path / "x.pt"),
    ):
        with pytest.raises(ValueError, match=r"x\.pt is no PyTorch checkpoint"):
            act()


def test_a_crash_while_writing_leaves_the_old_pair(tmp_path, monkeypatch):
    network = build_network("features", **SMALL)
    save_network(tmp_path / "x.pt", network)
    before = [(tmp_path / name).read_bytes() for name in ("x.pt", "x.json")]
    with torch.no_grad():
        network.encoder.norm.weight.add_(1)
    monkeypatch.setattr(torch, "save", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        save_network(tmp_path / "x.pt", network)
    assert [(tmp_path / name).read_bytes() for name in ("x.pt", "x.json")] == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["x.json", "x.pt"]


def test_unmerged_updates_are_refused(tmp_path):
    with pytest.raises(ValueError, match="merge_lora"):
        save_network(tmp_path / "x.pt", apply_lora(build_network("segmentation", **SMALL)))


def test_pretrained_weights_decide_what_the_encoder_is(tmp_path):
    official = usfm_vit("base", num_layers=2, in_channels=3)
    torch.save(to_usfm_state_dict(official), tmp_path / "USFM_latest.pth")
    options = network_options("segmentation", tmp_path / "USFM_latest.pth")
    wanted = {"hidden_size": 768, "num_layers": 2, "num_heads": 12, "spatial_size": [224, 224], "patch_size": [16, 16]}
    assert {name: options[name] for name in wanted} == wanted
    assert (options["in_channels"], options["pos_embed"]) == (1, "relative")
    assert network_options("segmentation", tmp_path / "USFM_latest.pth", spatial_size=96)["spatial_size"] == [96, 96]


def test_rotary_weights_start_every_network(tmp_path):
    official = usfm_vit("small", num_layers=2, in_channels=3, num_registers=4, pos_embed="rotary")
    renamed = {"register_tokens": "storage_tokens", "gamma_1": "ls1.gamma", "gamma_2": "ls2.gamma"}  # as DINOv3's
    state = {name: t for name, t in official.state_dict().items() if not name.endswith("native_grid")}
    for ours, theirs in renamed.items():
        state = {name.replace(ours, theirs): tensor for name, tensor in state.items()}
    torch.save(state, tmp_path / "dinov3.pth")
    for task in ("segmentation", "classification", "enhancement"):
        network = build_network(task, tmp_path / "dinov3.pth", spatial_size=32)
        assert network.load_report.layout == "DINOv3"
        save_network(tmp_path / "x.pt", network)
        again = load_network(tmp_path / "x.pt")
        image = torch.rand(1, 1, 32, 48)
        torch.testing.assert_close(again(image), network.eval()(image), rtol=0.01, atol=0.02)  # halves are stored
        assert (again.encoder.position, again.encoder.num_registers) == ("rotary", 4)


def test_the_full_base_size_has_its_name():
    with torch.device("meta"):
        shapes = usfm_vit("base", in_channels=3).state_dict()
    state = {name: torch.zeros(tensor.shape) for name, tensor in shapes.items() if not name.endswith("native_grid")}
    assert network_options("encoder", state)["network_size"] == "base"


def test_a_size_that_contradicts_the_weights_is_named(tmp_path):
    save_network(tmp_path / "x.pt", build_network("features", **SMALL))
    with pytest.raises(ValueError, match=r"network_size small .* contradicts pretrained .*x\.pt"):
        build_network("segmentation", tmp_path / "x.pt", network_size="small")


def test_head_options_come_from_weights_of_the_same_task_only(tmp_path):
    save_network(tmp_path / "x.pt", build_network("segmentation", head="upernet", width=16, num_classes=4, **SMALL))
    same = network_options("segmentation", tmp_path / "x.pt")
    assert (same["head"], same["width"], same["num_classes"]) == ("upernet", 16, 4)
    other = network_options("segmentation", tmp_path / "x.pt", head="pyramid")
    assert other["head"] == "pyramid" and "width" not in other
    assert network_options("enhancement", tmp_path / "x.pt")["hidden_size"] == 32
    assert "num_classes" not in network_options("enhancement", tmp_path / "x.pt")


def test_image_weights_start_a_network_of_volumes(tmp_path):
    save_network(tmp_path / "x.pt", build_network("segmentation", **SMALL))
    network = build_network("segmentation", tmp_path / "x.pt", spatial_dims=3, patch_size=8)
    assert (network.encoder.img_size, network.encoder.patch_size) == ((48, 96, 96), (8, 8, 8))
    assert "encoder.patch_embed.proj.weight" in network.load_report.loaded


def test_volume_weights_do_not_start_a_network_of_images(tmp_path):
    options = {**SMALL, "spatial_dims": 3, "spatial_size": [8, 16, 16], "patch_size": [4, 8, 8]}
    save_network(tmp_path / "x.pt", build_network("features", **options))
    assert network_options("features", tmp_path / "x.pt")["spatial_dims"] == 3
    with pytest.raises(ValueError, match=r"x\.pt holds an encoder of volumes"):
        build_network("features", tmp_path / "x.pt", spatial_dims=2)


def test_options_that_are_misspelt_or_do_not_fit_are_named():
    with pytest.raises(ValueError, match="no option 'num_clases'; did you mean 'num_classes'"):
        build_network("segmentation", num_clases=3)
    with pytest.raises(
        ValueError, match=r"spatial_size \[100, 100\] is not a multiple of patch_size \[16, 16\].*96, 96"
    ):
        build_network("segmentation", spatial_size=100)
    with pytest.raises(ValueError, match=r"spatial_size .* does not have 3 axes"):
        build_network("segmentation", spatial_size=[96, 96], spatial_dims=3)
    with pytest.raises(ValueError, match="head must be one of"):
        build_network("segmentation", head="unet")
    with pytest.raises(ValueError, match="patch_size must be positive"):
        build_network("segmentation", patch_size=0)


def test_resolved_options_are_a_fixed_point(tmp_path):
    save_network(tmp_path / "x.pt", build_network("segmentation", head="upernet", width=16, **SMALL))
    resolved = network_options("segmentation", tmp_path / "x.pt", num_classes=5)
    assert network_options("segmentation", tmp_path / "x.pt", **resolved) == resolved
    assert json.loads(json.dumps(resolved)) == resolved


def test_a_config_builds_and_loads_by_name(tmp_path):
    save_network(tmp_path / "x.pt", build_network("segmentation", **SMALL))
    parser = ConfigParser(
        {
            "pretrained": str(tmp_path / "x.pt"),
            "options": "$monai_usfm.network_options('segmentation', @pretrained)",
            "imports": ["$import monai_usfm"],
            "spatial_size": "$@options['spatial_size']",
            "network_def": {"_target_": "monai_usfm.load_network", "path": "@pretrained", "head": None},
        },
        globals={"monai_usfm": "monai_usfm"},
    )
    assert parser.get_parsed_content("spatial_size") == [32, 32]
    assert isinstance(parser.get_parsed_content("network_def"), UltrasoundSegmenter)


class Head(nn.Module):
    """A head of a user: one linear map of the last encoder map, enlarged."""

    def __init__(self, classes: int = 2) -> None:
        super().__init__()
        self.linear = nn.Conv2d(32, classes, 1)

    def forward(self, image: torch.Tensor, maps: list[torch.Tensor]) -> list[torch.Tensor]:
        return [nn.functional.interpolate(self.linear(maps[-1]), image.shape[2:])]


class Pool(nn.Module):
    """A pool of a user: maximum over the last map."""

    out_channels = 32

    def forward(self, image: torch.Tensor, maps: list[torch.Tensor]) -> torch.Tensor:
        return maps[-1].flatten(2).amax(2)


@pytest.mark.parametrize(
    ("task", "option", "module"), [("segmentation", "head", Head), ("classification", "pool", Pool)]
)
def test_modules_of_the_user_are_used_and_asked_for_again(tmp_path, task, option, module):
    network = build_network(task, **{option: module()}, **SMALL).eval()
    image = torch.rand(1, 1, 32, 32)
    maps = network.encoder.forward_intermediates(image, [0, 1, 2, 3])
    if task == "segmentation":
        torch.testing.assert_close(network(image), network.head(image, maps)[0])
    else:
        torch.testing.assert_close(network.forward_features(image), network.fc_norm(maps[-1].flatten(2).amax(2)))
    torch.testing.assert_close(torch.jit.script(network)(image), network(image))
    save_network(tmp_path / "x.pt", network, half=False)
    again = load_network(tmp_path / "x.pt", **{option: module()})
    torch.testing.assert_close(again(image), network(image))
    with pytest.raises(ValueError, match=rf"a {option} of its own, module .*{module.__name__}: pass it as {option}"):
        load_network(tmp_path / "x.pt")


def test_cards_that_contradict_themselves_are_refused(tmp_path):
    network = build_network("segmentation", **SMALL)
    with pytest.raises(ValueError, match="3 class_names and 2 classes"):
        save_network(tmp_path / "x.pt", network, class_names=["a", "b", "c"])
    with pytest.raises(ValueError, match="temperature is 0"):
        save_network(tmp_path / "x.pt", network, temperature=0)
    save_network(tmp_path / "x.pt", network)
    with pytest.raises(ValueError, match="its task is 'segment'"):
        write_card(tmp_path / "x.pt", {**read_card(tmp_path / "x.pt"), "task": "segment"})
    card_path(tmp_path / "x.pt").write_text("{")
    with pytest.raises(ValueError, match=r"x\.json is no readable card"):
        load_network(tmp_path / "x.pt")
    card_path(tmp_path / "x.pt").write_text("[1]")
    assert find_card(tmp_path / "x.pt") is None  # a file of something else
    with pytest.raises(FileNotFoundError, match=r"x\.pt has no card"):
        read_card(tmp_path / "x.pt")


@pytest.mark.parametrize("weights", sorted(BUNDLES.glob("*/models/*.pt")), ids=lambda p: f"{p.parts[-3]}/{p.name}")
def test_shipped_weights_load_by_their_cards(weights):
    network = load_network(weights)
    assert network.card["data"] and network.card["license"]
    assert monai_usfm.cards.describe_network(network)["network"].items() <= network.card["network"].items()


def test_the_encoder_of_any_network_gives_features(tmp_path):
    network = build_network(
        "segmentation", spatial_size=[32, 32], hidden_size=48, mlp_dim=48, num_layers=2, num_heads=3
    )
    save_network(tmp_path / "x.pt", network, half=False)
    features = load_network(tmp_path / "x.pt", "features", pool="mean")
    assert (features.card["task"], features.card["network"]["hidden_size"]) == ("features", 48)
    image = torch.rand(1, 1, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(features(image), network.encoder.eval()(image)[:, 1:].mean(1))


CARD = {"task": "segmentation", "network": {"spatial_dims": 2}}


@pytest.mark.parametrize(("more", "named"), [({"prompts": True}, "prompts"), ({"landmarks": ["a"]}, "landmarks")])
def test_networks_that_tell_no_classes_unasked_are_refused_by_name(more, named):
    require_classes(CARD, "m.pt")
    with pytest.raises(ValueError, match=f"m.pt is for segmentation by {named}"):
        require_classes({**CARD, **more}, "m.pt")
    with pytest.raises(ValueError, match="for classification; here a segmentation is needed"):
        require_classes({**CARD, "task": "classification"}, "m.pt", "segmentation")
    with pytest.raises(ValueError, match="for segmentation of images; here a segmentation of volumes is needed"):
        require_classes(CARD, "m.pt", "segmentation", spatial_dims=3)


def test_the_mean_of_trainings_is_that_of_their_weights(tmp_path):
    options = {"spatial_size": [32, 32], "num_layers": 1, "hidden_size": 48, "mlp_dim": 48, "num_heads": 3}
    files, states = [], []
    for number in range(3):
        torch.manual_seed(number)
        network = build_network("segmentation", **options)
        more = {"class_names": ["background", "lesion"], "temperature": 1.5, "scores": {"dice": 1.0}}
        files.append(save_network(tmp_path / f"{number}.pt", network, half=False, **more))
        states.append(network.state_dict())
    assert main(["average", str(tmp_path / "mean.pt"), *map(str, files)]) == 0
    found = load_network(tmp_path / "mean.pt")
    for name, value in found.state_dict().items():
        expected = sum(state[name].double() for state in states) / 3
        torch.testing.assert_close(value.double(), expected, rtol=2e-3, atol=1e-6)
    assert found.card["class_names"] == ["background", "lesion"] and len(found.card["averaged"]) == 3
    assert "temperature" not in found.card and "scores" not in found.card
    assert main(["average", str(tmp_path / "mean.pt"), *map(str, files)]) == 1  # nothing is overwritten


def test_networks_that_differ_have_no_mean(tmp_path):
    options = {"num_layers": 1, "hidden_size": 48, "mlp_dim": 48, "num_heads": 3}
    for name, size, classes in (("a", 32, ["x", "y"]), ("b", 64, ["x", "y"]), ("c", 32, ["y", "x"])):
        network = build_network("segmentation", spatial_size=[size, size], **options)
        save_network(tmp_path / f"{name}.pt", network, class_names=classes)
    with pytest.raises(ValueError, match=r"b\.pt and .*a\.pt differ in network"):
        average_networks([tmp_path / "a.pt", tmp_path / "b.pt"])
    with pytest.raises(ValueError, match=r"c\.pt and .*a\.pt differ in class_names"):
        average_networks([tmp_path / "a.pt", tmp_path / "c.pt"])
    with pytest.raises(ValueError, match="two weight files or more, got 1"):
        average_networks([tmp_path / "a.pt"])


@pytest.mark.parametrize(
    ("task", "field", "other"),
    [
        ("segmentation", "landmarks", {}),
        ("segmentation", "landmarks", {"landmarks": ["b", "a", "c"], "num_classes": 3}),
        ("classification", "values", {}),
        ("classification", "values", {"values": ["b"], "num_classes": 2}),
    ],
)
def test_outputs_of_another_meaning_start_anew_in_a_network_of_the_default_classes(tmp_path, task, field, other):
    count = 2 if "values" in other else 3
    bias = "head.bias" if task == "classification" else "head.to_pixels.bias"
    first = build_network(task, num_classes=count, **SMALL)
    nn.init.ones_(dict(first.named_parameters())[bias])
    names = {field: ["a", "b", "c"][: count if field == "landmarks" else 1]}
    file = save_network(tmp_path / "first.pt", first, half=False, **names)
    kept = build_network(task, file, **names, num_classes=count).state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in first.state_dict().items())
    network = build_network(task, file, **other)
    assert network.card["network"]["num_classes"] == other.get("num_classes", 2)
    differing = {name for name, tensor in network.state_dict().items() if not torch.equal(tensor, kept[name])}
    assert differing == {bias, bias.replace("bias", "weight")}


def test_classes_are_not_taken_for_numbers_of_as_many_outputs(tmp_path):
    file = save_network(tmp_path / "classes.pt", build_network("classification", **SMALL), half=False)
    kept, numbers = (build_network("classification", file, num_classes=2, values=v) for v in (None, ["length"]))
    assert torch.equal(kept.head.weight, load_network(file).head.weight)
    assert not torch.equal(numbers.head.weight, kept.head.weight)


@pytest.mark.parametrize("task", ["segmentation", "classification", "encoder"])
@pytest.mark.parametrize("channels", [None, 3])
def test_weights_of_prompts_give_a_gray_network_that_ignores_them(tmp_path, task, channels):
    wide = build_network("segmentation", in_channels=4, **SMALL).eval()
    file = save_network(tmp_path / "prompted.pt", wide, half=False, prompts=["foreground", "background", "roi"])
    network = build_network(task, file, in_channels=channels).eval()
    encoder = network if task == "encoder" else network.encoder
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        wanted = wide.encoder.forward_features(torch.cat([image, torch.zeros(2, 3, 32, 32)], 1))
        found = encoder.forward_features(image.expand(-1, channels or 1, -1, -1))
        torch.testing.assert_close(found, wanted)
        if task == "segmentation" and channels is None:
            torch.testing.assert_close(network(image), wide(torch.cat([image, torch.zeros(2, 3, 32, 32)], 1)))
    assert encoder.in_channels == (channels or 1)


@pytest.mark.parametrize("task", ["features", "encoder"])
def test_features_of_weights_of_prompts_are_those_of_the_image_without_any(tmp_path, task):
    wide = build_network("segmentation", in_channels=4, **SMALL).eval()
    file = save_network(tmp_path / "prompted.pt", wide, half=False, prompts=["foreground", "background", "roi"])
    network = load_network(file, task)
    encoder = network if task == "encoder" else network.encoder
    image = torch.rand(2, 1, 32, 32)
    with torch.no_grad():
        wanted = wide.encoder.forward_features(torch.cat([image, torch.zeros(2, 3, 32, 32)], 1))
        torch.testing.assert_close(encoder.forward_features(image), wanted)
    assert network.card["network"]["in_channels"] == 1 and "prompts" not in network.card
