"""A regression of labels in the thousands starts where they are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from make_features import make_features, small_spec

import training
from recsys.spec import Spec
from recsys.spec.records import Huber, SquaredError
from training.input import open_split
from training.moments import label_units


def regression(loss: Any) -> Spec:
    """The small spec, with the time after a click in place of the purchase."""
    spec = small_spec(dense_learning_rate=0.01)
    click, bought = spec.tasks
    return spec.model_copy(update={"tasks": (click, bought.model_copy(update={"loss": loss}))})


def with_times(folder: Path, spec: Spec) -> Path:
    """Features whose clicks last 20 s, more or less by the price: milliseconds."""
    made = make_features(folder, spec)
    for path in (made / "examples").rglob("*.parquet"):
        table = pq.read_table(path)
        clicked, price = (table[name].to_numpy() for name in ("label:click", "price"))
        times = pa.array(((20_000 + 10_000 * price) * clicked).astype(np.float32))
        index = table.column_names.index("label:conversion")
        pq.write_table(table.set_column(index, "label:conversion", times), path, row_group_size=64)
    return made


@pytest.mark.parametrize("loss", [SquaredError(), Huber(), Huber(log=True)], ids=repr)
def test_milliseconds_are_learned_as_well_as_anything(loss: Any, tmp_path: Path) -> None:
    spec = regression(loss)
    features = with_times(tmp_path / "features", spec)
    rows = pq.read_table(features / "examples" / "train")
    times = rows["label:conversion"].to_numpy()[rows["label:click"].to_numpy() == 1]
    told = np.log1p(times) if loss.log else times
    units = label_units(spec, open_split(spec, features, "train"))
    np.testing.assert_allclose(units, [[0, told.mean()], [1, told.std()]], rtol=1e-5)

    training.train(spec, features, tmp_path / "run")
    tested = training.evaluate(tmp_path / "run", "test")["tasks"]["conversion_given_click"]
    assert tested["r2"] > 0.9 and tested["rmse"] < 2_000


def test_labels_that_are_all_alike_have_a_unit(tmp_path: Path) -> None:
    spec = regression(SquaredError())
    made = make_features(tmp_path / "features", spec)
    for path in (made / "examples" / "train").glob("*.parquet"):
        table = pq.read_table(path)
        index = table.column_names.index("label:conversion")
        alike = pa.array(np.full(table.num_rows, 3e7, np.float32))
        pq.write_table(table.set_column(index, "label:conversion", alike), path)
    units = label_units(spec, open_split(spec, made, "train"))
    np.testing.assert_array_equal(units, [[0, 3e7], [1, 1]])
