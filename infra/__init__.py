"""How the system is run: the command line, the local run, the shipped specs."""

import recsys  # noqa: F401  (Keras switch first)
