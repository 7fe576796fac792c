"""models/images.py: what is changed to train on, and what is not to validate on."""

import numpy as np
import pytest
import tensorflow as tf

from models import images


def batch(recipe, pictures, training=True):
    """The first batch that a recipe makes of these pictures, with their numbers as labels."""
    labels = np.arange(len(pictures), dtype=np.int32)
    examples = tf.data.Dataset.from_tensor_slices((pictures, labels))
    make = recipe.training if training else recipe.validation
    return next(make(examples, len(pictures)).as_numpy_iterator())


def coordinates(height, width):
    """uint8 `[height, width, 3]`: red grows to the right, green downwards, from 0 to 255."""
    down, right = np.meshgrid(np.linspace(0, 1, height), np.linspace(0, 1, width), indexing="ij")
    return np.round(255 * np.stack([right, down, 0 * down], -1)).astype(np.uint8)


def test_shifts_move_by_at_most_one_pixel():
    pictures = np.zeros((400, 8, 8, 1), np.float32)
    pictures[:, 0, 4] = 1  # on the upper edge
    shifted, _ = batch(images.Images((8, 8, 1), 10, shift=1), pictures)
    assert shifted.shape == pictures.shape
    places = [tuple(np.argwhere(image[..., 0])[0]) for image in shifted if image.any()]
    assert set(places) == {(row, column) for row in (0, 1) for column in (3, 4, 5)}
    # A third of them, 133 +- 9, has moved up and out of the image, and nothing came in below.
    assert 300 > len(places) > 230


def test_shifts_by_four_are_all_crops_of_a_border_of_four():
    pictures = np.zeros((2000, 9, 9, 1), np.float32)
    pictures[:, 4, 4] = 1  # the middle: it stays inside
    shifted = np.array(images.shifted(tf.constant(pictures), 4))
    places = {tuple(np.argwhere(image[..., 0])[0]) for image in shifted}
    assert places == {(row, column) for row in range(9) for column in range(9)}


def test_half_are_mirrored():
    pictures = np.zeros((1000, 3, 4, 3), np.uint8)
    pictures[:, :, 0] = 255
    mirrored, labels = batch(images.Images((3, 4, 3), 10, flip=True), pictures)
    left, right = mirrored[:, 1, 0, 0], mirrored[:, 1, 3, 0]
    assert (left + right == 1).all()
    assert 420 < left.sum() < 580  # 500 +- 16
    assert labels.tolist() == list(range(1000))


def test_scaling_takes_integers_to_one_and_then_mean_and_deviation():
    pictures = np.full((1, 2, 2, 3), 255, np.uint8)
    plain, _ = batch(images.Images((2, 2, 3), 10), pictures, training=False)
    assert plain.dtype == np.float32
    np.testing.assert_allclose(plain, 1, rtol=1e-6)
    recipe = images.Images((2, 2, 3), 10, mean=(0.5, 0.25, 0.0), std=(0.5, 0.25, 0.1))
    scaled, _ = batch(recipe, pictures, training=False)
    np.testing.assert_allclose(scaled[0, 0, 0], [1, 3, 10], rtol=1e-5)


@pytest.mark.parametrize("encode", [tf.io.encode_jpeg, tf.io.encode_png])
def test_random_crops_are_of_the_areas_and_aspects_of_the_paper(encode):
    height, width = 300, 400
    tf.random.set_seed(1)  # the pixels of a small crop say its size with an error
    file = encode(coordinates(height, width)).numpy()
    crop = tf.function(images.random_crop)
    crops = np.array([crop(file) for _ in range(300)])
    assert crops.shape == (300, 224, 224, 3)
    # What is left and right of a row, and above and below in a column, says how large the part is.
    wide = (crops[:, 112, -1, 0] - crops[:, 112, 0, 0]) / 255
    high = (crops[:, -1, 112, 1] - crops[:, 0, 112, 1]) / 255
    area, aspect = wide * high, wide * width / (high * height)
    assert 0.07 < area.min() < 0.2 and 0.7 < area.max() < 1.01
    assert 0.72 < aspect.min() < 0.85 and 1.2 < aspect.max() < 1.4
    assert np.ptp(crops[:, 112, 0, 0]) > 100 and np.ptp(crops[:, 0, 112, 1]) > 60


@pytest.mark.parametrize("shape", [(300, 400), (401, 300), (64, 50)])
@pytest.mark.parametrize("encode", [tf.io.encode_jpeg, tf.io.encode_png])
def test_middle_is_that_of_the_image_resized_to_256(encode, shape):
    image = coordinates(*shape)
    small = 256 / min(shape)
    resized = tf.image.resize(image, [round(side * small) for side in shape])
    top, left = ((side - 224) // 2 for side in resized.shape[:2])
    expected = resized[top : top + 224, left : left + 224]
    found = images.middle(encode(image).numpy())
    # A pixel of the file on either side, and what JPEG rounds.
    assert np.abs(found - expected).max() < 2 * 255 / min(shape) + 4


def test_files_become_batches_with_the_mean_of_imagenet():
    gray = np.full((40, 60, 1), 255, np.uint8)
    files = [tf.io.encode_jpeg(gray).numpy(), tf.io.encode_png(gray[:30]).numpy()]
    recipe = images.Images((224, 224, 3), 10, **images.IMAGENET, flip=True, encoded=True)
    for training in (True, False):
        found, labels = batch(recipe, files, training)
        assert found.shape == (2, 224, 224, 3)
        assert sorted(labels) == [0, 1]
        # (1 - 0.485) / 0.229, (1 - 0.456) / 0.224, (1 - 0.406) / 0.225
        np.testing.assert_allclose(found[1, 9, 9], [2.2489, 2.4286, 2.64], atol=1e-4)
