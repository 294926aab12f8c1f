"""All perturbations: frame counts, independence of the batch, crops, errors."""

import numpy as np
import pytest
from PIL import Image

from nsk.evaluation.perturbations import PERTURBATIONS, perturb
from tests.evaluation.perturbations.photos import photographs

MOVING = ["zoom_blur", "translate", "rotate", "tilt", "scale"]
ALL_NAMES = ["gaussian_noise", "shot_noise", "motion_blur", "zoom_blur", "snow", "brightness"]
ALL_NAMES += MOVING[1:]

parametrize_names = pytest.mark.parametrize("name", ALL_NAMES)


def all_frames(images, name, ids=None, **arguments):
    """Array (n, frames, height, width, 3)."""
    ids = [f"image {index}" for index in range(len(images))] if ids is None else ids
    return np.stack(list(perturb(images, name, ids, **arguments)), axis=1)


def test_the_ten_perturbations_in_the_order_of_the_paper():
    assert list(PERTURBATIONS) == ALL_NAMES
    assert all(name == perturbation.name for name, perturbation in PERTURBATIONS.items())
    noises = {name for name, perturbation in PERTURBATIONS.items() if perturbation.is_noise}
    assert noises == {"gaussian_noise", "shot_noise"}
    moving = {name for name, perturbation in PERTURBATIONS.items() if perturbation.is_geometric}
    assert moving == set(MOVING)


@parametrize_names
@pytest.mark.parametrize("constants", ["cifar", "tiny", "imagenet"])
def test_frames_have_the_published_number_shape_and_type(name, constants):
    expected = {
        ("motion_blur", "cifar"): 21,
        ("translate", "cifar"): 16,
        ("translate", "imagenet"): 41,
    }.get((name, constants), 31)
    images = photographs(12, 9)
    frames = list(perturb(images, name, ["a", "b"], constants=constants))
    assert len(frames) == expected == PERTURBATIONS[name].num_frames(constants)
    assert {frame.shape for frame in frames} == {images.shape}
    assert {frame.dtype for frame in frames} == {np.dtype(np.uint8)}


@parametrize_names
def test_images_are_left_as_they_are_and_frames_are_arrays_of_their_own(name):
    images = photographs(8, 8)
    before = images.copy()
    for frame in perturb(images, name, ["a", "b"]):
        frame[:] = 7
    np.testing.assert_array_equal(images, before)


@parametrize_names
def test_pixels_do_not_depend_on_the_batch(name):
    images = photographs(20, 14, number=5)
    ids = list("abcde")
    together = all_frames(images, name, ids, seed=3)
    order = [3, 0, 4]
    np.testing.assert_array_equal(
        all_frames(images[order], name, [ids[index] for index in order], seed=3), together[order]
    )
    np.testing.assert_array_equal(all_frames(images[1:2], name, ["b"], seed=3), together[1:2])


@parametrize_names
def test_no_image_and_one_pixel(name):
    empty = np.zeros((0, 5, 6, 3), np.uint8)
    frames = list(perturb(empty, name, []))
    assert len(frames) == PERTURBATIONS[name].num_frames("cifar")
    assert {frame.shape for frame in frames} == {empty.shape}
    dot = np.full((1, 1, 1, 3), 90, np.uint8)
    assert all_frames(dot, name, ["a"]).shape[2:] == (1, 1, 3)


@pytest.mark.parametrize("name", ["gaussian_noise", "shot_noise", "snow"])
def test_random_numbers_depend_on_id_and_seed(name):
    images = np.repeat(photographs(16, 16, number=1), 2, axis=0)
    frames = all_frames(images, name, ["a", "b"], seed=1)[:, -1]
    assert np.mean(frames[0] != frames[1]) > 0.1
    other_seed = all_frames(images, name, ["a", "b"], seed=2)[:, -1]
    assert np.mean(frames != other_seed) > 0.1


@pytest.mark.parametrize("name", sorted(set(ALL_NAMES) - {"gaussian_noise", "shot_noise", "snow"}))
def test_the_other_perturbations_are_not_random(name):
    images = photographs(16, 16)
    np.testing.assert_array_equal(
        all_frames(images, name, ["a", "b"], seed=1), all_frames(images, name, ["c", "d"], seed=2)
    )


@parametrize_names
@pytest.mark.parametrize("side", [12, 13])
def test_content_from_outside_of_the_crop_moves_into_it_in_geometric_perturbations_alone(
    name, side
):
    images = photographs(19, 24)
    # Pillow and torchvision crop at round((length - side) / 2), halves to the even number.
    top, left = {12: (4, 6), 13: (3, 6)}[side]
    area = slice(top, top + side), slice(left, left + side)
    cropped = all_frames(images, name, crop_side=side)
    if name in MOVING:
        expected = all_frames(images, name)[:, :, *area]
    else:
        expected = all_frames(np.ascontiguousarray(images[:, *area]), name)
    np.testing.assert_array_equal(cropped, expected)


def test_moved_images_of_the_size_of_imagenet_p():
    """A crop of 224 of an image of 256 x 300, against Pillow."""
    images = photographs(256, 300, number=1)
    frame = next(perturb(images, "rotate", ["a"], crop_side=224))
    rotated = Image.fromarray(images[0]).rotate(15, Image.Resampling.BILINEAR)
    expected = np.asarray(rotated.crop((38, 16, 38 + 224, 16 + 224)))
    assert np.mean(frame[0] != expected) < 1e-3


def test_constants_follow_the_side_of_the_frames():
    """By their numbers of frames: of translate 16, 31 and 41."""

    def num_frames(height, width, **arguments):
        images = np.zeros((1, height, width, 3), np.uint8)
        return len(list(perturb(images, "translate", ["a"], **arguments)))

    assert [num_frames(28, 28), num_frames(32, 400)] == [16, 16]
    assert [num_frames(64, 64), num_frames(96, 128)] == [31, 31]
    assert [num_frames(160, 160), num_frames(256, 300)] == [41, 41]
    assert num_frames(256, 300, crop_side=32) == 16
    assert num_frames(8, 8, constants="imagenet") == 41


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"name": "spatter"}, "perturbation 'spatter': expected one of gaussian_noise, "),
        ({"images": np.zeros((2, 8, 8, 3))}, "images float64"),
        ({"images": np.zeros((2, 8, 8), np.uint8)}, r"expected uint8 \(n, height, width, 3\)"),
        ({"images": np.zeros((2, 8, 8, 1), np.uint8)}, r"expected uint8 \(n, height, width, 3\)"),
        ({"images": np.zeros((2, 8, 0, 3), np.uint8)}, "at least one pixel"),
        ({"ids": ["a"]}, "1 ids for 2 images"),
        ({"constants": "cifar100"}, "constants='cifar100': expected auto or cifar, tiny"),
        ({"crop_side": 9}, "crop_side=9: expected 1 to 8"),
        ({"crop_side": 0}, "crop_side=0: expected 1 to 8"),
    ],
)
def test_errors_are_raised_before_the_first_frame(change, message):
    arguments = {"images": np.zeros((2, 8, 9, 3), np.uint8), "name": "tilt", "ids": ["a", "b"]}
    with pytest.raises(ValueError, match=message):
        perturb(**{**arguments, **change})
