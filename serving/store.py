"""Feature tables by id, in this process, as the feature job wrote them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from recsys.artifacts import MANIFEST, read_manifest
from recsys.errors import UserError, first_line
from recsys.raw import canonical
from recsys.spec import Spec, load
from recsys.spec.records import Counter
from recsys.spec.schema import COUNTED, OWNER_KEY, RawColumn, raw_columns
from serving.versions import Mark, mark_of

TABLES = "tables"


@dataclass(frozen=True)
class Rows:
    """What a table knows of some keys: column → values [keys], and which keys it knows [keys]."""

    columns: dict[str, np.ndarray]
    known: np.ndarray


@dataclass(frozen=True)
class _Column:
    """Distinct values and a code a row: texts repeat, and a code is smaller than a pointer."""

    values: np.ndarray
    codes: np.ndarray

    @classmethod
    def of(cls, array: pa.Array, column: RawColumn) -> _Column:
        if column.dtype == "float32":
            values = np.append(array.to_numpy(zero_copy_only=False), np.float32(np.nan))
            return cls(values.astype(np.float32), np.empty(0, np.int32))
        encoded = array.dictionary_encode()
        values = np.append(encoded.dictionary.to_numpy(zero_copy_only=False), [""]).astype(object)
        codes = encoded.indices.to_numpy(zero_copy_only=False).astype(np.int32)
        return cls(values, np.append(codes, np.int32(len(values) - 1)))

    def take(self, rows: np.ndarray) -> np.ndarray:
        # Row -1, of a key that is not known, is the last: the column's default.
        return self.values[self.codes[rows]] if len(self.codes) else self.values[rows]


@dataclass(frozen=True)
class _Table:
    rows: dict[str, int]
    columns: dict[str, _Column]


@dataclass(frozen=True)
class _Counter:
    values: dict[tuple[str, ...], float]
    default: float


class LocalStore:
    """The feature tables of a FEATURES folder, held in memory.

    A key that a table does not know has missing values.

    Args:
        folder: What `recsys features` wrote.

    Raises:
        UserError: The folder, or a table in it, is missing or damaged, or lacks a column.
    """

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        self.mark = mark(self.folder)
        self.manifest = read_manifest(self.folder, "features")
        self.spec = load(self.folder / "spec.yaml")
        self._tables = {
            owner: _load_table(self.folder / TABLES / f"{owner}.parquet", owner, self.spec)
            for owner in ("user", "item")
        }
        self._counters = {
            feature.name: self._load_counter(feature.name, feature.encode)
            for feature in self.spec.features
            if isinstance(feature.encode, Counter)
        }

    @property
    def fingerprint(self) -> str:
        """Fingerprint of the features section that the tables were built from."""
        return str(self.manifest["fingerprints"]["features"])

    def size(self, owner: str) -> int:
        """How many keys the table has."""
        return len(self._tables[owner].rows)

    def keys(self, owner: str, count: int) -> list[str]:
        """The first keys of the `user` or `item` table, in the order of the table."""
        return [key for key, _ in zip(self._tables[owner].rows, range(count), strict=False)]

    def lookup(self, owner: str, keys: Sequence[str]) -> Rows:
        """Rows of the `user` or `item` table, in the order of the keys."""
        table = self._tables[owner]
        find = table.rows.get
        rows = np.fromiter((find(key, -1) for key in keys), np.int64, len(keys))
        columns = {name: column.take(rows) for name, column in table.columns.items()}
        return Rows(columns, rows >= 0)

    def count(self, counter: str, by: Sequence[np.ndarray]) -> np.ndarray:
        """Values of a counter, float32 [rows], by the values [rows] of each column `by`."""
        table = self._counters[counter]
        find, default = table.values.get, table.default
        keys = zip(*(_texts(values) for values in by), strict=True)
        return np.fromiter((find(key, default) for key in keys), np.float32, len(by[0]))

    def _load_counter(self, name: str, encode: Counter) -> _Counter:
        path = self.folder / TABLES / f"counter-{name}.parquet"
        table = read_table(path)
        facts = (self.manifest.get("counters") or {}).get(name) or {}
        _require(table, [*encode.by, COUNTED], path)
        keys = [
            _canonical(table, column, RawColumn(column, "string", "item"), path).to_pylist()
            for column in encode.by
        ]
        values = _canonical(table, COUNTED, RawColumn(COUNTED, "float32", "item"), path).to_pylist()
        default = facts.get("default")
        return _Counter(
            dict(zip(zip(*keys, strict=True), values, strict=True)),
            float("nan") if default is None else float(default),
        )


def mark(folder: str | Path) -> Mark | None:
    """What changes when anything does that is read of a features folder.

    None where there is no manifest. The manifest alone would not do: it may be copied before the
    tables are.
    """
    folder = Path(folder)
    if not os.path.isfile(folder / MANIFEST):
        return None
    tables = sorted((folder / TABLES).glob("*.parquet"))
    return mark_of([folder / MANIFEST, folder / "spec.yaml", *tables])


def read_table(path: Path) -> pa.Table:
    """A Parquet table. Raises `UserError` where it is missing or damaged."""
    try:
        return pq.read_table(path)
    except FileNotFoundError:
        found = "no such file"
    except (pa.ArrowException, OSError) as error:
        found = first_line(error)
    raise UserError(
        "A feature table cannot be read.",
        where=str(path),
        expected="a Parquet file",
        found=found,
        fix="Build the features again with: recsys features SPEC --input IN --output FEATURES",
    )


def _load_table(path: Path, owner: str, spec: Spec) -> _Table:
    table = read_table(path)
    # A counter is looked up by its own table, once the columns that it counts by are known.
    columns = [
        column
        for column in raw_columns(spec)
        if column.owner == owner and column.computed != "counter"
    ]
    _require(table, [OWNER_KEY, *(column.name for column in columns)], path)
    keys = _canonical(table, OWNER_KEY, RawColumn(OWNER_KEY, "string", "item"), path).to_pylist()
    rows = {key: row for row, key in enumerate(keys) if key}
    return _Table(
        rows,
        {
            column.name: _Column.of(_canonical(table, column.name, column, path), column)
            for column in columns
        },
    )


def _canonical(table: pa.Table, name: str, column: RawColumn, path: Path) -> pa.Array:
    values, bad = canonical(table[name], column)
    if bad.any():
        raise UserError(
            f"A feature table has a value that is no {column.dtype}.",
            where=f"{path}: column {name}, row {int(np.flatnonzero(bad)[0])}",
            expected=column.dtype,
            found=str(table[name][int(np.flatnonzero(bad)[0])].as_py()),
            fix="Build the features again with: recsys features SPEC --input IN --output FEATURES",
        )
    return values


def _require(table: pa.Table, names: Sequence[str], path: Path) -> None:
    lacking = [name for name in names if name not in table.column_names]
    if lacking:
        raise UserError(
            "A feature table lacks columns.",
            where=str(path),
            expected=", ".join(names),
            found=f"no {', '.join(lacking)}",
            fix="Build the features again with: recsys features SPEC --input IN --output FEATURES",
        )


def _texts(values: np.ndarray) -> list[Any]:
    if values.dtype == object:
        return values.tolist()
    return pc.fill_null(
        canonical(pa.array(values), RawColumn(COUNTED, "string", "item"))[0], ""
    ).to_pylist()
