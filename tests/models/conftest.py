"""EfficientNet-B0 of this project and of `keras.applications`, built once for all tests."""

import keras
import numpy as np
import pytest

from nsk.models import build_model, efficientnet
from tests.models.checkpoint_files import IMAGE_SIZE, NUM_CLASSES, random_pixels, randomize


@pytest.fixture(scope="session")
def network():
    """This project's network; tests replace its weights."""
    return build_model("efficientnet_b0", num_classes=NUM_CLASSES, image_size=IMAGE_SIZE)


@pytest.fixture(scope="session")
def reference():
    """The network of `keras.applications` with random weights, and its logits."""
    model = keras.applications.EfficientNetB0(
        weights=None,
        classifier_activation=None,
        name="reference",
        input_shape=(IMAGE_SIZE, IMAGE_SIZE, 3),
        classes=NUM_CLASSES,
    )
    randomize(model)
    (layer,) = (layer for layer in model.layers if isinstance(layer, keras.layers.Normalization))
    moments = (efficientnet.MEAN, np.square(efficientnet.DEVIATION), 0)
    layer.set_weights([np.asarray(moment) for moment in moments])
    layer.finalize_state()
    return model, model(random_pixels()).numpy()
