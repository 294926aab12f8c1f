import inspect

import pytest

from nsk.evaluation.corruptions import CORRUPTIONS
from nsk.evaluation.corruptions.constants import CONSTANTS


@pytest.mark.parametrize("name", CORRUPTIONS)
def test_every_severity_has_the_arguments_of_the_function(name):
    arguments = list(inspect.signature(CORRUPTIONS[name].kernel).parameters)[2:]
    for constants in CONSTANTS.values():
        assert len(constants[name]) == 5
        for parameters in constants[name]:
            assert len(parameters) == len(set(arguments) - {"textures"})
        assert len(set(constants[name])) == 5


def test_all_sets_have_the_same_corruptions():
    assert all(list(constants) == list(CORRUPTIONS) for constants in CONSTANTS.values())


def test_some_constants_of_the_published_scripts():
    expected = {
        ("cifar", "gaussian_noise", 5): (0.1,),
        ("cifar", "glass_blur", 4): (0.25, 1, 2),
        ("cifar", "elastic_transform", 2): (32 * 0.05, 32 * 0.2, 32 * 0.07),
        ("tiny", "snow", 5): (0.3, 0.3, 1.25, 0.65, 14, 12, 0.6),
        ("tiny", "saturate", 5): (30, 0.2),
        ("tiny", "defocus_blur", 4): (2.5, 0.01),
        ("imagenet", "elastic_transform", 1): (244 * 2, 244 * 0.7, 244 * 0.1),
        ("imagenet", "zoom_blur", 3): (1.21, 0.02),
        ("imagenet", "shot_noise", 5): (3,),
    }
    for (constants, name, severity), parameters in expected.items():
        assert CONSTANTS[constants][name][severity - 1] == parameters
