"""Tiny models of images and videos: encoders, classifiers, and encoders beside those of texts."""

from __future__ import annotations

from typing import Any

from small_models.encoders import BART, VIT
from small_models.sizes import VISION

TEXT = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "vocab_size": 50,
    "max_position_embeddings": 32,
}
CLIP = {"text_config": {**TEXT, "eos_token_id": 49}, "vision_config": VISION, "projection_dim": 16}
ANY_ASPECT = {**{key: VISION[key] for key in VISION if key != "image_size"}, "num_patches": 16}
HTSAT = {
    "spec_size": 32,
    "num_mel_bins": 8,
    "patch_size": 4,
    "patch_stride": [4, 4],
    "patch_embeds_hidden_size": 16,
    "hidden_size": 32,
    "depths": [1, 1],
    "num_attention_heads": [2, 4],
    "window_size": 2,
}
SWIN = {"embed_dim": 16, "depths": [2, 1], "num_heads": [2, 4], "image_size": 32, "patch_size": 4, "window_size": 4}
STAGES = {"hidden_sizes": [8, 16], "depths": [2, 1], "num_labels": 3}
PYRAMID = {**STAGES, "num_encoder_blocks": 2, "num_attention_heads": [1, 2], "mlp_ratios": [2, 3], "strides": [4, 2]}
SEGFORMER = {**PYRAMID, "sr_ratios": [2, 1], "patch_sizes": [7, 3], "decoder_hidden_size": 12}
REGNET = {**STAGES, "embedding_size": 8, "groups_width": 4}
MOBILEVIT = {
    "hidden_sizes": [16, 24, 32],
    "neck_hidden_sizes": [8, 8, 16, 16, 24, 24, 32],
    "aspp_out_channels": 12,
    "num_attention_heads": 4,
    "image_size": 64,
}
MOBILEVIT2 = {
    "width_multiplier": 0.25,
    "base_attn_unit_dims": [64, 96, 128],
    "n_attn_blocks": [1, 1, 1],
    "aspp_out_channels": 12,
    "image_size": 64,
}
NECK = {"neck_hidden_sizes": [8, 12, 16, 20], "fusion_hidden_size": 16}
STAGES_OUT = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
LEVELS = {**VIT, **STAGES_OUT, "num_hidden_layers": 4, "reshape_hidden_states": False}
DETR = {
    "backbone_config": {
        "model_type": "resnet",
        "embedding_size": 8,
        "hidden_sizes": [8, 12],
        "depths": [1, 1],
        "layer_type": "basic",
        "out_features": ["stage2"],
    },
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "encoder_ffn_dim": 40,
    "decoder_ffn_dim": 44,
    "num_queries": 5,
    "use_timm_backbone": False,
}
FOCALNET = {
    "embed_dim": 8,
    "image_size": 32,
    "depths": [1, 2],
    "hidden_sizes": [16, 16],
    "focal_levels": [2, 2],
    "focal_windows": [3, 3],
}
HIERA = {
    "embed_dim": 16,
    "image_size": [32, 32],
    "depths": [1, 1, 2],
    "num_heads": [1, 2, 4],
    "num_query_pool": 2,
    "masked_unit_size": [4, 4],
    "masked_unit_attention": [True, False, False],
}
LEVIT = {
    "image_size": 64,
    "hidden_sizes": [32, 48, 64],
    "num_attention_heads": [2, 3, 4],
    "depths": [1, 1, 1],
    "key_dim": [4, 4, 4],
}
HGNET = {
    "stem_channels": [3, 8, 12],
    "stage_in_channels": [12, 16],
    "stage_mid_channels": [8, 12],
    "stage_out_channels": [16, 24],
    "stage_num_blocks": [2, 1],
    "stage_downsample": [False, True],
    "stage_light_block": [False, True],
    "stage_kernel_size": [3, 5],
    "stage_numb_of_layers": [2, 2],
    "stage_downsample_strides": [2, 2],
    "depths": [2, 1],
    "hidden_sizes": [16, 24],
    "num_labels": 3,
}

