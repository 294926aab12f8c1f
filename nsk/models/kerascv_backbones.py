"""Architectures of KerasCV's backbones for images.

KerasCV 0.9 downloads even the architecture of a named backbone. This table makes that unnecessary
for a network without pretrained weights. The tests compare the numbers of parameters with those
that KerasCV publishes with its presets.
"""

import dataclasses
from typing import Any

# Width and depth factors of EfficientNet B0 to B7.
EFFICIENTNET_SCALES = {
    "b0": (1.0, 1.0),
    "b1": (1.0, 1.1),
    "b2": (1.1, 1.2),
    "b3": (1.2, 1.4),
    "b4": (1.4, 1.8),
    "b5": (1.6, 2.2),
    "b6": (1.8, 2.6),
    "b7": (2.0, 3.1),
}
# Repeats of each stage; input filters of the first stage and output filters of each stage.
EFFICIENTNET_V2 = {
    "s": ([2, 4, 4, 6, 9, 15], [24, 24, 48, 64, 128, 160, 256]),
    "m": ([3, 5, 5, 7, 14, 18, 5], [24, 24, 48, 80, 160, 176, 304, 512]),
    "l": ([4, 7, 7, 10, 19, 25, 7], [32, 32, 64, 96, 192, 224, 384, 640]),
    **dict.fromkeys(("b0", "b1", "b2", "b3"), ([1, 2, 2, 3, 5, 8], [32, 16, 32, 48, 96, 112, 192])),
}
# Blocks of each stage and their type, by depth.
RESNETS = {
    18: ([2, 2, 2, 2], "basic_block"),
    34: ([3, 4, 6, 3], "basic_block"),
    50: ([3, 4, 6, 3], "block"),
    101: ([3, 4, 23, 3], "block"),
    152: ([3, 8, 36, 3], "block"),
}
# Channels and depths of the stages.
CSP_DARKNETS = {
    "tiny": ([48, 96, 192, 384], [1, 3, 3, 1]),
    "s": ([64, 128, 256, 512], [1, 3, 3, 1]),
    "m": ([96, 192, 384, 768], [2, 6, 6, 2]),
    "l": ([128, 256, 512, 1024], [3, 9, 9, 3]),
    "xl": ([170, 340, 680, 1360], [4, 12, 12, 4]),
}
YOLOS_V8 = {
    "xs": ([32, 64, 128, 256], [1, 2, 2, 1]),
    "s": ([64, 128, 256, 512], [1, 2, 2, 1]),
    "m": ([96, 192, 384, 576], [2, 4, 4, 2]),
    "l": ([128, 256, 512, 512], [3, 6, 6, 3]),
    "xl": ([160, 320, 640, 640], [3, 6, 6, 3]),
}
# Repeats of the stages, by depth.
DENSENETS = {121: [6, 12, 24, 16], 169: [6, 12, 32, 32], 201: [6, 12, 48, 32]}
# Depths and widths of the stages.
MIX_TRANSFORMERS = {
    "b0": ([2, 2, 2, 2], [32, 64, 160, 256]),
    "b1": ([2, 2, 2, 2], [64, 128, 320, 512]),
    "b2": ([3, 4, 6, 3], [64, 128, 320, 512]),
    "b3": ([3, 4, 18, 3], [64, 128, 320, 512]),
    "b4": ([3, 8, 27, 3], [64, 128, 320, 512]),
    "b5": ([3, 6, 40, 3], [64, 128, 320, 512]),
}
# One row per block: expansion, filters, kernel size, strides, squeeze ratio, activation.
MOBILENETS_V3 = {
    "small": [
        (1, 16, 3, 2, 0.25, "relu"),
        (72 / 16, 24, 3, 2, None, "relu"),
        (88 / 24, 24, 3, 1, None, "relu"),
        (4, 40, 5, 2, 0.25, "hard_swish"),
        (6, 40, 5, 1, 0.25, "hard_swish"),
        (6, 40, 5, 1, 0.25, "hard_swish"),
        (3, 48, 5, 1, 0.25, "hard_swish"),
        (3, 48, 5, 1, 0.25, "hard_swish"),
        (6, 96, 5, 2, 0.25, "hard_swish"),
        (6, 96, 5, 1, 0.25, "hard_swish"),
        (6, 96, 5, 1, 0.25, "hard_swish"),
    ],
    "large": [
        (1, 16, 3, 1, None, "relu"),
        (4, 24, 3, 2, None, "relu"),
        (3, 24, 3, 1, None, "relu"),
        (3, 40, 5, 2, 0.25, "relu"),
        (3, 40, 5, 1, 0.25, "relu"),
        (3, 40, 5, 1, 0.25, "relu"),
        (6, 80, 3, 2, None, "hard_swish"),
        (2.5, 80, 3, 1, None, "hard_swish"),
        (2.3, 80, 3, 1, None, "hard_swish"),
        (2.3, 80, 3, 1, None, "hard_swish"),
        (6, 112, 3, 1, 0.25, "hard_swish"),
        (6, 112, 3, 1, 0.25, "hard_swish"),
        (6, 160, 5, 2, 0.25, "hard_swish"),
        (6, 160, 5, 1, 0.25, "hard_swish"),
        (6, 160, 5, 1, 0.25, "hard_swish"),
    ],
}


