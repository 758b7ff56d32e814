#!/usr/bin/env python
# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Weights for the classification bundle without training: a linear layer on the features of a frozen encoder.

    python scripts/fit_classifier.py --datalist data/busbra/dataset.json --patient_table data/busbra/labels.csv \\
        --pretrained encoder.pt --output bundles/usfm_classification/models/model.pt

The layer is the regularised logistic regression of the linear probe; its penalty is chosen on training folds that keep
patients together. Prints the scores on the other splits. The file is written whole or not at all.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from monai.data import DataLoader, Dataset
from monai.transforms import Compose, Resized

from monai_usfm.data import LoadUltrasoundd, load_datalist
from monai_usfm.evaluation import add_patients, classification_scores, linear_head
from monai_usfm.handlers import save_atomically
from monai_usfm.networks import UltrasoundClassifier, load_pretrained, usfm_vit


@torch.no_grad()
def embed(net: UltrasoundClassifier, items: list[dict], size: list[int], mirrored: bool) -> torch.Tensor:
    """Pooled features ``(M, E)``, or ``(2 M, E)`` with those of the mirrored images behind."""
    transform = Compose([LoadUltrasoundd("image"), Resized("image", size, mode="bilinear", anti_aliasing=True)])
    loader = DataLoader(Dataset([{"image": item["image"]} for item in items], transform), batch_size=32)
    images = torch.cat([batch["image"].as_tensor() for batch in loader])
    if mirrored:
        images = torch.cat([images, images.flip(-1)])
    return torch.cat([net.forward_features(part) for part in images.split(32)])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--datalist", type=Path, required=True, help="JSON with training, validation and test")
    parser.add_argument("--dataset_dir", type=Path, default=None, help="folder its paths start from")
    parser.add_argument("--patient_table", type=Path, default=None, help="CSV with image and patient_id")
    parser.add_argument("--pretrained", type=Path, required=True, help="weights of the encoder")
    parser.add_argument("--network_size", default="tiny")
    parser.add_argument("--spatial_size", type=int, nargs="+", default=[192, 192])
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    sections = {
        name: load_datalist(args.datalist, args.dataset_dir, name, required=("image", "class"))
        for name in ("training", "validation", "test")
    }
    folder = args.dataset_dir or args.datalist.parent
    if args.patient_table is not None:
        sections = {name: add_patients(items, folder, table=args.patient_table) for name, items in sections.items()}
    labels = {name: torch.tensor([int(item["class"]) for item in items]) for name, items in sections.items()}
    encoder = usfm_vit(args.network_size, img_size=args.spatial_size)
    net = UltrasoundClassifier(encoder, int(labels["training"].max()) + 1).eval()
    print(load_pretrained(net, args.pretrained))

    features = embed(net, sections["training"], args.spatial_size, mirrored=True)
    patients = [str(item.get("patient", index)) for index, item in enumerate(sections["training"])]
    weight, bias, penalty = linear_head(features, labels["training"].repeat(2), patients * 2)
    with torch.no_grad():
        net.head.weight.copy_(weight)
        net.head.bias.copy_(bias)
    print(f"l2 penalty {penalty:g}")
    for name in ("validation", "test"):
        logits = net.head(embed(net, sections[name], args.spatial_size, mirrored=False))
        scores = classification_scores(logits.detach().softmax(1), labels[name])
        print(f"{name}: " + ", ".join(f"{key} {value:.3f}" for key, value in scores.items()))
    save_atomically(net.state_dict(), args.output)


if __name__ == "__main__":
    main()
