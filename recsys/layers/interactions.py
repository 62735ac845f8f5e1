"""Feature interactions by name: factorization machine, cross network, dot products."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import tensorflow as tf
import tensorflow_recommenders as tfrs
import tf_keras

from recsys.layers.checks import (
    require_floating,
    require_known_axis,
    require_positive,
    require_rank,
)
from recsys.layers.pairwise_interaction import PairwiseInteraction

KINDS = ("fm", "cross", "dot")


@tf_keras.utils.register_keras_serializable(package="recsys")
class CrossNetwork(tf_keras.layers.Layer):
    """Explicit crosses of bounded degree: ``x_{l+1} = x_0 * (W_l x_l + b_l) + x_l``.

    A stack of TFRS ``Cross`` layers (DCN-v2: Wang et al. 2021,
    https://arxiv.org/abs/2008.13535). ``L`` layers hold all crosses up to degree ``L + 1``.

    Args:
      layers: number of cross layers, at least 1.
      projection_dim: rank of ``W``; ``None`` for a full matrix.

    Input: float ``[batch, width]``. Output: the same shape, in the compute dtype.
    """

    def __init__(self, layers: int = 2, projection_dim: int | None = None, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.depth = require_positive("CrossNetwork", "layers", layers)
        self.projection_dim = projection_dim
        if projection_dim is not None:
            require_positive("CrossNetwork", "projection_dim", projection_dim)
        self.crosses = [
            tfrs.layers.dcn.Cross(
                projection_dim=projection_dim, dtype=self._dtype_policy, name=f"cross_{index}"
            )
            for index in range(self.depth)
        ]

    def build(self, input_shape: Any) -> None:
        require_rank("CrossNetwork", "x", input_shape, "[batch, width]")
        width = require_known_axis("CrossNetwork", "x", input_shape, 1, "[batch, width]")
        # TFRS makes the weights of a cross in its first call only, not in its build.
        with tf.init_scope():
            for cross in self.crosses:
                cross(tf.zeros([1, width], self.compute_dtype))
        super().build(input_shape)

    def call(self, x: tf.Tensor) -> tf.Tensor:
        x0 = require_floating("CrossNetwork", "x", x)
        require_rank("CrossNetwork", "x", x0.shape, "[batch, width]")
        x = x0
        for cross in self.crosses:
            x = cross(x0, x)
        return x

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "layers": self.depth,
            "projection_dim": self.projection_dim,
        }


@tf_keras.utils.register_keras_serializable(package="recsys")
class DotProducts(tf_keras.layers.Layer):
    """Dot products of all pairs of field vectors, as in DLRM.

    Naumov et al. 2019, https://arxiv.org/abs/1906.00091. The values are those of TFRS
    ``DotInteraction``, which masks its products by value and then gathers them, and so
    takes 1.4 to 4.8 times as long on a CPU (docs/benchmarks.md).

    Input: float ``[batch, fields, dim]``, fields known when the layer is built.
    Output: ``[batch, fields * (fields - 1) / 2]`` in the compute dtype, the products
    (1, 0), (2, 0), (2, 1), (3, 0), and so on.
    """

    def build(self, input_shape: Any) -> None:
        require_known_axis("DotProducts", "embeddings", input_shape, 1, "[batch, fields, dim]")
        super().build(input_shape)

    def call(self, embeddings: tf.Tensor) -> tf.Tensor:
        embeddings = require_floating("DotProducts", "embeddings", embeddings)
        require_rank("DotProducts", "embeddings", embeddings.shape, "[batch, fields, dim]")
        if embeddings.shape[1] == 1:
            return embeddings[:, 0, :0]
        return _below_diagonal(tf.matmul(embeddings, embeddings, transpose_b=True))


@tf.custom_gradient
def _below_diagonal(square: tf.Tensor) -> Any:
    """Entries below the diagonals of matrices [batch, n, n], row by row: [batch, n(n - 1)/2].

    Rows are cut and joined, here and in the gradient: a CPU copies runs of numbers many times
    as fast as it gathers single ones, and the gradient of a cut alone is as large as all rows.
    """
    size = square.shape[1]

    def grad(upstream: tf.Tensor) -> tf.Tensor:
        zeros = tf.zeros([tf.shape(upstream)[0], size], upstream.dtype)
        parts, start = [zeros], 0
        for row in range(1, size):
            parts += [upstream[:, start : start + row], zeros[:, row:]]
            start += row
        return tf.reshape(tf.concat(parts, axis=1), [-1, size, size])

    return tf.concat([square[:, row, :row] for row in range(1, size)], axis=1), grad


def make_interaction(
    kind: str,
    *,
    cross_layers: int = 2,
    cross_projection: int | None = None,
    **kwargs: Any,
) -> tf_keras.layers.Layer:
    """Make one interaction layer.

    Args:
      kind: ``"fm"`` (`PairwiseInteraction`), ``"cross"`` (`CrossNetwork`) or ``"dot"``
        (`DotProducts`).
      cross_layers: layers of the cross network.
      cross_projection: rank of its matrices; ``None`` for full ones.
      **kwargs: of the Keras layer: ``name``, ``dtype``.

    Raises:
      ValueError: an unknown kind.
    """
    if kind == "fm":
        return PairwiseInteraction(**kwargs)
    if kind == "cross":
        return CrossNetwork(cross_layers, cross_projection, **kwargs)
    if kind == "dot":
        return DotProducts(**kwargs)
    raise ValueError(f"An interaction must be one of {list(KINDS)}, but received {kind!r}.")


@tf_keras.utils.register_keras_serializable(package="recsys")
class Interactions(tf_keras.layers.Layer):
    """Any of the interactions, side by side.

    Args:
      kinds: some of ``"fm"``, ``"cross"``, ``"dot"``, in the order of their outputs.
      cross_layers: layers of the cross network.
      cross_projection: rank of its matrices; ``None`` for full ones.

    Call arguments:
      inputs: the pair of embeddings, float ``[batch, fields, dim]``, and dense features,
        float ``[batch, numbers]`` or ``None``. The dense features enter the cross network
        only.

    Output: ``[batch, width]``, the outputs concatenated: ``dim`` for fm, ``fields * dim +
    numbers`` for cross, ``fields * (fields - 1) / 2`` for dot.

    Raises:
      ValueError: unknown or repeated kinds, or inputs of another rank.

    >>> layer = Interactions(["fm", "dot"])
    >>> layer((tf.ones([2, 3, 4]), None)).shape
    TensorShape([2, 7])
    """

    def __init__(
        self,
        kinds: Sequence[str],
        cross_layers: int = 2,
        cross_projection: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.kinds = (kinds,) if isinstance(kinds, str) else tuple(kinds)
        if len(set(self.kinds)) != len(self.kinds):
            raise ValueError(f"Interactions requires distinct kinds, received {self.kinds}.")
        self.cross_layers = cross_layers
        self.cross_projection = cross_projection
        self.parts = [
            make_interaction(
                kind,
                cross_layers=cross_layers,
                cross_projection=cross_projection,
                name=kind,
                dtype=self._dtype_policy,
            )
            for kind in self.kinds
        ]

    def call(self, inputs: Any) -> tf.Tensor:
        if not isinstance(inputs, list | tuple) or len(inputs) != 2:
            raise ValueError(
                "Interactions requires the pair (embeddings, dense), dense possibly None, "
                f"but received {type(inputs).__name__}."
            )
        embeddings = require_floating("Interactions", "embeddings", inputs[0])
        require_rank("Interactions", "embeddings", embeddings.shape, "[batch, fields, dim]")
        outputs = []
        for part in self.parts:
            if isinstance(part, CrossNetwork):
                outputs.append(part(self._flat(embeddings, inputs[1])))
            else:
                outputs.append(part(embeddings))
        if not outputs:
            return tf.zeros([tf.shape(embeddings)[0], 0], self.compute_dtype)
        return outputs[0] if len(outputs) == 1 else tf.concat(outputs, axis=-1)

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "kinds": list(self.kinds),
            "cross_layers": self.cross_layers,
            "cross_projection": self.cross_projection,
        }

    def _flat(self, embeddings: tf.Tensor, dense: Any) -> tf.Tensor:
        flat = tf.reshape(embeddings, [-1, embeddings.shape[1] * embeddings.shape[2]])
        if dense is None:
            return flat
        dense = require_floating("Interactions", "dense", dense)
        require_rank("Interactions", "dense", dense.shape, "[batch, numbers]")
        return tf.concat([flat, tf.cast(dense, flat.dtype)], axis=-1)
