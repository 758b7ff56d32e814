# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""How fast a pretraining step is next to what one would use instead: ``python benchmarks/pretraining.py``.

A step is forward, backward and a fused AdamW update of one batch of 224 x 224 gray images. Candidates of a group have
the same sizes (patch 16; 12 blocks; MAE: decoder of 8 blocks of width 512, 75 % hidden) and the same optimizer. They
take turns in one process on one thread, timed by CPU time (on a GPU: wall time between synchronisations). A ratio is
taken within each round, and the tables show the median over the rounds with its quartiles, so that a change of the
machine's speed between rounds cancels. Above 1 is faster than the first row. Peers that are not installed are skipped
by name; peers that raise are reported as failing.

With ``--data FOLDER`` it also compares the whole loop (memory-mapped 8-bit cache of the folder's images, collation,
augmentation, step) with the step alone; ``--resident`` keeps the images in the memory of the device instead. With
``--joint`` it times what ``scripts/train_foundation.py`` repeats, augmentation included: joint pretraining of the tiny
network from two teachers, and of ``small``. With ``--compile`` all candidates are compiled.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import platform
import tempfile
import time
from collections.abc import Callable, Iterator

import torch
import torch.nn as nn
from monai.data import DataLoader
from monai.networks.nets import MaskedAutoEncoderViT
from monai.transforms import Compose, SelectItemsd, ToTensord
from spread import spread

from monai_usfm import build_network
from monai_usfm.bundle import training_loader, training_sampler
from monai_usfm.data import JointBatch, LoadUltrasoundd, UltrasoundDataset, list_images
from monai_usfm.networks import FoundationModel, MaskedAutoencoder, MaskedImageModel, usfm_vit
from monai_usfm.networks.blocks.patch_embed import patchify
from monai_usfm.transforms import BatchAppearance, BatchAugmentation, SeparableResized

IMAGE, PATCH, LAYERS = 224, 16, 12
DECODER = {"decoder_hidden_size": 512, "decoder_num_layers": 8, "decoder_num_heads": 16}
MASK_RATIO = 0.75
WARM_UP = 3

Loss = Callable[[torch.Tensor], torch.Tensor]
"""Batch of images -> loss of one candidate."""


class OurMAE(nn.Module):
    """The MAE objective of this package."""

    def __init__(self, size: str) -> None:
        super().__init__()
        encoder = usfm_vit(size, img_size=IMAGE, patch_size=PATCH, pos_embed="sincos", layer_scale=None)
        self.net = MaskedAutoencoder(encoder, mask_ratio=MASK_RATIO, **DECODER)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(image)["loss"]


class OurUSFM(nn.Module):
    """The USFM objective of this package: corruption, all tokens, spatial and frequency loss."""

    def __init__(self, size: str) -> None:
        super().__init__()
        self.net = MaskedImageModel(usfm_vit(size, img_size=IMAGE, patch_size=PATCH))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(image)["loss"]


