"""Naming the layer in which a value stops being finite."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from recsys.errors import UserError
from recsys.packing import Packing
from recsys.spec.records import Spec

_OF_MODEL = re.compile(r"^ranking_model(_\d+)?/")
"""What Keras puts before a name: how many models were built before this one."""


class NotFiniteError(UserError):
    """A layer gave a value that is NaN or infinite."""

    # Keras makes errors anew to tell of a layer's arguments, and where this one says so is lost;
    # it leaves alone what it takes for its own.
    _keras_call_info_injected = True


@contextmanager
def watched_layers(model: Any, shapes: Path | None = None) -> Iterator[None]:
    """Within the block, every layer that runs eagerly is checked.

    Args:
        model: The model.
        shapes: A file to which each layer's shapes are written, once each.

    Raises:
        NotFiniteError: A layer's output is not finite; it names the layer and its input shapes.
    """
    import tensorflow as tf
    import tf_keras

    layers = [m for m in model.submodules if isinstance(m, tf_keras.layers.Layer)]
    seen: set[int] = set()

    def wrap(layer: Any, call: Callable[..., Any]) -> Callable[..., Any]:
        def checked(*args: Any, **kwargs: Any) -> Any:
            outputs = call(*args, **kwargs)
            if not tf.executing_eagerly():
                return outputs
            taken, given = _tensors((args, kwargs)), _tensors(outputs)
            line = f"{_path(layer)}: {_shapes(taken)} -> {_shapes(given)}"
            if shapes is not None and id(layer) not in seen:
                seen.add(id(layer))
                with open(shapes, "a", encoding="utf-8") as file:
                    file.write(line + "\n")
            for value in given:
                if value.dtype.is_floating and not bool(
                    tf.reduce_all(tf.math.is_finite(tf.cast(value, tf.float32)))
                ):
                    raise NotFiniteError(
                        f"Layer `{_path(layer)}` gave a value that is not finite.",
                        where=line,
                        expected="finite values",
                        found=f"{int(np.sum(~np.isfinite(value.numpy().astype(np.float32))))} "
                        "values that are NaN or infinite",
                    )
            return outputs

        return checked

    originals = [(layer, layer.call) for layer in layers]
    for layer, call in originals:
        layer.call = wrap(layer, call)
    try:
        yield
    finally:
        for layer, _ in originals:
            del layer.call


def first_bad_value(spec: Spec, batch: dict[str, Any], first: int = 0) -> str:
    """The first value of a batch's data that is no number, or ''.

    Args:
        spec: The spec.
        batch: As `training.input.chunks` gives it.
        first: Number of its first row, where it is a part of a batch.

    Returns:
        What it is, and the number of its row.
    """
    numbers, labels, weights = batch["numbers"], batch["labels"], batch["weights"]
    parts = {
        f"feature `{field.name}`": numbers[:, field.start : field.start + field.length]
        for field in Packing.of(spec).numbers
    }
    # A label that is NaN was not observed.
    seen = np.nan_to_num(labels, nan=0.0, posinf=np.inf, neginf=-np.inf)
    parts |= {f"label `{task.name}`": seen[:, [n]] for n, task in enumerate(spec.tasks)}
    parts["the weight"] = weights[:, np.newaxis]
    for name, values in parts.items():
        bad = np.argwhere(~np.isfinite(values))
        if bad.size:
            row, column = bad[0]
            return f"{name} is {values[row, column]} in row {first + row}"
    return ""


def first_bad_layer(model: Any, batch: dict[str, Any]) -> str:
    """The first layer whose output on the batch is not finite, with today's weights; or ''."""
    import tensorflow as tf

    running = tf.config.functions_run_eagerly()
    tf.config.run_functions_eagerly(True)
    try:
        with watched_layers(model):
            model.call({name: tf.constant(value) for name, value in batch.items()}, training=False)
    except NotFiniteError as error:
        return error.where
    finally:
        tf.config.run_functions_eagerly(running)
    return ""


def _path(layer: Any) -> str:
    names = [_OF_MODEL.sub("", weight.name.rsplit("/", 1)[0]) for weight in layer.weights]
    return names[0] if len(set(names)) == 1 else str(layer.name)


def _tensors(structure: Any) -> list[Any]:
    import tensorflow as tf

    return [value for value in tf.nest.flatten(structure) if isinstance(value, tf.Tensor)]


def _shapes(tensors: list[Any]) -> str:
    return ", ".join(f"{t.dtype.name}{list(t.shape)}" for t in tensors) or "nothing"
