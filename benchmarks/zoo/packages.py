"""Networks of other packages, small ones of each kind; imported only where they are built."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

Shape = tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Recipe:
    """What to call, with what, and the shape of one example."""

    maker: str
    given: tuple[Any, ...] = ()
    named: dict[str, Any] = field(default_factory=dict)
    shape: Shape = (3, 64, 64)


def recipe(maker: str, *given: Any, shape: Shape = (3, 64, 64), **named: Any) -> Recipe:
    """A recipe, written as the call is."""
    return Recipe(maker, given, named, shape)


# Detection, keypoints, oriented boxes, segments, classes: by the names of their configurations.
ULTRALYTICS = """yolov8n yolo11n yolov5n yolov8n-seg yolov8n-pose yolov8n-obb yolov8n-cls
    yolov3-tiny yolov6n yolov8n-ghost yolov9t yolov10n yolo12n yolo26n yolo11n-pose""".split()

SMP = {
    **{
        name: recipe(name, "resnet18", encoder_weights=None, classes=5)
        for name in """Unet UnetPlusPlus MAnet Linknet FPN PSPNet DeepLabV3 DeepLabV3Plus UPerNet
        Segformer""".split()
    },
    "Unet-efficientnet": recipe("Unet", "efficientnet-b0", encoder_weights=None, classes=5),
    "Unet-mit": recipe("Unet", "mit_b0", encoder_weights=None, classes=5),
}

FLAT, SOLID = (1, 32, 32), (1, 16, 16, 16)
WIDTHS = (8, 8, 16, 16, 32, 8)
MONAI = {
    "UNet": recipe("UNet", 3, 1, 3, (8, 16, 32), (2, 2), num_res_units=2, shape=SOLID),
    "BasicUNet": recipe("BasicUNet", 2, 1, 3, WIDTHS, shape=FLAT),
    "BasicUNetPlusPlus": recipe("BasicUNetPlusPlus", 2, 1, 3, WIDTHS, shape=FLAT),
    "SegResNet": recipe("SegResNet", 3, 8, 1, 3, shape=SOLID),
    "DynUNet": recipe(
        "DynUNet", 2, 1, 3, [3] * 3, [1, 2, 2], [2, 2], filters=[8, 16, 32], shape=FLAT
    ),
    "VNet": recipe("VNet", 2, 1, 3, shape=FLAT),
    "AttentionUnet": recipe("AttentionUnet", 2, 1, 3, (8, 16, 32), (2, 2), shape=FLAT),
    "HighResNet": recipe("HighResNet", 2, 1, 3, shape=FLAT),
    "Quicknat": recipe("Quicknat", num_classes=3, shape=(1, 64, 64)),
    "MedNeXt": recipe("MedNeXt", 2, 8, 1, 3, shape=FLAT),
    "UNETR": recipe("UNETR", 1, 3, (32, 32), 8, 32, 64, 4, spatial_dims=2, shape=FLAT),
    "SwinUNETR": recipe("SwinUNETR", 1, 3, feature_size=12, spatial_dims=2, shape=(1, 64, 64)),
}

FOUR: dict[str, Any] = {"depths": [1, 1, 1, 1], "num_labels": 5}
HEADS = FOUR | {"num_attention_heads": [1, 2, 2, 4], "hidden_sizes": [8, 16, 24, 32]}
TOKENS: dict[str, Any] = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "image_size": 56,
    "patch_size": 14,
    "num_labels": 5,
    "shape": (3, 56, 56),
}
TRANSFORMERS = {
    "ResNet": recipe(
        "ImageClassification", embedding_size=16, hidden_sizes=[16, 24, 32, 48], **FOUR
    ),
    "RegNet": recipe(
        "ImageClassification",
        embedding_size=16,
        hidden_sizes=[16, 32],
        depths=[1, 2],
        groups_width=8,
        num_labels=5,
    ),
    "ConvNextV2": recipe("ImageClassification", hidden_sizes=[16, 24, 32, 40], **FOUR),
    "MobileNetV2": recipe("SemanticSegmentation", depth_multiplier=0.35, num_labels=5),
    "MobileViTV2": recipe("ImageClassification", width_multiplier=0.25, num_labels=5),
    "SwiftFormer": recipe("ImageClassification", embed_dims=[16, 24, 32, 40], **FOUR),
    "PoolFormer": recipe("ImageClassification", hidden_sizes=[8, 16, 24, 32], **FOUR),
    "Segformer": recipe("SemanticSegmentation", decoder_hidden_size=16, **HEADS),
    "PvtV2": recipe("ImageClassification", **HEADS),
    "Levit": recipe(
        "ImageClassification",
        image_size=64,
        hidden_sizes=[16, 24, 32],
        num_attention_heads=[2, 2, 4],
        depths=[1, 1, 1],
        key_dim=[8, 8, 8],
        num_labels=5,
    ),
    "Swin": recipe(
        "ImageClassification",
        image_size=64,
        embed_dim=16,
        depths=[1, 2],
        num_heads=[2, 4],
        window_size=4,
        num_labels=5,
    ),
    "ViT": recipe("ImageClassification", intermediate_size=48, **TOKENS),
    "Dinov2": recipe("ImageClassification", **TOKENS),
}

PYTORCHCV = """resnet20_cifar10 seresnet20_cifar10 diaresnet20_cifar10 rir_cifar10
    resdropresnet20_cifar10 xdensenet40_2_k24_bc_cifar10 nin_cifar10 bam_resnet18 cbam_resnet18
    peleenet dla34 hardnet39ds""".split()

RECIPES: dict[str, dict[str, Recipe]] = {
    "ultralytics": {name: recipe(f"{name}.yaml") for name in ULTRALYTICS},
    "smp": SMP,
    "monai": MONAI,
    "transformers": TRANSFORMERS,
    "pytorchcv": {
        name: recipe(name, shape=(3, 32, 32) if "cifar" in name else (3, 224, 224))
        for name in PYTORCHCV
    },
}


def build(package: str, name: str) -> nn.Module:
    """The network that a package makes of a recipe."""
    network: nn.Module = MAKERS[package](RECIPES[package][name], name)
    return network


def _ultralytics(given: Recipe, name: str) -> Any:
    tasks = importlib.import_module("ultralytics.nn.tasks")
    kinds = {
        "seg": tasks.SegmentationModel,
        "pose": tasks.PoseModel,
        "obb": tasks.OBBModel,
        "cls": tasks.ClassificationModel,
    }
    return kinds.get(name.partition("-")[2], tasks.DetectionModel)(given.maker, verbose=False)


def _transformers(given: Recipe, name: str) -> Any:
    library = importlib.import_module("transformers")
    configuration = getattr(library, f"{name}Config")(**given.named)
    return getattr(library, f"{name}For{given.maker}")(configuration)


def _pytorchcv(given: Recipe, _: str) -> Any:
    return importlib.import_module("pytorchcv.model_provider").get_model(given.maker)


def _called(module: str) -> Callable[[Recipe, str], Any]:
    def make(given: Recipe, _: str) -> Any:
        maker = getattr(importlib.import_module(module), given.maker)
        return maker(*given.given, **given.named)

    return make


MAKERS: dict[str, Callable[[Recipe, str], Any]] = {
    "ultralytics": _ultralytics,
    "smp": _called("segmentation_models_pytorch"),
    "monai": _called("monai.networks.nets"),
    "transformers": _transformers,
    "pytorchcv": _pytorchcv,
}
