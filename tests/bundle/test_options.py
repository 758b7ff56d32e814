# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Options that nothing reads, and values that cannot work, are refused by name."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
from monai.bundle import ConfigParser, ConfigWorkflow

from monai_usfm import build_network, save_network
from monai_usfm.bundle import check_names, check_values, describe, flag, root_cause
from monai_usfm.bundle.start import checked_options
from monai_usfm.options import set_options
from monai_usfm.workflow import TASKS, load_bundle

CONFIG = {
    "imports": ["$import monai_usfm.bundle as bundle"],
    "_options_": {
        "max_epochs": "epochs of training",
        "learning_rate": "peak",
        "dataset_dir": "folder",
        "seed": "of all",
    },
    "max_epochs": 3,
    "learning_rate": 0.1,
    "dataset_dir": None,
    "seed": 0,
    "output_dir": None,
    "train": {
        "dataset": {"_target_": "Dataset", "data": "$[1, 2]"},
        "dataloader": {"_target_": "DataLoader", "dataset": "@train#dataset", "batch_size": 1},
        "extra": "$@max_epochs + 1",
        "trainer": "$dict(epochs=@train#extra)",
    },
    "initialize": ["$bundle.start(@output_dir)"],
    "run": ["$bundle.options()"],
}


@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("max_epoch", "--max_epochs"),
        ("lr", "--learning_rate"),
        ("data_dir", "--dataset_dir"),
        ("train#dataloader#batch_sise", "--train#dataloader#batch_size"),
        ("train#datset", "--train#dataset"),
        ("train#dataset#dat", "--train#dataset#data"),
    ],
)
def test_a_name_that_nothing_reads_stops_with_the_nearest_right_one(name: str, right: str) -> None:
    parser = ConfigParser(
        {**CONFIG, "train": {k: dict(v) if isinstance(v, dict) else v for k, v in CONFIG["train"].items()}}
    )
    parser[name] = 3
    with pytest.raises(ValueError, match=f"There is no option --{name}. Did you mean {right}"):
        check_names(parser.config)


def test_what_is_read_is_no_error_also_when_only_an_overlay_of_the_user_reads_it() -> None:
    check_names(CONFIG)
    check_names({**CONFIG, "mine": 3, "run": ["$print(@mine)"]})


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_epochs", 0),
        ("patch_size", 0),
        ("patch_size", [8, 0, 16]),
        ("temperature", 0),
        ("temperature", -1),
        ("figure_interval", -1),
        ("max_epochs", "three"),
        ("num_classes", 1),
        ("amp", "half"),
        ("resume", "maybe"),
        ("learning_rate", float("nan")),
        ("label_fraction", 50),
        ("background_crops", 5),
        ("values", "length"),
        ("landmarks", []),
        ("mask_ratio", 1.0),
        ("texture_weight", -1),
        ("box", "perhaps"),
        ("label_values", 255),
        ("label_values", [0, 0.5, 1]),
        ("label_values", "0,255"),
        ("noise_strength", ["a", "b"]),
        ("noise_strength", [0, float("inf")]),
        ("views", 1),
        ("views", [1, 0]),
        ("feature_blocks", 3),
        ("presence_threshold", "high"),
    ],
)
def test_a_value_that_cannot_work_is_refused_by_name(name: str, value: object) -> None:
    with pytest.raises(ValueError, match=f"--{name} must be .*; got "):
        check_values({name: value})


def test_values_that_work_pass() -> None:
    check_values({"max_epochs": 1, "patch_size": [8, 16, 16], "figure_interval": 0, "amp": "auto", "resume": "False"})
    check_values({"num_classes": None, "anything": object()})


@pytest.mark.parametrize(("text", "value"), [("true", True), ("False", False), (1, True), (True, True), ("no", False)])
def test_a_switch_may_be_written_as_on_any_command_line(text: object, value: bool) -> None:
    assert flag(text) is value


def workflow(folder: Path, **options: object) -> ConfigWorkflow:
    file = folder / "train.json"
    ConfigParser.export_config_file(CONFIG, str(file))
    return ConfigWorkflow(config_file=str(file), logging_file=False, output_dir=str(folder / "out"), **options)


def test_a_group_that_a_later_config_replaced_is_named() -> None:
    with pytest.raises(ValueError, match=r"replaced all of 'train': .*train#trainer#NAME"):
        check_names({"train": {"trainer": {"max_epochs": 2}}, "run": ["$len(@train#dataloader)"]})


