# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Inference under automatic mixed precision on any device, as a mean over dropout masks or views; calibrated."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from itertools import chain, combinations
from typing import Any

import torch
import torch.nn.functional as F
from monai.inferers import Inferer, SimpleInferer, SlidingWindowInferer
from monai.transforms import Activationsd, Compose, GaussianSmoothd, Invertd, Lambdad
from monai.utils import ensure_tuple_rep
from torch.nn.modules.dropout import _DropoutNd
from torch.overrides import TorchFunctionMode

from monai_usfm.cards import require_classes
from monai_usfm.losses import ValueLoss
from monai_usfm.networks import TemperatureScaling
from monai_usfm.networks.uncertainty import predictive_entropy, to_logits, to_probabilities
from monai_usfm.transforms import PresenceThresholdd, resize_linear, spatial_softmax
from monai_usfm.transforms.effect import check_image

__all__ = [
    "AutocastInferer",
    "DropoutInferer",
    "FlipInferer",
    "ImagePredictor",
    "PromptedSlices",
    "ScaleInferer",
    "WindowInferer",
    "autocast",
    "autocast_dtype",
    "mean_entropy",
    "probabilities",
]

PRECISIONS = {"fp32": None, "bf16": torch.bfloat16, "fp16": torch.float16}


def autocast_dtype(amp: str, device: torch.device | str) -> torch.dtype | None:
    """Autocast type of a precision name on a device; None computes in float32.

    ``"auto"`` is bf16 where the device computes in it natively, else float32.

    Raises:
        ValueError: for an unknown name, or fp16 on a CPU, which has no loss scaling and no gain there.
    """
    device = torch.device(device)
    if amp == "auto":
        if device.type == "cuda":
            native = torch.cuda.is_bf16_supported(including_emulation=False)
        else:
            # Without these instructions bf16 is emulated, several times slower than float32.
            native = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        return torch.bfloat16 if native else None
    if amp not in PRECISIONS:
        raise ValueError(f"amp must be one of auto, {', '.join(PRECISIONS)}, got {amp!r}.")
    if amp == "fp16" and device.type != "cuda":
        raise ValueError('amp "fp16" needs a GPU; use "bf16" or "fp32" on this device.')
    return PRECISIONS[amp]


class _ThinVolumesInFloat32(TorchFunctionMode):
    """3D convolutions with more kernel than volume along the first axis leave autocast.

    oneDNN's bf16 gradient of such weights (seen in PyTorch 2.13 with a depth of 2 and a kernel of 3) reads memory that
    nobody has written: it is NaN now and then. Maps so thin are small, so float32 costs nothing.
    """

    def __torch_function__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.conv3d:
            image, weight = (args[i] if len(args) > i else kwargs[name] for i, name in enumerate(("input", "weight")))
            if image.shape[-3] < weight.shape[-3]:
                args = [x.float() if isinstance(x, torch.Tensor) else x for x in args]
                kwargs = {name: x.float() if isinstance(x, torch.Tensor) else x for name, x in kwargs.items()}
                with torch.autocast("cpu", enabled=False):
                    return func(*args, **kwargs)
        return func(*args, **kwargs)


@contextmanager
def autocast(device: torch.device | str, dtype: torch.dtype | None, spatial_dims: int = 2) -> Iterator[None]:
    """:func:`torch.autocast` to ``dtype`` (None: none), but for what a CPU computes wrongly in it in volumes."""
    device = torch.device(device)
    affected = device.type == "cpu" and dtype is not None and spatial_dims == 3 and torch.is_grad_enabled()
    thin = _ThinVolumesInFloat32() if affected else nullcontext()
    with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None), thin:
        yield


class AutocastInferer(Inferer):
    """Runs another inferer under autocast, on CPU or GPU.

    MONAI's engines know autocast on CUDA only. Used as the inferer of a trainer or evaluator this gives bf16
    everywhere; for fp16 training the trainer's own ``amp`` with its gradient scaler is needed on top.

    Args:
        amp: ``"auto"``, ``"fp32"``, ``"bf16"`` or ``"fp16"``, see :func:`autocast_dtype`.
        device: where the network runs.
        inferer: what is run; default :class:`monai.inferers.SimpleInferer`.
    """

    def __init__(self, amp: str, device: torch.device | str, inferer: Inferer | None = None) -> None:
        super().__init__()
        self.device = torch.device(device)
        self.dtype = autocast_dtype(amp, self.device)
        self.inferer = SimpleInferer() if inferer is None else inferer

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        """Output of the inner inferer; floating tensors come back in float32, so that losses and metrics are exact."""
        inputs = inputs.as_subclass(torch.Tensor)  # MONAI's metadata has no meaning within a network, and costs time
        with autocast(self.device, self.dtype, inputs.dim() - 2):
            output = self.inferer(inputs, network, *args, **kwargs)
        return _to_float32(output)


