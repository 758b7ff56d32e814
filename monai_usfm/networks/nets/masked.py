# Copyright (c) monai_usfm contributors
# SPDX-License-Identifier: Apache-2.0
"""Self-supervised pretraining: hide something of an image, encode the rest, reconstruct."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
import torch.nn as nn
import torch.nn.functional as F

from monai_usfm.losses.reconstruction import FocalFrequencyLoss, MaskedReconstructionLoss, SpatialFrequencyLoss
from monai_usfm.networks.blocks.patch_embed import patchify, unpatchify
from monai_usfm.networks.blocks.position import TokenPositions
from monai_usfm.networks.blocks.token_mask import TokenMask
from monai_usfm.networks.blocks.transformer import TransformerBlock
from monai_usfm.networks.heads.pyramid import ImageCorrection, PyramidDecoder
from monai_usfm.networks.nets.task import even_blocks
from monai_usfm.networks.nets.vit import UltrasoundViT
from monai_usfm.physics.speckle import add_speckle, speckle_intensity
from monai_usfm.physics.spectrum import apply_band_stop, random_ring_masks

__all__ = ["Corruption", "MaskedAutoencoder", "MaskedImageModel", "RandomBandStop"]

FILLS = ("speckle", "mean", "token")


class RandomBandStop(nn.Module):
    """Removes random rings of the spectrum of every image of a batch, on the device of the batch.

    Args:
        num_rings: rings of equal width between the center disc and the Nyquist frequency.
        stop_ratio: share of the rings that is removed; a pair (low, high) draws it per image.
        center_radius: radius of the disc that is always kept, in fractions of Nyquist.
    """

    def __init__(
        self, num_rings: int = 8, stop_ratio: float | Sequence[float] = 0.5, center_radius: float = 0.1
    ) -> None:
        super().__init__()
        self.num_rings = num_rings
        self.stop_ratio = stop_ratio if isinstance(stop_ratio, float | int) else (stop_ratio[0], stop_ratio[1])
        self.center_radius = center_radius

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """``(B, C, *S) -> (B, C, *S)``; one draw per image, shared by its channels."""
        keep = random_ring_masks(
            image.shape[0],
            image.shape[2:],
            num_rings=self.num_rings,
            stop_ratio=self.stop_ratio,
            center_radius=self.center_radius,
            device=image.device,
        )
        return apply_band_stop(image, keep)


def _float32(image: torch.Tensor) -> torch.amp.autocast_mode.autocast:
    """Corruption and losses need full precision (there is no half-precision FFT): leave autocast for them."""
    return torch.autocast(image.device.type, enabled=False)


class Corruption(nn.Module):
    """Hide frequencies, then patches, of an image: what :class:`MaskedImageModel` and joint pretraining undo.

    Args:
        patch_size: of the encoder, one number per spatial axis.
        mask_ratio, mask_unit, fill, band_stop, mask_kind, fov_aware, dynamic_range_db: see :class:`MaskedImageModel`.

    Raises:
        ValueError: for an unknown fill or mask setting.
    """

    def __init__(
        self,
        patch_size: Sequence[int],
        mask_ratio: float = 0.6,
        mask_unit: int = 2,
        fill: str = "speckle",
        band_stop: nn.Module | str | None = "default",
        mask_kind: str | nn.Module = "block",
        fov_aware: bool = False,
        dynamic_range_db: float = 60.0,
    ) -> None:
        super().__init__()
        if fill not in FILLS:
            raise ValueError(f"fill must be one of {', '.join(FILLS)}, got {fill!r}.")
        if isinstance(band_stop, str) and band_stop != "default":
            raise ValueError(f"band_stop must be a module, None or 'default', got {band_stop!r}.")
        self.patch_size = list(patch_size)
        self.token_mask = TokenMask.of(mask_kind, mask_ratio, mask_unit, fov_aware)
        self.fill = fill
        self.band_stop = RandomBandStop() if isinstance(band_stop, str) else band_stop
        self.dynamic_range_db = dynamic_range_db

    def forward(
        self, image: torch.Tensor, noise: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Draw and apply the corruption to clean images ``(B, C, *S)``; ``noise``: see :class:`TokenMask`.

        Returns:
            corrupted images ``(B, C, *S)``, token mask ``(B, N)`` (1 = hidden), and ``(B, 1, *S)``, 1 where a hidden
            pixel counts in the loss.
        """
        with _float32(image), torch.no_grad():
            image = image.float()
            grid = [size // patch for size, patch in zip(image.shape[2:], self.patch_size, strict=True)]
            _, hidden, counts = self.token_mask(image, self.patch_size, noise)
            # Where a hidden token does not count, as outside the field of view, the mask stays open.
            mask = image.new_zeros(image.shape[0], math.prod(grid)).scatter(1, hidden, counts)
            corrupted = image if self.band_stop is None else self.band_stop(image)
            pixel_mask = F.interpolate(mask.reshape(-1, 1, *grid), image.shape[2:], mode="nearest")
            if self.fill != "token":
                if self.fill == "mean":
                    filler = image.mean(dim=tuple(range(2, image.dim())), keepdim=True)
                else:
                    pool = F.avg_pool2d if image.dim() == 4 else F.avg_pool3d
                    brightness = pool(image, self.patch_size)  # the mean of each patch and channel
                    brightness = F.interpolate(brightness, image.shape[2:], mode="nearest")
                    speckle = speckle_intensity((image.shape[0], 1, *image.shape[2:]), device=image.device)
                    filler = add_speckle(brightness, speckle, self.dynamic_range_db)
                corrupted = torch.where(pixel_mask > 0, filler, corrupted)
            return corrupted, mask, pixel_mask


class MaskedImageModel(nn.Module):
    """Spatial-frequency dual masked image modeling of USFM, in 2D and 3D.

    The image loses random rings of its spectrum (``band_stop``), then blocks of patches are overwritten (``fill``); the
    encoder sees all tokens; a decoder turns them into pixels; the loss compares the result with the clean image in
    space (hidden pixels) and in frequency (whole image). Jiao et al. 2024, https://arxiv.org/abs/2401.00153. The
    authors published neither code nor all values; what is chosen here is named in the documentation of the pretraining
    bundle.

    Args:
        encoder: any :class:`UltrasoundViT`.
        mask_ratio: share of hidden patches.
        mask_unit: side of a hidden block, in patches (2 at patch size 16 is the 32 pixels of SimMIM and A2MIM).
        fill: what hidden patches hold: ``"speckle"`` (noise addition and recovery: fresh fully developed speckle at the
            mean brightness of the patch), ``"mean"`` (mean of the image) or ``"token"`` (a learned token).
        band_stop: frequency corruption; None leaves the spectrum alone. The default is ``RandomBandStop()``.
        loss_function: called with (reconstruction, clean image, pixel mask); default :class:`SpatialFrequencyLoss`.
        mask_kind: see :class:`TokenMask`; or a module that is called as it is, which has a ratio of its own.
        fov_aware: hide patches inside the field of view only; black patches outside it are never scored.
        dynamic_range_db: display range of the images, which sets how strong speckle looks.
        decoder: ``"linear"``, one layer from each token to the pixels of its patch; or ``"pyramid"``, the decoder of
            the segmenter (:class:`PyramidDecoder`), which sees the corrupted pixels too and corrects them.

    Raises:
        ValueError: for an unknown fill, decoder or mask setting, or a pyramid decoder that would see what is hidden.
    """

    def __init__(
        self,
        encoder: UltrasoundViT,
        mask_ratio: float = 0.6,
        mask_unit: int = 2,
        fill: str = "speckle",
        band_stop: nn.Module | str | None = "default",
        loss_function: nn.Module | None = None,
        mask_kind: str | nn.Module = "block",
        fov_aware: bool = False,
        dynamic_range_db: float = 60.0,
        decoder: str = "linear",
    ) -> None:
        super().__init__()
        if decoder not in ("linear", "pyramid"):
            raise ValueError(f"decoder must be linear or pyramid, got {decoder!r}.")
        if decoder == "pyramid" and fill == "token":
            raise ValueError('a pyramid decoder sees the pixels that fill "token" hides from the encoder alone.')
        self.encoder = encoder
        self.corrupt = Corruption(
            encoder.patch_size, mask_ratio, mask_unit, fill, band_stop, mask_kind, fov_aware, dynamic_range_db
        )
        self.loss_function = SpatialFrequencyLoss() if loss_function is None else loss_function
        self.mask_token = nn.Parameter(torch.zeros(1, 1, encoder.hidden_size)) if fill == "token" else None
        self.pyramid = decoder == "pyramid"
        if self.pyramid:
            self.indices = even_blocks(encoder.num_layers, 4)
            self.decoder = PyramidDecoder(
                encoder.hidden_size, encoder.in_channels, encoder.patch_size, len(self.indices)
            )
            self.to_image = ImageCorrection(self.decoder, encoder.in_channels)
            encoder.norm.requires_grad_(False)  # gets no gradient, see TaskNetwork
        else:
            self.head = nn.Linear(encoder.hidden_size, encoder.in_channels * math.prod(encoder.patch_size))
            nn.init.trunc_normal_(self.head.weight, std=0.02)
            nn.init.zeros_(self.head.bias)

    def forward(self, image: torch.Tensor, noise: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """One step on clean images ``(B, C, *S)`` in [0, 1], ``S`` a multiple of the patch size.

        ``noise`` (B, N) fixes which patches are hidden, see :class:`TokenMask`.

        Returns:
            ``loss`` (scalar), ``prediction`` (the reconstructed images ``(B, C, *S)``), ``mask`` (``(B, N)``, 1 =
            hidden), ``corrupted`` (what the encoder saw, ``(B, C, *S)``).
        """
        corrupted, mask, score = self.corrupt(image, noise)
        tokens = self.encoder.patch_embed(corrupted.to(image.dtype))
        if self.mask_token is not None:
            tokens = torch.where(mask.unsqueeze(-1) > 0, self.mask_token.to(tokens.dtype), tokens)
        prediction = self._restored(tokens, corrupted, image.dtype)
        with _float32(image):
            loss = self.loss_function(prediction, image.float(), score)
        return {"loss": loss, "prediction": prediction, "mask": mask, "corrupted": corrupted}

    def _restored(self, tokens: torch.Tensor, corrupted: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Embedded patches of the corrupted images -> restored images ``(B, C, *S)`` in float32."""
        grid = self.encoder.token_grid(corrupted)
        if not self.pyramid:
            latent = self.encoder.encode(tokens, grid)
            return unpatchify(self.head(latent[:, 1:]), grid, self.encoder.patch_size).float()
        maps = self.encoder.run(tokens, grid, None, self.indices, max(self.indices))[1]
        features = self.decoder(corrupted.to(dtype), maps)
        with _float32(corrupted):
            weights = next(self.to_image.parameters())  # float32 but where the whole network is not
            return self.to_image(features.to(weights.dtype), corrupted.to(weights.dtype)).float()

    @torch.no_grad()
    def panels(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images of one draw: input, what the encoder saw, reconstruction, absolute error; all ``(B, C, *S)``."""
        output = self(image)
        return _panels(image, output["corrupted"], output["prediction"].clamp(0, 1))


class MaskedAutoencoder(nn.Module):
    """Masked autoencoder (MAE), the objective of USF-MAE, in 2D and 3D; and, with ``band_stop`` and
    ``frequency_weight``, the dual objective of USFM at the price of an MAE.

    Only visible patches are embedded and encoded; a small decoder predicts the pixels of the hidden ones. For equal
    weights and ``noise`` the loss equals that of the reference implementation. He et al. 2022,
    https://arxiv.org/abs/2111.06377; Megahed et al. 2025, https://arxiv.org/abs/2510.22990.

    Args:
        encoder: any :class:`UltrasoundViT`; the published models have ``pos_embed="sincos"`` and ``layer_scale=None``.
        decoder_hidden_size, decoder_num_layers, decoder_num_heads: width, blocks and attention heads of the decoder.
        mask_ratio: share of hidden patches.
        normalize_patches: predict patches standardized by their own mean and variance.
        mask_kind: see :class:`TokenMask`; or a module that is called as it is, which has a ratio of its own.
        mask_unit: side of a hidden block in patches, for ``mask_kind="block"``.
        fov_aware: spend no visible token on black patches outside the field of view, and do not score them.
        norm: ``"l2"`` (MAE) or ``"l1"`` pixel error.
        loss_function: called with predicted patches, target patches ``(B, M, P)`` and ``counts`` ``(B, M)``; default
            :class:`MaskedReconstructionLoss` with ``norm`` and ``normalize_patches``.
        band_stop: frequency corruption of what the encoder sees; the target stays clean. None for MAE.
        frequency_weight: weight of a :class:`FocalFrequencyLoss` on whole images, visible patches taken from the
            target.

    Raises:
        ValueError: for a mask setting out of range, or ``frequency_weight`` together with ``normalize_patches``.
    """

    def __init__(
        self,
        encoder: UltrasoundViT,
        decoder_hidden_size: int = 512,
        decoder_num_layers: int = 8,
        decoder_num_heads: int = 16,
        mask_ratio: float = 0.75,
        normalize_patches: bool = False,
        mask_kind: str | nn.Module = "uniform",
        mask_unit: int = 1,
        fov_aware: bool = False,
        norm: str = "l2",
        band_stop: nn.Module | None = None,
        frequency_weight: float = 0.0,
        loss_function: nn.Module | None = None,
    ) -> None:
        super().__init__()
        if frequency_weight > 0 and normalize_patches:
            raise ValueError("frequency_weight compares images, normalize_patches predicts none: use one of the two.")
        self.encoder = encoder
        self.token_mask = TokenMask.of(mask_kind, mask_ratio, mask_unit, fov_aware)
        self.normalize_patches = normalize_patches
        self.loss_function = loss_function or MaskedReconstructionLoss(norm, normalize_patches)
        self.band_stop = band_stop
        self.frequency_weight = frequency_weight
        self.frequency_loss = FocalFrequencyLoss()
        pixels = encoder.in_channels * math.prod(encoder.patch_size)
        self.decoder_embed = nn.Linear(encoder.hidden_size, decoder_hidden_size)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, decoder_hidden_size))
        self.decoder_pos_embed = TokenPositions(encoder.grid, decoder_hidden_size, learnable=False)
        self.decoder_blocks = nn.ModuleList(
            TransformerBlock(decoder_hidden_size, 4 * decoder_hidden_size, decoder_num_heads)
            for _ in range(decoder_num_layers)
        )
        self.decoder_norm = nn.LayerNorm(decoder_hidden_size, eps=1e-6)
        self.decoder_pred = nn.Linear(decoder_hidden_size, pixels)
        nn.init.trunc_normal_(self.mask_token, std=0.02)
        for module in (self.decoder_embed, self.decoder_pred, *self.decoder_blocks.modules()):
            if isinstance(module, nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward_decoder(self, latent: torch.Tensor, order: torch.Tensor, grid: list[int]) -> torch.Tensor:
        """Visible tokens ``(B, 1 + K, E)``, class token first -> patches ``(B, N, prod(patch) * C)`` of a token grid.

        ``order`` (B, N) is that of the patches, whose first K are the visible ones.
        """
        x = self.decoder_embed(latent)
        visible = x.shape[1] - 1
        hidden = self.mask_token.to(x.dtype).expand(x.shape[0], order.shape[1] - visible, -1)
        codes = self.decoder_pos_embed(grid).to(x.dtype)
        # Tokens stay in the order (class, visible, hidden); positions are gathered to match.
        x = torch.cat([x, hidden], dim=1)
        x = x + torch.cat([codes[:, :1].expand(x.shape[0], -1, -1), codes[0, 1:][order]], dim=1)
        for block in self.decoder_blocks:
            x = block(x)
        return self.decoder_pred(self.decoder_norm(x[:, 1:]))

    def forward(self, image: torch.Tensor, noise: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """One step on clean images ``(B, C, *S)``, ``S`` a multiple of the patch size, masked as by :class:`TokenMask`.

        Returns:
            ``loss`` (scalar), ``prediction`` (patches ``(B, N, prod(patch) * C)``, channel last), ``mask`` (``(B, N)``,
            1 = hidden), ``corrupted`` (``(B, C, *S)``, only with ``band_stop``).
        """
        patch_size = self.encoder.patch_size
        grid = self.encoder.token_grid(image)
        keep, hidden, counts = self.token_mask(image, patch_size, noise)
        source = image
        if self.band_stop is not None:
            with _float32(image), torch.no_grad():
                source = self.band_stop(image.float()).to(image.dtype)
        latent = self.encoder.forward_features(source, keep)
        order = torch.cat([keep, hidden], dim=1)
        decoded = self.forward_decoder(latent, order, grid).float()
        missing = decoded[:, keep.shape[1] :]
        with _float32(image):
            patches, places = patchify(image, patch_size).float(), hidden.unsqueeze(-1).expand_as(missing)
            loss = self.loss_function(missing, patches.gather(1, places), counts)
            prediction = torch.zeros_like(decoded).scatter(1, order.unsqueeze(-1).expand_as(decoded), decoded)
            if self.frequency_weight > 0:
                restored = unpatchify(patches.scatter(1, places, missing), grid, patch_size)
                loss = loss + self.frequency_weight * self.frequency_loss(restored, image.float())
        mask = torch.ones_like(order, dtype=torch.float32).scatter(1, keep, 0.0)
        output = {"loss": loss, "prediction": prediction, "mask": mask}
        if self.band_stop is not None:
            output["corrupted"] = source
        return output

    @torch.no_grad()
    def panels(self, image: torch.Tensor) -> dict[str, torch.Tensor]:
        """Images of one draw: input, what the encoder saw, reconstruction, absolute error; all ``(B, C, *S)``."""
        output = self(image)
        seen = patchify(output.get("corrupted", image), self.encoder.patch_size)
        seen = torch.where(output["mask"].unsqueeze(-1) > 0, 0.5, seen.float())
        seen = unpatchify(seen, self.encoder.token_grid(image), self.encoder.patch_size)
        return _panels(image, seen, self._compose(image, output))

    def _compose(self, image: torch.Tensor, output: dict[str, torch.Tensor]) -> torch.Tensor:
        patches = patchify(image, self.encoder.patch_size).float()
        prediction = output["prediction"]
        if self.normalize_patches:
            scale = (patches.var(dim=-1, keepdim=True) + 1e-6).sqrt()
            prediction = prediction * scale + patches.mean(dim=-1, keepdim=True)
        patches = torch.where(output["mask"].unsqueeze(-1) > 0, prediction, patches)
        return unpatchify(patches, self.encoder.token_grid(image), self.encoder.patch_size).clamp(0, 1)


def _panels(image: torch.Tensor, seen: torch.Tensor, restored: torch.Tensor) -> dict[str, torch.Tensor]:
    image = image.float()
    return {"input": image, "corrupted": seen, "reconstruction": restored, "error": (restored - image).abs()}
