# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Drawn images as more training data: ``python benchmarks/synthesis.py LABELED SIMULATED OUTPUT``.

MONAI's ``DiffusionModelUNet`` learns ``image given mask`` from the few labeled images of a task and from simulated
ones, half of a batch each; where an image comes from is part of the condition. Then it draws images of the real kind
for masks of the simulated set. ``OUTPUT`` gets three datalists with the same validation and test: ``labeled.json``,
``drawn.json`` with the drawn images besides, ``simulated.json`` with the simulated images of the same masks besides.
A ``monai-usfm transfer-board`` whose tasks they are tells them apart.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import torch
import torch.nn.functional as F
from monai.inferers import DiffusionInferer
from monai.networks.nets import DiffusionModelUNet
from monai.networks.schedulers import DDIMScheduler, DDPMScheduler
from PIL import Image

from monai_usfm.bundle import warmup_cosine
from monai_usfm.data import load_datalist
from monai_usfm.evaluation.images import ImageSet, load_images, read_items
from monai_usfm.transforms import BatchAugmentation

NOISE = {"num_train_timesteps": 1000, "schedule": "cosine", "prediction_type": "v_prediction"}


def condition(mask: torch.Tensor, real: bool) -> torch.Tensor:
    """Masks ``(B, 1, H, W)`` to ``(B, 5, H / 2, W / 2)``: the mask, two pixels by two a channel, and whether real."""
    folded = F.pixel_unshuffle(mask.float(), 2)
    return torch.cat([folded, torch.full_like(folded[:, :1], float(real))], dim=1)


def build() -> DiffusionModelUNet:
    return DiffusionModelUNet(
        spatial_dims=2,
        in_channels=4 + 5,
        out_channels=4,
        num_res_blocks=1,
        channels=(48, 96, 128),
        attention_levels=(False, False, True),
        norm_num_groups=16,
        num_head_channels=32,
    ).to(memory_format=torch.channels_last)


def train(real: ImageSet, simulated: ImageSet, options: argparse.Namespace) -> torch.nn.Module:
    """The model, trained to predict the velocity (Salimans and Ho 2022, https://arxiv.org/abs/2202.00512), or kept."""
    model, inferer = build(), DiffusionInferer(DDPMScheduler(**NOISE))
    kept = options.output / "diffusion.pt"
    if kept.is_file():
        model.load_state_dict(torch.load(kept, weights_only=True))
        return model.eval()
    optimizer = torch.optim.AdamW(model.parameters(), options.learning_rate)
    schedule = warmup_cosine(optimizer, options.steps, options.steps // 20)
    augment = BatchAugmentation([options.size] * 2, scale=(0.6, 1.0), rotate=5.0, gamma=1.2)
    begin, half = time.process_time(), options.batch_size // 2
    for step in range(options.steps):
        images, conditions = [], []
        for source in (simulated, real):
            rows = torch.randint(len(source.images), (half,))
            image, mask = augment.augment(source.images[rows], source.labels[rows][:, None])  # type: ignore[index]
            images.append(2 * image - 1)
            conditions.append(condition(mask, source is real))
        clean = F.pixel_unshuffle(torch.cat(images), 2)  # at half the size a step takes a quarter of the time
        noise, moment = torch.randn_like(clean), torch.randint(1000, (len(clean),))
        with torch.autocast("cpu", torch.bfloat16):
            found = inferer(clean, model, noise, moment, torch.cat(conditions), "concat")
        loss = F.mse_loss(found.float(), inferer.scheduler.get_velocity(clean, noise, moment))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0 or step == options.steps - 1:
            print(f"step {step}: loss {loss:.3f}, {time.process_time() - begin:.0f} s", flush=True)
    torch.save(model.state_dict(), kept)
    return model.eval()


@torch.no_grad()
def draw(model: torch.nn.Module, masks: torch.Tensor, steps: int) -> torch.Tensor:
    """Images ``(M, 1, H, W)`` in [0, 1] of the real kind for masks of that shape."""
    scheduler = DDIMScheduler(**NOISE)
    scheduler.set_timesteps(steps)
    # Those of MONAI 1.6 are farther apart than its step goes, which leaves noise behind.
    scheduler.timesteps = torch.arange(steps - 1, -1, -1) * (1000 // steps)
    inferer, drawn = DiffusionInferer(scheduler), []
    for part in masks.split(16):
        known = condition(part, True)
        noise = torch.randn_like(known[:, :4])
        with torch.autocast("cpu", torch.bfloat16):
            image = inferer.sample(noise, model, scheduler, conditioning=known, mode="concat", verbose=False)
        drawn.append(F.pixel_shuffle(image.float(), 2))
    return (torch.cat(drawn) / 2 + 0.5).clamp(0, 1)


def save(path: Path, image: torch.Tensor) -> None:
    """An image ``(1, H, W)`` in [0, 1]."""
    Image.fromarray((255 * image[0]).round().byte().numpy()).save(path)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("labeled", help="datalist whose training list is all that may be learned from")
    parser.add_argument("simulated", help="datalist of simulated images with masks")
    parser.add_argument("output", type=Path)
    parser.add_argument("--organ", default="breast", help="of the simulated images")
    parser.add_argument("--images", type=int, default=1000, help="simulated ones at most")
    parser.add_argument("--number", type=int, default=114, help="images to draw")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=900)
    parser.add_argument("--batch_size", type=int, default=16)
    parser.add_argument("--learning_rate", type=float, default=1e-3)
    parser.add_argument("--sampling_steps", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    items = [i for i in read_items(options.simulated, "training") if i.get("organ") == options.organ][: options.images]
    stored = [round(1.1 * options.size)] * 2
    real = load_images(read_items(options.labeled, "training"), stored, 2)
    simulated = load_images(items, stored, 2)
    options.output.mkdir(parents=True, exist_ok=True)
    print(f"{len(real.images)} labeled and {len(simulated.images)} simulated images", flush=True)
    model = train(real, simulated, options)
    masks = F.interpolate(simulated.labels[: options.number, None].float(), [options.size] * 2)  # type: ignore[index]
    drawn = draw(model, masks, options.sampling_steps)
    lists: dict[str, list[dict[str, str]]] = {"labeled": [], "drawn": [], "simulated": []}
    folders = {name: options.output / name for name in ("drawn", "simulated", "masks")}
    for folder in folders.values():
        folder.mkdir(parents=True, exist_ok=True)
    plain = F.interpolate(simulated.images[: len(masks)], [options.size] * 2, mode="bilinear", antialias=True)
    for number, (mask, *pair) in enumerate(zip(masks, drawn, plain, strict=True)):
        name = f"{number:04d}.png"
        save(folders["masks"] / name, mask)
        for kind, image in zip(("drawn", "simulated"), pair, strict=True):
            save(folders[kind] / name, image)
            entry = {"image": f"{kind}/{name}", "label": f"masks/{name}", "patient": f"{kind}-{number}"}
            lists[kind].append(entry)
    splits = {s: load_datalist(options.labeled, None, s) for s in ("training", "validation", "test")}
    for name, more in lists.items():
        text = json.dumps({**splits, "training": [*splits["training"], *more]}, indent=1)
        (options.output / f"{name}.json").write_text(text)
    known = F.interpolate(real.images, [options.size] * 2, mode="bilinear", antialias=True)
    rows = [torch.cat(list(images[:12]), dim=2) for images in (masks, drawn, plain, known)]
    width = min(row.shape[2] for row in rows)
    save(options.output / "examples.png", torch.cat([row[:, :, :width] for row in rows], dim=1))


if __name__ == "__main__":
    main()