def test_null_of_a_command_line_is_no_word() -> None:
    with pytest.raises(ValueError, match=r"--cache_dir null .* write --cache_dir '\$None'"):
        check_values({"cache_dir": "null", "label_values": np.array([0, 255])})


def test_a_workflow_in_python_is_checked_too_and_keeps_its_configuration(tmp_path: Path) -> None:
    flow = workflow(tmp_path, max_epochs=5)
    flow.initialize()
    assert flow.run() == [{"max_epochs": 5, "learning_rate": 0.1, "dataset_dir": None, "seed": 0}]
    assert ConfigParser.load_config_file(tmp_path / "out" / "config.json")["max_epochs"] == 5
    with pytest.raises(RuntimeError) as error:
        workflow(tmp_path, max_epoch=5).initialize()
    assert "Did you mean --max_epochs?" in str(error.value.__cause__)
    with pytest.raises(RuntimeError) as error:
        workflow(tmp_path, max_epochs=0).initialize()
    assert "--max_epochs must be a whole number from 1; got 0" in str(error.value.__cause__)


def test_an_option_of_monais_command_line_that_changes_nothing_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(sys.modules["monai_usfm.bundle.start"], "under_command_line", lambda: True)
    words = ["run", "--config_file", "x.json", "--learning_rate", "1", "--seed=1", "--max_epochs=2"]
    monkeypatch.setattr("sys.argv", words)
    workflow(tmp_path).initialize()
    assert "these options change nothing here: --learning_rate, --max_epochs." in caplog.messages


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("kind", ["train", "evaluate", "predict"])
def test_a_path_that_looks_like_a_number_is_text(task: str, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys.modules["monai_usfm.bundle.start"], "under_command_line", lambda: True)
    monkeypatch.setattr("sys.argv", ["monai.bundle", "run", "--output_dir", "2024_01", "--max_epochs", "2"])
    flow = load_bundle(task, kind, output_dir=202401, dataset_dir=7, checkpoint=1.5)  # as fire reads them
    flow.parser.parse(reset=True)
    flow.parser.get_parsed_content("initialize#0")
    found = [flow.parser.get_parsed_content(name) for name in ("output_dir", "dataset_dir", "checkpoint")]
    assert found == ["2024_01", "7", "1.5"]
    assert kind == "predict" or flow.parser.get_parsed_content("export_path") == "2024_01/model.pt"


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(RuntimeError) as error:
        workflow(tmp_path).initialize()
    assert "--output_dir: nothing can be written" in str(error.value.__cause__)


@pytest.mark.parametrize("name", ["ckpt_dir", "cache_dir"])
def test_a_folder_of_a_training_that_cannot_be_written_is_named_before_it(name: str, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    flow = load_bundle("segmentation", output_dir=str(tmp_path / "out"), **{name: str(tmp_path / "file" / "here")})
    with pytest.raises(RuntimeError) as caught:
        flow.initialize()
    assert str(root_cause(caught.value)).startswith(f"--{name}: nothing can be written to")


def test_arguments_of_generated_dictionary_forms_are_known() -> None:
    augmentation = [{"_target_": "monai_usfm.transforms.RandSpeckleNoised", "keys": "image", "prob": 0.2}]
    run = {"run": ["$print(@intensity_augmentation)"]}
    check_names({**CONFIG, **run, "intensity_augmentation": augmentation})
    with pytest.raises(ValueError, match="no option --intensity_augmentation#0#probb"):
        check_names({**CONFIG, **run, "intensity_augmentation": [{**augmentation[0], "probb": 1.0}]})


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("train#datset#data", "no option --train#datset#data. Did you mean --train#dataset#data?"),
        ("trian::dataset::data", "no option --trian::dataset::data. Did you mean --train#dataset#data?"),
        ("initialize#3#x", "no option --initialize#3#x."),
        ("seed#x", "no option --seed#x."),
    ],
)
def test_a_misspelt_parent_stops_with_the_nearest_right_one(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("?", r"\?")):
        set_options(ConfigParser(dict(CONFIG)), {name: 1})


def test_an_overlay_with_a_misspelt_parent_is_told_the_nearest_right_one(tmp_path: Path) -> None:
    (tmp_path / "train.json").write_text('{"train": {"trainer": {"a": 1}}}')
    (tmp_path / "over.json").write_text('{"train#trianer#a": 2}')
    with pytest.raises(KeyError) as error:
        ConfigParser.load_config_files([tmp_path / "train.json", tmp_path / "over.json"])
    assert describe(error.value) == "there is no such entry in the config. By 'trianer', did you mean 'trainer'?"


