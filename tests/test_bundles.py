# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the four bundles have in common: how inference reads a file, which lists they refuse, their metadata."""

from __future__ import annotations

import itertools
import json
import re
import shutil
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from ignite.engine import Engine, Events
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.data import MetaTensor
from monai.handlers import from_engine
from monai.transforms import SaveImaged
from monai.utils import version_leq
from PIL import Image

import monai_usfm
from monai_usfm import read_card
from monai_usfm.bundle import TrainingSteps, check_names, describe, root_cause, warmup_cosine
from monai_usfm.bundle.records import _as_list
from monai_usfm.data import LoadUltrasound, UnreadableImageError
from monai_usfm.options import READ_BY_CLIENTS

BUNDLES = ("pretraining", "segmentation", "classification", "enhancement")
FIGURES = ("rgb.png", "alpha.png", "palette.png", "deep.png", "pages.tif", "still.nii.gz", "color.mha")
VOLUMES = ("volume.nii.gz", "deep_volume.nii.gz", "cine.nii.gz", "volume.nrrd")


def config(repository: Path, bundle: str) -> dict:
    return json.loads((repository / "bundles" / f"usfm_{bundle}" / "configs" / "inference.json").read_text())


def reading(repository: Path, bundle: str, spatial_dims: int):
    """The transforms that read a file, without those that fit it to the network."""
    parser = ConfigParser(config(repository, bundle))
    parser["plan"] = {"spatial_dims": spatial_dims, "spatial_size": [32] * spatial_dims, "in_channels": 1}
    steps = parser.get_parsed_content("preprocessing").transforms

    def read(path: Path) -> torch.Tensor:
        data = {"image": str(path)}
        for step in steps:
            if type(step).__name__ not in ("SeparableResized", "RepeatChanneld"):
                data = step(data)
        return torch.as_tensor(data["image"]).as_subclass(torch.Tensor)

    return read


