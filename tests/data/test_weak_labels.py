import cv2
import numpy as np
import pytest
import skimage.data

from contrique.data.weak_labels import weak_label


def test_identical_pictures_are_perfect() -> None:
    picture = skimage.data.chelsea()
    assert weak_label(picture, picture) == pytest.approx(1, abs=1e-5)


def test_falls_as_blur_and_noise_grow() -> None:
    picture = skimage.data.chelsea()
    rng = np.random.default_rng(0)
    noise = rng.standard_normal(picture.shape)
    blur_labels = [weak_label(cv2.GaussianBlur(picture, (0, 0), s), picture) for s in (0.5, 1, 2, 4)]
    noisy = [weak_label(np.clip(picture + s * noise, 0, 255).astype(np.uint8), picture) for s in (4, 10, 25)]
    for labels in (blur_labels, noisy):
        assert labels == sorted(labels, reverse=True)
        assert all(0 <= label < 1 for label in labels)


def test_shapes_must_agree() -> None:
    with pytest.raises(ValueError, match="one shape"):
        weak_label(np.zeros((32, 32, 3), np.uint8), np.zeros((32, 33, 3), np.uint8))
