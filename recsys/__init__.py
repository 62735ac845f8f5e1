"""What the system means: spec, schemas, artifacts, layers, losses, model, metrics.

TensorFlow Recommenders and TensorFlow Transform's layer are built on Keras 2, so
the switch below must be set before TensorFlow is first imported anywhere. Every
package of the project imports ``recsys`` first, which makes this the one place.
"""

import os

os.environ["TF_USE_LEGACY_KERAS"] = "1"
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

__version__ = "0.1.0"
