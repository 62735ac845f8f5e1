"""A SavedModel and its raw signature: raw columns in, probabilities and scores out."""

from __future__ import annotations

import gc
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import recsys  # noqa: F401  (Keras switch first)
from recsys.cores import cores_at_hand
from recsys.errors import UserError, kind_and_line
from recsys.spec import Spec
from recsys.spec.names import argument_names
from recsys.spec.schema import SCORE, RawColumn, output_names, raw_columns
from serving.graph import fill, import_graph, read_graph

SIGNATURE = "serving_default"


@dataclass(frozen=True)
class _Pack:
    """Columns of one type in one tensor: [rows, names], or [names] where all rows agree."""

    names: tuple[str, ...]
    dtype: str
    rank: int

    def of(self, columns: Mapping[str, np.ndarray], rows: int) -> np.ndarray:
        kind: Any = object if self.dtype == "string" else np.float32
        if self.rank == 1:
            return np.array([columns[name][0] for name in self.names], dtype=kind)
        packed = np.empty((rows, len(self.names)), dtype=kind)
        for at, name in enumerate(self.names):
            packed[:, at] = columns[name]
        return packed


def _packs(columns: Sequence[RawColumn], inputs: set[str]) -> tuple[_Pack, ...]:
    packs = []
    for rank in (2, 1):
        for dtype in ("string", "float32"):
            names = tuple(
                column.name
                for column in columns
                if column.name in inputs
                and column.dtype == dtype
                and (column.owner == "item" or column.computed == "counter") == (rank == 2)
            )
            packs.append(_Pack(names, dtype, rank))
    return tuple(packs)


class Scorer:
    """A loaded version, warm.

    Args:
        folder: The version's folder.
        spec: The version's spec.

    Raises:
        UserError: The model cannot be loaded, its signature is not the spec's, or it
            answers numbers that are not finite.
    """

    def __init__(self, folder: Path, spec: Spec) -> None:
        self.folder = folder
        self.columns = raw_columns(spec)
        self.outputs = output_names(spec)
        self._arguments = argument_names(column.name for column in self.columns)
        tensorflow()
        try:
            meta = read_graph(folder)
            if SIGNATURE not in meta.signature_def:
                raise self._damaged(f"the signatures {sorted(meta.signature_def)}")
            signature = meta.signature_def[SIGNATURE]
            self._packs = _packs(self.columns, self._check(signature))
            self._session, self._call = self._load(meta, signature)
        except UserError:
            raise
        except Exception as error:  # TensorFlow raises as many kinds as there are damages
            raise self._damaged(kind_and_line(error)) from error
        self.warm_up(sorted({1, min(64, spec.serve.max_candidates), spec.serve.max_candidates}))

    def _check(self, signature: Any) -> set[str]:
        """The columns that the signature takes."""
        wanted = {self._arguments[column.name]: column.dtype for column in self.columns}
        for name, tensor in signature.inputs.items():
            dtype = tensorflow().as_dtype(tensor.dtype).name
            if wanted.get(name) != dtype:
                raise self._damaged(
                    f"an input {name} of {dtype} in {SIGNATURE}, where "
                    f"the spec has {wanted.get(name, 'none')}"
                )
        lacking = {*self.outputs, SCORE} - set(signature.outputs)
        if lacking:
            raise self._damaged(f"no output {', '.join(sorted(lacking))} in {SIGNATURE}")
        return {name for name, argument in self._arguments.items() if argument in signature.inputs}

    def _load(self, meta: Any, signature: Any) -> tuple[Any, Any]:
        """A session, and its call: behind four tensors, for handing one over costs much."""
        tf = tensorflow()
        with tf.Graph().as_default() as graph:
            packed = [
                tf.compat.v1.placeholder(pack.dtype, [None] * pack.rank) for pack in self._packs
            ]
            rows = tf.shape(packed[0])[0]
            inputs = {}
            for pack, tensor in zip(self._packs, packed, strict=True):
                for at, name in enumerate(pack.names):
                    inputs[signature.inputs[self._arguments[name]].name] = (
                        tf.fill([rows], tensor[at]) if pack.rank == 1 else tensor[:, at]
                    )
            outputs = [signature.outputs[name].name for name in (*self.outputs, SCORE)]
            answer = tf.stack(import_graph(meta, inputs, outputs))
        # Requests run beside each other, so that splitting one op over threads only costs.
        threads = tf.compat.v1.ConfigProto(
            intra_op_parallelism_threads=1, inter_op_parallelism_threads=cores_at_hand()
        )
        session = tf.compat.v1.Session(graph=graph, config=threads)
        fill(session, meta, self.folder)
        return session, session.make_callable(answer, packed)

    def _damaged(self, found: str) -> UserError:
        return UserError(
            "A model version cannot serve.",
            where=str(self.folder),
            expected=f"a SavedModel with the signature {SIGNATURE} of its spec.yaml",
            found=found,
            fix="Publish again with: recsys publish RUN --models MODELS",
        )

    def score(self, columns: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Probabilities of each output and the score.

        Args:
            columns: Raw columns, each [rows]: object arrays of str, or float32.

        Returns:
            Each name of `outputs`, and `score`: float32 [rows].

        A column of a user or a context has one value for all rows of a request; the first is
        taken.
        """
        rows = len(columns[self.columns[0].name])
        answer = self._call(*(pack.of(columns, rows) for pack in self._packs))
        return dict(zip((*self.outputs, SCORE), answer, strict=True))

    def warm_up(self, sizes: Sequence[int]) -> None:
        """Run the graph once a size, so that no request pays for the first run."""
        for size in sizes:
            columns = {
                column.name: np.full(
                    size, column.default, object if column.dtype == "string" else np.float32
                )
                for column in self.columns
            }
            try:
                answer = self.score(columns)
            except Exception as error:  # as above
                raise self._damaged(kind_and_line(error)) from error
            for name, values in answer.items():
                if values.shape != (size,) or not np.isfinite(values).all():
                    raise self._damaged(
                        f"{name} = {values[:3]} of shape {values.shape} for a "
                        f"row of missing values, {size} times"
                    )


def top(scores: np.ndarray, count: int | None) -> np.ndarray:
    """Positions by falling score; equal scores keep the order of the candidates, NaN is last.

    >>> top(np.array([0.1, 0.5, np.nan, 0.5], np.float32), 3).tolist()
    [1, 3, 0]
    """
    order = np.argsort(-scores, kind="stable")
    return order if count is None else order[:count]


def tensorflow() -> Any:
    """TensorFlow, without its start-up chatter."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    import tensorflow as tf

    return tf


def set_apart() -> None:
    """Keep the garbage collector off what a service process starts with.

    TensorFlow's modules are some 370,000 objects, which live as long as the process. Where a
    full collection looks at them, every request waits for a fifth of a second.
    """
    tensorflow()
    gc.collect()
    gc.freeze()
