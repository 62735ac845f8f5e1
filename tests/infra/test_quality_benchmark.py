"""The quality benchmark's own parts: what peers are given, metrics, choices, tables."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from infra.benchmarks.docs import write_between
from infra.benchmarks.quality import flights, other_domain, report
from infra.benchmarks.quality.rows import Keys, read_keys, write_shared
from infra.benchmarks.quality.scores import score, selection
from infra.benchmarks.quality.variants import variants, with_seed
from infra.infer import infer
from recsys.artifacts import write_manifest
from recsys.spec import Spec, fingerprints, loads
from recsys.spec.records import Trees

SPEC = """
name: shop
data:
  impressions: log.csv
  keys: {user: user, item: item}
  time: {column: at}
  split: {train_to: 2024-01-01, validation_to: 2024-01-02}
features:
  - {name: user, owner: user, encode: vocabulary}
  - {name: item, owner: item, encode: vocabulary}
  - {name: tags, owner: item, encode: {kind: vocabulary, max_length: 3}, separator: ","}
  - {name: price, owner: item, encode: {kind: quantiles, buckets: 4}}
  - {name: age, owner: user, encode: {kind: piecewise, bins: 2}}
  - {name: rate, owner: item, encode: {kind: counter, by: [item], task: click, as: numeric}}
  - {name: seen, owner: user, encode: {kind: history, of: item, max_length: 2}}
tasks:
  - {name: click, label: {column: click}}
  - {name: conversion, label: {column: buy}, given: click}
