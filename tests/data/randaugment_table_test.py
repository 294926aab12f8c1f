"""The table of RandAugment's operations: every row is complete, without TensorFlow."""

import inspect
import subprocess
import sys

import numpy as np
import pytest

from nsk.config.noise import RANDAUGMENT_OPERATIONS
from nsk.data import image_kernels
from nsk.data.image_operations import RandAugmentOptions, operation_amount
from nsk.data.randaugment_table import (
    OPERATIONS,
    PROFILES,
    Strength,
    all_operations,
    amounts_as_markdown,
)

# In this order: an image's draw is an index, so that another order changes existing runs.
SIXTEEN = (
    *("auto_contrast", "equalize", "invert", "rotate", "posterize", "solarize", "color"),
    *("contrast", "brightness", "sharpness", "shear_x", "shear_y", "translate_x", "translate_y"),
    *("solarize_add", "cutout"),
)


def test_the_flags_take_the_operations_of_the_table():
    assert tuple(OPERATIONS) == RANDAUGMENT_OPERATIONS == (*SIXTEEN, "identity")


def test_all_operations_contain_identity_only_under_the_profile_linear():
    expected = {"increasing": SIXTEEN, "reference": SIXTEEN, "linear": (*SIXTEEN, "identity")}
    assert {profile: all_operations(profile) for profile in PROFILES} == expected
    for profile, names in expected.items():
        assert RandAugmentOptions(profile=profile).operations == names
    assert RandAugmentOptions(operations=("identity",)).operations == ("identity",)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_has_a_kernel_with_its_arguments(name):
    operation = OPERATIONS[name]
    parameters = list(inspect.signature(getattr(image_kernels, operation.kernel)).parameters)
    num_positional = 1 if operation.amount is None else 2
    assert parameters[0] == "images"
    assert parameters[num_positional:] == list(operation.kernel_arguments)


@pytest.mark.parametrize("profile", PROFILES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_amounts_in_numpy_are_those_in_tensorflow(name, profile):
    operation, options = OPERATIONS[name], RandAugmentOptions(profile=profile, translate_share=0.3)
    for level in np.linspace(0, 1, 31):
        amounts = []
        for sign in (-1.0, 1.0):
            expected = float(operation_amount(name, level, sign, 48, 64, options))
            if operation.amount is None:
                assert expected == 0 and operation.caption(expected) == ""
                return
            strength = Strength(level, sign, 48, 64, 0.3)
            amounts.append(operation.amount.function(profile)(np, strength))
            assert amounts[-1] == expected
            assert operation.caption(expected)
        assert (amounts[0] != amounts[1]) == (operation.is_signed(profile) and level > 0)


def test_the_table_of_the_documentation_has_every_operation():
    lines = amounts_as_markdown(np, levels=(0.5, 1.0), side=100)
    assert lines[0] == "| operation | unit | profile | 0.5 | 1 |"
    assert len({line.count("|") for line in lines}) == 1
    assert list(dict.fromkeys(line.split()[1] for line in lines[2:])) == list(OPERATIONS)
    assert "| rotate | degrees | all | +15 degrees | +30 degrees |" in lines
    assert "| color | factor | reference, linear | x 1.00 | x 1.90 |" in lines
    assert "| cutout | pixels of the side | linear | 20 pixels | 40 pixels |" in lines
    assert "| posterize | bits kept | increasing | 6 bits | 4 bits |" in lines
    assert "| posterize | bits kept | reference | 2 bits | 4 bits |" in lines


def test_the_table_needs_no_tensorflow():
    program = (
        "import sys; import nsk.data.randaugment_table; "
        "assert not {'tensorflow', 'numpy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