def write(path: Path) -> Path:
    """An image without any symmetry: noise, red above, blue on the right, wider than high; volumes are three of it."""
    rng = np.random.default_rng(1)
    pixels = rng.integers(0, 120, (40, 60, 3), dtype=np.uint8)
    pixels[:10, :, 0] += 100
    pixels[:, 40:, 2] += 130
    gray = pixels[..., 0]
    volume = np.stack([gray, pixels[..., 2], gray // 2])  # (z, rows, columns)
    if path.name == "palette.png":
        Image.fromarray(pixels).convert("P", palette=Image.Palette.ADAPTIVE).save(path)
    elif path.suffix in (".png", ".tif"):
        arrays = {"rgb": pixels, "alpha": np.dstack([pixels, gray]), "deep": gray.astype(np.uint16) * 16}
        pages = [Image.fromarray(page) for page in volume]
        first = pages.pop(0) if path.stem == "pages" else Image.fromarray(arrays[path.stem])
        first.save(path, **({"save_all": True, "append_images": pages} if path.stem == "pages" else {}))
    elif path.suffix in (".mha", ".nrrd"):
        color = path.suffix == ".mha"  # mostly gray, as screens are; else its channels may be frames
        screen = np.where(np.arange(40)[:, None, None] < 10, pixels, gray[..., None])
        itk.imwrite(itk.image_from_array(screen if color else volume, is_vector=color), str(path))
    else:
        kind = path.name.split(".")[0]
        values = volume.T  # (x, y, z)
        if kind == "still":
            values = values[..., 0]
        elif kind == "deep_volume":
            values = values.astype(np.int16) * 16
        elif kind == "cine":
            values = values[:, :, None]
        elif kind == "two":
            values = values[:, :, None, None, :2]  # the fifth axis holds channels
        nib.save(nib.Nifti1Image(values, np.diag([0.3, 0.4, 1.0, 1.0])), path)
    return path


@pytest.mark.parametrize("bundle", BUNDLES[1:])
def test_all_bundles_read_files_alike(repository, bundle):
    one, other = config(repository, BUNDLES[0]), config(repository, bundle)
    steps = [
        [
            step
            for step in entry["preprocessing"]["transforms"]
            if not step["_target_"].endswith(("Resized", "Promptsd"))
        ]
        for entry in (one, other)
    ]
    for step in steps[0] + steps[1]:  # the segmentation reads all frames of a cine on demand
        if step.get("spatial_dims") == "$3 if @cine else @plan['spatial_dims']":
            step["spatial_dims"] = "$@plan['spatial_dims']"
        # an option of the segmentation, which measures
        if step.get("reader") == "$monai_usfm.data.UltrasoundReader(region=@region)":
            step["reader"] = "$monai_usfm.data.UltrasoundReader"
    assert steps[0] == steps[1]


@pytest.mark.parametrize(
    ("kind", "spatial_dims"), [*((kind, 2) for kind in FIGURES + VOLUMES), *((kind, 3) for kind in VOLUMES)]
)
def test_inference_sees_the_pixels_that_training_sees(repository, tmp_path, kind, spatial_dims):
    path = write(tmp_path / kind)
    wanted = LoadUltrasound(spatial_dims)(path).as_tensor()
    assert wanted.std() > 0.05
    assert torch.equal(reading(repository, "segmentation", spatial_dims)(path), wanted)


def test_a_file_of_two_channels_is_refused_by_name(repository, tmp_path):
    path = write(tmp_path / "two.nii.gz")
    with pytest.raises(UnreadableImageError, match=r"two\.nii\.gz: has 2 channels; expected 1 \(gray\), 3 \(RGB\)"):
        reading(repository, "segmentation", 2)(path)


def test_a_still_for_a_network_of_volumes_is_refused_by_name(repository, tmp_path):
    path = write(tmp_path / "deep.png")
    with pytest.raises(ValueError, match=r"deep\.png: a still image, but spatial_dims=3 needs a volume"):
        reading(repository, "segmentation", 3)(path)


@pytest.mark.parametrize(("bundle", "count"), [("segmentation", 2), ("enhancement", 1)])
def test_inference_that_is_broken_off_leaves_no_half_image(repository, tmp_path, monkeypatch, bundle, count):
    parser = ConfigParser(config(repository, bundle))
    parser["output_dir"], parser["bundle_root"] = str(tmp_path), str(tmp_path)
    if count > 1:
        parser["uncertainty"] = True
    savers = [t for t in parser.get_parsed_content("postprocessing").transforms if isinstance(t, SaveImaged)]
    assert len(savers) == count
    result = MetaTensor(torch.ones(1, 6, 8), meta={"filename_or_obj": "a.png"})

    def half(pixels, name, *arguments, **settings) -> None:
        Path(name).write_bytes(b"half")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", half)
        for saver in savers:
            with pytest.raises(KeyboardInterrupt):
                saver({"pred": result, "uncertainty": result})
    assert not list(tmp_path.iterdir())
    for saver in savers:
        saver({"pred": result, "uncertainty": result})
    assert len(list(tmp_path.iterdir())) == count


@pytest.mark.parametrize("bundle", ["segmentation", "classification", "enhancement"])
@pytest.mark.parametrize("text, frozen", [("false", False), ("true", True)])
def test_a_switch_may_be_written_as_on_any_command_line(repository, tmp_path, bundle, text, frozen):
    parser = ConfigParser(train_config(repository, bundle))
    parser["freeze_encoder"] = text  # Python's names alone come as booleans from the command line
    parser["output_dir"] = str(tmp_path)
    parser.get_parsed_content("initialize")
    encoder = parser.get_parsed_content("network_def").encoder
    assert any(weight.requires_grad for weight in encoder.parameters()) is not frozen


def train_config(repository: Path, bundle: str, *overlays: str) -> dict:
    folder = repository / "bundles" / f"usfm_{bundle}" / "configs"
    return ConfigParser.load_config_files([folder / f"{name}.json" for name in ("train", *overlays)])


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_switch_is_read_as_one(repository, bundle):
    """``--resume False`` comes as text from some command lines, and text is true."""
    for config in (train_config(repository, bundle, "evaluate"), config_of_inference(repository, bundle)):
        switches = {key for key, value in config.items() if isinstance(value, bool)}
        for value in _texts(config):
            bare = re.sub(r"flag\(@\w+\)", "", value)
            assert not any(re.search(rf"@{switch}\b", bare) for switch in switches), value


def config_of_inference(repository: Path, bundle: str) -> dict:
    return config(repository, bundle)


def _texts(config):
    """All text in a configuration."""
    if isinstance(config, dict | list):
        for value in config.values() if isinstance(config, dict) else config:
            yield from _texts(value)
    elif isinstance(config, str):
        yield config


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_option_is_described_where_it_stands_and_every_description_is_of_an_option(repository, bundle):
    internal = {"plan", "volume", "images_per_step", "stored_size", "synthetic", "splits", "steps_per_epoch", "record"}
    internal |= {
        "band_stop",
        "epochs",
        "paired",
        "keys",
        "items",
        "file_type",
        "data_root_dir",
        "card",
        "intensity_augmentation",
    }
    for config in (train_config(repository, bundle, "evaluate"), config_of_inference(repository, bundle)):
        described = config["_options_"]
        assert all(text.endswith(".") and len(text.split()) < 25 for text in described.values())
        plain = {
            name
            for name, value in config.items()
            if not isinstance(value, dict) and not name.startswith("_") and name not in READ_BY_CLIENTS | internal
        }
        parts = {name for name in plain if isinstance(config[name], list | str) and "@" in str(config[name])}
        assert plain - parts <= set(described) <= set(config)


def overlays(repository: Path, bundle: str) -> tuple[str, ...]:
    """Those of the training; multi_gpu_train is there for MONAI Label, which trains segmentations."""
    return ("evaluate", "demo", *(("multi_gpu_train",) if bundle == "segmentation" else ()))


@pytest.mark.parametrize("bundle", BUNDLES)
def test_overlays_combine_in_any_order(repository, bundle):
    orders = [
        train_config(repository, bundle, *order) for order in itertools.permutations(overlays(repository, bundle))
    ]
    assert all({**order, "_desc_": ""} == {**orders[0], "_desc_": ""} for order in orders)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_configs_are_short_and_have_no_names_that_nothing_reads(repository, bundle):
    folder = repository / "bundles" / f"usfm_{bundle}" / "configs"
    assert len((folder / "train.json").read_text().splitlines()) <= 250
    for names in ((), ("demo",), ("evaluate",), overlays(repository, bundle)):
        check_names(train_config(repository, bundle, *names))
    check_names(config_of_inference(repository, bundle))


@pytest.mark.parametrize("bundle", BUNDLES)
@pytest.mark.parametrize(
    ("name", "right"),
    [
        ("max_epoch", "max_epochs"),
        ("lr", "learning_rate"),
        ("data_dir", "dataset_dir"),
        ("train#trainer#max_epoch", "train#trainer#max_epochs"),
        ("train#dataloader#batchsize", "train#dataloader#batch_size"),
    ],
)
def test_a_misspelt_option_stops_with_the_right_name(repository, bundle, name, right):
    parser = ConfigParser(train_config(repository, bundle))
    parser[name] = 3
    with pytest.raises(ValueError, match=f"There is no option --{name}. Did you mean --{right}"):
        check_names(parser.config)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_weights_that_were_named_but_are_not_there_stop_inference(repository, tmp_path, bundle, caplog):
    parser = ConfigParser(
        ConfigParser.load_config_file(repository / "bundles" / f"usfm_{bundle}" / "configs" / "inference.json")
    )
    parser["bundle_root"] = str(tmp_path)
    parser.get_parsed_content("network_def")  # monai.bundle.load does this away from the folder of the bundle
    assert f"no weights at {tmp_path}/models/model.pt" in caplog.text
    parser["checkpoint"] = str(tmp_path / "mistyped.pt")
    parser.parse(reset=True)
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("network_def")
    assert isinstance(root_cause(error.value), FileNotFoundError) and "mistyped.pt" in describe(error.value)


def test_segmentation_and_classification_vary_images_alike(repository):
    configs = [train_config(repository, name) for name in ("segmentation", "classification")]
    assert configs[0]["intensity_augmentation"] == configs[1]["intensity_augmentation"]
    drawn = [vars(ConfigParser(config).get_parsed_content("augmentation")) for config in configs]
    assert {**drawn[0], "label_key": ""} == {**drawn[1], "label_key": ""}


@pytest.mark.parametrize("key", ["patient", "patient_id"])
@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_patient_in_two_splits_stops_every_bundle(repository, tmp_path, bundle, key):
    lists = {
        split: [{"image": f"{split}.png", "label": f"{split}_mask.png", "class": 0, key: patient}]
        for split, patient in (("training", "one"), ("validation", "two"), ("test", "one"))
    }
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    file = repository / "bundles" / f"usfm_{bundle}" / "configs" / "train.json"
    parser = ConfigParser(ConfigParser.load_config_file(file))
    parser["dataset_dir"] = str(tmp_path)
    with pytest.raises(RuntimeError) as error:  # MONAI names the line of the config, the cause what is wrong
        parser.get_parsed_content("items" if bundle == "enhancement" else "splits")
        parser.get_parsed_content("train#dataset")
    assert isinstance(root_cause(error.value), ValueError)
    assert "patient one (training, test)" in describe(error.value)


@pytest.mark.parametrize("bundle", BUNDLES)
def test_metadata_fits_the_schema_and_the_changelog(repository, tmp_path, bundle):
    meta = repository / "bundles" / f"usfm_{bundle}" / "configs" / "metadata.json"
    content = json.loads(meta.read_text())
    assert content["version"] == next(iter(content["changelog"]))  # newest first
    assert version_leq(content["required_packages_version"]["monai_usfm"], monai_usfm.__version__)
    schema = repository.parent / "shared" / "monai_schema" / "meta_schema_20240725.json"
    if not schema.is_file():
        pytest.skip("no copy of the schema beside the checkout")
    assert content["schema"].endswith(schema.name)
    shutil.copy(schema, tmp_path / "schema.json")
    verify_metadata(meta_file=str(meta), filepath=str(tmp_path / "schema.json"))


@pytest.mark.parametrize("bundle", BUNDLES)
def test_network_has_the_inputs_and_outputs_of_the_metadata(copy_bundle, bundle):
    configs = copy_bundle(f"usfm_{bundle}") / "configs"
    meta, config = str(configs / "metadata.json"), str(configs / "inference.json")
    verify_net_in_out("network_def", meta_file=meta, config_file=config, device="cpu")


WEIGHTS = sorted((Path(__file__).parent.parent / "bundles").glob("usfm_*/models/*.pt"))


@pytest.mark.parametrize("file", WEIGHTS, ids=lambda file: f"{file.parent.parent.name}-{file.stem}")
def test_shipped_weights_are_small_and_fill_the_network_of_inference(file):
    assert file.stat().st_size <= 25e6
    state = torch.load(file, weights_only=True)
    assert all(v.dtype == torch.float16 for v in state.values() if v.is_floating_point())
    parser = ConfigParser(ConfigParser.load_config_file(file.parent.parent / "configs" / "inference.json"))
    parser["checkpoint"] = str(file)
    net, size = parser.get_parsed_content("network_def"), parser.get_parsed_content("plan")["spatial_size"]
    with torch.no_grad():
        output = net(torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(output).all() and output.std() > 0
    assert read_card(file)["network"]["spatial_size"] == size


@pytest.mark.parametrize("file", WEIGHTS, ids=lambda file: f"{file.parent.parent.name}-{file.stem}")
def test_every_bundle_trains_what_its_weights_are(file):
    parser = ConfigParser(ConfigParser.load_config_file(file.parent.parent / "configs" / "train.json"))
    if file.stem == "model":  # the default of training and the shipped weights agree, but for the size of the images
        assert (
            parser.get_parsed_content("plan").items()
            >= {k: v for k, v in read_card(file)["network"].items() if k in ("network_size", "patch_size")}.items()
        )
    parser["pretrained"] = str(file)
    parser.parse(reset=True)
    assert parser.get_parsed_content("plan")["spatial_dims"] == read_card(file)["network"]["spatial_dims"]


class Planted:
    """Unpickling it makes a folder, as a file from a stranger may do worse."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self):
        return (Path.mkdir, (self.path,))


@pytest.mark.parametrize("bundle", BUNDLES)
def test_no_weight_file_runs_what_it_carries(repository, tmp_path, bundle):
    torch.save({"state_dict": Planted(tmp_path / "ran")}, tmp_path / "stranger.pt")
    for config, name in (
        (config_of_inference(repository, bundle), "checkpoint"),
        (train_config(repository, bundle), "pretrained"),
    ):
        parser = ConfigParser({**config, name: str(tmp_path / "stranger.pt")})
        with pytest.raises(RuntimeError) as error:
            parser.get_parsed_content("network_def")
        assert "stranger.pt" in describe(error.value)
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("bundle", BUNDLES)
def test_mlflow_of_monai_finds_the_loss_of_a_step(repository, tmp_path, bundle):
    """``--tracking mlflow`` reads the trainer's output so; without the list it got a tuple and stopped."""
    handlers = train_config(repository, bundle)["train"]["handlers"]
    assert handlers[0]["_target_"] == "monai_usfm.bundle.TrainingSteps"
    engine = Engine(lambda *_: {"loss": torch.tensor(0.5)})
    network = torch.nn.Linear(1, 1)
    optimizer = torch.optim.SGD(network.parameters(), lr=1.0)
    loader = torch.utils.data.DataLoader([{"image": 0}])
    TrainingSteps(loader, 0, warmup_cosine(optimizer, 4, 2), network, 1.0).handlers[0].attach(engine)
    engine.add_event_handler(Events.ITERATION_COMPLETED, _as_list)
    engine.run([0])
    assert float(from_engine(["loss"], first=True)(engine.state.output)) == 0.5


def test_all_shipped_weights_together_are_small():
    assert WEIGHTS and sum(file.stat().st_size for file in WEIGHTS) <= 100e6
