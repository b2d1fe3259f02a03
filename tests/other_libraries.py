"""Tiny random models of libraries other than transformers, and their configs as the library saves them."""

import json

import torch
from safetensors.torch import save_file

from mupscale_cli.checkpoints.libraries import library_of


def timm(architecture, **arguments):
    """Return the config of a model of timm; its arguments are those that differ from the architecture's own."""
    side, classes = arguments.get("img_size", 64), arguments.get("num_classes", 5)
    weights = {"num_classes": classes, "input_size": [3, side, side], "classifier": None}
    return {
        "architecture": architecture,
        "num_classes": classes,
        "num_features": 0,
        "model_args": {"num_classes": classes, **arguments},
        "pretrained_cfg": weights,
    }


def open_clip(vision=None, text=None, **settings):
    """Return the config of a model of open_clip."""
    vision = {"image_size": 32, "layers": 2, "width": 24, "head_width": 8, "patch_size": 8, **(vision or {})}
    text = {"context_length": 9, "vocab_size": 90, "width": 16, "heads": 2, "layers": 2, **(text or {})}
    return {
        "model_cfg": {"embed_dim": 12, "vision_cfg": vision, "text_cfg": text, **settings},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]},
    }


_VIT = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 2, "num_heads": 3}
_ROPE = {**_VIT, "embed_dim": 48}  # the angles of a head need four dimensions
_NEXT = {"depths": [1, 1, 1, 1], "dims": [8, 12, 16, 24]}
_SWIN = {"img_size": 32, "window_size": 2, "embed_dim": 8, "depths": [1, 2, 1], "num_heads": [2, 4, 8]}
_RESNET = {"layers": [1, 2, 1, 1], "channels": [12, 8, 12, 16]}
CONFIGS = {
    "timm-vit": timm("vit_tiny_patch16_224", **_VIT),
    "timm-vit-defaults": timm("test_vit", img_size=160),
    "timm-vit-norms": timm(
        "vit_tiny_patch16_224", **_VIT, qk_norm=True, scale_attn_norm=True, scale_mlp_norm=True, mlp_ratio=2.7
    ),
    "timm-vit-pool": timm("vit_base_patch16_siglip_224", **_VIT, global_pool="avg", fc_norm=True),
    "timm-siglip": timm("vit_base_patch16_siglip_224", **_VIT),
    "timm-dinov2": timm("vit_small_patch14_reg4_dinov2", **_VIT),
    "timm-dinov2-gated": timm("vit_giant_patch14_reg4_dinov2", **_VIT),
    "timm-clip": timm("vit_base_patch16_clip_224", **_VIT),
    "timm-aimv2": timm("aimv2_large_patch14_224", **_VIT),
    "timm-deit": timm("deit_tiny_distilled_patch16_224", **_VIT),
    "timm-deit3": timm("deit3_small_patch16_224", **_VIT),
    "timm-eva": timm("eva_giant_patch14_224", **_VIT),
    "timm-eva02-tiny": timm("eva02_tiny_patch14_224", **_ROPE),
    "timm-eva02-base": timm("eva02_base_patch14_448", **_ROPE),
    "timm-eva02-clip": timm("eva02_base_patch16_clip_224", **_ROPE),
    "timm-dinov3": timm("vit_small_patch16_dinov3", **_ROPE),
    "timm-dinov3-plus": timm("vit_small_plus_patch16_dinov3_qkvb", **_ROPE),
    "timm-rope": timm("vit_small_patch16_rope_224", **_ROPE),
    "timm-rope-mixed": timm("vit_small_patch16_rope_mixed_224", **_ROPE),
    "timm-convnext": timm("convnext_tiny", **_NEXT),
    "timm-convnext-conv": timm("convnext_atto", **_NEXT),
    "timm-convnext-rms": timm("convnext_atto_rms", **_NEXT),
    "timm-convnext-mlp": timm("convnext_large_mlp", **_NEXT),
    "timm-convnextv2": timm("convnextv2_atto", **_NEXT),
    "timm-convnext-defaults": timm("test_convnext"),
    "timm-swin": timm("swin_tiny_patch4_window7_224", **_SWIN),
    "timm-swinv2": timm("swinv2_tiny_window8_256", **_SWIN),
    "timm-resnet18": timm("resnet18", layers=[1, 2, 1, 1], channels=[64, 8, 12, 16]),
    "timm-resnet50": timm("resnet50", **_RESNET),
    "timm-resnet18d": timm("resnet18d", **_RESNET, stem_width=4),
    "timm-resnet50d": timm("resnet50d", **_RESNET, stem_width=4),
    "timm-wide-resnet": timm("wide_resnet50_2", layers=[1, 1, 1, 1]),
    "open_clip-ViT": open_clip(quick_gelu=True),
    "open_clip-scales": open_clip({"ls_init_value": 1, "pool_type": "avg"}, {"ls_init_value": 1, "mlp_ratio": 2.7}),
    "open_clip-siglip-text": open_clip(
        {"no_ln_pre": True, "pool_type": "avg", "final_ln_after_pool": True},
        {"no_causal_mask": True, "proj_bias": True, "pool_type": "last"},
        custom_text=True,
        init_logit_bias=-10,
    ),
    "open_clip-timm": open_clip(
        {"timm_model_name": "test_vit", "timm_pool": "", "timm_proj": "none", "image_size": 160},
        custom_text=True,
        embed_dim=64,
    ),
}


def save_tiny(case, folder, dtype=torch.float64):
    """Save a model with the file names of its library; every parameter and every statistic of a norm is random."""
    return save_config(CONFIGS[case], folder, dtype)


def save_config(config, folder, dtype=torch.float64):
    library = library_of(config)
    torch.manual_seed(0)
    state = library.build(library.package(), config).to(dtype).state_dict()
    tensors = {name: _random(name, value) if value.is_floating_point() else value for name, value in state.items()}
    folder.mkdir(parents=True)
    save_file(tensors, folder / library.weights[0], metadata={"format": "pt"})
    (folder / library.config).write_text(json.dumps(config))
    return folder


def _random(name, value):
    if name.endswith("running_var"):
        return torch.rand_like(value) + 0.5
    return torch.randn_like(value) * (value[0].numel() ** -0.5 if value.dim() > 1 else 0.5)
