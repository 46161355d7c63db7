"""The image tower: a vision transformer."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from fastclip.config.images import PreprocessConfig
from fastclip.model.block import Transformer
from fastclip.model.model_config import VisionConfig
from fastclip.model.patch_dropout import AllPatches, PatchDropout
from fastclip.model.pooled_rows import FirstRow
from fastclip.model.stem import PixelNormalize, embed_normalised, embed_raw


class VisionTransformer(nn.Module):
    """Pictures to features of `output_dim` numbers; not normalised.

    With `pool_type` "none" the output is (B, tokens, output_dim).
    """

    def __init__(
        self, config: VisionConfig, output_dim: int, quick_gelu: bool, norm: type[nn.LayerNorm]
    ) -> None:
        super().__init__()
        width, patch = config.width, config.patch_size
        self.config = config
        self.image_size = config.image_size_pair
        self.grid_size = config.grid_size
        self.patch_size = (patch, patch)
        self.output_dim = output_dim
        self.preprocess_cfg = PreprocessConfig(size=self.image_size)
        self.pixels = PixelNormalize(self.preprocess_cfg.mean, self.preprocess_cfg.std)

        scale = width**-0.5
        tokens = 1 + self.grid_size[0] * self.grid_size[1]
        self.conv1 = nn.Conv2d(3, width, kernel_size=patch, stride=patch, bias=False)
        self.class_embedding = nn.Parameter(scale * torch.randn(width))
        self.positional_embedding = nn.Parameter(scale * torch.randn(tokens, width))
        self.patch_dropout = (
            PatchDropout(config.patch_dropout) if config.patch_dropout > 0 else AllPatches()
        )
        self.embed = embed_normalised
        self.ln_pre = nn.Identity() if config.no_ln_pre else norm(width)
        self.transformer = Transformer(
            width,
            config.layers,
            config.heads,
            config.mlp_ratio,
            config.ls_init_value,
            quick_gelu,
            norm,
            causal=False,
        )
        self.ln_post = norm(width)
        self.proj = nn.Parameter(scale * torch.randn(width, output_dim))

    def set_preprocess_cfg(self, config: PreprocessConfig) -> None:
        """Use `config` for raw pixels, and show it as `preprocess_cfg`."""
        self.preprocess_cfg = config
        device = self.pixels.mean.device
        self.pixels = PixelNormalize(config.mean, config.std).to(device)

    def forward(
        self,
        images: Tensor,  # uint8 (B, H, W, 3) raw, or float (B, 3, H, W) normalised
    ) -> Tensor:  # (B, output_dim)
        x = self.ln_pre(self.embed(self, images))
        x = self.transformer(x, FirstRow(causal=False) if self.config.pools_one_row else None)
        return self._pool(x) @ self.proj

    def _pool(
        self,
        x: Tensor,  # (B, T, D), or (B, D) where the config pools one row
    ) -> Tensor:
        if self.config.pool_type == "avg" and not self.config.final_ln_after_pool:
            normed: Tensor = self.ln_post(x)
            return normed[:, 1:].mean(dim=1)
        if self.config.pool_type == "avg":
            x = x[:, 1:].mean(dim=1)
        # a norm works token by token: picking first changes nothing but the work
        x = self.ln_post(x)
        return x

    def lock(self, unlocked_groups: int = 0) -> None:
        """Freeze the tower but for its last `unlocked_groups` groups.

        Groups: stem, each block but the last, last block with ln_post, proj.
        """
        self.requires_grad_(False)
        if unlocked_groups == 0:
            return
        blocks = self.transformer.blocks
        stem = [*self.conv1.parameters(), self.class_embedding, self.positional_embedding]
        groups = [
            [*stem, *self.ln_pre.parameters()],
            *(list(block.parameters()) for block in blocks[:-1]),
            [*blocks[-1].parameters(), *self.ln_post.parameters()],
            [self.proj],
        ]
        for parameter in (p for group in groups[-unlocked_groups:] for p in group):
            parameter.requires_grad_(True)

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.transformer.set_recompute("full" if enable else "none")

    def fuse_patch_embed(self) -> bool:
        """Normalise raw pixels inside the patch embedding from here on; normalised ones go on as before."""
        self.embed = embed_raw
        return True

    def prune_last_block(self) -> bool:
        """Compute only the class token in the last block, if that is all that is read of it."""
        self.transformer.prune_last_block = self.config.pools_one_row
        return self.config.pools_one_row

    def no_weight_decay(self) -> set[str]:
        """Names that timm's optimisers leave undecayed, beside everything one-dimensional."""
        return {"positional_embedding", "class_embedding"}
