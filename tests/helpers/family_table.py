"""The families that are tried (`helpers.families` says how): those that give their library's vector, and those refused."""

import torch
from helpers.families import (
    CLIP,
    CNN,
    CONVNEXT,
    DINO,
    HALF,
    IMAGENET,
    TEXT,
    VIT,
    VIT_VIEW,
    Refused,
    all_patches,
    alone,
    both_tokens,
    classifier,
    cropped,
    first,
    flava,
    hf,
    hidden,
    logits,
    one_space,
    pooler,
    processor,
    save_folder,
    square,
    squashed,
    towers,
    without,
)
from helpers.family_libraries import clip, timm, timm_folder, torchvision

SIGLIP = squashed("SiglipImageProcessor", HALF)
NAFLEX = processor("Siglip2ImageProcessor", HALF, resample=2, max_num_patches=16, patch_size=16)
BIT = squashed("BitImageProcessor", IMAGENET)
BIT_CROP = cropped("BitImageProcessor", IMAGENET)
IMAGENET_VIT = squashed("ViTImageProcessor", IMAGENET, resample=2)
DINOV3 = squashed("DINOv3ViTImageProcessor", IMAGENET, resample=2)
MOBILE = cropped("MobileNetV2ImageProcessor", HALF, short=72, resample=2)
SMALL = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "image_size": 64, "patch_size": 16}
NAFLEX_TOWER = {
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_patches": 16,
    "patch_size": 16,
}
ALIGN = {
    "image_size": 64,
    "width_coefficient": 0.2,
    "depth_coefficient": 0.2,
    "hidden_dim": 64,
    "kernel_sizes": [3, 3],
    "in_channels": [32, 16],
    "out_channels": [16, 320],
    "strides": [1, 2],
    "num_block_repeats": [1, 1],
    "expand_ratios": [1, 2],
}
MAE = {
    "decoder_hidden_size": 16,
    "decoder_num_hidden_layers": 1,
    "decoder_num_attention_heads": 2,
    "decoder_intermediate_size": 16,
}