@dataclasses.dataclass(frozen=True)
class Backbone:
    """How to build a backbone, and its limits.

    Attributes:
        class_name: name of its class in `keras_cv.models`.
        arguments: arguments of its constructor, except for those of the input.
        presets: names of KerasCV's presets with weights, by the data set of their training.
        divisor: the side of an image must be a multiple of it.
        min_size: smallest side of an image in pixels, if larger than that of all backbones (32).
    """

    class_name: str
    arguments: dict[str, Any]
    presets: dict[str, str] = dataclasses.field(default_factory=dict)
    divisor: int = 1
    min_size: int = 0


def _efficientnet_v1(scale):
    width, depth = EFFICIENTNET_SCALES[scale]
    return {
        "width_coefficient": width,
        "depth_coefficient": depth,
        "stackwise_kernel_sizes": [3, 3, 5, 3, 5, 5, 3],
        "stackwise_num_repeats": [1, 2, 2, 3, 3, 4, 1],
        "stackwise_input_filters": [32, 16, 24, 40, 80, 112, 192],
        "stackwise_output_filters": [16, 24, 40, 80, 112, 192, 320],
        "stackwise_expansion_ratios": [1, 6, 6, 6, 6, 6, 6],
        "stackwise_strides": [1, 2, 2, 2, 1, 2, 1],
    }


def _efficientnet_v2(variant):
    width, depth = EFFICIENTNET_SCALES.get(variant, (1.0, 1.0))
    repeats, filters = EFFICIENTNET_V2[variant]
    stages = len(repeats)
    return {
        "width_coefficient": width,
        "depth_coefficient": depth,
        "stackwise_kernel_sizes": [3] * stages,
        "stackwise_num_repeats": repeats,
        "stackwise_input_filters": filters[:-1],
        "stackwise_output_filters": filters[1:],
        "stackwise_expansion_ratios": [1, 4, 4, 4, 6, 6, 6][:stages],
        "stackwise_squeeze_and_excite_ratios": [0, 0, 0, 0.25, 0.25, 0.25, 0.25][:stages],
        "stackwise_strides": [1, 2, 2, 2, 1, 2, 1][:stages],
        "stackwise_conv_types": (["fused"] * 3 + ["unfused"] * 4)[:stages],
    }


def _mobilenet_v3(variant):
    names = ("expansion", "filters", "kernel_size", "stride", "se_ratio", "activation")
    columns = zip(*MOBILENETS_V3[variant], strict=True)
    return {f"stackwise_{name}": list(column) for name, column in zip(names, columns, strict=True)}


def _stages(channels, depth):
    return {"stackwise_channels": channels, "stackwise_depth": depth}


def _efficientnets():
    for scale in EFFICIENTNET_SCALES:
        arguments = _efficientnet_v1(scale)
        with_squeeze = {**arguments, "stackwise_squeeze_and_excite_ratios": [0.25] * 7}
        yield f"efficientnetv1_{scale}", Backbone("EfficientNetV1Backbone", with_squeeze)
        if scale <= "b4":
            yield f"efficientnetlite_{scale}", Backbone("EfficientNetLiteBackbone", arguments)
    for variant in EFFICIENTNET_V2:
        name = f"efficientnetv2_{variant}"
        presets = {"imagenet": f"{name}_imagenet"} if variant in ("s", "b0", "b1", "b2") else {}
        yield name, Backbone("EfficientNetV2Backbone", _efficientnet_v2(variant), presets)


def _resnets():
    for suffix, class_name in (("", "ResNetBackbone"), ("_v2", "ResNetV2Backbone")):
        for depth, (blocks, block_type) in RESNETS.items():
            arguments = {
                "stackwise_filters": [64, 128, 256, 512],
                "stackwise_blocks": blocks,
                "stackwise_strides": [1, 2, 2, 2],
                "block_type": block_type,
            }
            presets = {"imagenet": f"resnet50{suffix}_imagenet"} if depth == 50 else {}
            yield f"resnet{depth}{suffix}", Backbone(class_name, arguments, presets)


def _backbones():
    """Yields (name, `Backbone`)."""
    yield from _efficientnets()
    for variant in MOBILENETS_V3:
        name = f"mobilenet_v3_{variant}"
        presets = {"imagenet": f"{name}_imagenet"}
        yield name, Backbone("MobileNetV3Backbone", _mobilenet_v3(variant), presets)
    yield from _resnets()
    for depth, repeats in DENSENETS.items():
        presets = {"imagenet": f"densenet{depth}_imagenet"}
        arguments = {"stackwise_num_repeats": repeats}
        yield f"densenet{depth}", Backbone("DenseNetBackbone", arguments, presets)
    for variant, stages in CSP_DARKNETS.items():
        name = f"csp_darknet_{variant}"
        presets = {"imagenet": f"{name}_imagenet"} if variant in ("tiny", "l") else {}
        yield name, Backbone("CSPDarkNetBackbone", _stages(*stages), presets, divisor=2)
    for variant, stages in YOLOS_V8.items():
        presets = {"coco": f"yolo_v8_{variant}_backbone_coco"}
        yield f"yolo_v8_{variant}", Backbone("YOLOV8Backbone", _stages(*stages), presets)
    for variant, (depths, widths) in MIX_TRANSFORMERS.items():
        name = f"mit_{variant}"
        presets = {"imagenet": f"{name}_imagenet"} if variant == "b0" else {}
        arguments = {"depths": depths, "embedding_dims": widths}
        yield name, Backbone("MiTBackbone", arguments, presets, divisor=32, min_size=64)
    yield "vgg16", Backbone("VGG16Backbone", {"include_top": False})


BACKBONES = dict(_backbones())
