import pytest
import tensorflow as tf
import tf_keras

import recsys  # noqa: F401  (sets the Keras switch that TFRS needs)


@pytest.fixture(autouse=True)
def fixed_seed():
    """Every test starts from the same random state and the default precision."""
    tf.random.set_seed(7)
    tf_keras.utils.set_random_seed(7)
    yield
    tf_keras.mixed_precision.set_global_policy("float32")