FAMILIES = {
    # two towers
    "CLIP": towers("CLIP"),
    "SigLIP": one_space("Siglip", SIGLIP),
    "SigLIP 2 NaFlex": one_space("Siglip2", NAFLEX, vision=NAFLEX_TOWER),
    "MetaCLIP 2": towers("MetaClip2"),
    "AltCLIP": towers("AltCLIP", text={**TEXT, "project_dim": 16}),
    "Chinese-CLIP": towers("ChineseCLIP", squashed("ChineseCLIPImageProcessor", HALF)),
    "BLIP": towers(
        "Blip", squashed("BlipImageProcessor", HALF), text={**TEXT, "encoder_hidden_size": 32, "sep_token_id": 2}
    ),
    "BLIP, captioning": hf(
        lambda T: T.BlipForConditionalGeneration(
            T.BlipConfig(text_config={**TEXT, "encoder_hidden_size": 32, "sep_token_id": 2}, vision_config=VIT)
        ),
        squashed("BlipImageProcessor", HALF),
        "BlipForConditionalGeneration",
        penultimate=pooler("vision_model"),
    ),
    "ALIGN": one_space("Align", squashed("EfficientNetImageProcessor", HALF, resample=2), vision=ALIGN),
    "OWL-ViT": towers("OwlViT", squashed("OwlViTImageProcessor", HALF)),
    "OWLv2": towers("Owlv2", squashed("Owlv2ImageProcessor", HALF, do_pad=True, resample=2)),
    "CLIPSeg": towers("CLIPSeg", IMAGENET_VIT),
    "AIMv2, both towers": towers("Aimv2", vision={**VIT, "use_head": True}),
    "TIPSv2": one_space("Tipsv2", squashed("Tipsv2ImageProcessor", HALF), vision=SMALL),
    "GroupViT": towers(
        "GroupViT",
        vision={
            **VIT,
            "depths": [1, 1],
            "num_hidden_layers": 2,
            "num_group_tokens": [4, 0],
            "num_output_groups": [4, 4],
        },
        projection_intermediate_dim=32,
    ),
    "FLAVA": flava("hf:a/b", squashed("FlavaImageProcessor", HALF)),
    "FLAVA by its own name": flava("flava", squashed("FlavaImageProcessor", HALF)),
    # image towers
    "CLIP, image tower": alone("CLIPVision", CLIP, pooler(), **VIT),
    "CLIP, image tower with projection": hf(
        lambda T: T.CLIPVisionModelWithProjection(T.CLIPVisionConfig(projection_dim=16, **VIT)),
        CLIP,
        "CLIPVisionModelWithProjection",
        penultimate=pooler("vision_model"),
        projection=lambda model, x: model(**x).image_embeds,
    ),
    "SigLIP, image tower": alone("SiglipVision", SIGLIP, pooler(), **VIT),
    "BLIP, image tower": alone("BlipVision", squashed("BlipImageProcessor", HALF), pooler(), **VIT),
    "AIMv2": alone("Aimv2Vision", CLIP, hidden(lambda h: h.mean(1)), **VIT, use_head=False),
    "MLCD": alone("MLCDVision", CLIP, pooler(), **VIT),
    "InternViT": alone(
        "InternVLVision", squashed("ViTImageProcessor", IMAGENET), hidden(first), **{**VIT, "image_size": [64, 64]}
    ),
    "RADIO": alone(
        "Radio",
        processor("ViTImageProcessor", {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}, size=square(64)),
        lambda model, x: model(**x).summary,
        **SMALL,
        max_img_size=128,
    ),
    # transformers without a head
    "ViT": alone("ViT", VIT_VIEW, pooler(), **VIT),
    "ViT without pooler": hf(
        lambda T: T.ViTModel(T.ViTConfig(**VIT)),
        VIT_VIEW,
        "ViTModel",
        change=without("pooler."),
        penultimate=hidden(first),
    ),
    "ViTMAE": hf(
        lambda T: T.ViTMAEForPreTraining(T.ViTMAEConfig(**MAE, **VIT)),
        IMAGENET_VIT,
        "ViTMAEModel",
        penultimate=all_patches,
    ),
    "ViT-MSN": alone("ViTMSN", IMAGENET_VIT, hidden(first), **VIT),
    "I-JEPA": alone("IJepa", IMAGENET_VIT, hidden(lambda h: h.mean(1)), **VIT),
    "Pixio": alone("Pixio", BIT, pooler(), n_cls_tokens=4, **VIT),
    "DINOv2": alone("Dinov2", BIT_CROP, pooler(), **DINO),
    "DINOv2 with registers": alone("Dinov2WithRegisters", BIT_CROP, pooler(), **DINO),
    "DINOv3": alone("DINOv3ViT", DINOV3, pooler(), num_register_tokens=4, **VIT),
    "DINOv3 ConvNeXt": alone("DINOv3ConvNext", DINOV3, pooler(), hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1]),
    "BEiT": alone("Beit", squashed("BeitImageProcessor", HALF), pooler(), **VIT),
    "Hiera": alone(
        "Hiera", BIT_CROP, pooler(), embed_dim=8, image_size=[64, 64], depths=[1, 1, 1, 1], num_heads=[1, 1, 2, 2]
    ),
    "DPT, proportions kept": alone(
        "DPT",
        processor("DPTImageProcessor", HALF, size=square(64), keep_aspect_ratio=True, ensure_multiple_of=16),
        pooler(),
        **VIT,
    ),
    # classifiers
    "ViT, classifier": classifier("ViT", VIT_VIEW, hidden(first, "vit"), **VIT),
    "DeiT, distilled": classifier(
        "DeiT",
        cropped("DeiTImageProcessor", IMAGENET, size=square(72)),
        both_tokens,
        suffix="ForImageClassificationWithTeacher",
        **VIT,
    ),
    "CLIP, classifier": hf(
        lambda T: T.CLIPForImageClassification(T.CLIPConfig(text_config=TEXT, vision_config=VIT, num_labels=5)),
        CLIP,
        "CLIPForImageClassification",
        penultimate=lambda model, x: model.vision_model(**x).last_hidden_state[:, 1:].mean(1),
        logits=logits,
    ),
    "DINOv2, classifier": classifier(
        "Dinov2",
        BIT_CROP,
        hidden(lambda h: torch.cat([h[:, 0], h[:, 1:].mean(1)], 1), "dinov2"),
        **DINO,
    ),
    "data2vec": classifier("Data2VecVision", squashed("BeitImageProcessor", HALF), pooler("data2vec_vision"), **VIT),
    "ResNet": classifier("ResNet", CONVNEXT, pooler("resnet"), embedding_size=8, **CNN),
    "ConvNeXt": classifier("ConvNext", CONVNEXT, pooler("convnext"), **CNN),
    "ConvNeXt V2": classifier("ConvNextV2", CONVNEXT, pooler("convnextv2"), **CNN),
    "RegNet": classifier("RegNet", CONVNEXT, pooler("regnet"), embedding_size=8, groups_width=8, **CNN),
    "EfficientNet": classifier(
        "EfficientNet",
        squashed("EfficientNetImageProcessor", IMAGENET, include_top=True, resample=2),
        pooler("efficientnet"),
        **{**ALIGN, "hidden_dim": 256},
    ),
    "Swin": classifier(
        "Swin",
        squashed("ViTImageProcessor", IMAGENET),
        pooler("swin"),
        embed_dim=8,
        depths=[1, 1],
        num_heads=[2, 2],
        window_size=4,
        image_size=64,
    ),
    "MobileNet V1": classifier("MobileNetV1", MOBILE, pooler("mobilenet_v1"), image_size=64, depth_multiplier=0.25),
    "MobileNet V2": classifier("MobileNetV2", MOBILE, pooler("mobilenet_v2"), image_size=64, depth_multiplier=0.35),
    "MobileViT": classifier(
        "MobileViT",
        cropped("MobileViTImageProcessor", {}, short=72, do_flip_channel_order=True, resample=2),
        pooler("mobilevit"),
        image_size=64,
        hidden_sizes=[12, 16, 20],
        neck_hidden_sizes=[4, 8, 8, 16, 16, 16, 32],
        num_attention_heads=4,
    ),
    "LeViT, distilled": classifier(
        "Levit",
        cropped("LevitImageProcessor", IMAGENET, size={"shortest_edge": 224}, crop_size=square(224)),
        hidden(lambda h: h.mean(1), "levit"),
        suffix="ForImageClassificationWithTeacher",
        hidden_sizes=[16, 32, 48],
        num_attention_heads=[2, 3, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
    ),
    "FocalNet": classifier(
        "FocalNet",
        BIT_CROP,
        pooler("focalnet"),
        image_size=64,
        embed_dim=8,
        hidden_sizes=[8, 16],
        depths=[1, 1],
        focal_levels=[2, 2],
        focal_windows=[3, 3],
    ),
    "PVT": classifier(
        "Pvt",
        squashed("PvtImageProcessor", IMAGENET, resample=2),
        hidden(first, "pvt"),
        image_size=64,
        **CNN,
        num_attention_heads=[1, 2, 2, 4],
    ),
    "SegFormer": classifier(
        "Segformer",
        squashed("SegformerImageProcessor", IMAGENET, resample=2),
        hidden(lambda h: h.flatten(2).mean(2), "segformer"),
        num_attention_heads=[1, 2, 2, 4],
        **CNN,
    ),
    "SwiftFormer": classifier(
        "SwiftFormer",
        IMAGENET_VIT,
        lambda model, x: model.norm(model.swiftformer(**x).last_hidden_state).mean((2, 3)),
        image_size=64,
        embed_dims=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
    ),
    "PoolFormer": classifier(
        "PoolFormer",
        cropped("PoolFormerImageProcessor", IMAGENET, crop_pct=0.9, size={"shortest_edge": 64}),
        lambda model, x: model.norm(model.poolformer(**x).last_hidden_state).mean((2, 3)),
        **CNN,
    ),
    "BiT": classifier(
        "Bit",
        squashed("BitImageProcessor", HALF),
        pooler("bit"),
        hidden_sizes=[128] * 4,
        depths=[1] * 4,
        embedding_size=32,
    ),
    "HGNet V2": classifier(
        "HGNetV2",
        CONVNEXT,
        lambda model, x: model.encoder(model.embedder(x["pixel_values"])).last_hidden_state.mean((2, 3)),
        embedding_size=8,
        depths=[1] * 4,
        hidden_sizes=[16, 16, 16, 32],
        stem_channels=[3, 8, 8],
        stage_in_channels=[8, 16, 16, 16],
        stage_mid_channels=[8] * 4,
        stage_out_channels=[16, 16, 16, 32],
        stage_num_blocks=[1] * 4,
        stage_numb_of_layers=[1] * 4,
    ),
    # timm's folders on the hub, and timm itself
    "timm ResNet through transformers": timm_folder("test_resnet"),
    "timm ViT through transformers": timm_folder("test_vit"),
    "timm ResNet": timm("resnet10t"),
    "timm ViT": timm("test_vit"),
    "timm ConvNeXt": timm("test_convnext"),
    "timm EfficientNet": timm("test_efficientnet"),
    "timm MobileNetV3": timm("mobilenetv3_small_050"),
    "timm DeiT, distilled": timm("deit_tiny_distilled_patch16_224"),
    "timm NFNet": timm("test_nfnet"),
    "timm BYOBNet": timm("test_byobnet"),
    # open_clip
    "open_clip ViT": clip("bird-vit"),
    "open_clip ResNet": clip("bird-rn"),
    "open_clip with a timm tower": clip("bird-timm"),
    "open_clip CoCa": clip("bird-coca"),
    "open_clip, text tower's config not at hand": clip("bird-roberta"),
    "open_clip, folder": clip("bird-vit", view={"mean": [0.4] * 3, "resize_mode": "longest"}, folder_form=True),
    "open_clip, tag of a squashed view": clip(
        "bird-vit",
        "squashed",
        {"mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bicubic", "resize_mode": "squash"},
    ),
    "open_clip, tag of QuickGELU": clip("bird-vit", "openai", quick_gelu=True),
    # torchvision
    "torchvision ShuffleNet": torchvision("shufflenet_v2_x0_5"),
    "torchvision MobileNetV2, V2 weights": torchvision("mobilenet_v2", "IMAGENET1K_V2"),
    "torchvision RegNet, V2 weights": torchvision("regnet_y_400mf", "IMAGENET1K_V2"),
    "torchvision EfficientNet, V1 weights": torchvision("efficientnet_b1", "IMAGENET1K_V1"),
    "torchvision SqueezeNet": torchvision("squeezenet1_1", features=True),
    "torchvision GoogLeNet": torchvision("googlenet"),
    "torchvision Inception v3": torchvision("inception_v3"),
}

