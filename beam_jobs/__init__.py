"""Raw logs to features, on Apache Beam and TensorFlow Transform."""

import recsys  # noqa: F401  (Keras switch first)
