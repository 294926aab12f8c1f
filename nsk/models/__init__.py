"""Networks, and the files that hold their weights."""

import sys

from nsk.models.families import (
    PRECISIONS,
    build_model,
    check_image_size,
    check_name,
    is_for_small_images,
    model_names,
)

__all__ = [
    "PRECISIONS",
    "build_model",
    "check_image_size",
    "check_name",
    "is_for_small_images",
    "model_names",
]

# Keras traverses a network by recursion, one call for each layer of its longest path. For
# EfficientNet-L2 this takes almost the 1,000 calls of Python's default limit.
sys.setrecursionlimit(max(10_000, sys.getrecursionlimit()))
