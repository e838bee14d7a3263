"""The literal table of networks, in the order they are measured: small and convolutional first."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.zoo import outside, packages
from benchmarks.zoo.packages import Shape

TORCHVISION_FIRST = """resnet18 squeezenet1_1 mobilenet_v2 mobilenet_v3_small shufflenet_v2_x0_5
    mnasnet0_5 efficientnet_b0 regnet_y_400mf regnet_x_400mf googlenet densenet121 resnext50_32x4d
    resnet50 convnext_tiny vgg11 vgg11_bn inception_v3 alexnet maxvit_t vit_b_32
    swin_t""".split()

TORCHVISION_NEXT = """squeezenet1_0 mobilenet_v3_large shufflenet_v2_x1_0 shufflenet_v2_x1_5
    shufflenet_v2_x2_0 mnasnet0_75 mnasnet1_0 mnasnet1_3 efficientnet_b1 efficientnet_b2
    efficientnet_b3 regnet_x_800mf regnet_y_800mf regnet_x_1_6gf regnet_y_1_6gf regnet_x_3_2gf
    regnet_y_3_2gf resnet34 wide_resnet50_2 resnet101 densenet169 densenet201 efficientnet_v2_s
    efficientnet_b4 regnet_x_8gf regnet_y_8gf swin_v2_t convnext_small vgg13 vgg13_bn vgg16
    vgg16_bn""".split()

TORCHVISION_LAST = """resnet152 densenet161 resnext101_32x8d resnext101_64x4d wide_resnet101_2
    efficientnet_b5 efficientnet_b6 efficientnet_v2_m efficientnet_b7 efficientnet_v2_l vgg19
    vgg19_bn regnet_x_16gf regnet_y_16gf swin_s swin_v2_s swin_b swin_v2_b convnext_base vit_b_16
    regnet_x_32gf regnet_y_32gf convnext_large vit_l_32 vit_l_16 vit_h_14 regnet_y_128gf""".split()

SEGMENTATION = """lraspp_mobilenet_v3_large fcn_resnet50 deeplabv3_mobilenet_v3_large
    deeplabv3_resnet50 fcn_resnet101 deeplabv3_resnet101""".split()

BACKBONES = """fasterrcnn_mobilenet_v3_large_320_fpn fasterrcnn_mobilenet_v3_large_fpn
    ssdlite320_mobilenet_v3_large ssd300_vgg16 fasterrcnn_resnet50_fpn fasterrcnn_resnet50_fpn_v2
    retinanet_resnet50_fpn retinanet_resnet50_fpn_v2 fcos_resnet50_fpn maskrcnn_resnet50_fpn
    maskrcnn_resnet50_fpn_v2 keypointrcnn_resnet50_fpn""".split()

# One small network of every family (timm.models.<family>) whose body is convolutional.
TIMM_CNN = """resnet10t starnet_s050 tinynet_e mobilenetv3_small_050 ese_vovnet19b_slim_dw
    ghostnet_050 repghostnet_050 regnetx_002 cspnext_tiny cs3darknet_focus_s convnext_atto
    fasternet_t0 inception_next_atto lcnetv2_small rexnet_100 mobileone_s0 hardcorenas_a hgnetv2_b0
    mambaout_femto legacy_seresnet18 skresnet18 resnest14d nf_regnet_b0 dla46_c dpn48b
    hrnet_w18_small resnetv2_18 res2net50_14w_8s selecsls42 xception41p legacy_xception densenet121
    convmixer_768_32 repvit_m0_9 inception_v3 rdnet_tiny tresnet_m inception_v4
    inception_resnet_v2 vgg11_bn pnasnet5large nasnetalarge""".split()

# Further block types of the same families.
TIMM_BLOCKS = """resnet14t ecaresnet26t seresnet18 resnet18d resnetblur18 resnetaa34d
    resnext50_32x4d resnetrs50 resnetv2_50x1_bit repvgg_a0 gernet_s eca_resnet33ts gcresnet33ts
    seresnet33ts regnetz_b16 nf_resnet26 dm_nfnet_f0 eca_nfnet_l0 regnety_002 regnetz_005
    regnetv_040 mixnet_s
    mnasnet_small spnasnet_100 fbnetc_100 efficientnet_es efficientnet_lite0 efficientnetv2_rw_t
    gc_efficientnetv2_rw_t tf_efficientnet_cc_b0_4e mobilenetv1_100 mobilenetv2_050
    mobilenetv4_conv_small_050 lcnet_035 fbnetv3_b mobilenet_edgetpu_v2_xs cspresnet50 cspresnext50
    cs3sedarknet_l darknet17 sedarknet21 convnextv2_atto convnext_femto_ols ghostnetv2_100
    ghostnetv3_050 hgnet_tiny dla46x_c dla60_res2net res2next50 skresnext50_32x4d
    legacy_seresnext26_32x4d rexnetr_100 vovnet39a eca_vovnet39b xception41 densenetblur121d
    senet154""".split()

# One small network of every family with attention, token mixing or state spaces.
TIMM_OTHER = """mobilevit_xxs edgenext_xx_small efficientvit_m0 efficientvit_b0 iformer_t
    swiftformer_xs efficientformerv2_s0 fastvit_t8 pvt_v2_b0 xcit_nano_12_p16_224
    pit_ti_224 coat_tiny vit_tiny_patch16_224 deit_tiny_patch16_224 convit_tiny
    vit_tiny_patch16_dinov3_qkvb gmlp_ti16_224 vit_tiny_r_s16_p8_224 shvit_s1 cpubone_nano
    efficientvim_m1 crossvit_tiny_240 maxvit_pico_rw_256 coatnet_pico_rw_224 visformer_tiny
    levit_128s eca_botnext26ts_256 lambda_resnet26t halonet26t csatv2 poolformer_s12 convformer_s18
    cait_xxs24_224 gcvit_xxtiny tiny_vit_5m_224 efficientformer_l1 lowformer_b0 nest_tiny
    vit_srelpos_small_patch16_224 vitamin_small_224 tnt_s_legacy_patch16_224 mvitv2_tiny
    twins_svt_small volo_d1_224 sam2_hiera_tiny sequencer2d_s hiera_tiny_224 davit_tiny
    swin_tiny_patch4_window7_224 swinv2_tiny_window8_256 swinv2_cr_tiny_ns_224 focalnet_tiny_srf
    nextvit_small mobilenetv5_base samvit_base_patch16_224 beit_base_patch16_224
    naflexvit_base_patch16_gap qwen3_vit_88m gemma4_vit_167m deepseek_vit_412m mixer_s32_224
    resmlp_12_224""".split()

OUTSIDE: dict[str, tuple[Callable[[], nn.Module], Shape]] = {
    "unet": (outside.UNet, (3, 64, 64)),
    "cifar_resnet20": (outside.CifarResNet20, (3, 32, 32)),
    "espcn": (outside.Espcn, (1, 24, 24)),
    "yolo_detector": (outside.Detector, (3, 64, 64)),
    "crnn": (outside.Crnn, (1, 32, 100)),
    "signal_cnn_1d": (outside.signal_cnn, (2, 256)),
    "volume_cnn_3d": (outside.volume_cnn, (1, 16, 16, 16)),
}

SIZES = (64, 96, 128, 192, 224, 256, 384, 512, 1024)  # tried in order until the network runs


def _named(kind: str, names: list[str]) -> list[str]:
    return [f"{kind}:{name}" for name in names]


MODELS: tuple[str, ...] = (
    *_named("torchvision", TORCHVISION_FIRST[:14]),
    *_named("outside", list(OUTSIDE)),
    *_named("timm", TIMM_CNN),
    *_named("torchvision", TORCHVISION_FIRST[14:]),
    *_named("segmentation", SEGMENTATION[:3]),
    *_named("backbone", BACKBONES[:6]),
    *(name for kind, own in packages.RECIPES.items() for name in _named(kind, list(own))),
    *_named("timm", TIMM_BLOCKS),
    *_named("timm", TIMM_OTHER),
    *_named("torchvision", TORCHVISION_NEXT),
    *_named("segmentation", SEGMENTATION[3:]),
    *_named("backbone", BACKBONES[6:]),
    *_named("torchvision", TORCHVISION_LAST),
)


def build(name: str) -> nn.Module:
    """The network a name stands for; its weights are still to be drawn."""
    kind, _, model = name.partition(":")
    if kind == "outside":
        return OUTSIDE[model][0]()
    if kind in packages.RECIPES:
        return packages.build(kind, model)
    if kind == "timm":
        import timm

        made: nn.Module = timm.create_model(model)
        return made
    from torchvision import models

    if kind == "backbone":
        detector: Any = models.get_model(model, weights=None, weights_backbone=None)
        return nn.Sequential(detector.backbone)
    given = {"weights_backbone": None} if kind == "segmentation" else {}
    inits = {"init_weights": False} if model in ("googlenet", "inception_v3") else {}
    network: nn.Module = models.get_model(model, weights=None, **given, **inits)
    return network


def shapes(name: str) -> Iterator[Shape]:
    """Shapes of one example, the most convenient first."""
    kind, _, model = name.partition(":")
    if kind == "outside":
        yield OUTSIDE[model][1]
    elif kind in packages.RECIPES:
        yield packages.RECIPES[kind][model].shape
    else:
        yield from ((3, size, size) for size in SIZES)


def example(shape: Shape, count: int, seed: int) -> tuple[Tensor, ...]:
    """Random images, the same on every run."""
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn((count, *shape), generator=generator),)
