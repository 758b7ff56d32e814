# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""The verb that fits trained weights to the images of another scanner, without labels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from cyclopts import Parameter

from monai_usfm.cards import load_network, save_network
from monai_usfm.data import list_images
from monai_usfm.evaluation.images import load_images
from monai_usfm.files import write_text_atomically
from monai_usfm.settings import parse_options
from monai_usfm.workflow import run_bundle

__all__ = ["adapt", "minimize_entropy"]

OUTDATED = ("temperature", "calibration", "presence_threshold", "scores")  # of a card, once the weights are others


def adapt(
    folder: str,
    *options: Annotated[str, Parameter(show=False, allow_leading_hyphen=True)],
    checkpoint: str,
    method: Literal["pretrain", "entropy"] = "pretrain",
    share: float = 0.5,
    output_dir: str = "output/adapted",
) -> Path:
    """Fit trained weights to the images of your scanner, without labels.

    ``pretrain`` continues the self-supervision of the encoder on your images (the pretraining bundle, whose options are
    taken too) and moves the head over. The encoder becomes a weighted mean of its weights before and after, since a
    head that has not seen the new features reads them badly (Wortsman et al. 2022, https://arxiv.org/abs/2109.01903).
    ``entropy`` leaves all weights but the scales and shifts of the norms, and moves these towards surer predictions
    (Wang et al. 2021, https://arxiv.org/abs/2006.10726). Measure the result on labels of your own before you use it::

        monai-usfm adapt IMAGES --checkpoint runs/breast/model.pt --output_dir runs/adapted --max_epochs 20

    Args:
        folder: your images.
        checkpoint: a trained segmentation or classification network.
        method: see above.
        share: with ``pretrain``, weight of the new encoder, in (0, 1].
        output_dir: folder of the results; the weights are its ``model.pt``.

    Returns:
        The weight file.

    Raises:
        ValueError: for a network of another task, or a share out of its range.
    """
    network: Any = load_network(checkpoint)
    card, items = network.card, list_images(folder)
    if card["task"] not in ("segmentation", "classification"):
        raise ValueError(f"{checkpoint} is for {card['task']}; adapt takes a segmentation or classification network.")
    if not 0 < share <= 1:
        raise ValueError(f"--share must be in (0, 1]; got {share}.")
    given, size, target = parse_options(options), card["network"]["spatial_size"], Path(output_dir)
    if method == "entropy":
        if given:
            raise ValueError(
                f"method entropy takes no options of the pretraining bundle: leave out {', '.join(given)}."
            )
        minimize_entropy(network, [str(item["image"]) for item in items])
    else:
        listed = target / "pretraining" / "images.json"
        write_text_atomically(
            listed, json.dumps({"training": [{"image": str(Path(i["image"]).resolve())} for i in items]})
        )
        defaults = {"max_epochs": 20, "batch_size": 16, "learning_rate": 1e-4, "warmup_epochs": 1, "num_workers": 0}
        defaults |= {"spatial_size": size, "spatial_dims": len(size)}
        folders = {"output_dir": str(listed.parent), "datalist": str(listed), "export_path": str(target / "encoder.pt")}
        run_bundle("pretraining", pretrained=checkpoint, **{**defaults, **given}, **folders)
        after = load_network(target / "encoder.pt", "encoder").state_dict()
        before = network.encoder.state_dict()
        mixed = {k: torch.lerp(v, after[k], share) if v.is_floating_point() else v for k, v in before.items()}
        network.encoder.load_state_dict(mixed)
    note = {"method": method, "images": len(items), **({"share": share} if method == "pretrain" else {})}
    outdated: dict[str, Any] = dict.fromkeys(OUTDATED)
    saved = save_network(target / "model.pt", network, adapted=note, **outdated)
    print(f"{saved}: adapted to {len(items)} images without labels ({method}).")
    return saved


def minimize_entropy(
    network: Any, files: list[str], learning_rate: float = 1e-3, batch_size: int = 8, epochs: int = 1
) -> None:
    """Move the scales and shifts of the norms towards a lower entropy of the classes, in place.

    Args:
        network: with a card.
        files: images.
        learning_rate: of Adam.
        batch_size: images in a step.
        epochs: passes over the images.
    """
    options = network.card["network"]
    norms = [m for m in network.modules() if "Norm" in type(m).__name__ and getattr(m, "weight", None) is not None]
    parameters = [p for norm in norms for p in norm.parameters(recurse=False)]
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    for parameter in parameters:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(parameters, lr=learning_rate)
    order = torch.Generator().manual_seed(0)
    network.eval()  # dropout would add to the entropy
    for _ in range(epochs):
        for chosen in torch.randperm(len(files), generator=order).split(batch_size):
            items = [{"image": files[i], "patient": None} for i in chosen]
            batch = load_images(items, options["spatial_size"]).images
            output = network(batch.repeat_interleave(options["in_channels"], 1))
            loss = torch.special.entr(output.softmax(1)).sum(1).mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