evaluate: {slices: [price]}
"""


def _features(folder: Path, spec: Spec) -> None:
    def lists(values: list[list[Any]], kind: pa.DataType) -> pa.Array:
        flat = pa.array([value for row in values for value in row], kind)
        return pa.FixedSizeListArray.from_arrays(flat, len(values[0]))

    for split in ("train", "validation", "test"):
        (folder / "examples" / split).mkdir(parents=True)
        # Two files: predictions follow the order of the names.
        for part, users in enumerate(([1, 2], [3])):
            n = len(users)
            pq.write_table(
                pa.table(
                    {
                        "user": pa.array(users, pa.int32()),
                        "item": pa.array([3, 0][:n], pa.int32()),
                        "tags": lists([[4, 2, 5], [7, -1, -1]][:n], pa.int32()),
                        "price": pa.array([1, 2][:n], pa.int32()),
                        "age": lists([[1.0, 0.5], [0.0, 0.0]][:n], pa.float32()),
                        "rate": pa.array([0.5, -0.5][:n], pa.float32()),
                        "seen": lists([[1, 2], [-1, -1]][:n], pa.int32()),
                        "label:click": pa.array([1.0, 0.0][:n], pa.float32()),
                        "label:conversion": pa.array([1.0, 0.0][:n], pa.float32()),
                        "key:user": ["a", "b"][:n],
                        "slice:price": ["9", "20"][:n],
                    }
                ),
                folder / "examples" / split / f"part-{part}.parquet",
            )
    tables = {"user": 4, "item": 6, "tags": 9, "price": 5}
    write_manifest(
        folder, "features", {"features": fingerprints(spec)["features"]}, {"tables": tables}
    )


def test_peers_get_lists_as_two_columns_numbers_standardised_and_no_histories(
    tmp_path: Path,
) -> None:
    spec = loads(SPEC)
    _features(tmp_path / "features", spec)
    write_shared(spec, tmp_path / "features", tmp_path / "shared")
    columns = json.loads((tmp_path / "shared" / "columns.json").read_text())
    assert [c["name"] for c in columns["ids"]] == ["user", "item", "tags", "tags", "price"]
    assert [c["rows"] for c in columns["ids"]] == [4, 6, 9, 9, 5]
    assert [c["name"] for c in columns["ids"] if c["ordered"]] == ["price"]
    assert [(c["name"], c["computed"]) for c in columns["numbers"]] == [
        ("age", False),
        ("rate", True),
    ]
    stored = np.load(tmp_path / "shared" / "train.npz")
    # Padding becomes row 0, the missing value.
    assert stored["ids"].tolist() == [[1, 3, 4, 2, 1], [2, 0, 7, 0, 2], [3, 3, 4, 2, 1]]
    # Sums of the bins are 1.5, 0, 1.5: mean 1, deviation sqrt(1/2).
    np.testing.assert_allclose(
        stored["numbers"][:, 0], np.array([0.5, -1, 0.5]) / 0.5**0.5, rtol=1e-5
    )


def test_keys_name_the_largest_slice(tmp_path: Path) -> None:
    spec = loads(SPEC)
    _features(tmp_path / "features", spec)
    keys = read_keys(spec, tmp_path / "features", "test")
    assert keys.slice_name == "price=9"
    assert keys.slice.tolist() == [True, False, True]
    assert keys.users.tolist() == [0, 1, 0]
    assert keys.labels.tolist() == [[1, 1], [0, 0], [1, 1]]


def test_conversion_given_click_is_the_ratio_on_clicked_rows() -> None:
    spec = loads(SPEC)
    labels = np.array([[1, 1], [1, 0], [0, 0], [0, 0]], np.float32)
    # Ratios on the clicked rows: 0.5 for the converted one, 0.75 for the other: ranked wrongly.
    probs = np.array([[0.8, 0.4], [0.4, 0.3], [0.5, 0.1], [0.1, 0.1]], np.float32)
    keys = Keys(labels, np.zeros(4, np.int64), np.array([True, True, True, False]), "price=9")
    found = score(spec, keys, probs)
    assert found["all"]["click"]["auc"] == 0.75
    assert found["all"]["conversion"]["auc"] == 1.0
    assert found["all"]["conversion_given_click"]["auc"] == 0.0
    assert found["all"]["conversion_given_click"]["rows"] == 2
    assert found["price=9"]["click"]["rows"] == 3
    assert selection(spec, found) == (0.75 + 1.0) / 2


def _result(model: str, seed: int, auc: float, candidate: int = 0, val: float = 0.5) -> Any:
    names = ("click", "conversion", "conversion_given_click")
    values = {"auc": auc, "gauc": 0.5, "log_loss": 0.6, "ece": 0.01}
    return {
        "model": model,
        "setting": "base",
        "seed": seed,
        "candidate": candidate,
        "selection": val,
        "step_ms": 2.0,
        "test": {"all": dict.fromkeys(names, values)},
    }


def test_the_candidate_is_chosen_on_validation_and_never_on_test() -> None:
    results = [
        _result("peer", 0, 0.9, 0, val=0.6),
        _result("peer", 0, 0.7, 1, val=0.8),
        _result("peer", 1, 0.72, 1),
    ]
    (line,) = report.lines(results)
    assert line.values("all", "click", "auc").tolist() == [0.7, 0.72]


def test_the_lead_is_in_units_of_its_standard_error() -> None:
    # Deviations of 0.02 over two seeds each: variance of the difference 0.0002 + 0.0002.
    gap, errors = report.lead(np.array([0.76, 0.78814]) * 1.0, np.array([0.74, 0.76814]))
    assert gap == pytest.approx(0.02)
    assert errors == pytest.approx(0.02 / (2 * (0.02814**2 / 2) / 2) ** 0.5)


def test_the_table_orders_by_auc_and_the_plot_is_small(tmp_path: Path) -> None:
    spec = loads(SPEC)
    found = report.lines(
        [
            _result("ours", 0, 0.75),
            _result("ours", 1, 0.77),
            _result("peer", 0, 0.70),
            _result("peer", 1, 0.72),
        ]
    )
    rows = report.table(spec, found).splitlines()
    assert rows[0].startswith("| model | features | seeds | click AUC |")
    assert rows[2].startswith("| **ours** | base | 2 | 0.7600 ± 0.0141 |")
    assert "+0.0500 (+3.5 se)" in rows[3]
    report.plot(spec, found, tmp_path / "plot.png")
    assert (tmp_path / "plot.png").stat().st_size < 200_000


def test_documents_are_written_between_markers_only(tmp_path: Path) -> None:
    page = tmp_path / "benchmarks.md"
    page.write_text("# Benchmarks\n\n<!-- quality:start -->\nold\n<!-- quality:end -->\n\nAfter\n")
    write_between(page, "quality", "new")
    write_between(page, "other", "more")
    assert page.read_text() == (
        "# Benchmarks\n\n<!-- quality:start -->\nnew\n<!-- quality:end -->\n\nAfter\n\n"
        "<!-- other:start -->\nmore\n<!-- other:end -->\n"
    )


def test_each_variant_is_one_change_and_none_repeats_the_spec() -> None:
    spec = with_seed(loads(SPEC), 3)
    found = variants(spec)
    assert spec.train.seed == 3
    assert found["balancing dwa"].train.balancing.kind == "dwa"
    assert {task.loss.kind for task in found["loss bce, calibration none"].tasks} == {"bce"}
    assert [f.name for f in found["without counters"].features] == [
        "user",
        "item",
        "tags",
        "price",
        "age",
        "seen",
    ]
    assert found["with match"].model.interactions == (*spec.model.interactions, "match")
    assert "balancing fixed" not in found  # that is as shipped
    assert "without trees" not in found  # it has none
    model = spec.model.model_copy(update={"trees": Trees()})
    grown = variants(spec.model_copy(update={"model": model}))
    assert grown["without trees"] == spec
    assert len({variant.model_dump_json() for variant in found.values()}) == len(found)


@pytest.mark.parametrize("layout", ["funnel", "parallel"])
@pytest.mark.parametrize("response", ["curves", "trees"])
def test_the_other_domain_is_as_it_says(tmp_path: Path, layout: Any, response: Any) -> None:
    other_domain.generate(tmp_path / "a", layout, rows=20_000, seed=1, response=response)
    other_domain.generate(tmp_path / "b", layout, rows=20_000, seed=1, response=response)
    table = tmp_path / "a" / other_domain.TABLE
    assert table.read_bytes() == (tmp_path / "b" / other_domain.TABLE).read_bytes()
    log = pyarrow.csv.read_csv(table).to_pandas()
    spec = loads(infer(table))
    first, second = other_domain.TASKS[layout]
    assert [(task.name, task.given) for task in spec.tasks] == [
        (first, None), (second, first if layout == "funnel" else None),
    ]  # fmt: skip
    days = log["time"].astype(str).str[:10].rank(method="dense")
    train, test = set(log["item_id"][days <= 10]), log["item_id"][days == 12]
    unseen = [item not in train for item in test.unique()]
    assert 0.6 < np.mean(unseen) < 0.75
    orphans = ((log[second] == 1) & (log[first] == 0)).sum()
    assert (orphans == 0) == (layout == "funnel")


def test_flights_are_labelled_by_what_was_known_after_and_described_by_what_was_before(
    tmp_path: Path,
) -> None:
    data = tmp_path / "package" / "data"
    data.mkdir(parents=True)
    day = "2013,1,7"
    (data / "flights.csv").write_text(
        "year,month,day,dep_time,sched_dep_time,dep_delay,arr_time,sched_arr_time,arr_delay,carrier,"
        "flight,tailnum,origin,dest,air_time,distance,hour,minute,time_hour\n"
        # Left in time and came late; left late and made up all; left and came late; cancelled.
        f"{day},0,515,3,0,800,20,UA,1,N1,EWR,IAH,100,1400,5,15,x\n"
        f"{day},0,520,16,0,800,6,UA,1,N1,EWR,IAH,100,1400,5,20,x\n"
        f"{day},0,600,40,0,900,35,AA,2,N2,EWR,IAH,100,1400,6,0,x\n"
        f"{day},0,700,,0,900,,AA,2,N2,EWR,IAH,100,1400,7,0,x\n"
    )
    with zipfile.ZipFile(data / "flights.csv.zip", "w") as packed:
        packed.write(data / "flights.csv", "flights.csv")
    (data / "planes.csv").write_text("tailnum,year,seats,speed\nN1,1999,149,\n")
    (data / "airports.csv").write_text("faa,lat,lon,alt,tz\nIAH,29.9,-95.3,97,-6\n")
    (data / "weather.csv").write_text(
        "origin,year,month,day,hour,temp,time_hour\nEWR,2013,1,7,5,39.5,x\n"
    )
    flights.generate(tmp_path / "funnel", "funnel", tmp_path / "package")
    flights.generate(tmp_path / "parallel", "parallel", tmp_path / "package")
    funnel = pd.read_csv(tmp_path / "funnel" / flights.TABLE)
    parallel = pd.read_csv(tmp_path / "parallel" / flights.TABLE)
    assert funnel[["click", "conversion"]].values.tolist() == [[0, 0], [1, 0], [1, 1]]
    assert parallel[["like", "share"]].values.tolist() == [[1, 0], [0, 1], [1, 0]]
    assert funnel["item_id"].tolist() == ["UA1-2", "UA1-2", "AA2-2"]
    assert funnel["temp"].fillna(0).tolist() == [39.5, 39.5, 0]
    assert funnel["built"].fillna(0).tolist() == [1999, 1999, 0]
    assert funnel["time"][0] == "2013-01-07T05:15:00Z"
    known_after = {"dep_time", "dep_delay", "arr_time", "arr_delay", "air_time"}
    assert not known_after & set(funnel.columns)