@pytest.mark.parametrize(
    ("task", "options", "message"),
    [
        (
            "segmentation",
            {"freeze_encoder": True, "lora_rank": 4},
            "--lora_rank .* --freeze_encoder true",
        ),
        ("segmentation", {"spatial_dims": 3, "background_crops": 0.5}, "--background_crops is only .* 2D images"),
        ("segmentation", {"landmarks": ["a", "b"], "background_crops": 0.5}, "--background_crops is not for landmarks"),
        ("segmentation", {"landmarks": ["a", "b"], "num_classes": 5}, "--num_classes is not for landmarks"),
        ("segmentation", {"landmarks": ["a", "b"], "label_values": [0, 1]}, "--label_values is not for landmarks"),
        ("segmentation", {"landmarks": ["a", "b"], "class_names": ["a", "b"]}, "--class_names is not for landmarks"),
        ("classification", {"values": ["a"], "num_classes": 2}, "--num_classes is not for numbers"),
        ("classification", {"values": ["a"], "class_balance": "true"}, "--class_balance is not for numbers"),
        ("enhancement", {"input_key": "low"}, "--input_key is only for recorded pairs: give --pairs true"),
        ("enhancement", {"target_key": "high", "pairs": "false"}, "--target_key is only for recorded pairs"),
    ],
)
def test_an_option_of_a_training_that_would_do_nothing_beside_another_is_refused(
    task: str, options: dict, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        checked_options(load_bundle(task, pretrained=None, **options).parser)


@pytest.mark.parametrize(
    ("task", "workflow", "card", "options", "message"),
    [
        ("segmentation", "predict", {"landmarks": ["a", "b"]}, {"uncertainty": True}, "--uncertainty is not for land"),
        ("segmentation", "predict", {"landmarks": ["a", "b"]}, {"muscle": True}, "--muscle is not for landmarks"),
        ("segmentation", "evaluate", {"landmarks": ["a", "b"]}, {"presence_threshold": 0.5}, "--presence_threshold is"),
        (
            "segmentation",
            "predict",
            {},
            {"temporal_sigma": 2},
            "--temporal_sigma .* give --frames true",
        ),
        ("segmentation", "predict", {}, {"frames": True, "components": True}, "--components is not for the frames"),
        ("segmentation", "predict", {}, {"frames": True, "views": [1.0]}, "--views is not for the frames"),
        ("segmentation", "predict", {}, {"components": True, "statistics": "False"}, "give --statistics true"),
        ("segmentation", "evaluate", {}, {"volume": True, "circumference": True}, "--circumference is only .* 2D"),
        ("segmentation", "predict", {}, {"volume": True, "views": [1.0]}, "--views is only .* 2D images"),
        ("segmentation", "evaluate", {}, {"box": True}, "--box is only for weights that take prompts"),
        ("classification", "predict", {"values": ["a"]}, {"uncertainty": True}, "--uncertainty is not for numbers"),
        ("classification", "evaluate", {"values": ["a"]}, {"temperature": 2}, "--temperature is not for numbers"),
        ("classification", "predict", {}, {"dropout": 0.1}, "give --uncertainty true"),
        ("classification", "predict", {}, {"dropout_samples": 4}, "--dropout_samples .* give --uncertainty true"),
        ("segmentation", "predict", {}, {"dropout_samples": 4}, "--dropout_samples .* give --uncertainty true"),
        ("enhancement", "evaluate", {}, {"background_key": "mask"}, "give --roi_key too"),
    ],
)
def test_an_option_that_would_do_nothing_beside_the_card_or_another_is_refused(
    task: str, workflow: str, card: dict, options: dict, message: str, tmp_path: Path
) -> None:
    tiny = {"network_size": "custom", "num_layers": 4, "hidden_size": 48, "mlp_dim": 96, "num_heads": 3}
    file = save_network(tmp_path / "x.pt", build_network(task, **tiny, spatial_size=32), **card)
    files = {"checkpoint": str(file), "dataset_dir": str(tmp_path), "output_dir": str(tmp_path)}
    checked_options(load_bundle(task, workflow, **files).parser)
    with pytest.raises(ValueError, match=message):
        checked_options(load_bundle(task, workflow, **files, **options).parser)


def test_options_that_go_together_pass() -> None:
    pairs = {"pairs": "true", "input_key": "low", "target_key": "high"}
    for task, options in (("enhancement", pairs), ("segmentation", {"landmarks": ["a"], "lora_rank": 4})):
        checked_options(load_bundle(task, pretrained=None, **options).parser)
