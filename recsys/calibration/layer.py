"""The fitted map as a layer of the exported graph."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from recsys.calibration.record import Calibration


@tf_keras.utils.register_keras_serializable(package="recsys")
class CalibrationLayer(tf_keras.layers.Layer):
    """Calibrates logits as `Calibration.apply` does, to 1e-6 in probability.

    That holds for logits that spread by 0.05 or more. Of those of a model that has hardly
    learned, the map is so steep that it multiplies the rounding of float32 (3e-5 at 0.001).

    The parameters are constants of the graph, and only ops that LiteRT has built in are
    used: a comparison with every break in place of a search.

    Args:
        record: the calibration, or the dict of its `to_json`.

    Call: float logits of any shape in; the same shape out, float32 (a probability that
    is rounded to a half-precision float is calibrated no longer).

    >>> layer = CalibrationLayer(Calibration("temperature", {"temperature": 2.0}))
    >>> layer(tf.constant([0.0])).numpy().tolist()
    [0.5]
    """

    def __init__(self, record: Calibration | Mapping[str, Any], **kwargs: Any) -> None:
        kwargs.setdefault("dtype", "float32")
        super().__init__(trainable=kwargs.pop("trainable", False), **kwargs)
        self.record = record if isinstance(record, Calibration) else Calibration.from_json(record)

    def call(self, logits: tf.Tensor) -> tf.Tensor:
        """Return calibrated probabilities, the shape of `logits`."""
        x = tf.cast(logits, tf.float32)
        breaks, *tables = (a.astype(np.float32) for a in self.record.segments())
        if breaks.size:
            piece = tf.reduce_sum(tf.cast(x[..., tf.newaxis] >= breaks, tf.int32), axis=-1)
            x0, y0, slope = (tf.gather(tf.constant(t), piece) for t in tables)
        else:
            x0, y0, slope = (tf.constant(t[0]) for t in tables)
        return tf.math.sigmoid(y0 + slope * (x - x0))

    def get_config(self) -> dict[str, Any]:
        """Return what `from_config` needs."""
        return {**super().get_config(), "record": self.record.to_json()}
