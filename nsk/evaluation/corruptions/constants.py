"""Severities of the corruptions: the parameters of the published sets.

Each has five tuples, for severity 1 to 5, of the arguments that follow the random numbers in the
corruption's function. They are those of the scripts that made CIFAR-10-C (32 pixels),
Tiny-ImageNet-C (64 pixels) and ImageNet-C (224 pixels).

Reference:
    https://github.com/hendrycks/robustness at 8190fe3: make_cifar_c.py, make_tinyimagenet_c.py,
    make_imagenet_c.py
"""

Severities = tuple[tuple[float, ...], ...]


def _values(*values: float) -> Severities:
    """Severities of a corruption with one parameter."""
    return tuple((value,) for value in values)


def _elastic(side: int, *rows: tuple[float, float, float]) -> Severities:
    """Severities of the elastic transformation: shares of a side, as pixels."""
    return tuple(tuple(side * value for value in row) for row in rows)


ZOOM_SMALL = ((1.06, 0.01), (1.11, 0.01), (1.16, 0.01), (1.21, 0.01), (1.26, 0.01))

CIFAR = {
    "gaussian_noise": _values(0.04, 0.06, 0.08, 0.09, 0.10),
    "shot_noise": _values(500, 250, 100, 75, 50),
    "impulse_noise": _values(0.01, 0.02, 0.03, 0.05, 0.07),
    "defocus_blur": ((0.3, 0.4), (0.4, 0.5), (0.5, 0.6), (1, 0.2), (1.5, 0.1)),
    "glass_blur": ((0.05, 1, 1), (0.25, 1, 1), (0.4, 1, 1), (0.25, 1, 2), (0.4, 1, 2)),
    "motion_blur": ((6, 1), (6, 1.5), (6, 2), (8, 2), (9, 2.5)),
    "zoom_blur": ZOOM_SMALL,
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.95),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.9),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.9),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.8),
    ),
    "frost": ((1, 0.2, 0.2), (1, 0.3, 0.2), (0.9, 0.4, 0.2), (0.85, 0.4, 0.2), (0.75, 0.45, 0.2)),
    "fog": ((0.2, 3), (0.5, 3), (0.75, 2.5), (1, 2), (1.5, 1.75)),
    "brightness": _values(0.05, 0.1, 0.15, 0.2, 0.3),
    "contrast": _values(0.75, 0.5, 0.4, 0.3, 0.15),
    "elastic_transform": _elastic(
        32,
        (0, 0, 0.08),
        (0.05, 0.2, 0.07),
        (0.08, 0.06, 0.06),
        (0.1, 0.04, 0.05),
        (0.1, 0.03, 0.03),
    ),
    "pixelate": _values(0.95, 0.9, 0.85, 0.75, 0.65),
    "jpeg_compression": _values(80, 65, 58, 50, 40),
    "speckle_noise": _values(0.06, 0.1, 0.12, 0.16, 0.2),
    "gaussian_blur": _values(0.4, 0.6, 0.7, 0.8, 1),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.5, 0),
        (0.65, 0.1, 0.8, 0.7, 0.5, 0),
        (0.65, 0.3, 1, 0.69, 0.5, 0),
        (0.65, 0.1, 0.7, 0.69, 0.6, 1),
        (0.65, 0.1, 0.5, 0.68, 0.6, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (1.5, 0), (2, 0.1), (2.5, 0.2)),
}
TINY = {
    "gaussian_noise": _values(0.04, 0.08, 0.12, 0.15, 0.18),
    "shot_noise": _values(250, 100, 50, 30, 15),
    "impulse_noise": _values(0.01, 0.02, 0.05, 0.08, 0.14),
    "defocus_blur": ((0.5, 0.6), (1, 0.1), (1.5, 0.1), (2.5, 0.01), (3, 0.1)),
    "glass_blur": ((0.1, 1, 1), (0.5, 1, 1), (0.6, 1, 2), (0.7, 2, 1), (0.9, 2, 2)),
    "motion_blur": ((10, 1), (10, 1.5), (10, 2), (10, 2.5), (12, 3)),
    "zoom_blur": ZOOM_SMALL,
    "snow": (
        (0.1, 0.2, 1, 0.6, 8, 3, 0.8),
        (0.1, 0.2, 1, 0.5, 10, 4, 0.8),
        (0.15, 0.3, 1.75, 0.55, 10, 4, 0.7),
        (0.25, 0.3, 2.25, 0.6, 12, 6, 0.65),
        (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
    ),
    "frost": ((1, 0.3, 0.3), (0.9, 0.4, 0.3), (0.8, 0.45, 0.3), (0.75, 0.5, 0.3), (0.7, 0.55, 0.3)),
    "fog": ((0.4, 3), (0.7, 3), (1, 2.5), (1.5, 2), (2, 1.75)),
    "brightness": _values(0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": _values(0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": _elastic(
        64,
        (0, 0, 0.08),
        (0.05, 0.3, 0.06),
        (0.1, 0.08, 0.06),
        (0.1, 0.03, 0.03),
        (0.16, 0.03, 0.02),
    ),
    "pixelate": _values(0.9, 0.8, 0.7, 0.6, 0.5),
    "jpeg_compression": _values(65, 58, 50, 40, 25),
    "speckle_noise": _values(0.15, 0.2, 0.25, 0.3, 0.35),
    "gaussian_blur": _values(0.5, 0.75, 1, 1.25, 1.5),
    "spatter": (
        (0.62, 0.1, 0.7, 0.7, 0.6, 0),
        (0.65, 0.1, 0.8, 0.7, 0.6, 0),
        (0.65, 0.3, 1, 0.69, 0.6, 0),
        (0.65, 0.1, 0.7, 0.68, 0.6, 1),
        (0.65, 0.1, 0.5, 0.67, 0.6, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (30, 0.2)),
}
IMAGENET = {
    "gaussian_noise": _values(0.08, 0.12, 0.18, 0.26, 0.38),
    "shot_noise": _values(60, 25, 12, 5, 3),
    "impulse_noise": _values(0.03, 0.06, 0.09, 0.17, 0.27),
    "defocus_blur": ((3, 0.1), (4, 0.5), (6, 0.5), (8, 0.5), (10, 0.5)),
    "glass_blur": ((0.7, 1, 2), (0.9, 2, 1), (1, 2, 3), (1.1, 3, 2), (1.5, 4, 2)),
    "motion_blur": ((10, 3), (15, 5), (15, 8), (15, 12), (20, 15)),
    "zoom_blur": ((1.11, 0.01), (1.16, 0.01), (1.21, 0.02), (1.26, 0.02), (1.31, 0.03)),
    "snow": (
        (0.1, 0.3, 3, 0.5, 10, 4, 0.8),
        (0.2, 0.3, 2, 0.5, 12, 4, 0.7),
        (0.55, 0.3, 4, 0.9, 12, 8, 0.7),
        (0.55, 0.3, 4.5, 0.85, 12, 8, 0.65),
        (0.55, 0.3, 2.5, 0.85, 12, 12, 0.55),
    ),
    "frost": ((1, 0.4, 1), (0.8, 0.6, 1), (0.7, 0.7, 1), (0.65, 0.7, 1), (0.6, 0.75, 1)),
    "fog": ((1.5, 2), (2, 2), (2.5, 1.7), (2.5, 1.5), (3, 1.4)),
    "brightness": _values(0.1, 0.2, 0.3, 0.4, 0.5),
    "contrast": _values(0.4, 0.3, 0.2, 0.1, 0.05),
    "elastic_transform": _elastic(
        244,
        (2, 0.7, 0.1),
        (2, 0.08, 0.2),
        (0.05, 0.01, 0.02),
        (0.07, 0.01, 0.02),
        (0.12, 0.01, 0.02),
    ),
    "pixelate": _values(0.6, 0.5, 0.4, 0.3, 0.25),
    "jpeg_compression": _values(25, 18, 15, 10, 7),
    "speckle_noise": _values(0.15, 0.2, 0.35, 0.45, 0.6),
    "gaussian_blur": _values(1, 2, 3, 4, 6),
    "spatter": (
        (0.65, 0.3, 4, 0.69, 0.6, 0),
        (0.65, 0.3, 3, 0.68, 0.6, 0),
        (0.65, 0.3, 2, 0.68, 0.5, 0),
        (0.65, 0.3, 1, 0.65, 1.5, 1),
        (0.67, 0.4, 1, 0.65, 1.5, 1),
    ),
    "saturate": ((0.3, 0), (0.1, 0), (2, 0), (5, 0.1), (20, 0.2)),
}
CONSTANTS = {"cifar": CIFAR, "tiny": TINY, "imagenet": IMAGENET}
