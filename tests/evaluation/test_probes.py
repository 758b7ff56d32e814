# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Probes against scikit-learn, plain loops and features whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
import torch.nn.functional as F

from monai_usfm.evaluation import (
    attentive_probe,
    dense_linear_probe,
    grouped_folds,
    knn_probe,
    linear_probe,
)


def blobs(num_classes: int = 3, count: int = 90, width: int = 6, spread: float = 1.0, seed: int = 0):
    """Gaussian blobs: train and test features and labels."""
    generator = torch.Generator().manual_seed(seed)
    centers = 2 * torch.randn(num_classes, width, generator=generator)
    labels = torch.arange(2 * count) % num_classes
    x = centers[labels] + spread * torch.randn(2 * count, width, generator=generator)
    return x[:count], labels[:count], x[count:], labels[count:]


def test_knn_equals_a_loop_over_neighbors():
    train_x, train_y, test_x, test_y = blobs(spread=3.0)
    result = knn_probe(train_x, train_y, test_x, test_y, k=7, temperature=0.1)
    for query, votes in zip(test_x, result.output, strict=True):
        cosines = [float(query @ x / (query.norm() * x.norm())) for x in train_x]
        expected = [0.0] * 3
        for i in sorted(range(len(cosines)), key=lambda i: -cosines[i])[:7]:
            expected[int(train_y[i])] += math.exp(cosines[i] / 0.1)
        expected = [e / sum(expected) for e in expected]
        assert votes.tolist() == pytest.approx(expected, abs=1e-5)


def test_knn_ignores_the_length_of_features_and_few_training_images():
    train_x, train_y, test_x, test_y = blobs(spread=3.0, count=12)
    plain = knn_probe(train_x, train_y, test_x, test_y)
    scaled = knn_probe(train_x * torch.arange(1, 13)[:, None], train_y, 9 * test_x, test_y)
    torch.testing.assert_close(plain.output, scaled.output)
    assert plain.settings["k"] == 12


@pytest.mark.parametrize(("num_classes", "l2"), [(2, 1e-1), (3, 1e-3)])
def test_linear_probe_has_the_penalty_it_documents(num_classes, l2):
    train_x, train_y, test_x, test_y = blobs(num_classes, spread=3.0)
    train_x, test_x = train_x * 50 + 7, test_x * 50 + 7
    result = linear_probe(train_x, train_y, test_x, test_y, l2=[l2])
    # the stated objective, minimized by another method
    z = ((train_x - train_x.mean(0)) / train_x.std(0, correction=0)).double()
    weight, bias = (
        torch.zeros(n, requires_grad=True, dtype=torch.double) for n in ((z.shape[1], num_classes), num_classes)
    )
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=500, tolerance_grad=1e-10, line_search_fn="strong_wolfe")

    def closure():
        optimizer.zero_grad()
        # for two classes scikit-learn penalizes the one vector w; here it is w / 2 and -w / 2, of half its square
        share = 1.0 if num_classes > 2 else 2.0
        loss = F.cross_entropy(z @ weight + bias, train_y) + share * l2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)
    scaled = ((test_x - train_x.mean(0)) / train_x.std(0, correction=0)).double()
    torch.testing.assert_close(result.output, (scaled @ weight + bias).softmax(1).detach(), atol=1e-4, rtol=1e-3)


def test_linear_probe_chooses_a_strong_penalty_on_noise_and_a_weak_one_on_a_clean_answer():
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(120, 40, generator=generator, dtype=torch.float64), torch.arange(120) % 2
    noise = linear_probe(x, y, x, y)
    clean = linear_probe(x + 8 * F.one_hot(y, 40), y, x + 8 * F.one_hot(y, 40), y)
    assert noise.settings["l2"] == 1.0
    assert clean.settings["l2"] <= 1e-3
    assert clean.metrics["macro_f1"] == 1.0


