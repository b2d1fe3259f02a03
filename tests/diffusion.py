"""Tiny models of diffusers with random parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from helpers import randomize

UNET = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 4}
CONDITION = {
    **UNET,
    "block_out_channels": (8, 16),
    "attention_head_dim": 2,
    "cross_attention_dim": 6,
    "down_block_types": ("CrossAttnDownBlock2D", "DownBlock2D"),
    "up_block_types": ("UpBlock2D", "CrossAttnUpBlock2D"),
}
PLAIN = {
    **UNET,
    "block_out_channels": (16, 24),
    "down_block_types": ("DownBlock2D", "AttnDownBlock2D"),
    "up_block_types": ("AttnUpBlock2D", "UpBlock2D"),
}
VAE = {
    "sample_size": 16,
    "block_out_channels": (8, 16),
    "layers_per_block": 1,
    "norm_num_groups": 4,
    "latent_channels": 3,
    "down_block_types": ("DownEncoderBlock2D",) * 2,
    "up_block_types": ("UpDecoderBlock2D",) * 2,
}
TRANSFORMER = {"in_channels": 6, "num_layers": 2, "attention_head_dim": 8, "num_attention_heads": 2}
FLUX = {
    **TRANSFORMER,
    "num_single_layers": 2,
    "joint_attention_dim": 10,
    "pooled_projection_dim": 7,
    "axes_dims_rope": (2, 2, 4),
}
PATCHES = {**TRANSFORMER, "in_channels": 3, "sample_size": 8, "patch_size": 2}
SD3 = {
    **PATCHES,
    "out_channels": 3,
    "num_layers": 3,
    "joint_attention_dim": 10,
    "caption_projection_dim": 16,
    "pooled_projection_dim": 7,
    "pos_embed_max_size": 8,
}

# Name: class and arguments. The name's first part is that of the model of this shape that people use.
DIFFUSION: dict[str, tuple[str, dict[str, Any]]] = {
    "sd1": ("UNet2DConditionModel", CONDITION),
    "sd1-guided": (  # with the strength of guidance and classes as inputs, and other sinusoids
        "UNet2DConditionModel",
        {
            **CONDITION,
            "block_out_channels": (12, 24),
            "attention_head_dim": 3,
            "freq_shift": 1,
            "flip_sin_to_cos": False,
            "time_cond_proj_dim": 5,
            "num_class_embeds": 7,
            "class_embeddings_concat": True,
            "resnet_time_scale_shift": "scale_shift",
            "time_embedding_dim": 20,
        },
    ),
    "sdxl": (
        "UNet2DConditionModel",
        {
            **CONDITION,
            "attention_head_dim": (2, 4),
            "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
            "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
            "transformer_layers_per_block": (1, 2),
            "use_linear_projection": True,
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": 4,
            "projection_class_embeddings_input_dim": 5 + 6 * 4,
        },
    ),
    "ddpm": ("UNet2DModel", {**PLAIN, "attention_head_dim": 8, "freq_shift": 1, "flip_sin_to_cos": False}),
    "ncsnpp": (
        "UNet2DModel",
        {**PLAIN, "attention_head_dim": None, "time_embedding_type": "fourier", "num_class_embeds": 5},
    ),
    "sd1-vae": ("AutoencoderKL", VAE),
    "flux-vae": ("AutoencoderKL", {**VAE, "use_quant_conv": False, "use_post_quant_conv": False}),
    "flux-dev": ("FluxTransformer2DModel", {**FLUX, "guidance_embeds": True}),
    "flux-schnell": ("FluxTransformer2DModel", FLUX),
    "sd3": ("SD3Transformer2DModel", SD3),
    "sd3.5": ("SD3Transformer2DModel", {**SD3, "dual_attention_layers": (0, 1), "qk_norm": "rms_norm"}),
    "dit": ("DiTTransformer2DModel", {**PATCHES, "num_embeds_ada_norm": 9}),
    "pixart": (
        "PixArtTransformer2DModel",
        {**PATCHES, "num_embeds_ada_norm": 9, "cross_attention_dim": 16, "caption_channels": 10},
    ),
}


def save_diffusion(folder: Path, case: str, dtype: torch.dtype = torch.float64, **options: Any) -> Path:
    """Save a random model of a case in `DIFFUSION` with diffusers' `save_pretrained` and return its folder."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    name, settings = DIFFUSION[case]
    randomize(getattr(diffusers, name)(**settings).to(dtype)).save_pretrained(folder, **options)
    return folder
