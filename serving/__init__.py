"""A published model to ranked items, over HTTP."""

import recsys  # noqa: F401  (Keras switch first)