REFUSED = {
    "ViLT": Refused(
        "hf:a/b",
        lambda folder: save_folder(lambda T: T.ViltModel(T.ViltConfig(**VIT, vocab_size=64)), VIT_VIEW, folder),
        ("images alone",),
    ),
    "YOLOS without pooler": Refused(
        "hf:a/b",
        lambda folder: (
            without("pooler.")(
                save_folder(
                    lambda T: T.YolosModel(T.YolosConfig(**{**VIT, "image_size": [64, 64]}, num_detection_tokens=5)),
                    IMAGENET_VIT,
                    folder,
                )
            )
            or folder
        ),
        ("pooler",),
    ),
    "Depth Anything": Refused(
        "hf:a/b",
        lambda folder: save_folder(
            lambda T: T.DepthAnythingForDepthEstimation(
                T.DepthAnythingConfig(
                    backbone_config=T.Dinov2Config(**DINO, out_features=["stage1", "stage2"]),
                    reassemble_hidden_size=32,
                    neck_hidden_sizes=[8, 8],
                    reassemble_factors=[2, 1],
                    fusion_hidden_size=8,
                    head_hidden_size=8,
                    patch_size=16,
                )
            ),
            processor("DPTImageProcessor", IMAGENET, size=square(64)),
            folder,
        ),
        ("onnx:FILE",),
    ),
    "ImageGPT": Refused(
        "hf:a/b",
        lambda folder: save_folder(
            lambda T: T.ImageGPTModel(T.ImageGPTConfig(n_embd=16, n_layer=1, n_head=2, n_positions=64, vocab_size=17)),
            {
                "image_processor_type": "ImageGPTImageProcessor",
                "size": square(8),
                "do_normalize": True,
                "do_color_quantize": True,
                "clusters": [[i / 8 - 1] * 3 for i in range(16)],
            },
            folder,
        ),
        ("input_ids",),
    ),
    "VideoMAE": Refused(
        "hf:a/b",
        lambda folder: save_folder(
            lambda T: T.VideoMAEModel(T.VideoMAEConfig(**VIT, num_frames=4)),
            cropped("VideoMAEImageProcessor", IMAGENET, short=64),
            folder,
        ),
        ("one view of one image",),
    ),
}
