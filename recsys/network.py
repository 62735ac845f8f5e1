"""The network: packed ids and numbers in, one logit a task out."""

from __future__ import annotations

from collections.abc import Container, Mapping
from typing import Any

import numpy as np
import tensorflow as tf
import tf_keras

from recsys.layers import (
    PLE,
    FusedEmbedding,
    GatedTower,
    Interactions,
    LocalSelfAttention,
    MMoE,
    PiecewiseLinearEmbedding,
    PositionTower,
    SharedBottom,
    SideMatch,
    TargetAttention,
    hash_rows,
    pool_list,
)
from recsys.layers.precision import read_weight
from recsys.layers.randomness import fold_in
from recsys.optimizers import FIRST_ORDER, MATCH, NUMBER_FACTORS, NUMBER_WEIGHTS
from recsys.packing import Field, Packing
from recsys.spec.load import dumps, loads
from recsys.spec.records import History, Mmoe, Ple, Spec

SIDES = ("user", "item")


@tf_keras.utils.register_keras_serializable(package="recsys")
class Network(tf_keras.layers.Layer):
    """DeepFM with gated towers, as a spec describes it (Guo et al., 2017, for DeepFM).

    Fields are embedded, joined by the spec's interactions, and read by towers that the
    tasks share as the spec's `sharing` says. First-order weights, one a task for each id and
    each scaled number, are added to the logits. A history is read by attention from its
    candidate.

    Args:
        spec: The spec.
        tables: Rows of each embedding table, by name.

    Call arguments:
        batch: `ids` int32 [batch, ids] and `numbers` float32 [batch, numbers], as
            `recsys.packing.Packing` lays them out.
        training: Whether dropout, recomputation and position logits are on.
        seed: int32 [2], from which dropout masks derive.

    Output: float32 [batch, tasks], in the order of the spec's tasks. The logit of a task
    with `given` is that of p(task | given); a regression task's is its prediction.
    """

    def __init__(self, spec: Spec, tables: Mapping[str, int], **kwargs: Any) -> None:
        # No autocast: numbers stay float32 up to where each part of the network casts them.
        super().__init__(autocast=False, **kwargs)
        self.spec = spec
        self.tables = {name: int(rows) for name, rows in tables.items()}
        self.packing = Packing.of(spec)
        model = spec.model
        self._tasks = tuple(task.name for task in spec.tasks)
        self._position = next((f for f in self.packing.ids if f.name == model.position), None)
        fields = [f for f in self.packing.ids if f is not self._position]
        self._plain = [f for f in fields if f.input.kind == "id" and f.input.hashes == 1]
        self._others = [f for f in fields if f not in self._plain]
        lists = [f for f in self.packing.numbers if f.input.kind == "numbers"]
        self._piecewise = [f for f in lists if f.input.weighs is None]
        self._weights = {f.input.weighs: f for f in lists if f.input.weighs is not None}
        self._numbers = [f for f in self.packing.numbers if f.input.kind == "number"]

        dims = self._dims(fields)
        self.groups: dict[str, FusedEmbedding] = {}
        for dim in sorted(set(dims.values()), reverse=True):
            self.groups[str(dim)] = self._embedding(
                {table: rows for table, rows in self.tables.items() if dims.get(table) == dim},
                dim,
                f"embedding_{dim}",
                output_dim=model.dim,
            )
        self._group_of = {table: str(dim) for table, dim in dims.items()}
        self.first_order = None
        if model.first_order and dims:
            self.first_order = self._embedding(
                {table: self.tables[table] for table in self.tables if table in dims},
                len(self._tasks),
                FIRST_ORDER,
                initializer="zeros",
            )
        self.number_weights = self.number_factors = None
        if model.first_order and self._numbers:
            self.number_weights = self._add_number_weight(NUMBER_WEIGHTS, len(self._tasks), "zeros")
        bins = sorted({f.length for f in self._piecewise})
        self.piecewise = {
            str(n): PiecewiseLinearEmbedding(
                model.dim, name=f"piecewise_{n}", dtype=self._dtype_policy
            )
            for n in bins
        }
        self._build_histories()
        self.match = None
        if MATCH in model.interactions:
            self.match = SideMatch(self._tasks, name=MATCH, dtype=self._dtype_policy)
            self._sides = self._match_sides()
            if self._numbers:
                self.number_factors = self._add_number_weight(
                    NUMBER_FACTORS, model.dim, tf_keras.initializers.RandomNormal(stddev=0.01)
                )
        self._crossed = tuple(kind for kind in model.interactions if kind != MATCH)
        self.interactions = Interactions(
            self._crossed,
            model.cross_layers,
            model.cross_projection,
            name="interactions",
            dtype=self._dtype_policy,
        )
        self.sharing = self._make_sharing()
        self.towers = [
            GatedTower(
                model.towers,
                dropout=model.dropout,
                recompute=model.recompute,
                gated=model.gated,
                name=f"tower_{task}",
                dtype=self._dtype_policy,
            )
            for task in self._tasks
        ]
        # Logits in float32: the losses and the served probabilities start from them.
        self.heads = [
            tf_keras.layers.Dense(1, name=f"head_{task}", dtype="float32") for task in self._tasks
        ]
        self.position_tower = None
        if self._position is not None:
            table = self._position.input.table
            assert table is not None
            self.position_tower = PositionTower(
                self.tables[table], self._tasks, name="position", dtype="float32"
            )

    # ------------------------------------------------------------------------ pieces

    def _add_number_weight(self, name: str, width: int, initializer: Any) -> tf.Variable:
        """A row of `width` for each scaled number, kept in float32."""
        with tf.name_scope(self.name):
            return self.add_weight(
                name,
                shape=[len(self._numbers), width],
                initializer=initializer,
                experimental_autocast=False,
            )

    def _embedded(self) -> list[str]:
        """Names of the fields in the order in which `embed` stacks them."""
        fields = [f for layer in self.groups.values() for f in self._plain_in(layer.tables)]
        fields += [f for bins in self.piecewise for f in self._piecewise_of(bins)]
        return [f.name for f in (*fields, *self._others)]

    def _plain_in(self, tables: Container[str]) -> list[Field]:
        """Fields of one id that read one of these tables."""
        return [f for f in self._plain if f.input.table in tables]

    def _piecewise_of(self, bins: str) -> list[Field]:
        return [f for f in self._piecewise if f.length == int(bins)]

    def _match_sides(self) -> np.ndarray:
        """float32 [2, fields and numbers]: 1 for what the user's and the item's sum take."""
        keys = self.spec.data.keys
        embedded = self._embedded()
        names = [*embedded, *(f.name for f in self._numbers)]
        features = [self.spec.feature(name) for name in names]
        sides = []
        for owner, key in zip(SIDES, (keys.user, keys.item), strict=True):
            own = [feature.owner == owner for feature in features]
            # An id is seen in few rows, and what it learns there would drown its attributes.
            attributes = [f.owner == owner and f.raw != key for f in features]
            sides.append(attributes if any(attributes[: len(embedded)]) else own)
        return np.array(sides, np.float32)

    def _dims(self, fields: list[Field]) -> dict[str, int]:
        """Width of each table that a field reads."""
        dims: dict[str, int] = {}
        for field in fields:
            feature = self.spec.feature(field.name)
            table = field.input.table
            assert table is not None
            if table not in self.tables:
                raise ValueError(
                    f"tables must hold {table!r}, which feature {field.name!r} reads; "
                    f"received {sorted(self.tables)}"
                )
            if not isinstance(feature.encode, History) or table not in dims:
                dims[table] = feature.dim or self.spec.model.dim
        return dims

    def _embedding(
        self, tables: Mapping[str, int], dim: int, name: str, **kwargs: Any
    ) -> FusedEmbedding:
        mine = self._plain_in(tables)
        return FusedEmbedding(
            list(tables.items()),
            dim,
            fields=[str(f.input.table) for f in mine],
            lists=[(f.name, str(f.input.table)) for f in self._others if f.input.table in tables],
            name=name,
            dtype=self._dtype_policy,
            **kwargs,
        )

    def _build_histories(self) -> None:
        reading = self.spec.model.history
        histories = [f for f in self._others if f.input.combiner == "history"]
        self.attention: dict[str, TargetAttention] = {}
        self.local: dict[str, LocalSelfAttention] = {}
        for field in histories if reading.kind != "mean" else []:
            self.attention[field.name] = TargetAttention(
                reading.hidden,
                recompute=self.spec.model.recompute,
                name=f"target_attention_{field.name}",
                dtype=self._dtype_policy,
            )
            if reading.kind == "local":
                self.local[field.name] = LocalSelfAttention(
                    window=reading.window,
                    recompute=self.spec.model.recompute,
                    name=f"local_attention_{field.name}",
                    dtype=self._dtype_policy,
                )

    def _make_sharing(self) -> tf_keras.layers.Layer:
        model = self.spec.model
        common: dict[str, Any] = {
            "tasks": self._tasks,
            "units": model.shared,
            "dropout": model.dropout,
            "recompute": model.recompute,
            "gated": model.gated,
            "name": "sharing",
            "dtype": self._dtype_policy,
        }
        if isinstance(model.sharing, Mmoe):
            return MMoE(experts=model.sharing.experts, **common)
        if isinstance(model.sharing, Ple):
            return PLE(
                levels=model.sharing.levels,
                shared_experts=model.sharing.shared_experts,
                task_experts=model.sharing.task_experts,
                **common,
            )
        return SharedBottom(**common)

    # -------------------------------------------------------------------------- call

    def call(
        self,
        batch: Mapping[str, tf.Tensor],
        training: bool | None = False,
        seed: tf.Tensor | None = None,
    ) -> tf.Tensor:
        ids, numbers = batch["ids"], batch["numbers"]
        embeddings, first_order = self.embed(ids, numbers, training)
        dense = self._dense_numbers(numbers)
        if self.spec.model.xla and training:
            logits = self._compiled(embeddings, dense, seed, training)
        else:
            logits = self.read(embeddings, dense, seed, training)
        if first_order is not None:
            logits += first_order
        if self.number_weights is not None:
            logits += dense @ self.number_weights
        if self._position is not None and self.position_tower is not None:
            at = ids[:, self._position.start]
            by_task = self.position_tower(at, training=training)
            logits += tf.stack([by_task[task] for task in self._tasks], axis=1)
        return logits

    def embed(
        self, ids: tf.Tensor, numbers: tf.Tensor, training: bool | None
    ) -> tuple[tf.Tensor | None, tf.Tensor | None]:
        """Embeddings [batch, fields, dim] and first-order logits [batch, tasks]."""
        parts: list[tf.Tensor] = []
        found: dict[str, Any] = {}
        for name, layer in self.groups.items():
            found[name] = layer(self._lookups(ids, layer), training=training)
            if "fields" in found[name]:
                parts.append(found[name]["fields"])
        pooled = [self._pool(field, ids, numbers, found, training) for field in self._others]
        for n, layer in self.piecewise.items():
            columns = self._piecewise_of(n)
            stacked = tf.stack([_columns(numbers, f) for f in columns], axis=1)
            parts.append(layer(stacked))
        if pooled:
            parts.append(tf.stack(pooled, axis=1))
        embeddings = None
        if parts:
            embeddings = parts[0] if len(parts) == 1 else tf.concat(parts, axis=1)
        return embeddings, self._first_order(ids, numbers, training)

    def _lookups(self, ids: tf.Tensor, layer: FusedEmbedding) -> dict[str, Any]:
        lookups: dict[str, Any] = {}
        mine = self._plain_in(layer.tables)
        if mine:
            lookups["fields"] = _gather_columns(ids, [f.start for f in mine])
        lists = {
            f.name: self._list_ids(f, ids) for f in self._others if f.input.table in layer.tables
        }
        if lists:
            lookups["lists"] = lists
        return lookups

    def _list_ids(self, field: Field, ids: tf.Tensor) -> tf.Tensor:
        """Rows of a list's table: [batch, length], or [batch, length, hashes]."""
        columns = _columns(ids, field)
        if field.input.hashes == 1:
            return columns
        assert field.input.table is not None
        # Row 0 means missing and stays apart from the hashed rows.
        rows = hash_rows(columns, self.tables[field.input.table] - 1, field.input.hashes) + 1
        missing = tf.expand_dims(columns, -1) <= 0
        return tf.where(missing, tf.minimum(tf.expand_dims(columns, -1), 0), rows)

    def _weights_of(self, field: Field, numbers: tf.Tensor) -> tf.Tensor | None:
        """Weights of a list's parts, float32 [batch, length], where the spec has some."""
        weights = self._weights.get(field.name)
        return None if weights is None else _columns(numbers, weights)

    def _pool(
        self,
        field: Field,
        ids: tf.Tensor,
        numbers: tf.Tensor,
        found: Mapping[str, Any],
        training: bool | None,
    ) -> tf.Tensor:
        """One vector [batch, dim] for a list, a hashed id or a history."""
        assert field.input.table is not None
        group = found[self._group_of[field.input.table]]
        columns = _columns(ids, field)
        embedded = group["lists"][field.name]
        if field.input.hashes > 1:
            embedded = tf.reduce_sum(embedded, axis=2)
        if field.name not in self.attention:
            combiner = "sum" if field.input.combiner == "sum" else "mean"
            return pool_list(embedded, columns, self._weights_of(field, numbers), combiner)
        valid = columns >= 0
        if field.name in self.local:
            embedded = self.local[field.name](embedded, valid, training=training)
        encode = self.spec.feature(field.name).encode
        assert isinstance(encode, History)
        query = self._candidate(encode.of, ids, numbers, found)
        return self.attention[field.name](query, embedded, valid, training=training)

    def _candidate(
        self, name: str, ids: tf.Tensor, numbers: tf.Tensor, found: Mapping[str, Any]
    ) -> tf.Tensor:
        """Embedding [batch, dim] of the candidate's own feature, the query of its history."""
        for field in self._plain:
            if field.name == name:
                layer = self.groups[self._group_of[str(field.input.table)]]
                mine = [f.name for f in self._plain_in(layer.tables)]
                group = found[self._group_of[str(field.input.table)]]
                return group["fields"][:, mine.index(name)]
        field = next(f for f in self._others if f.name == name)
        return self._pool(field, ids, numbers, found, False)

    def _first_order(
        self, ids: tf.Tensor, numbers: tf.Tensor, training: bool | None
    ) -> tf.Tensor | None:
        if self.first_order is None:
            return None
        found = self.first_order(self._lookups(ids, self.first_order), training=training)
        total = 0.0
        if "fields" in found:
            total = tf.reduce_sum(tf.cast(found["fields"], tf.float32), axis=1)
        for field in self._others:
            rows = found["lists"][field.name]
            if field.input.hashes > 1:
                rows = tf.reduce_sum(rows, axis=2)
            combiner = "sum" if field.input.combiner == "sum" else "mean"
            weights = self._weights_of(field, numbers)
            total += tf.cast(pool_list(rows, _columns(ids, field), weights, combiner), tf.float32)
        return total

    def _dense_numbers(self, numbers: tf.Tensor) -> tf.Tensor | None:
        if not self._numbers:
            return None
        return _gather_columns(numbers, [f.start for f in self._numbers])

    def read(
        self,
        embeddings: tf.Tensor | None,
        dense: tf.Tensor | None,
        seed: tf.Tensor | None,
        training: bool | None,
    ) -> tf.Tensor:
        """The dense part: embeddings and numbers to logits, float32 [batch, tasks]."""
        parts = []
        if embeddings is not None:
            embeddings = self._drop_fields(embeddings, seed, training)
            parts.append(tf.reshape(embeddings, [-1, embeddings.shape[1] * embeddings.shape[2]]))
        if dense is not None:
            parts.append(tf.cast(dense, self.compute_dtype))
        if embeddings is not None and self._crossed:
            parts.append(self.interactions((embeddings, dense)))
        top = tf.concat(parts, axis=1)
        shared = self.sharing(top, training=training, seed=fold_in(seed, 1))
        logits = []
        for index, task in enumerate(self._tasks):
            tower = self.towers[index](
                shared[task], training=training, seed=fold_in(seed, 2 + index)
            )
            logits.append(self.heads[index](tf.cast(tower, tf.float32)))
        answer = tf.concat(logits, axis=1)
        if self.match is not None and embeddings is not None:
            answer += self.match(self._sums_of_sides(embeddings, dense))
        return answer

    def _sums_of_sides(self, embeddings: tf.Tensor, dense: tf.Tensor | None) -> list[tf.Tensor]:
        """The user's and the item's sum of factors, float [batch, dim] each.

        A number counts as its value times a vector of its own (Rendle 2010, Factorization
        Machines), so what it means to the other side is learned as a slope, not by bucket.
        """
        if self.number_factors is not None and dense is not None:
            factors = read_weight(self.number_factors, embeddings.dtype)
            scaled = tf.cast(dense, embeddings.dtype)[:, :, tf.newaxis] * factors
            embeddings = tf.concat([embeddings, scaled], axis=1)
        # Sums by a product of matrices: the gradient of a gather would be a scatter.
        chosen = tf.constant(self._sides, embeddings.dtype)
        return tf.unstack(tf.einsum("sf,bfd->sbd", chosen, embeddings), num=len(SIDES))

    def _drop_fields(
        self, embeddings: tf.Tensor, seed: tf.Tensor | None, training: bool | None
    ) -> tf.Tensor:
        rate = self.spec.model.embedding_dropout
        if not training or rate == 0.0 or seed is None:
            return embeddings
        return tf.nn.experimental.stateless_dropout(embeddings, rate, seed=fold_in(seed, 0))

    @tf.function(jit_compile=True, autograph=False)
    def _compiled(self, embeddings: Any, dense: Any, seed: Any, training: Any) -> tf.Tensor:
        return self.read(embeddings, dense, seed, training)

    def shared_weights(self) -> list[tf.Variable]:
        """Trainable weights that no task has for itself: all but towers, and weights a task."""
        own = [*self.towers, *self.heads, self.first_order, self.match, self.position_tower]
        apart = {v.ref() for layer in own if layer is not None for v in layer.trainable_variables}
        if self.number_weights is not None:
            apart.add(self.number_weights.ref())
        return [v for v in self.trainable_variables if v.ref() not in apart]

    def get_config(self) -> dict[str, Any]:
        return {**super().get_config(), "spec": dumps(self.spec), "tables": dict(self.tables)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Network:
        config = dict(config)
        return cls(loads(config.pop("spec")), config.pop("tables"), **config)


def _columns(matrix: tf.Tensor, field: Field) -> tf.Tensor:
    return matrix[:, field.start : field.start + field.length]


def _gather_columns(matrix: tf.Tensor, starts: list[int]) -> tf.Tensor:
    """Columns by index; a run of neighbours is sliced, which costs nothing."""
    first = starts[0]
    if starts == list(range(first, first + len(starts))):
        return matrix[:, first : first + len(starts)]
    return tf.gather(matrix, starts, axis=1)
