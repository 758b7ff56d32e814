# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
import torch

from monai_usfm.losses import ATMLoss


def naive_loss(outputs, target, ignore=255):
    """One stage, image, class and pixel at a time."""
    total = 0.0
    batch, count = outputs[2].shape[:2]
    for classes, masks in zip(outputs[1::2], outputs[2::2], strict=True):
        entropy = weights = focal = dice = 0.0
        number = 0
        for b in range(batch):
            pixels = [(p, int(t)) for p, t in enumerate(target[b].flatten().tolist()) if t != ignore]
            for c in range(count):
                present = any(t == c for _, t in pixels)
                wanted, weight = (c, 1.0) if present else (count, 0.1)
                row = classes[b, c].double().tolist()
                entropy += weight * (math.log(sum(math.exp(v) for v in row)) - row[wanted])
                weights += weight
                if not present:
                    continue
                number += 1
                m = masks[b, c].flatten().double().tolist()
                overlap = size = pixel_loss = 0.0
                for p, t in pixels:
                    s = 1 / (1 + math.exp(-m[p]))
                    if t == c:
                        pixel_loss += -0.25 * (1 - s) ** 2 * math.log(s)
                        overlap += s
                        size += 1
                    else:
                        pixel_loss += -0.75 * s**2 * math.log(1 - s)
                    size += s
                focal += pixel_loss / len(pixels)
                dice += 1 - (2 * overlap + 1) / (size + 1)
        total += entropy / weights + (20 * focal + dice) / max(number, 1)
    return total


def random_case(size, classes=3, batch=2):
    torch.manual_seed(0)
    outputs = [torch.zeros(batch, classes, *size)]
    for _ in range(3):
        outputs += [torch.randn(batch, classes, classes + 1), 2 * torch.randn(batch, classes, *size)]
    target = torch.randint(0, classes, (batch, 1, *size))
    target[0][target[0] == 1] = 0  # a class that is absent from one image
    return outputs, target


@pytest.mark.parametrize("size", [(5, 4), (2, 3, 4)])
@pytest.mark.parametrize("ignored", [False, True])
def test_loss_equals_the_naive_loop(size, ignored):
    outputs, target = random_case(size)
    if ignored:
        target[:, :, 0] = 255
    assert ATMLoss()(outputs, target.float()).item() == pytest.approx(naive_loss(outputs, target), rel=1e-5)


def test_images_without_any_label_train_the_classes_alone():
    outputs, target = random_case((4, 4))
    outputs = [o.requires_grad_() for o in outputs]
    loss = ATMLoss()(outputs, torch.full_like(target, 255))
    loss.backward()
    assert loss.item() == pytest.approx(
        naive_loss([o.detach() for o in outputs], torch.full_like(target, 255)), rel=1e-5
    )
    assert all(o.grad is None or not o.grad.any() for o in outputs[2::2])


def test_loss_vanishes_for_perfect_outputs():
    _, target = random_case((4, 4))
    truth = target == torch.arange(3).reshape(1, 3, 1, 1)
    wanted = torch.where(truth.flatten(2).any(2), torch.arange(3), 3)
    outputs = [target.float()]
    for _ in range(3):
        outputs += [50.0 * torch.nn.functional.one_hot(wanted, 4), 100.0 * truth.float() - 50.0]
    assert ATMLoss()(outputs, target).item() == pytest.approx(0, abs=1e-5)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda outputs, target: (outputs[0], target), "training mode"),
        (lambda outputs, target: (outputs[:1], target), "training mode"),
        (lambda outputs, target: (outputs, target[..., 1:]), "shape"),
        (lambda outputs, target: (outputs, target + 1), r"labels \[3\]"),
    ],
)
def test_bad_input_gives_one_clear_error(change, message):
    with pytest.raises(ValueError, match=message):
        ATMLoss()(*change(*random_case((4, 4))))
