"""Input checks shared by the layers: what was expected, what was found, and where."""

from __future__ import annotations

from typing import Any

import tensorflow as tf


def require_rank(layer: str, argument: str, shape: Any, layout: str) -> None:
    """Raise ``ValueError`` unless ``shape`` has as many axes as ``layout`` names.

    Args:
      layer: name of the calling layer class.
      argument: name of the argument that is checked.
      shape: a ``tf.TensorShape``, or anything that converts to one.
      layout: axis names, such as ``"[batch, fields, dim]"``.
    """
    shape = tf.TensorShape(shape)
    expected = layout.count(",") + 1
    if shape.rank is not None and shape.rank != expected:
        raise ValueError(
            f"{layer} requires `{argument}` of shape {layout} (rank {expected}), "
            f"but received shape {shape} (rank {shape.rank})."
        )


def require_known_axis(layer: str, argument: str, shape: Any, axis: int, layout: str) -> int:
    """Return the static size of ``axis``; raise ``ValueError`` where it is not known."""
    size = tf.TensorShape(shape)[axis]
    if size is None:
        raise ValueError(
            f"{layer} requires axis {axis} of `{argument}` {layout} to be known when it is "
            f"built, but received shape {tf.TensorShape(shape)}."
        )
    return int(size)


def require_floating(layer: str, argument: str, tensor: Any) -> tf.Tensor:
    """Return ``tensor`` as a tensor; raise ``ValueError`` unless it holds floats."""
    tensor = tf.convert_to_tensor(tensor)
    if not tensor.dtype.is_floating:
        raise ValueError(
            f"{layer} requires a floating-point `{argument}`, "
            f"but received dtype {tensor.dtype.name}."
        )
    return tensor


def require_integer(layer: str, argument: str, tensor: Any) -> tf.Tensor:
    """Return ``tensor`` as a tensor; raise ``ValueError`` unless it holds integers."""
    tensor = tf.convert_to_tensor(tensor)
    if not tensor.dtype.is_integer:
        raise ValueError(
            f"{layer} requires an integer `{argument}` (int32 or int64), "
            f"but received dtype {tensor.dtype.name}."
        )
    return tensor


def require_positive(layer: str, argument: str, value: int) -> int:
    """Return ``value``; raise ``ValueError`` unless it is a whole number above zero."""
    if isinstance(value, bool) or int(value) != value or value < 1:
        raise ValueError(f"{layer} requires `{argument}` of at least 1, but received {value!r}.")
    return int(value)
