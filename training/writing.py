"""TensorFlow's writes, which tell what the system refused in words of their own."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from recsys.errors import OF_WRITING


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Within the block, TensorFlow's faults of writing are those of the system.

    Args:
        path: What is written, to be named.

    Raises:
        OSError: There is no space, or no permission.
    """
    import tensorflow as tf

    try:
        yield
    except tf.errors.OpError as error:
        # Its codes are fewer than the system's, and one of them is of memory too.
        for number in OF_WRITING:
            if os.strerror(number) in str(error):
                raise OSError(number, os.strerror(number), str(path)) from error
        raise
