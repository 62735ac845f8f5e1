"""Features to a published model, on Ray Train."""

import recsys  # noqa: F401  (Keras switch first)
