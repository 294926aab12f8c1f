import numpy as np
import pytest

from nsk.evaluation.corruptions.constants import CIFAR, CONSTANTS, IMAGENET, TINY


def test_every_set_has_five_severities_of_every_corruption():
    assert list(CIFAR) == list(TINY) == list(IMAGENET)
    assert len(CIFAR) == 19
    for constants in CONSTANTS.values():
        for severities in constants.values():
            assert len(severities) == 5
            assert len(set(severities)) == 5
            assert len({len(parameters) for parameters in severities}) == 1


# Read from make_cifar_c.py, make_tinyimagenet_c.py and make_imagenet_c.py.
@pytest.mark.parametrize(
    ("constants", "name", "severity", "parameters"),
    [
        ("cifar", "gaussian_noise", 5, (0.10,)),
        ("cifar", "shot_noise", 4, (75,)),
        ("cifar", "glass_blur", 4, (0.25, 1, 2)),
        ("cifar", "defocus_blur", 5, (1.5, 0.1)),
        ("cifar", "motion_blur", 4, (8, 2)),
        ("cifar", "zoom_blur", 5, (1.26, 0.01)),
        ("cifar", "snow", 4, (0.25, 0.3, 2.25, 0.6, 12, 6, 0.85)),
        ("cifar", "frost", 3, (0.9, 0.4, 0.2)),
        ("cifar", "fog", 5, (1.5, 1.75)),
        ("cifar", "elastic_transform", 1, (0, 0, 32 * 0.08)),
        ("cifar", "elastic_transform", 3, (32 * 0.08, 32 * 0.06, 32 * 0.06)),
        ("cifar", "spatter", 4, (0.65, 0.1, 0.7, 0.69, 0.6, 1)),
        ("cifar", "saturate", 5, (2.5, 0.2)),
        ("tiny", "impulse_noise", 5, (0.14,)),
        ("tiny", "glass_blur", 4, (0.7, 2, 1)),
        ("tiny", "frost", 5, (0.7, 0.55, 0.3)),
        ("tiny", "elastic_transform", 5, (64 * 0.16, 64 * 0.03, 64 * 0.02)),
        ("tiny", "saturate", 5, (30, 0.2)),
        ("imagenet", "gaussian_noise", 3, (0.18,)),
        ("imagenet", "glass_blur", 5, (1.5, 4, 2)),
        ("imagenet", "zoom_blur", 5, (1.31, 0.03)),
        ("imagenet", "fog", 5, (3, 1.4)),
        ("imagenet", "elastic_transform", 1, (244 * 2, 244 * 0.7, 244 * 0.1)),
        ("imagenet", "jpeg_compression", 5, (7,)),
        ("imagenet", "speckle_noise", 5, (0.6,)),
    ],
)
def test_parameters_are_those_of_the_scripts(constants, name, severity, parameters):
    np.testing.assert_allclose(CONSTANTS[constants][name][severity - 1], parameters, rtol=1e-15)
