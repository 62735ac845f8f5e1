"""Feature tables: values by key, defaults for unknown keys, and damages told."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest

from recsys.errors import UserError
from recsys.spec import Spec, fingerprints
from serving.store import LocalStore


def test_rows_come_in_the_order_of_the_keys(features: Path, spec: Spec) -> None:
    store = LocalStore(features)
    rows = store.lookup("item", ["i3", "nobody", "i1", "40"])
    assert rows.known.tolist() == [True, False, True, True]
    assert rows.columns["tags"].tolist() == ["", "", "a|b", "a"]
    assert rows.columns["item_id"].tolist() == ["i3", "", "i1", "40"]
    assert rows.columns["price"].dtype == np.float32
    np.testing.assert_array_equal(rows.columns["price"], [math.nan, math.nan, 5, 1])
    assert store.lookup("user", ["u1"]).columns["seen"].tolist() == ["i1,i2"]
    assert store.fingerprint == fingerprints(spec)["features"]
    assert store.size("user") == 2 and store.keys("item", 2) == ["i1", "i2"]


def test_counters_are_joined_by_all_their_columns(features: Path) -> None:
    store = LocalStore(features)
    by = [
        np.array(values, dtype=object)
        for values in (
            ["i1", "i2", "i2", "i2", "i9"],
            ["tv", "tv", "tv", "pc", "tv"],
            ["", "", "top", "", ""],
        )
    ]
    assert store.count("ctr", by).tolist() == [2.0, 0.0, 7.0, 1.0, 1.0]


def test_a_corrupt_table_is_named(
    tmp_path: Path, spec: Spec, write_features: Callable[..., Path]
) -> None:
    folder = write_features(tmp_path / "features", spec)
    (folder / "tables" / "item.parquet").write_bytes(b"PAR1 and then nothing")
    with pytest.raises(UserError, match="cannot be read") as caught:
        LocalStore(folder)
    assert caught.value.where.endswith("tables/item.parquet")
    (folder / "tables" / "item.parquet").unlink()
    with pytest.raises(UserError, match="no such file"):
        LocalStore(folder)


def test_a_lacking_column_is_named(
    tmp_path: Path, spec: Spec, write_features: Callable[..., Path]
) -> None:
    folder = write_features(tmp_path / "features", spec)
    table = pq.read_table(folder / "tables" / "user.parquet")
    pq.write_table(table.drop_columns(["seen"]), folder / "tables" / "user.parquet")
    with pytest.raises(UserError, match="lacks columns") as caught:
        LocalStore(folder)
    assert caught.value.found == "no seen"


def test_no_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no features folder"):
        LocalStore(tmp_path / "nowhere")