MBART_DECODER = {
    **BART,
    "model_type": "mbart",
    "add_cross_attention": True,
    "is_decoder": True,
    "is_encoder_decoder": False,
}

# Each case: class in transformers, config class, settings.
MODELS: dict[str, tuple[str, str, dict[str, Any]]] = {
    "ViViT": ("VivitForVideoClassification", "VivitConfig", {**VIT, "num_frames": 4, "tubelet_size": [2, 8, 8]}),
    "VideoMAE": (
        "VideoMAEForVideoClassification",
        "VideoMAEConfig",
        {**VIT, "num_frames": 4, "tubelet_size": 2},
    ),
    "TimeSformer": ("TimesformerForVideoClassification", "TimesformerConfig", {**VIT, "num_frames": 4}),
    "TrOCR-vit": (
        "VisionEncoderDecoderModel",
        "VisionEncoderDecoderConfig",
        {
            "encoder": {**VIT, "model_type": "vit"},
            "decoder": {
                "model_type": "trocr",
                "d_model": 32,
                "decoder_layers": 2,
                "decoder_attention_heads": 4,
                "decoder_ffn_dim": 40,
                "vocab_size": 50,
                "cross_attention_hidden_size": 32,
            },
        },
    ),
    **{
        f"Donut-{name}": (
            "VisionEncoderDecoderModel",
            "VisionEncoderDecoderConfig",
            {"encoder": {**SWIN, "embed_dim": width, "model_type": "donut-swin"}, "decoder": MBART_DECODER},
        )
        for name, width in (("swin", 16), ("projected", 8))
    },
    "AST": (
        "ASTForAudioClassification",
        "ASTConfig",
        {
            **{key: value for key, value in VIT.items() if key != "image_size"},
            "patch_size": 4,
            "max_length": 16,
            "num_mel_bins": 8,
            "frequency_stride": 2,
            "time_stride": 2,
        },
    ),
    "CLIP-classifier": ("CLIPForImageClassification", "CLIPConfig", CLIP),
    "Siglip-classifier": (
        "SiglipForImageClassification",
        "SiglipConfig",
        {"text_config": {**TEXT, "projection_size": 24}, "vision_config": VISION},
    ),
    "Swin-masked": ("SwinForMaskedImageModeling", "SwinConfig", {**SWIN, "encoder_stride": 8}),
    "MetaClip2-both": ("MetaClip2Model", "MetaClip2Config", CLIP),
    "ChineseCLIP-both": ("ChineseCLIPModel", "ChineseCLIPConfig", CLIP),
    "CLIPSeg-masks": (
        "CLIPSegForImageSegmentation",
        "CLIPSegConfig",
        {
            **CLIP,
            "extract_layers": [0, 1],
            "reduce_dim": 8,
            "decoder_num_attention_heads": 2,
            "decoder_intermediate_size": 12,
        },
    ),
    "Siglip2-both": (
        "Siglip2Model",
        "Siglip2Config",
        {
            "text_config": {**TEXT, "projection_size": 24},
            "vision_config": ANY_ASPECT,
        },
    ),
    "CLAP-both": (
        "ClapModel",
        "ClapConfig",
        {"text_config": TEXT, "audio_config": HTSAT, "projection_dim": 16},
    ),
    "CLAP-audio": ("ClapAudioModel", "ClapAudioConfig", HTSAT),
    "Siglip2Vision": ("Siglip2VisionModel", "Siglip2VisionConfig", ANY_ASPECT),
    "Swinv2-classifier": ("Swinv2ForImageClassification", "Swinv2Config", SWIN),
    "DonutSwin": ("DonutSwinModel", "DonutSwinConfig", SWIN),
    "MaskFormerSwin": ("MaskFormerSwinModel", "MaskFormerSwinConfig", SWIN),
    "DINOv3ConvNext": ("DINOv3ConvNextModel", "DINOv3ConvNextConfig", STAGES),
    "Segformer-masks": ("SegformerForSemanticSegmentation", "SegformerConfig", SEGFORMER),
    "Segformer-classifier": ("SegformerForImageClassification", "SegformerConfig", SEGFORMER),
    "Pvt-classifier": (
        "PvtForImageClassification",
        "PvtConfig",
        {**PYRAMID, "sequence_reduction_ratios": [2, 1], "patch_sizes": [4, 2], "image_size": 32},
    ),
    "PvtV2-classifier": ("PvtV2ForImageClassification", "PvtV2Config", {**SEGFORMER, "image_size": 32}),
    "PoolFormer-classifier": (
        "PoolFormerForImageClassification",
        "PoolFormerConfig",
        {**STAGES, "num_encoder_blocks": 2, "patch_sizes": [7, 3], "strides": [4, 2], "padding": [2, 1]},
    ),
    "EfficientNet": (
        "EfficientNetForImageClassification",
        "EfficientNetConfig",
        {
            "width_coefficient": 0.25,
            "depth_coefficient": 1.0,
            "in_channels": [32, 16],
            "out_channels": [16, 48],
            "strides": [1, 2],
            "kernel_sizes": [3, 5],
            "num_block_repeats": [1, 2],
            "expand_ratios": [1, 3],
            "hidden_dim": 320,
            "image_size": 32,
        },
    ),
    "MobileNet1": ("MobileNetV1ForImageClassification", "MobileNetV1Config", {"depth_multiplier": 0.25}),
    **{
        f"MobileNet2-{name}": (
            f"MobileNetV2For{head}",
            "MobileNetV2Config",
            {"depth_multiplier": 0.25, "finegrained_output": full},
        )
        for name, head, full in (
            ("full", "ImageClassification", True),
            ("narrow", "ImageClassification", False),
            ("masks", "SemanticSegmentation", False),
        )
    },
    **{
        f"MobileViT-{name}": (f"MobileViTFor{head}", "MobileViTConfig", MOBILEVIT)
        for name, head in (("classifier", "ImageClassification"), ("masks", "SemanticSegmentation"))
    },
    **{
        f"MobileViT2-{name}": (f"MobileViTV2For{head}", "MobileViTV2Config", MOBILEVIT2)
        for name, head in (("classifier", "ImageClassification"), ("masks", "SemanticSegmentation"))
    },
    "HGNet2": ("HGNetV2ForImageClassification", "HGNetV2Config", HGNET),
    "HGNet2-affine": ("HGNetV2ForImageClassification", "HGNetV2Config", {**HGNET, "use_learnable_affine_block": True}),
    "PPLCNet": ("PPLCNetForImageClassification", "PPLCNetConfig", {"scale": 0.25, "class_expand": 20}),
    "TextNet": (
        "TextNetForImageClassification",
        "TextNetConfig",
        {"stem_out_channels": 8, "hidden_sizes": [8, 8, 12, 16, 20]},
    ),
    "CvT": (
        "CvtForImageClassification",
        "CvtConfig",
        {
            "embed_dim": [16, 32],
            "num_heads": [2, 4],
            "depth": [1, 2],
            "patch_sizes": [7, 3],
            "cls_token": [False, True],
            "mlp_ratio": [2.0, 3.0],
        },
    ),
    "Hiera": ("HieraForImageClassification", "HieraConfig", HIERA),
    "Hiera-masked": (
        "HieraForPreTraining",
        "HieraConfig",
        {**HIERA, "decoder_hidden_size": 24, "decoder_num_heads": 2, "decoder_depth": 2},
    ),
    "FocalNet": ("FocalNetForImageClassification", "FocalNetConfig", FOCALNET),
    "FocalNet-levels": ("FocalNetForImageClassification", "FocalNetConfig", {**FOCALNET, "focal_levels": [2, 3]}),
    "FocalNet-scales": (
        "FocalNetForMaskedImageModeling",
        "FocalNetConfig",
        {
            **FOCALNET,
            "use_layerscale": True,
            "use_post_layernorm": True,
            "use_post_layernorm_in_modulation": True,
            "normalize_modulator": True,
            "use_conv_embed": True,
            "encoder_stride": 8,
        },
    ),
    "LeViT": ("LevitForImageClassificationWithTeacher", "LevitConfig", LEVIT),
    "LeViT-sizes": (
        "LevitForImageClassificationWithTeacher",
        "LevitConfig",
        {**LEVIT, "key_dim": [4, 8, 6], "attention_ratio": [2, 3, 1]},
    ),
    "SwiftFormer": (
        "SwiftFormerForImageClassification",
        "SwiftFormerConfig",
        {"image_size": 64, "depths": [2, 1], "embed_dims": [8, 12], "mlp_ratio": 2, "downsamples": [True, True]},
    ),
    "ViTMSN": ("ViTMSNForImageClassification", "ViTMSNConfig", VIT),
    "Yolos": (
        "YolosForObjectDetection",
        "YolosConfig",
        {**VIT, "image_size": [32, 32], "num_detection_tokens": 5},
    ),
    "ImageGPT": (
        "ImageGPTForCausalImageModeling",
        "ImageGPTConfig",
        {"n_embd": 32, "n_head": 4, "n_layer": 2, "n_positions": 32, "vocab_size": 51, "n_inner": 40},
    ),
    "DepthAnything": (
        "DepthAnythingForDepthEstimation",
        "DepthAnythingConfig",
        {
            "backbone_config": {
                **VIT,
                "model_type": "dinov2",
                "num_hidden_layers": 4,
                "mlp_ratio": 2,
                "image_size": 56,
                "patch_size": 14,
                "out_indices": [1, 2, 3, 4],
                "reshape_hidden_states": False,
            },
            **NECK,
            "reassemble_hidden_size": 32,
            "head_hidden_size": 6,
            "patch_size": 14,
        },
    ),
    **{
        f"DPT-{name}": (
            f"DPTFor{head}",
            "DPTConfig",
            {**VIT, **NECK, "num_hidden_layers": 4, "backbone_out_indices": [0, 1, 2, 3]},
        )
        for name, head in (("depths", "DepthEstimation"), ("classes", "SemanticSegmentation"))
    },
    **{
        f"DPT-{name}": (
            "DPTForDepthEstimation",
            "DPTConfig",
            {**NECK, "image_size": 32, "backbone_config": backbone, **more},
        )
        for name, backbone, more in (
            ("dinov2", {**LEVELS, "model_type": "dinov2"}, {}),
            ("beit", {**LEVELS, "model_type": "beit", "use_relative_position_bias": True}, {}),
            (
                "swinv2",
                {**SWIN, **STAGES_OUT, "model_type": "swinv2", "depths": [1, 1, 1, 1], "num_heads": [2, 4, 8, 16]},
                {"neck_hidden_sizes": [16, 32, 64, 128]},
            ),
        )
    },
    **{
        f"{name}-objects": (f"{name}ForObjectDetection", f"{name}Config", DETR) for name in ("Detr", "TableTransformer")
    },
    "RegNet-gates": ("RegNetForImageClassification", "RegNetConfig", {**REGNET, "layer_type": "y"}),
    "RegNet-bare": ("RegNetModel", "RegNetConfig", {**REGNET, "layer_type": "x"}),
    "RegNet-plain": ("RegNetForImageClassification", "RegNetConfig", {**REGNET, "layer_type": "x"}),
}
# Cases that the default run leaves out, since another case has the same shape or a similar one.
RARE = frozenset(MODELS) - {"RegNet-gates", "Segformer-masks", "Siglip2-both"}