def test_the_penalty_is_judged_on_patients_that_the_fit_has_not_seen():
    # images of a patient are near-copies and classes are random: only by recognizing patients can a fit succeed
    generator = torch.Generator().manual_seed(0)
    patients = torch.arange(160) // 4
    x = torch.randn(40, 60, generator=generator)[patients] + 0.01 * torch.randn(160, 60, generator=generator)
    y = torch.randint(2, (40,), generator=generator)[patients]
    together = linear_probe(x, y, x, y, train_groups=patients.tolist())
    apart = linear_probe(x, y, x, y)
    assert together.settings["l2"] > apart.settings["l2"]
    assert together.settings["cross_validation_loss"][1e-3] > 1.0 > apart.settings["cross_validation_loss"][1e-3]


@pytest.mark.parametrize(
    ("labels", "patients"),
    [
        ([1, 1, 0, 1, 1, 1, 1, 0, 0, 1, 0, 1, 2, 2], [0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 2, 1, 0]),
        ([1, 1, 1, 0, 0, 0], [0, 0, 1, 1, 1, 2]),
    ],
)
def test_a_fold_whose_training_part_lacks_a_class_is_left_out(labels: list[int], patients: list[int]) -> None:
    x, y = torch.randn(len(labels), 4, generator=torch.Generator().manual_seed(0)), torch.tensor(labels)
    losses = linear_probe(x, y, x, y, patients).settings["cross_validation_loss"]
    assert all(0 < loss < math.inf for loss in losses.values())


def test_the_choice_does_not_depend_on_the_test_data():
    train_x, train_y, test_x, test_y = blobs(spread=3.0)
    one = linear_probe(train_x, train_y, test_x, test_y)
    other = linear_probe(train_x, train_y, torch.cat([test_x[:1], 1e4 * test_x[1:]]), test_y)
    assert one.settings == other.settings
    torch.testing.assert_close(one.output[0], other.output[0])


