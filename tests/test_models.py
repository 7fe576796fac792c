"""models/: sizes, shapes and data that train.py relies on."""

import dataclasses

import numpy as np
import pytest
from sklearn import datasets

import models
from models import inputs, resnet


def test_resnet20_has_the_parameters_of_the_paper():
    # Convolutions, 9 weights for each pair of filters:
    #   stem                                9 *  3 * 16 =     432
    #   stage 1, 6 of 16 -> 16      6 * 9 * 16 * 16     =  13 824
    #   stage 2, 1 of 16 -> 32, 5 of 32 -> 32:
    #           9 * 16 * 32  +  5 * 9 * 32 * 32         =  50 688
    #   stage 3, 1 of 32 -> 64, 5 of 64 -> 64:
    #           9 * 32 * 64  +  5 * 9 * 64 * 64         = 202 752
    # BatchNorms, scale and offset for each of
    #   7 * 16 + 6 * 32 + 6 * 64 = 688 channels         =   1 376
    # Dense                           64 * 10 + 10      =     650
    #                                             sum     269 722
    model = resnet.resnet20((32, 32, 3), 10)
    assert sum(np.prod(v.shape) for v in model.trainable_variables) == 269_722
    # And a moving mean and variance for each of the 688 channels.
    assert sum(np.prod(v.shape) for v in model.non_trainable_variables) == 1_376


@pytest.mark.parametrize("shape", [(8, 8, 1), (32, 32, 3), (7, 13, 2)])
def test_resnet20_takes_images_of_any_size(shape):
    model = models.build("resnet20", shape, 5)
    logits = model(np.ones((3, *shape), np.float32))
    assert logits.shape == (3, 5)


def test_shortcut_takes_every_other_pixel_and_adds_empty_channels():
    image = np.arange(25, dtype=np.float32).reshape(1, 5, 5, 1)
    short = np.array(resnet._shortcut(np.repeat(image, 2, axis=-1), filters=4, strides=2))
    # 5 x 5 pixels, rows 0-4, 5-9, …; the two channels lie between one new one on either side.
    assert short[0, :, :, 1].tolist() == [[0, 2, 4], [10, 12, 14], [20, 22, 24]]
    assert short[0, :, :, 2].tolist() == [[0, 2, 4], [10, 12, 14], [20, 22, 24]]
    assert not short[..., [0, 3]].any()


def test_digits_are_split_into_disjoint_parts_that_cover_all():
    training, validation = (list(part.as_numpy_iterator()) for part in inputs.find("digits").load())
    assert (len(training), len(validation)) == (1437, 360)
    everything = datasets.load_digits()
    for index, (image, label) in enumerate(zip(everything.images, everything.target, strict=True)):
        # Number 0, 5, 10, … must be the next of one part, any other number of the other.
        mine, its_label = (training if index % 5 else validation).pop(0)
        np.testing.assert_array_equal(mine[..., 0] * 16, image)
        assert its_label == label
    assert not training and not validation


def test_digits_are_what_the_registry_says():
    data = inputs.find("digits")
    training, _ = data.load()
    images, labels = next(training.batch(2000).as_numpy_iterator())
    assert images.shape == (data.training_examples, *data.input_shape)
    assert images.dtype == np.float32
    assert (images.min(), images.max()) == (0, 1)
    assert sorted(set(labels)) == list(range(data.classes))


def test_batches_are_full_and_in_a_new_order_each_time():
    data = dataclasses.replace(inputs.find("digits"), augment=None)
    training, _ = data.load()
    batches = data.batches(training.take(10), 4)
    passes = [np.concatenate([x for x, _ in batches.as_numpy_iterator()]) for _ in range(4)]
    # 10 examples are two batches of 4, all different; two examples are left out of each pass.
    assert all(len(np.unique(images, axis=0)) == len(images) == 8 for images in passes)
    assert any((passes[0] != images).any() for images in passes[1:])


def test_augmentation_shifts_by_at_most_one_pixel():
    images = np.zeros((400, 8, 8, 1), np.float32)
    images[:, 0, 4] = 1  # on the upper edge
    shifted = np.array(inputs._shift(images))
    assert shifted.shape == images.shape
    places = [tuple(np.argwhere(image[..., 0])[0]) for image in shifted if image.any()]
    assert set(places) == {(row, column) for row in (0, 1) for column in (3, 4, 5)}
    # A third of them, 133 +- 9, has moved up and out of the image, and nothing came in below.
    assert 300 > len(places) > 230


def test_unknown_names_are_answered_with_the_known_ones():
    with pytest.raises(ValueError, match=r"Unknown model 'resnet19'\. Known models: .*resnet20"):
        models.build("resnet19", (8, 8, 1), 10)
    with pytest.raises(ValueError, match=r"Unknown dataset 'digit'\. Known datasets: .*digits"):
        inputs.find("digit")