class DropoutInferer(Inferer):
    """Mean of the class probabilities over random dropout masks.

    Only dropout layers are random; all else is in evaluation mode. The modes of the layers and the global random state
    are as before afterwards. Gal and Ghahramani 2016, https://arxiv.org/abs/1506.02142.

    Args:
        samples: passes through the network, at least 2.
        seed: fixes the dropout masks.
        inferer: runs the network on one batch; default :class:`monai.inferers.SimpleInferer`.

    Raises:
        ValueError: for fewer than two samples; on calling, for a network without dropout of a positive rate.
    """

    def __init__(self, samples: int = 16, seed: int = 0, inferer: Inferer | None = None) -> None:
        super().__init__()
        if samples < 2:
            raise ValueError(f"samples must be at least 2, got {samples}.")
        self.samples = samples
        self.seed = seed
        self.inferer = SimpleInferer() if inferer is None else inferer

    @torch.no_grad()
    def __call__(  # type: ignore[override]  # it needs the module to find the dropout in
        self, inputs: torch.Tensor, network: torch.nn.Module, *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """``(B, C, *S)`` -> logits of the mean probabilities, in the shape that the network returns."""
        dropouts = [layer for layer in network.modules() if isinstance(layer, _DropoutNd) and layer.p > 0]
        if not dropouts:
            raise ValueError(
                f"{type(network).__name__} has no dropout with a positive rate: set `dropout` when building it."
            )
        modes = {layer: layer.training for layer in network.modules()}
        total = torch.zeros((), device=inputs.device)
        try:
            network.eval()
            for layer in dropouts:
                layer.training = True
            with torch.random.fork_rng(devices=range(torch.cuda.device_count())):  # manual_seed seeds every device
                torch.manual_seed(self.seed)
                for _ in range(self.samples):
                    total = total + to_probabilities(self.inferer(inputs, network, *args, **kwargs).float())
        finally:
            for part, mode in modes.items():
                part.training = mode
        return to_logits(total / self.samples)


class FlipInferer(Inferer):
    """Mean over all combinations of flips of the image, each prediction flipped back.

    For random transforms, other than these few fixed ones, MONAI has ``TestTimeAugmentation``.

    Args:
        spatial_axes: axes that may be flipped, counted without batch and channel; ``k`` axes make ``2 ** k`` passes.
            Leave out what has a meaning, such as the depth axis of most ultrasound.
        inferer: runs the network on one batch; None is one call.
        classes: outputs are logits: probabilities are averaged and turned into logits again. False averages as it is.
        spatial: outputs have the spatial axes of the input. False for logits of a classifier, which are not flipped.

    Raises:
        ValueError: for no axis, a negative one or one named twice.
    """

    def __init__(
        self,
        spatial_axes: Sequence[int] = (1,),
        inferer: Inferer | None = None,
        classes: bool = True,
        spatial: bool = True,
    ) -> None:
        super().__init__()
        self.spatial_axes = [int(axis) for axis in spatial_axes]
        if not self.spatial_axes or min(self.spatial_axes) < 0 or len(set(self.spatial_axes)) < len(self.spatial_axes):
            raise ValueError(f"spatial_axes must be different numbers from 0 on, got {tuple(spatial_axes)}.")
        self.inferer = SimpleInferer() if inferer is None else inferer
        self.classes = classes
        self.spatial = spatial

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """``(B, C, *S)`` -> what the network returns, averaged."""
        if max(self.spatial_axes) > inputs.dim() - 3:
            raise ValueError(
                f"spatial axes {self.spatial_axes} are not all in an image of shape {tuple(inputs.shape)}."
            )
        flips = list(chain.from_iterable(combinations(self.spatial_axes, n) for n in range(len(self.spatial_axes) + 1)))
        total = torch.zeros((), device=inputs.device)
        for flip in flips:
            axes = [axis + 2 for axis in flip]
            output = self.inferer(torch.flip(inputs, axes) if axes else inputs, network, *args, **kwargs).float()
            if self.classes:
                output = to_probabilities(output)
            if axes and self.spatial:
                output = torch.flip(output, axes)
            total = total + output
        mean = total / len(flips)
        return to_logits(mean) if self.classes else mean


class ScaleInferer(Inferer):
    """Mean of the logits of a 2D image at several sizes, each brought back to the size of the image.

    Logits, not probabilities: their mean keeps the scale on which a presence threshold was fitted.

    Args:
        scales: sizes relative to the image, such as ``(1.0, 7 / 6, 5 / 6)``.
        multiple: of what the sizes are multiples, such as the patch size; one number for all axes, or one for each.
        inferer: runs the network on one batch; default :class:`monai.inferers.SimpleInferer`.

    Raises:
        ValueError: for no scale, or one that is not positive; on calling for volumes and cines.
    """

    def __init__(
        self, scales: Sequence[float], multiple: int | Sequence[int] = 1, inferer: Inferer | None = None
    ) -> None:
        super().__init__()
        self.scales = [float(scale) for scale in scales]
        if not self.scales or min(self.scales) <= 0:
            raise ValueError(f"scales must be one positive number or more (--views), got {list(scales)}.")
        self.multiple = multiple
        self.inferer = SimpleInferer() if inferer is None else inferer

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """``(B, C, H, W)`` -> mean logits ``(B, K, H, W)``."""
        if inputs.dim() != 4:
            raise ValueError("views are for images; volumes and cines are segmented at one size: leave views out.")
        image, size = inputs.as_subclass(torch.Tensor), list(inputs.shape[2:])
        multiple = ensure_tuple_rep(self.multiple, len(size))
        views = []
        for scale in self.scales:
            shape = [max(m, round(scale * n / m) * m) for n, m in zip(size, multiple, strict=True)]
            view = F.interpolate(image, shape, mode="bilinear", antialias=True) if shape != size else image
            logits: Any = self.inferer(view, network, *args, **kwargs)
            views.append(F.interpolate(logits, size, mode="bilinear") if shape != size else logits)
        return torch.stack(views).mean(0)


class WindowInferer(SlidingWindowInferer):
    """MONAI's sliding windows, of which those that are 0 all over go through the network once.

    Outside the field of view an image is black, and a network gives the same to every black window. The result is that
    of MONAI's inferer, also there.
    """

    def __call__(self, inputs: torch.Tensor, network: Any, *args: Any, **kwargs: Any) -> Any:
        black: list[torch.Tensor] = []

        def predict(windows: torch.Tensor, *more: Any, **options: Any) -> Any:
            shown = windows.flatten(1).any(1)
            if more or options or bool(shown.all()):
                return network(windows, *more, **options)
            if not black:
                black.append(network(torch.zeros_like(windows[:1])))
            if not isinstance(black[0], torch.Tensor):
                return network(windows)
            out = black[0].expand(len(windows), *black[0].shape[1:]).clone()
            if shown.any():
                out[shown] = network(windows[shown])
            return out

        return super().__call__(inputs, predict, *args, **kwargs)


class PromptedSlices(Inferer):
    """A 2D network on the slices of a volume or frames of a cine that have a prompt; the others are background.

    Prompts are the channels behind the first, see :class:`~monai_usfm.transforms.Promptsd`.
    """

    def __call__(  # type: ignore[override]
        self, inputs: torch.Tensor, network: Callable[..., torch.Tensor], *args: Any, **kwargs: Any
    ) -> torch.Tensor:
        """``(B, 4, D, H, W)`` -> logits ``(B, K, D, H, W)``."""
        batch, slices = inputs[:, 1:].abs().amax((1, 3, 4)).nonzero(as_tuple=True)
        found = network(inputs[batch, :, slices], *args, **kwargs)
        out = found.new_zeros(len(inputs), inputs.shape[2], *found.shape[1:])
        out[:, :, 0] = 20.0  # surely background
        out[batch, slices] = found
        return out.movedim(1, 2)


def probabilities(
    card: Mapping[str, Any],
    preprocessing: Compose | None = None,
    temperature: float | None = None,
    presence_threshold: float | None = None,
    frames: bool = False,
    temporal_sigma: float = 0.0,
) -> Compose:
    """Logits under ``pred`` become calibrated probabilities; inference and evaluation state it by this one name.

    By the card, those of landmarks become a distribution over the pixels, and numbers are put into their units.

    Args:
        card: of the network, with its ``temperature`` and ``presence_threshold``.
        preprocessing: of the images, which is inverted: back to the grid and axes of the file; None for classes.
        temperature: divides the logits; None as on the card, else 1.
        presence_threshold: see :class:`~monai_usfm.transforms.PresenceThresholdd`; None as on the card.
        frames: the first axis is that of the frames of a cine.
        temporal_sigma: frames over which their probabilities are smoothed; 0 for none.

    Raises:
        ValueError: for a network of classes with one output.
    """
    if not card.get("landmarks") and card.get("network", {}).get("num_classes") == 1:  # its softmax is always 1
        raise ValueError(
            "the network has one output; here each class needs its own, the background too: num_classes=2."
        )
    threshold = card.get("presence_threshold") if presence_threshold is None else presence_threshold
    scale = TemperatureScaling(float(card.get("temperature", 1.0) if temperature is None else temperature))
    if card.get("values"):
        return Compose([Lambdad("pred", ValueLoss(**card["value_scale"]).estimate)])
    points = bool(card.get("landmarks"))
    steps: list[Callable] = [
        PresenceThresholdd("pred", None if points else threshold, frames=frames),
        Lambdad("pred", scale),
        Activationsd("pred", softmax=not points, other=spatial_softmax if points else None),
    ]
    if frames and temporal_sigma > 0:
        steps.append(GaussianSmoothd("pred", sigma=[float(temporal_sigma), 0.0, 0.0]))
        if not points:
            steps.append(Lambdad("pred", _shares))  # the filter takes zeros for frames beyond both ends
    if preprocessing is not None:
        steps.append(Invertd("pred", preprocessing, orig_keys="image", nearest_interp=False, to_tensor=True))
    return Compose(steps)


def _shares(scores: torch.Tensor) -> torch.Tensor:
    """Scores of the classes ``(K, *S)`` as shares of their sum."""
    return scores / scores.sum(0, keepdim=True)


def each_calibrated(calibrated: Compose, logits: torch.Tensor) -> torch.Tensor:
    """A batch of logits through the transforms of :func:`probabilities`, which are those of one image."""
    found = torch.stack([torch.as_tensor(calibrated({"pred": one})["pred"]) for one in logits])
    return found.as_subclass(torch.Tensor)


def mean_entropy(card: Mapping[str, Any], logits: torch.Tensor) -> torch.Tensor:
    """How unsure a network is of each image of a batch: ``(B, K, ...) -> (B,)``, a share of the maximum.

    The mean entropy of its calibrated classes, without the presence threshold of its card: below that every pixel is
    background beyond doubt, also of an image that just missed it.
    """
    calibrated = each_calibrated(probabilities({**card, "presence_threshold": None}), logits)
    return predictive_entropy(calibrated).flatten(1).mean(1)


class ImagePredictor:
    """Class probabilities of images of any size by a 2D network, as ``inference.json`` has them.

    Resized, and calibrated by temperature and presence threshold of the card.

    Args:
        network: see :func:`monai_usfm.load_network`; or its TorchScript form.
        device: where it runs.
        card: of the network; None for the one that it carries.

    Raises:
        ValueError: see :func:`~monai_usfm.cards.require_classes`.
    """

    def __init__(self, network: Any, device: torch.device | str = "cpu", card: Mapping[str, Any] | None = None) -> None:
        card = network.card if card is None else card
        require_classes(card, "the network", spatial_dims=2)
        self.network, self.device, self.card = network.to(device).eval(), device, card
        self.calibrated = probabilities(card)

    @torch.inference_mode()
    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """``(N, 1, H, W)`` in [0, 1] -> ``(N, K, H, W)`` of a segmentation, ``(N, K)`` of classes, on the CPU.

        Raises:
            ValueError: for images of another shape, not in [0, 1], or not finite.
        """
        if images.ndim != 4 or images.shape[1] != 1 or images.numel() == 0:
            raise ValueError(f"the images must be (N, 1, H, W), none empty, got shape {tuple(images.shape)}.")
        plain = check_image(images[:, 0])[:, None]  # 8-bit frames would be taken for white ones
        options = self.card["network"]
        seen = resize_linear(plain.to(self.device), options["spatial_size"])
        logits = self.network(seen.expand(-1, options.get("in_channels", 1), -1, -1).contiguous()).float()
        scores = each_calibrated(self.calibrated, logits)
        return (F.interpolate(scores, images.shape[2:], mode="bilinear") if scores.dim() > 2 else scores).cpu()


def _to_float32(output: Any) -> Any:
    if isinstance(output, torch.Tensor):
        return output.float() if output.is_floating_point() else output
    if isinstance(output, dict):
        return {key: _to_float32(value) for key, value in output.items()}
    if isinstance(output, list | tuple):
        values = [_to_float32(value) for value in output]
        return type(output)(*values) if hasattr(output, "_fields") else type(output)(values)
    return output