class OurFullTokens(nn.Module):
    """Encoder with relative bias on all tokens, linear head, L1: what the BEiT candidate does."""

    def __init__(self, size: str) -> None:
        super().__init__()
        self.encoder = usfm_vit(size, img_size=IMAGE, patch_size=PATCH)
        self.head = nn.Linear(self.encoder.hidden_size, PATCH**2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        prediction = self.head(self.encoder(image)[:, 1:])
        return (prediction.float() - patchify(image, self.encoder.patch_size)).abs().mean()


class HuggingFaceMAE(nn.Module):
    """``ViTMAEForPreTraining`` of transformers."""

    def __init__(self, size: str, attention: str) -> None:
        from transformers import ViTMAEConfig, ViTMAEForPreTraining

        super().__init__()
        config = ViTMAEConfig(
            **_sizes(size),
            decoder_hidden_size=DECODER["decoder_hidden_size"],
            decoder_num_hidden_layers=DECODER["decoder_num_layers"],
            decoder_num_attention_heads=DECODER["decoder_num_heads"],
            decoder_intermediate_size=4 * DECODER["decoder_hidden_size"],
            mask_ratio=MASK_RATIO,
            norm_pix_loss=False,
        )
        self.net = ViTMAEForPreTraining._from_config(config, attn_implementation=attention)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.net(image).loss


class MonaiMAE(nn.Module):
    """``MaskedAutoEncoderViT`` of MONAI, with the loss it leaves to its user."""

    def __init__(self, size: str) -> None:
        super().__init__()
        sizes = _sizes(size)
        self.net = MaskedAutoEncoderViT(
            in_channels=1,
            img_size=IMAGE,
            patch_size=PATCH,
            hidden_size=sizes["hidden_size"],
            mlp_dim=sizes["intermediate_size"],
            num_layers=LAYERS,
            num_heads=sizes["num_attention_heads"],
            masking_ratio=MASK_RATIO,
            decoder_mlp_dim=4 * DECODER["decoder_hidden_size"],
            spatial_dims=2,
            qkv_bias=True,
            **DECODER,
        )

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        prediction, mask = self.net(image)
        error = (prediction.float() - patchify(image, (PATCH, PATCH))).square().mean(dim=-1)
        return (error * mask).sum() / mask.sum()


class BEiT(nn.Module):
    """``BeitModel`` of transformers on all tokens, one bias table for all blocks as in USFM; linear head, L1."""

    def __init__(self, size: str) -> None:
        from transformers import BeitConfig, BeitModel

        super().__init__()
        config = BeitConfig(**_sizes(size), use_shared_relative_position_bias=True, drop_path_rate=0.0)
        self.net = BeitModel(config, add_pooling_layer=False)
        self.head = nn.Linear(config.hidden_size, PATCH**2)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        prediction = self.head(self.net(image).last_hidden_state[:, 1:])
        return (prediction.float() - patchify(image, (PATCH, PATCH))).abs().mean()


def _sizes(size: str) -> dict[str, int]:
    """Encoder sizes under the names of transformers."""
    encoder = usfm_vit(size, num_layers=1)
    return {
        "hidden_size": encoder.hidden_size,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": encoder.num_heads,
        "intermediate_size": 4 * encoder.hidden_size,
        "image_size": IMAGE,
        "patch_size": PATCH,
        "num_channels": 1,
    }


# Group -> candidates, the one that the others are compared with first; the package that a peer needs.
GROUPS: dict[str, dict[str, tuple[Callable[[str], nn.Module], str | None]]] = {
    "MAE": {
        "Hugging Face ViTMAE, fused attention": (lambda size: HuggingFaceMAE(size, "sdpa"), "transformers"),
        "Hugging Face ViTMAE, explicit attention": (lambda size: HuggingFaceMAE(size, "eager"), "transformers"),
        "MONAI MaskedAutoEncoderViT": (MonaiMAE, None),
        "ours, MAE": (OurMAE, None),
    },
    "full tokens": {
        "Hugging Face BEiT + linear head": (BEiT, "transformers"),
        "ours, encoder + linear head": (OurFullTokens, None),
        "ours, USFM (adds corruption and frequency loss)": (OurUSFM, None),
    },
}


class Joint(nn.Module):
    """Joint pretraining of encoder and decoder as in ``scripts/train_foundation.py``, with its augmentation.

    Images and labels are random: 0.4 of them have the labels of a structure, 0.2 those of two other data sets.
    """

    def __init__(self, size: str, image_size: int, teachers: int) -> None:
        super().__init__()
        shown = {"spatial_size": [image_size] * 2, "patch_size": [PATCH] * 2}
        network = build_network("segmentation", network_size=size, num_classes=2, **shown)
        self.net = FoundationModel(
            network,
            {"target": 2, "lines": 2, "structures": 48},
            [build_network("encoder", network_size="small", **shown) for _ in range(teachers)] or None,
            distillation_weight=1.5,
            restoration_weight=0.0 if teachers else 0.1,
            texture_weight=0.5 if teachers else 0.0,
            frozen_blocks=0 if teachers else 4,
        )
        augmentation = BatchAugmentation(shown["spatial_size"], scale=(0.5, 1.0), rotate=15.0, gamma=1.5)
        self.prepare = JointBatch([augmentation], BatchAppearance())

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        place = torch.arange(len(image), device=image.device) % 10
        dataset = torch.tensor([0, 0, 0, 0, 1, 2, -1, -1, -1, -1], device=image.device)[place]
        batch = {"image": image, "label": (image > 0.9).byte(), "dataset": dataset}
        seen, _, labels, _ = self.prepare(batch, image.device)
        return self.net(seen, *labels)["loss"]


class Step:
    """Forward, backward and update of one network."""

    def __init__(self, network: nn.Module, device: torch.device, bf16: bool, compiled: bool = False) -> None:
        self.network = network.to(device).train()
        if compiled:
            self.network.compile()
        self.optimizer = torch.optim.AdamW(network.parameters(), lr=1e-4, weight_decay=0.05, fused=True)
        self.device = device
        self.bf16 = bf16

    def __call__(self, image: torch.Tensor) -> None:
        self.optimizer.zero_grad(set_to_none=True)
        with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=self.bf16):
            loss = self.network(image)
        loss.backward()
        self.optimizer.step()


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """CPU time of a call, or its wall time on a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        start = time.perf_counter()
        work()
        torch.cuda.synchronize(device)
        return time.perf_counter() - start
    start = time.process_time()
    work()
    return time.process_time() - start


def interleaved(
    candidates: dict[str, Callable[[], object]], rounds: int, device: torch.device
) -> dict[str, list[float]]:
    """Seconds of each candidate in each round; every other round goes the other way round."""
    times: dict[str, list[float]] = {name: [] for name in candidates}
    for number in range(rounds):
        names = list(candidates)
        for name in names if number % 2 == 0 else reversed(names):
            times[name].append(seconds(candidates[name], device))
    return times


def print_heading(what: str, options: argparse.Namespace, bf16: bool) -> None:
    precision = "bf16 autocast" if bf16 else "fp32"
    print(f"\n### {what}, {precision}, {options.size}, batch {options.batch}, {options.rounds} rounds\n")


def compare(group: str, options: argparse.Namespace, bf16: bool) -> None:
    """Print the table of one group at one precision."""
    batch, device = options.batch, options.device
    image = torch.rand(batch, 1, IMAGE, IMAGE, device=device)
    steps: dict[str, Callable[[], object]] = {}
    notes: dict[str, str] = {}
    for name, (build, package) in GROUPS[group].items():
        if package is not None and importlib.util.find_spec(package) is None:
            notes[name] = f"skipped: {package} is not installed"
            continue
        step = Step(build(options.size), device, bf16, options.compile)
        try:
            for _ in range(WARM_UP):
                step(image)
        except Exception as error:  # a peer's failure is a result
            notes[name] = f"fails: {type(error).__name__}: {str(error).splitlines()[0][:80]}"
            continue
        steps[name] = lambda step=step: step(image)
    times = interleaved(steps, options.rounds, device)
    base = next(iter(times))
    print_heading(group, options, bf16)
    print(f"| step | img/s | times as fast as {base} |\n| --- | --- | --- |")
    for name in GROUPS[group]:
        if name in notes:
            print(f"| {name} | {notes[name]} | |")
            continue
        ratios = [other / own for other, own in zip(times[base], times[name], strict=True)]
        print(f"| {name} | {spread([batch / t for t in times[name]])} | {spread(ratios)} |", flush=True)


def joint(options: argparse.Namespace, bf16: bool) -> None:
    """Print the rates of joint pretraining."""
    print_heading("joint pretraining", options, bf16)
    print("| step | img/s |\n| --- | --- |")
    for name, size, pixels, teachers in (
        ("tiny, 192 pixels, two teachers of the size of small", "tiny", 192, 2),
        ("small, 128 pixels, no teacher, restoration", "small", 128, 0),
    ):
        step = Step(Joint(size, pixels, teachers), options.device, bf16, options.compile)
        image = torch.rand(options.batch, 1, pixels + 32, pixels + 32, device=options.device)
        for _ in range(WARM_UP):
            step(image)
        times = interleaved({name: lambda step=step, image=image: step(image)}, options.rounds, options.device)[name]
        print(f"| {name} | {spread([options.batch / t for t in times])} |", flush=True)


def batches(loader: DataLoader) -> Iterator[dict[str, torch.Tensor]]:
    """Batches without end."""
    while True:
        yield from loader


def whole_loop(options: argparse.Namespace, bf16: bool) -> None:
    """Print what loading and augmentation cost on top of the step, for both objectives."""
    batch, device, workers = options.batch, options.device, options.workers
    stored = [round(1.15 * IMAGE)] * 2
    transform = Compose(
        [
            LoadUltrasoundd("image"),
            SeparableResized("image", stored, anti_aliasing=True, mode="bilinear"),
            ToTensord("image", track_meta=False),
            SelectItemsd("image"),
        ]
    )
    augment = BatchAugmentation([IMAGE, IMAGE])
    with tempfile.TemporaryDirectory() as cache:
        items = list_images(options.data)
        dataset = UltrasoundDataset(items, transform, skip_unreadable=True, cache_dir=cache)
        start = time.perf_counter()
        for _ in dataset:
            pass
        built = time.perf_counter() - start
        loader = training_loader(
            dataset,
            batch,
            training_sampler(dataset),
            device,
            options.resident,
            drop_last=len(items) >= batch,
            num_workers=workers,
        )
        print_heading("whole loop", options, bf16)
        where = "in the memory of the device" if options.resident else f"{workers} workers"
        print(f"{len(items)} images of {options.data}; stored in {built:.1f} s of wall time; {where}\n")
        print("| objective | step alone, img/s | whole loop, img/s | share of loading and augmentation |")
        print("| --- | --- | --- | --- |")
        for name, network in (("MAE", OurMAE(options.size)), ("USFM", OurUSFM(options.size))):
            step, source = Step(network, device, bf16, options.compile), batches(loader)
            fixed = augment(next(source), device)[0]

            def loop(step: Step = step, source: Iterator[dict[str, torch.Tensor]] = source) -> None:
                step(augment(next(source), device, non_blocking=True)[0])

            def alone(step: Step = step, fixed: torch.Tensor = fixed) -> None:
                step(fixed)

            for _ in range(WARM_UP):
                loop()
            times = interleaved({"alone": alone, "loop": loop}, options.rounds, device)
            share = [100 * (1 - a / b) for a, b in zip(times["alone"], times["loop"], strict=True)]
            rates = [spread([len(fixed) / t for t in times[key]]) for key in ("alone", "loop")]
            print(f"| {name} | {rates[0]} | {rates[1]} | {spread(share)} % |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--size", choices=("tiny", "small", "base"), default="base")
    parser.add_argument("--batch", type=int, default=8, help="images per step")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--precision", choices=("fp32", "bf16", "both"), default="both")
    parser.add_argument("--data", help="folder of images for the comparison of the whole loop")
    parser.add_argument("--workers", type=int, default=0, help="of the loader; on the CPU their time is not seen")
    parser.add_argument("--resident", action="store_true", help="images in the memory of the device")
    parser.add_argument("--joint", action="store_true", help="joint pretraining too")
    parser.add_argument("--compile", action="store_true", help="torch.compile of all candidates")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    options = parser.parse_args()
    if options.batch < 1 or options.rounds < 1:
        parser.error(f"--batch and --rounds must be at least 1, got {options.batch} and {options.rounds}.")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    packages = [p for p in ("torch", "monai", "transformers") if importlib.util.find_spec(p)]
    found = ", ".join(f"{p} {importlib.metadata.version(p)}" for p in packages)
    where = torch.cuda.get_device_name(options.device) if options.device.type == "cuda" else platform.machine()
    print(f"{found}; {where}; one thread; median (quartiles) of per-round values")
    precisions = {"fp32": [False], "bf16": [True], "both": [True, False]}[options.precision]
    for bf16 in precisions:
        for group in GROUPS:
            compare(group, options, bf16)
        if options.joint:
            joint(options, bf16)
        if options.data:
            whole_loop(options, bf16)


if __name__ == "__main__":
    main()
