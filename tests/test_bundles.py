# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""What the four bundles have in common: how inference reads a file, which lists they refuse, their metadata."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import itk
import nibabel as nib
import numpy as np
import pytest
import torch
from monai.bundle import ConfigParser, verify_metadata, verify_net_in_out
from monai.data import MetaTensor
from monai.transforms import SaveImaged
from monai.utils import version_leq
from PIL import Image

import monai_usfm
from monai_usfm.data import LoadUltrasound, UnreadableImageError
from monai_usfm.networks import encoder_arguments, load_pretrained

BUNDLES = ("pretraining", "segmentation", "classification", "enhancement")
PICTURES = ("rgb.png", "alpha.png", "palette.png", "deep.png", "pages.tif", "still.nii.gz", "colour.mha")
VOLUMES = ("volume.nii.gz", "deep_volume.nii.gz", "cine.nii.gz", "volume.nrrd")


def config(repository: Path, bundle: str) -> dict:
    return json.loads((repository / "bundles" / f"usfm_{bundle}" / "configs" / "inference.json").read_text())


def reading(repository: Path, bundle: str, spatial_dims: int):
    """The transforms that read a file, without those that fit it to the network."""
    parser = ConfigParser(config(repository, bundle))
    parser["spatial_dims"] = spatial_dims
    steps = parser.get_parsed_content("preprocessing").transforms

    def read(path: Path) -> torch.Tensor:
        data = {"image": str(path)}
        for step in steps:
            if type(step).__name__ not in ("Resized", "RepeatChanneld"):
                data = step(data)
        return torch.as_tensor(data["image"]).as_subclass(torch.Tensor)

    return read


