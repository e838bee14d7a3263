"""The zoo: small instances of real CNN families, for oracles that hold whatever the network.

torchvision's own classes are used wherever they can be made narrow; the rest stands in
``small_networks``. Networks of different seeds are independent and have the same graph.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models import (
    ConvNeXt,
    DenseNet,
    EfficientNet,
    GoogLeNet,
    MobileNetV2,
    MobileNetV3,
    RegNet,
    ResNet,
    ShuffleNetV2,
    SqueezeNet,
    SwinTransformer,
)
from torchvision.models.convnext import CNBlockConfig
from torchvision.models.efficientnet import FusedMBConvConfig, MBConvConfig
from torchvision.models.mobilenetv3 import InvertedResidualConfig
from torchvision.models.regnet import BlockParams
from torchvision.models.resnet import BasicBlock, Bottleneck
from torchvision.models.swin_transformer import PatchMergingV2, SwinTransformerBlockV2
from torchvision.models.vgg import make_layers

from tests import attention_networks as attention
from tests import block_networks as blocks
from tests import composed_networks as composed
from tests import computed_networks as computed
from tests import small_networks as small
from tests import token_networks
from tests.randomise import seeded
from tests.small_networks import CLASSES

Inputs = tuple[Tensor, ...]


@dataclass(frozen=True)
class Network:
    """One architecture: a factory from seed to randomised network, and inputs it accepts."""

    name: str
    make: Callable[[int], nn.Module]
    inputs: Callable[[], Inputs]

    def batch(self, size: int, seed: int) -> Inputs:
        """Other inputs of the same kind: ``size`` of them, drawn with ``seed``."""
        return noise(*((size, *x.shape[1:]) for x in self.inputs()), seed=seed)

    def __str__(self) -> str:
        return self.name


def noise(*shapes: tuple[int, ...], seed: int = 0) -> Inputs:
    """Standard normal tensors, the same on every call."""
    generator = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(shape, generator=generator) for shape in shapes)


def thin(model: nn.Module, factor: int) -> nn.Module:
    """Replace the layers of a network by ones with ``factor`` times fewer channels.

    Counts that don't divide stay: those of images (3) and classes (5). Built from a network on
    the meta device, this costs next to nothing and keeps the family's own forward code.
    """
    for name, child in model.named_children():
        setattr(model, name, _thin_layer(child, factor))
    return model


def _thin_layer(layer: nn.Module, factor: int) -> nn.Module:
    def fewer(count: int) -> int:
        return count if count % factor else count // factor

    match layer:
        case nn.Conv2d():
            depthwise = layer.groups == layer.in_channels
            return nn.Conv2d(
                fewer(layer.in_channels),
                fewer(layer.out_channels),
                layer.kernel_size,  # type: ignore[arg-type]
                layer.stride,  # type: ignore[arg-type]
                layer.padding,  # type: ignore[arg-type]
                layer.dilation,  # type: ignore[arg-type]
                fewer(layer.groups) if depthwise else layer.groups,
                layer.bias is not None,
            )
        case nn.BatchNorm2d():
            return nn.BatchNorm2d(fewer(layer.num_features), layer.eps)
        case nn.Linear():
            return nn.Linear(fewer(layer.in_features), fewer(layer.out_features))
        case _:
            return thin(layer, factor)


def thinned(build: Callable[[], nn.Module], factor: int) -> nn.Module:
    """A real torchvision network with ``factor`` times fewer channels everywhere."""
    with torch.device("meta"):
        model = build()
    return thin(model, factor)


def _resnet(block: type[BasicBlock] | type[Bottleneck], **options: int) -> nn.Module:
    return thinned(partial(ResNet, block, [1, 1, 1, 1], num_classes=CLASSES, **options), 8)


def _vgg() -> nn.Module:
    features = make_layers([6, "M", 10, 12, "M"], batch_norm=True)
    head = [nn.Linear(12 * 4, 13), nn.ReLU(inplace=True), nn.Dropout(), nn.Linear(13, CLASSES)]
    return nn.Sequential(features, nn.AdaptiveAvgPool2d(2), nn.Flatten(), *head)


def _densenet() -> nn.Module:
    return DenseNet(6, (2, 2), num_init_features=8, bn_size=2, num_classes=CLASSES)


def _mobilenet_v2() -> nn.Module:
    setting = [[1, 16, 1, 1], [3, 24, 2, 2], [3, 32, 1, 2]]
    build = partial(MobileNetV2, CLASSES, inverted_residual_setting=setting)
    return thinned(build, 4)


def _mobilenet_v3() -> nn.Module:
    block = partial(InvertedResidualConfig, dilation=1, width_mult=1.0)
    setting = [
        block(16, 3, 16, 16, True, "RE", 2),
        block(16, 3, 48, 24, False, "HS", 2),
        block(24, 5, 72, 24, True, "HS", 1),
    ]
    return thinned(partial(MobileNetV3, setting, last_channel=80, num_classes=CLASSES), 2)


def _efficientnet() -> nn.Module:
    setting = [
        FusedMBConvConfig(2, 3, 1, 16, 16, 1),
        MBConvConfig(3, 3, 2, 16, 24, 2),
        MBConvConfig(2, 5, 2, 24, 32, 1),
    ]
    return thinned(partial(EfficientNet, setting, dropout=0.1, num_classes=CLASSES), 2)


def _regnet() -> nn.Module:
    blocks = BlockParams.from_init_params(3, w_0=8, w_a=8.0, w_m=2.0, group_width=4, se_ratio=0.25)
    return RegNet(blocks, CLASSES, stem_width=6)


def _convnext() -> nn.Module:
    return ConvNeXt([CNBlockConfig(6, 10, 2), CNBlockConfig(10, None, 2)], num_classes=CLASSES)


def _googlenet() -> nn.Module:
    options = {"aux_logits": False, "transform_input": True, "init_weights": False}
    return thinned(partial(GoogLeNet, CLASSES, **options), 8)


def _shufflenet() -> nn.Module:
    return ShuffleNetV2([1, 2, 1], [6, 8, 12, 16, 20], CLASSES)


def _squeezenet() -> nn.Module:
    return thinned(partial(SqueezeNet, "1_1", CLASSES), 8)


def _swin() -> nn.Module:
    """Windows of 2x2, shifted in every second layer; its attention is a function of its weights."""
    return SwinTransformer([4, 4], 12, [2, 2], [2, 3], [2, 2], num_classes=CLASSES)


def _swin_v2() -> nn.Module:
    """Its keys' bias is set to zero in a copy on every call; positions go through a small network.

    Unlike torchvision's own the copy's original isn't zero there, so that a lost write shows.
    """
    sizes = ([4, 4], 12, [2, 2], [2, 3], [2, 2])
    kinds = {"block": SwinTransformerBlockV2, "downsample_layer": PatchMergingV2}
    return SwinTransformer(*sizes, num_classes=CLASSES, **kinds)


def _group_norm(groups: int) -> small.Norm:
    return partial(nn.GroupNorm, groups)


def _plain(norm: small.Norm, activation: Callable[[int], nn.Module]) -> Callable[[], nn.Module]:
    return partial(small.sequential, norm, activation)


def _relu(_: int) -> nn.Module:
    return nn.ReLU()


def _network(name: str, build: Callable[[], nn.Module], *shapes: tuple[int, ...]) -> Network:
    return Network(name, partial(seeded, build), partial(noise, *shapes))


_SMALL = (2, 3, 8, 8)
_INSTANCE_NORM: small.Norm = partial(nn.InstanceNorm2d, affine=True)
_INSTANCE_STATISTICS: small.Norm = partial(nn.InstanceNorm2d, affine=True, track_running_stats=True)
_GROUPED = {"groups": 4, "width_per_group": 16}

_ALL = (
    # torchvision's own classes
    _network("resnet", partial(_resnet, BasicBlock), (2, 3, 48, 48)),
    _network("resnet_bottleneck", partial(_resnet, Bottleneck), (2, 3, 48, 48)),
    _network("resnext", partial(_resnet, Bottleneck, **_GROUPED), (2, 3, 48, 48)),
    _network("densenet", _densenet, (2, 3, 32, 32)),
    _network("vgg", _vgg, (2, 3, 16, 16)),
    _network("mobilenet_v2", _mobilenet_v2, (2, 3, 32, 32)),
    _network("mobilenet_v3", _mobilenet_v3, (2, 3, 32, 32)),
    _network("shufflenet_v2", _shufflenet, (2, 3, 64, 64)),
    _network("efficientnet", _efficientnet, (2, 3, 32, 32)),
    _network("regnet", _regnet, (2, 3, 32, 32)),
    _network("convnext", _convnext, (2, 3, 32, 32)),
    _network("googlenet", _googlenet, (2, 3, 64, 64)),
    _network("squeezenet", _squeezenet, (2, 3, 48, 48)),
    _network("swin", _swin, (2, 3, 32, 32)),
    _network("swin_v2", _swin_v2, (2, 3, 32, 32)),
    # residual streams and norms
    _network("narrow_resnet", small.NarrowResNet, _SMALL),
    _network("se_resnet", partial(small.NarrowResNet, gate=True), _SMALL),
    _network("group_norm_resnet", partial(small.NarrowResNet, (8, 12, 16), _group_norm(4)), _SMALL),
    _network("preactivation_resnet", small.PreActivationResNet, _SMALL),
    _network("frozen_norm", _plain(computed.FrozenNorm, _relu), _SMALL),
    _network("no_norm", _plain(nn.Identity, _relu), _SMALL),
    _network("instance_norm", _plain(_INSTANCE_NORM, _relu), _SMALL),
    _network("instance_norm_statistics", _plain(_INSTANCE_STATISTICS, _relu), _SMALL),
    _network("prelu", _plain(nn.BatchNorm2d, nn.PReLU), _SMALL),
    _network("layer_norm", small.ChannelsLastNet, _SMALL),
    _network("rms_norm", small.RootMeanSquareNet, _SMALL),
    _network("weight_standardised", computed.StandardisedNet, _SMALL),
    _network("same_padding", computed.SameNet, _SMALL),
    _network("smooth", computed.SmoothNet, _SMALL),
    _network("contrast", computed.ContrastNet, _SMALL),
    _network("vlad", computed.VladNet, _SMALL),
    # channels moved, tied, split and gated
    _network("flatten", small.FlattenNet, _SMALL),
    _network("unet", partial(small.UNet, transposed=False), (2, 3, 16, 16)),
    _network("unet_transposed", partial(small.UNet, transposed=True), (2, 3, 16, 16)),
    _network("pixel_shuffle", small.Espcn, (2, 1, 8, 8)),
    _network("channel_attention", small.ChannelAttention, _SMALL),
    _network("gated", small.GatedNet, _SMALL),
    _network("channel_shuffle", small.ShuffleNet, _SMALL),
    _network("grouped", small.GroupedNet, _SMALL),
    _network("separable", small.SeparableNet, _SMALL),
    _network("split_attention", small.SplitAttentionNet, _SMALL),
    _network("selective", attention.SelectiveNet, _SMALL),
    _network("windows", attention.WindowNet, _SMALL),
    _network("infinite_mask", attention.MaskedNet, _SMALL),
    _network("aggregating", attention.AggregatingNet, _SMALL),
    _network("lambda", attention.LambdaNet, _SMALL),
    _network("grid", attention.GridNet, _SMALL),
    _network("wrapped_attention", attention.WrappedNet, _SMALL),
    _network("mixer", token_networks.MixerNet, _SMALL),
    _network("token_gate", token_networks.GateNet, _SMALL),
    _network("registers", token_networks.RegisterNet, _SMALL),
    _network("rotary", token_networks.RotaryNet, _SMALL),
    _network("relative", token_networks.RelativeNet, _SMALL),
    _network("patch_transform", token_networks.TransformNet, _SMALL),
    _network("gates", composed.GatesNet, _SMALL),
    _network("bins", composed.BinsNet, _SMALL),
    _network("keypoints", composed.KeypointsNet, _SMALL),
    _network("anchors", composed.AnchorsNet, _SMALL),
    _network("queries", composed.QueriesNet, _SMALL),
    _network("energy", composed.EnergyNet, _SMALL),
    _network("encoder", composed.EncoderNet, _SMALL),
    _network("involution", composed.InvolutionNet, _SMALL),
    _network("patches", composed.PatchesNet, _SMALL),
    _network("swapped", composed.SwappedNet, _SMALL),
    _network("columns", composed.ColumnsNet, _SMALL),
    _network("columns_gru", partial(composed.ColumnsNet, nn.GRU), _SMALL),
    _network("last_state", composed.LastStateNet, _SMALL),
    _network("last_state_rnn", partial(composed.LastStateNet, nn.RNN), _SMALL),
    _network("nested_blocks", blocks.NestedNet, _SMALL),
    _network("crossed_blocks", blocks.CrossedNet, _SMALL),
    _network("linear_attention", blocks.LinearAttentionNet, _SMALL),
    _network("cross_channel", blocks.CrossChannelNet, _SMALL),
    _network("shared", small.SharedNet, _SMALL),
    _network("padded_shortcut", small.PaddedShortcut, _SMALL),
    # other dimensions, several inputs and outputs, operators nobody knows
    _network("cnn1d", small.Cnn1d, (2, 2, 24)),
    _network("cnn3d", small.Cnn3d, (2, 1, 6, 6, 6)),
    _network("detector", small.Detector, (2, 3, 32, 32)),
    _network("two_inputs", small.TwoInputNet, _SMALL, (2, 4)),
    _network("cumsum", partial(small.OrderNet, lambda: small.running_sum), _SMALL),
    _network("sort", partial(small.OrderNet, lambda: small.sorted_channels), _SMALL),
    _network("sliding_attention", partial(small.OrderNet, small.SlidingAttention), _SMALL),
)

NETWORKS: dict[str, Network] = {network.name: network for network in _ALL}

ORDERED = frozenset({"cumsum", "sort", "sliding_attention"})
"""Networks with hidden channels that cannot move: an operator depends on their order."""

STORABLE = tuple(network for network in _ALL if network.name != "wrapped_attention")
"""Networks that an artefact can hold: they call no function of somebody's own code."""

BATCHNORM_CNNS = frozenset(
    """resnet resnet_bottleneck resnext densenet vgg mobilenet_v2 mobilenet_v3 shufflenet_v2
    efficientnet regnet googlenet narrow_resnet se_resnet preactivation_resnet prelu unet
    unet_transposed channel_attention gated channel_shuffle grouped separable shared cnn1d cnn3d
    padded_shortcut aggregating lambda split_attention selective nested_blocks crossed_blocks
    linear_attention detector two_inputs patch_transform same_padding bins anchors relative
    involution patches keypoints swapped columns columns_gru last_state last_state_rnn smooth
    contrast vlad""".split()
)
"""Networks whose every normalisation is BatchNorm, and where no operator depends on order."""
