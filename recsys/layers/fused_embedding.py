"""Embedding tables of one width, fused into one variable and looked up row by distinct row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tensorflow as tf
import tf_keras

from recsys.layers.checks import require_integer, require_positive, require_rank
from recsys.layers.precision import at_least_float32, read_weight

# Row of the variable that padding points at. It holds zeros and is never trained.
PADDING_ROW = 0

# The optimizer tells tables from dense weights by this name of their variable.
TABLE_VARIABLE = "fused_table"


def _expand(
    distinct: tf.Tensor, positions: tf.Tensor, present: tf.Tensor, dtype: tf.DType
) -> tf.Tensor:
    """Copy ``distinct[positions]`` (rank 1) in `dtype`; the gradient is summed back by position.

    ``present`` is 1 for an id and 0 for padding, whose gradient is so left out.
    """

    @tf.custom_gradient
    def copied(distinct: tf.Tensor) -> Any:
        def grad(upstream: tf.Tensor) -> tf.Tensor:
            # Summed in the table's own precision: a frequent row adds up thousands of terms.
            upstream = tf.cast(upstream, distinct.dtype)
            return _sum_by_position(upstream, positions, present, tf.shape(distinct)[0])

        # Cast before the copies are made: there are fewer distinct rows than ids.
        return tf.gather(tf.cast(distinct, dtype), positions), grad

    return copied(distinct)


def _sum_by_position(
    values: tf.Tensor, positions: tf.Tensor, present: tf.Tensor, count: tf.Tensor
) -> tf.Tensor:
    """Sum rows of ``values`` by position, weighted: float [count, dim].

    As the product of a sparse matrix of ``present`` with the values, which on a CPU takes
    a sixth of the time of an unsorted segment sum.
    """
    # The backward pass runs outside of the layer's scope; a profile tells it by this name.
    with tf.name_scope("embedding_gradient"):
        # [position, column] pairs, each written as the two halves of one integer: interleaving
        # two vectors by tf.stack takes several times as long.
        columns = tf.range(tf.size(positions, out_type=tf.int64))
        pairs = tf.bitcast(columns * 2**32 + tf.cast(positions, tf.int64), tf.int32)
        return tf.raw_ops.SparseTensorDenseMatMul(
            a_indices=pairs,
            a_values=tf.cast(present, values.dtype),
            a_shape=tf.cast(tf.stack([count, tf.size(positions)]), tf.int64),
            b=values,
        )


@tf_keras.utils.register_keras_serializable(package="recsys")
class FusedEmbedding(tf_keras.layers.Layer):
    """Several embedding tables of one width in one variable, looked up together.

    Table ``t`` occupies rows ``offset(t)`` to ``offset(t) + rows`` of a variable of shape
    ``[1 + total_rows, dim]``; row 0 holds zeros for padding. All ids of one call are made
    distinct first, so that each row is read once, and the gradient is a
    ``tf.IndexedSlices`` with distinct indices, whose size does not depend on the tables.

    An id below zero is padding: it embeds as zeros and receives no gradient. An id
    beyond its table counts as the table's last row, where a vocabulary's
    out-of-vocabulary bucket lies. Neither ever fails.

    Each call, and each method that looks up, makes its own gather. A step that needs
    several lookups should make one: declare ``lists``, or use `lookup_all`. (Gradients
    of several gathers are concatenated by TensorFlow, with indices that repeat.)

    Args:
      tables: rows by table name, in the order in which they lie; a mapping, or a sequence
        of (name, rows) pairs.
      dim: width of the rows.
      fields: table of each column of a matrix of ids; a table may serve several columns.
      lists: table by name of each multi-valued feature or history.
      output_dim: width of what is returned. Where it differs from ``dim``, each table has
        a projection ``[dim, output_dim]`` of its own, so that narrow tables can join wide
        ones (mixed dimension embeddings: Ginart et al. 2019,
        https://arxiv.org/abs/1909.11810).
      initializer: of the rows; by default normal with deviation ``stddev``.
      stddev: deviation of the default initializer.

    Call arguments:
      inputs: int32 or int64 ids ``[batch, len(fields)]``, or a dictionary with any of
        ``"fields"`` (such a matrix) and ``"lists"`` (ids of any shape by list name).
      training: only an explicit ``False`` matters: rows are then gathered directly,
        which is faster for small batches; the gradient's indices may then repeat.

    Output: ``[batch, len(fields), output_dim]`` in the compute dtype, or a dictionary of
    the same keys as the input, where a list of ids ``[...]`` becomes ``[..., output_dim]``.

    Raises:
      ValueError: ids that are not integers, a matrix whose width is not ``len(fields)``,
        an unknown table or list, or tables that together pass the range of int32.

    >>> layer = FusedEmbedding({"user": 10, "item": 5}, dim=4, fields=["user", "item"])
    >>> layer(tf.constant([[9, 0], [3, -1]])).shape
    TensorShape([2, 2, 4])
    >>> layer.offset("item")
    11
    """

    def __init__(
        self,
        tables: Mapping[str, int] | Sequence[tuple[str, int]],
        dim: int,
        fields: Sequence[str] = (),
        lists: Mapping[str, str] | Sequence[tuple[str, str]] = (),
        output_dim: int | None = None,
        initializer: Any = None,
        stddev: float = 0.01,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        name = "FusedEmbedding"
        # Kept as pairs: Keras' tracking of dictionary attributes sorts them by key.
        self._tables = tuple(
            (table, require_positive(name, f"tables[{table!r}]", rows))
            for table, rows in _pairs(tables)
        )
        if not self._tables:
            raise ValueError("FusedEmbedding requires at least one table, but received none.")
        if len({t for t, _ in self._tables}) != len(self._tables):
            raise ValueError(
                f"FusedEmbedding requires distinct table names, received {self._tables}."
            )
        self.dim = require_positive(name, "dim", dim)
        self.output_dim = require_positive(name, "output_dim", output_dim or dim)
        self.stddev = float(stddev)
        self._places = {}
        start = PADDING_ROW + 1
        for index, (table, rows) in enumerate(self._tables):
            self._places[table] = (index, start, rows)
            start += rows
        self.total_rows = start
        if self.total_rows > tf.int32.max:
            raise ValueError(
                f"FusedEmbedding requires fewer than 2**31 rows in all, but received {start - 1}; "
                "split the tables over two layers."
            )
        self.fields = tuple(fields)
        self._lists = tuple(_pairs(lists))
        for table in [*self.fields, *(t for _, t in self._lists)]:
            self._place(table)
        self.initializer = tf_keras.initializers.get(
            initializer or tf_keras.initializers.RandomNormal(stddev=self.stddev)
        )

    @property
    def tables(self) -> dict[str, int]:
        """Rows by table name, in the order in which they lie in the variable."""
        return dict(self._tables)

    @property
    def lists(self) -> dict[str, str]:
        """Table name by list name."""
        return dict(self._lists)

    def offset(self, table: str) -> int:
        """First row of ``table`` in the fused variable."""
        return self._place(table)[1]

    def build(self, input_shape: Any = None) -> None:
        # No autocast: rows are cast after they are gathered, never the whole variable.
        self.table = self.add_weight(
            TABLE_VARIABLE,
            shape=[self.total_rows, self.dim],
            initializer=self._draw_table,
            experimental_autocast=False,
        )
        self.projection = None
        if self.output_dim != self.dim:
            limit = (6.0 / (self.dim + self.output_dim)) ** 0.5
            self.projection = self.add_weight(
                "projection",
                shape=[len(self._tables), self.dim, self.output_dim],
                initializer=tf_keras.initializers.RandomUniform(-limit, limit),
            )
        super().build(input_shape)

    def get_build_config(self) -> dict[str, Any]:
        return {"input_shape": None}

    def build_from_config(self, config: dict[str, Any]) -> None:
        if not self.built:
            self.build(None)

    def call(self, inputs: Any, training: bool | None = None) -> Any:
        if not isinstance(inputs, Mapping):
            return self._look_up([(self._field_rows(inputs), self.fields)], training)[0]
        if not inputs or not set(inputs) <= {"fields", "lists"}:
            raise ValueError(
                "FusedEmbedding requires a dictionary with the keys 'fields' and 'lists' "
                f"(either or both), but received the keys {sorted(inputs)}."
            )
        ids_of = dict(inputs.get("lists", {}))
        unknown = sorted(set(ids_of) - set(self.lists))
        if unknown:
            raise ValueError(
                f"FusedEmbedding requires lists among {sorted(self.lists)}, but received {unknown}."
            )
        requests: list[tuple[tf.Tensor, Any]] = [
            (self._rows(self.lists[name], ids), self.lists[name]) for name, ids in ids_of.items()
        ]
        if "fields" in inputs:
            requests.append((self._field_rows(inputs["fields"]), self.fields))
        found = self._look_up(requests, training)
        output: dict[str, Any] = {}
        if "fields" in inputs:
            output["fields"] = found.pop()
        if "lists" in inputs:
            output["lists"] = dict(zip(ids_of, found, strict=True))
        return output

    def get_config(self) -> dict[str, Any]:
        return {
            **super().get_config(),
            "tables": [list(pair) for pair in self._tables],
            "dim": self.dim,
            "fields": list(self.fields),
            "lists": [list(pair) for pair in self._lists],
            "output_dim": self.output_dim,
            "initializer": tf_keras.initializers.serialize(self.initializer),
            "stddev": self.stddev,
        }

    def _place(self, table: str) -> tuple[int, int, int]:
        if table not in self._places:
            raise ValueError(
                f"FusedEmbedding has the tables {list(self._places)}, but was asked for {table!r}."
            )
        return self._places[table]

    def _rows(self, table: str, ids: Any) -> tf.Tensor:
        ids = require_integer("FusedEmbedding", "ids", ids)
        _, start, rows = self._place(table)
        return _to_rows(ids, start, rows - 1)

    def _field_rows(self, ids: Any) -> tf.Tensor:
        ids = require_integer("FusedEmbedding", "fields", ids)
        require_rank("FusedEmbedding", "fields", ids.shape, "[batch, fields]")
        if ids.shape[1] not in (None, len(self.fields)):
            raise ValueError(
                f"FusedEmbedding requires one column for each of its {len(self.fields)} fields "
                f"{list(self.fields)}, but received shape {ids.shape}."
            )
        places = [self._place(table) for table in self.fields]
        return _to_rows(ids, [start for _, start, _ in places], [rows - 1 for *_, rows in places])

    def _look_up(
        self, requests: Sequence[tuple[tf.Tensor, Any]], training: bool | None
    ) -> list[tf.Tensor]:
        if training is False:
            found = [
                tf.cast(tf.gather(self.table, rows), self.compute_dtype) for rows, _ in requests
            ]
        else:
            found = self._look_up_distinct([rows for rows, _ in requests])
        if self.projection is None:
            return found
        tables = [table for _, table in requests]
        return [self._project(rows, table) for rows, table in zip(found, tables, strict=True)]

    def _look_up_distinct(self, requests: Sequence[tf.Tensor]) -> list[tf.Tensor]:
        flat = [tf.reshape(rows, [-1]) for rows in requests]
        together = flat[0] if len(flat) == 1 else tf.concat(flat, axis=0)
        unique, positions = tf.unique(together)
        present = tf.cast(together != PADDING_ROW, self.table.dtype)
        distinct = tf.gather(self.table, unique)
        expanded = _expand(distinct, positions, present, self.compute_dtype)
        parts = [expanded]
        if len(flat) > 1:
            parts = tf.split(expanded, [tf.size(rows) for rows in flat])
        found = []
        for rows, part in zip(requests, parts, strict=True):
            embedded = tf.reshape(part, tf.concat([tf.shape(rows), [self.dim]], axis=0))
            embedded.set_shape(rows.shape.concatenate([self.dim]))
            found.append(embedded)
        return found

    def _project(self, rows: tf.Tensor, table: Any) -> tf.Tensor:
        projection = read_weight(self.projection, self.compute_dtype)
        if not isinstance(table, str):
            each = tf.gather(projection, [self._place(t)[0] for t in table])
            return tf.einsum("bfd,fdo->bfo", rows, each)
        return tf.tensordot(rows, projection[self._place(table)[0]], axes=1)

    def _draw_table(self, shape: Any, dtype: Any = None, **_: Any) -> tf.Tensor:
        # A table of gigabytes must not exist twice while the model is made. As a graph, the
        # product overwrites the table, where eager ops and a scatter copy it. The size comes as
        # a tensor, for TensorFlow computes what hangs on constants alone once more, to fold it.
        drawn_by_size = isinstance(self.initializer, tf_keras.initializers.RandomNormal)

        @tf.function(autograph=False)
        def draw(size: tf.Tensor) -> tf.Tensor:
            table = self.initializer(size if drawn_by_size else shape, dtype=dtype)
            kept = tf.not_equal(tf.range(size[0]), PADDING_ROW)[:, tf.newaxis]
            return tf.ensure_shape(table * tf.cast(kept, table.dtype), shape)

        return draw(tf.constant(shape))


def _pairs(named: Mapping[str, Any] | Sequence[tuple[str, Any]]) -> list[tuple[str, Any]]:
    """A mapping, or pairs (lists of two, after a round trip through JSON), as pairs."""
    items = named.items() if isinstance(named, Mapping) else named
    return [(name, value) for name, value in items]


def _to_rows(ids: tf.Tensor, start: Any, last: Any) -> tf.Tensor:
    """Ids of a table to int32 rows of the variable: padding to 0, too large to the last."""
    clamped = tf.minimum(ids, tf.cast(last, ids.dtype)) + tf.cast(start, ids.dtype)
    return tf.cast(tf.where(ids < 0, tf.cast(PADDING_ROW, ids.dtype), clamped), tf.int32)


def pool_list(
    embeddings: tf.Tensor, ids: Any, weights: Any = None, combiner: str = "mean"
) -> tf.Tensor:
    """Join the embeddings of a list of ids, leaving out padding.

    Args:
      embeddings: float ``[batch, length, dim]``, zeros where an id is padding.
      ids: int ``[batch, length]``; an id below zero is padding.
      weights: float ``[batch, length]`` or ``None`` for ones; ignored on padding.
      combiner: ``"sum"``, or ``"mean"``: the sum divided by the sum of the weights.
        A list that is empty, or whose weights sum to zero, gives zeros.

    Returns:
      ``[batch, dim]`` in the dtype of the embeddings.

    Raises:
      ValueError: an unknown combiner, or embeddings that are not of rank 3.
    """
    if combiner not in ("mean", "sum"):
        raise ValueError(f"`combiner` must be 'mean' or 'sum', but received {combiner!r}.")
    require_rank("pool_list", "embeddings", embeddings.shape, "[batch, length, dim]")
    # Half precision holds neither a sum of thousands nor a weight of seventy thousand.
    exact = at_least_float32(embeddings)
    valid = tf.cast(tf.convert_to_tensor(ids) >= 0, exact.dtype)
    if weights is None:
        share, joined = valid, tf.reduce_sum(exact, axis=1)
    else:
        weights = tf.cast(tf.convert_to_tensor(weights), exact.dtype)
        share = tf.where(valid > 0, weights, tf.zeros_like(weights))
        joined = tf.linalg.matvec(exact, share, transpose_a=True)
    if combiner == "mean":
        joined = tf.math.divide_no_nan(joined, tf.reduce_sum(share, axis=1, keepdims=True))
    return tf.cast(joined, embeddings.dtype)