def write(path: Path) -> Path:
    """An image without any symmetry: noise, red above, blue on the right, wider than high; volumes are three of it."""
    rng = np.random.default_rng(1)
    picture = rng.integers(0, 120, (40, 60, 3), dtype=np.uint8)
    picture[:10, :, 0] += 100
    picture[:, 40:, 2] += 130
    grey = picture[..., 0]
    volume = np.stack([grey, picture[..., 2], grey // 2])  # (z, rows, columns)
    if path.name == "palette.png":
        Image.fromarray(picture).convert("P", palette=Image.Palette.ADAPTIVE).save(path)
    elif path.suffix in (".png", ".tif"):
        pictures = {"rgb": picture, "alpha": np.dstack([picture, grey]), "deep": grey.astype(np.uint16) * 16}
        pages = [Image.fromarray(page) for page in volume]
        first = pages.pop(0) if path.stem == "pages" else Image.fromarray(pictures[path.stem])
        first.save(path, **({"save_all": True, "append_images": pages} if path.stem == "pages" else {}))
    elif path.suffix in (".mha", ".nrrd"):
        colour = path.suffix == ".mha"
        itk.imwrite(itk.image_from_array(picture if colour else volume, is_vector=colour), str(path))
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
        [step for step in entry["preprocessing"]["transforms"] if step["_target_"] != "Resized"]
        for entry in (one, other)
    ]
    assert steps[0] == steps[1]


@pytest.mark.parametrize(
    ("kind", "spatial_dims"), [*((kind, 2) for kind in PICTURES + VOLUMES), *((kind, 3) for kind in VOLUMES)]
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
    with pytest.raises(RuntimeError, match=r"deep\.png: a still image, but spatial_dims=3 needs a volume"):
        reading(repository, "segmentation", 3)(path)


@pytest.mark.parametrize(
    ("bundle", "files"), [("segmentation", ["inference", "uncertainty"]), ("enhancement", ["inference"])]
)
def test_inference_that_is_broken_off_leaves_no_half_picture(repository, tmp_path, monkeypatch, bundle, files):
    folder = repository / "bundles" / f"usfm_{bundle}" / "configs"
    parser = ConfigParser(ConfigParser.load_config_files([folder / f"{name}.json" for name in files]))
    parser["output_dir"] = str(tmp_path)
    savers = [t for t in parser.get_parsed_content("postprocessing").transforms if isinstance(t, SaveImaged)]
    assert len(savers) == len(files)
    result = MetaTensor(torch.ones(1, 6, 8), meta={"filename_or_obj": "a.png"})

    def half(picture, name, *arguments, **settings) -> None:
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
    assert len(list(tmp_path.iterdir())) == len(files)


@pytest.mark.parametrize("bundle", ["segmentation", "classification", "enhancement"])
@pytest.mark.parametrize("text, frozen", [("false", False), ("true", True), ("False", False), (1, True)])
def test_a_switch_may_be_written_as_on_any_command_line(repository, bundle, text, frozen):
    parser = ConfigParser(
        ConfigParser.load_config_file(repository / "bundles" / f"usfm_{bundle}" / "configs" / "train.json")
    )
    parser["freeze_encoder"] = text  # Python's names alone come as booleans from the command line
    parser.get_parsed_content("initialize")
    encoder = parser.get_parsed_content("network_def").encoder
    assert any(weight.requires_grad for weight in encoder.parameters()) is not frozen


@pytest.mark.parametrize("bundle", BUNDLES)
def test_every_switch_is_read_as_one(repository, bundle):
    folder = repository / "bundles" / f"usfm_{bundle}" / "configs"
    known = [json.loads((folder / name).read_text()) for name in ("train.json", "evaluate.json")]
    switches = {key for config in known for key, value in config.items() if isinstance(value, bool)}
    assert "resume" in switches
    for file in folder.glob("*.json"):
        config = ConfigParser.load_config_file(file)
        for name, value in _leaves(config):
            for switch in switches if isinstance(value, str) else ():
                bare = value.replace(f"monai.utils.str2bool(str(@{switch}))", "")
                assert f"@{switch}" not in bare or name.startswith("settings"), f"{file.name}: {value}"


def _leaves(config, name=""):
    """Names and values of a configuration."""
    if isinstance(config, dict):
        for key, value in config.items():
            yield from _leaves(value, "settings" if key == "settings" else f"{name if name == 'settings' else key}")
    elif isinstance(config, list):
        for value in config:
            yield from _leaves(value, name)
    else:
        yield name, config


@pytest.mark.parametrize("bundle", BUNDLES)
def test_weights_that_were_named_but_are_not_there_stop_inference(repository, tmp_path, bundle, capsys):
    parser = ConfigParser(
        ConfigParser.load_config_file(repository / "bundles" / f"usfm_{bundle}" / "configs" / "inference.json")
    )
    parser["bundle_root"] = str(tmp_path)
    parser.get_parsed_content("initialize")  # monai.bundle.load does this away from the folder of the bundle
    assert f"no weights at {tmp_path}/models/model.pt" in capsys.readouterr().out
    parser["pretrained" if bundle == "pretraining" else "checkpoint"] = str(tmp_path / "mistyped.pt")
    parser.parse(reset=True)
    with pytest.raises(RuntimeError) as error:
        parser.get_parsed_content("initialize")
    assert isinstance(error.value.__cause__, FileNotFoundError) and "mistyped.pt" in str(error.value.__cause__)


def test_segmentation_and_classification_vary_images_alike(repository):
    configs = [
        json.loads((repository / "bundles" / name / "configs" / "train.json").read_text())
        for name in ("usfm_segmentation", "usfm_classification")
    ]
    assert configs[0]["appearance"] == configs[1]["appearance"]
    layouts = [{k: v for k, v in config["augmentation"].items() if k != "label_key"} for config in configs]
    assert layouts[0] == layouts[1]


@pytest.mark.parametrize("key", ["patient", "patient_id"])
@pytest.mark.parametrize("bundle", BUNDLES)
def test_a_patient_in_two_splits_stops_every_bundle(repository, tmp_path, bundle, key):
    lists = {
        section: [{"image": f"{section}.png", "label": f"{section}_mask.png", "class": 0, key: patient}]
        for section, patient in (("training", "one"), ("validation", "two"), ("test", "one"))
    }
    (tmp_path / "dataset.json").write_text(json.dumps(lists))
    file = repository / "bundles" / f"usfm_{bundle}" / "configs" / "train.json"
    parser = ConfigParser(ConfigParser.load_config_file(file))
    parser["dataset_dir"] = str(tmp_path)
    with pytest.raises(RuntimeError) as error:  # MONAI names the line of the config, the cause what is wrong
        parser.get_parsed_content("sections")
    assert isinstance(error.value.__cause__, ValueError)
    assert "patient one (training, test)" in str(error.value.__cause__)


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


@pytest.mark.parametrize("bundle", BUNDLES)
def test_weights_of_masked_autoencoding_fit_training_and_inference(repository, bundle):
    configs = repository / "bundles" / f"usfm_{bundle}" / "configs"
    pretraining = repository / "bundles" / "usfm_pretraining" / "configs"
    inference = ("inference.json", "inference_mae.json" if bundle == "pretraining" else "mae.json")

    def network(folder: Path, *files: str) -> torch.nn.Module:
        parser = ConfigParser(ConfigParser.load_config_files([folder / file for file in files]))
        parser["network_size"], parser["spatial_size"] = "tiny", [64, 64]
        return parser.get_parsed_content("network_def")

    trained = network(pretraining, "train.json", "mae.json")
    for files in (("train.json", "mae.json"), inference):
        net = network(configs, *files)
        load_pretrained(net, trained.state_dict())
        found, wanted = net.encoder.state_dict(), trained.encoder.state_dict()
        assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)


WEIGHTS = sorted((Path(__file__).parent.parent / "bundles").glob("usfm_*/models/*.pt"))


@pytest.mark.parametrize("file", WEIGHTS, ids=lambda file: f"{file.parent.parent.name}-{file.stem}")
def test_shipped_weights_are_small_and_fill_the_network_of_inference(file):
    assert file.stat().st_size <= 25e6
    state = torch.load(file, weights_only=True)
    assert all(v.dtype == torch.float16 for v in state.values() if v.is_floating_point())
    configs = file.parent.parent / "configs"
    kind = {"relative": "inference", "sincos": "inference_mae"}[encoder_arguments(file)["pos_embed"]]
    kind = "inference_volume" if state["encoder.patch_embed.proj.weight"].dim() == 5 else kind
    overlay = [configs / f"{kind}.json"] * (kind != "inference")
    parser = ConfigParser(ConfigParser.load_config_files([configs / "inference.json", *overlay]))
    parser["spatial_size"] = list(encoder_arguments(file)["img_size"])  # the start for other organs has one of its own
    net = parser.get_parsed_content("network_def")
    if file.parent.parent.name == "usfm_pretraining":  # inference embeds with the encoder of what was pretrained
        assert all(f"encoder.{name}" in state for name in net.encoder.state_dict())
        state = {name: value for name, value in state.items() if name in net.state_dict()}
    net.load_state_dict(state)
    size = parser.get_parsed_content("spatial_size")
    with torch.no_grad():
        output = net.eval()(torch.rand(1, 1, *size, generator=torch.Generator().manual_seed(0)))
    assert torch.isfinite(output).all() and output.std() > 0


def test_all_shipped_weights_together_are_small():
    assert WEIGHTS and sum(file.stat().st_size for file in WEIGHTS) <= 100e6
