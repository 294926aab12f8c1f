import cv2
import numpy as np
import pytest
from PIL import Image

from nsk.errors import UserError
from nsk.evaluation.corruptions.frost_textures import (
    procedural_textures,
    read_textures,
    resize_texture,
)


def test_reads_the_first_five_images_by_name_without_alpha(tmp_path):
    rng = np.random.default_rng(1)
    written = {}
    for name in ("f.png", "b.png", "a.png", "c.PNG", "e.png", "d.png"):
        written[name] = rng.integers(0, 256, (5, 7, 4), np.uint8)
        Image.fromarray(written[name]).save(tmp_path / name)
    (tmp_path / "a.txt").write_text("not an image")
    textures = read_textures(tmp_path)
    names = ["a.png", "b.png", "c.PNG", "d.png", "e.png"]
    for name, texture in zip(names, textures, strict=True):
        np.testing.assert_array_equal(texture, written[name][..., :3])


def test_reads_jpeg_and_gray_files_as_rgb(tmp_path):
    gray = np.arange(48, dtype=np.uint8).reshape(6, 8)
    Image.fromarray(gray).save(tmp_path / "gray.png")
    Image.fromarray(gray).save(tmp_path / "other.jpeg", quality=100)
    for texture in read_textures(str(tmp_path)):
        assert texture.shape == (6, 8, 3)
        assert np.abs(texture - gray[..., np.newaxis].astype(int)).max() <= 1


def test_folders_without_images_and_broken_files_are_errors(tmp_path):
    for folder in (tmp_path, tmp_path / "missing"):
        with pytest.raises(UserError, match=r"has no JPEG or PNG files.*Give the folder"):
            read_textures(folder)
    (tmp_path / "frost1.png").write_bytes(b"broken")
    with pytest.raises(UserError, match=r"frost1\.png cannot be read as an image"):
        read_textures(tmp_path)


@pytest.mark.parametrize(("scale", "tolerance"), [(0.2, 0), (0.3, 0), (1, 0), (1.7, 1)])
def test_resizes_as_opencv(scale, tolerance):
    texture = np.random.default_rng(2).integers(0, 256, (123, 77, 3), np.uint8)
    expected = cv2.resize(texture, (0, 0), fx=scale, fy=scale)
    resized = resize_texture(texture, scale)
    assert np.abs(resized.astype(int) - expected).max() <= tolerance


def test_procedural_textures_are_five_different_bluish_ones():
    textures = procedural_textures()
    assert [texture.shape for texture in textures] == [(384, 512, 3)] * 5
    means = np.array([texture.mean((0, 1)) for texture in textures])
    deviations = np.array([texture.std() for texture in textures])
    assert (np.diff(means, axis=1) > 0).all()
    # The published five: means of 131 to 207, deviations of 15 to 44 in a channel.
    assert 100 < means.mean(1).min() < means.mean(1).max() < 210
    assert ((deviations > 15) & (deviations < 50)).all()
    assert procedural_textures() is textures
    # Needles and clouds: neighbours are alike, but not all.
    for texture in textures:
        steps = np.abs(np.diff(texture[..., 1].astype(int), axis=1))
        assert 5 < steps.mean() < 18
        assert steps.max() > 15