def test_folds_keep_patients_together_and_classes_in_proportion():
    groups = [i // 3 for i in range(150)]  # 50 patients, 15 of class 1
    strata = [int(g % 10 < 3) for g in groups]
    folds = grouped_folds(strata, groups, 5, seed=3)
    assert sorted(i for _, fold in folds for i in fold) == list(range(150))
    for rest, fold in folds:
        assert not {groups[i] for i in fold} & {groups[i] for i in rest}
        assert len({groups[i] for i in fold}) == len(fold) / 3 == 10
        assert sum(strata[i] for i in fold) == 9


def test_a_class_with_one_patient_is_named():
    with pytest.raises(ValueError, match="class 1 has 1 patient"):
        grouped_folds([0, 0, 0, 1, 1], [0, 1, 2, 3, 3], 5)


def test_the_dense_probe_reads_a_map_that_is_in_the_tokens():
    generator = torch.Generator().manual_seed(0)
    labels = F.interpolate((torch.rand(24, 1, 4, 6, generator=generator) > 0.6).float(), scale_factor=8)[:, 0].long()
    truth = F.max_pool2d(labels[:, None].float(), 8)
    maps = torch.randn(24, 5, 4, 6, generator=generator) + torch.cat([4 * truth, torch.zeros(24, 4, 4, 6)], 1)
    result = dense_linear_probe(maps[:16], labels[:16], maps[16:], labels[16:])
    swapped = dense_linear_probe(maps[:16], labels[:16], maps[16:].flip(2), labels[16:])
    assert result.output.shape == labels[16:].shape
    assert result.metrics["dice"] > 0.8 > 0.65 > swapped.metrics["dice"]
    assert result.metrics["dice"] == pytest.approx(result.cases["dice"].mean().item())


def test_the_dense_probe_fits_shares_of_classes_as_scikit_learn_fits_weighted_copies():
    linear = pytest.importorskip("sklearn.linear_model")
    generator = torch.Generator().manual_seed(1)
    labels = torch.randint(3, (6, 8, 8, 8), generator=generator)
    maps = torch.randn(6, 4, 2, 2, 2, generator=generator)
    shares = torch.stack([F.avg_pool3d((labels == c).float()[:, None], 4)[:, 0] for c in range(3)], 1)
    x = maps.movedim(1, -1).reshape(-1, 4)
    z = ((x - x.mean(0)) / x.std(0, correction=0)).numpy()
    judge = linear.LogisticRegression(C=1 / (0.01 * len(x)), tol=1e-8, max_iter=5000)
    weights = shares.movedim(1, -1).reshape(-1, 3)
    judge.fit(z.repeat(3, axis=0), list(range(3)) * len(x), sample_weight=weights.flatten().numpy())
    logits = torch.from_numpy(judge.decision_function(z)).float().reshape(6, 2, 2, 2, 3).movedim(-1, 1)
    result = dense_linear_probe(maps, labels, maps, labels, num_classes=3, l2=[0.01])
    prior = shares.mean((0, 2, 3, 4)).log()[None, :, None, None, None]
    logits = logits - result.settings["prior_correction"] * prior
    expected = F.interpolate(logits, size=(8, 8, 8), mode="trilinear").argmax(1)
    assert (result.output.long() == expected).float().mean() > 0.995


def test_the_dense_probe_finds_a_structure_too_small_to_win_by_probability():
    # the feature is 1 higher inside, among noise of deviation 1: at 2 % of the area, background stays likelier
    generator = torch.Generator().manual_seed(0)
    labels = torch.zeros(60, 56, 56, dtype=torch.long)
    labels[:, 24:32, 24:32] = 1
    maps = torch.randn(60, 1, 7, 7, generator=generator) + F.max_pool2d(labels[:, None].float(), 8)
    result = dense_linear_probe(maps[:40], labels[:40], maps[40:], labels[40:])
    assert result.settings["prior_correction"] > 0
    assert result.metrics["dice"] > 0.05


def test_masks_of_255_are_refused_with_the_remedy():
    maps, masks = torch.rand(4, 3, 2, 2), torch.full((4, 8, 8), 255)
    with pytest.raises(ValueError, match="map the values to class indices"):
        dense_linear_probe(maps, masks, maps, masks)


def test_the_attentive_probe_finds_one_telling_token_among_many():
    # the mean over tokens hides the class: token noise is large, and one token of 25, marked by a key, carries it
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(2, (400,), generator=generator)
    maps = torch.randn(400, 8, 25, generator=generator)
    place = torch.randint(25, (400,), generator=generator)
    maps[torch.arange(400), 0, place] = 8.0
    maps[torch.arange(400), 1, place] = 6.0 * labels - 3.0
    maps = maps.reshape(400, 8, 5, 5)
    arguments = maps[:300], labels[:300], maps[300:], labels[300:]
    attentive = attentive_probe(*arguments, steps=200, learning_rate=5e-3)
    pooled = [x.mean((2, 3)) if x.ndim == 4 else x for x in arguments]
    assert attentive.metrics["accuracy"] > 0.95
    assert linear_probe(*pooled).metrics["accuracy"] < 0.85


def test_the_attentive_probe_repeats_with_its_seed_and_leaves_the_global_state():
    train_x, train_y, test_x, test_y = blobs(count=40)
    arguments = train_x[..., None, None], train_y, test_x[..., None, None], test_y
    state = torch.random.get_rng_state()
    first, second, other = (attentive_probe(*arguments, steps=20, seed=s).output for s in (0, 0, 1))
    assert torch.equal(state, torch.random.get_rng_state())
    assert torch.equal(first, second) and not torch.allclose(first, other)


def test_features_that_are_not_finite_are_refused():
    train_x, train_y, test_x, test_y = blobs(count=30)
    train_x[3, 2] = float("nan")
    with pytest.raises(ValueError, match="train features hold NaN"):
        knn_probe(train_x, train_y, test_x, test_y)
