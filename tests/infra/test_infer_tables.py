"""A spec is written of tables as they come: leaks left out, odd files read, times recognized."""

import gzip
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.infer import infer
from recsys.errors import UserError
from recsys.spec import Spec, loads

ROWS = 1200
DAYS = 20
Change = Callable[[pd.DataFrame], Any]


def log() -> pd.DataFrame:
    """Clicks, of which some are purchases, over twenty days of January 2026."""
    rng = np.random.default_rng(0)
    click = (rng.random(ROWS) < 0.3).astype(int)
    item = rng.integers(0, 60, ROWS)
    seconds = np.sort(rng.integers(0, DAYS * 86_400, ROWS))
    return pd.DataFrame(
        {
            "user_id": [f"u{n}" for n in rng.integers(0, 150, ROWS)],
            "item_id": [f"i{n}" for n in item],
            "timestamp": pd.Timestamp("2026-01-01") + pd.to_timedelta(seconds, unit="s"),
            "x": rng.normal(size=ROWS),
            "kind": np.array(list("abcde"))[item % 5],
            "click": click,
            "purchase": click * (rng.random(ROWS) < 0.5),
        }
    )


def written(frame: pd.DataFrame, folder: Path, name: str = "log.csv") -> Path:
    path = folder / name
    frame.to_parquet(path) if name.endswith("parquet") else frame.to_csv(path, index=False)
    return path


def encodings(spec: Spec) -> dict[str, str]:
    """Kinds of the encodings by column, counters aside."""
    return {f.raw: f.encode.kind for f in spec.features if f.encode.kind != "counter"}


# ------------------------------------------------------------------------ labels and leaks


def test_what_is_named_like_a_label_is_no_feature_where_another_is_learned(tmp_path: Path) -> None:
    frame = log()
    frame["rare"] = frame["click"] * (frame["x"] > 0)
    path = written(frame, tmp_path)
    text = infer(path, labels=["rare"])
    spec = loads(text)
    assert [task.name for task in spec.tasks] == ["rare"]
    assert not {"click", "purchase"} & set(encodings(spec))
    assert "# No feature of 'click': it is named like a label; add --label click" in text
    # Words in place of 0 and 1 do not make a label known before.
    frame["click"] = np.where(frame["click"] == 1, "yes", "no")
    assert "click" not in encodings(loads(infer(written(frame, tmp_path), labels=["rare"])))


def bought(frame: pd.DataFrame, values: Any) -> pd.Series:
    return pd.Series(values, index=frame.index).where(frame["purchase"] == 1)


LEAKS: dict[str, tuple[Change, str]] = {
    "an amount": (lambda f: bought(f, f["x"].round(3)), "is there where 'purchase'"),
    "an order's number": (lambda f: bought(f, [f"o{n}" for n in f.index]), "where 'purchase'"),
    "zero otherwise": (lambda f: bought(f, 5 + f["x"].round(3)).fillna(0), "tells 'purchase'"),
    "its opposite": (lambda f: np.where(f["click"] == 1, "kept", "left"), "tells 'click'"),
    "many values of clicks": (lambda f: f["click"] * 9 + f["x"] / 10, "tells 'click'"),
    # Within clicks alone, it tells all of the purchase.
    "a state of clicks": (
        lambda f: np.where(f["click"] == 1, f["purchase"], np.arange(ROWS) % 2),
        "tells 'purchase'",
    ),
}


@pytest.mark.parametrize("case", LEAKS)
@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_what_is_filled_after_the_label_is_left_out(tmp_path: Path, case: str, name: str) -> None:
    frame = log()
    change, why = LEAKS[case]
    frame["after"] = change(frame)
    text = infer(written(frame, tmp_path, name))
    assert "after" not in encodings(loads(text))
    assert "No feature of 'after'" in text and why in text
    # Out of the comment, the lines that stand there make a feature of it.
    back = text.replace("  # - {name: after", "  - {name: after")
    assert "after" in encodings(loads(back))


def test_what_only_goes_with_a_label_stays(tmp_path: Path) -> None:
    frame = log()
    rng = np.random.default_rng(1)
    frame["strong"] = frame["click"] * 3 + rng.normal(size=ROWS)
    frame["mostly"] = frame["x"].where((frame["click"] == 1) | (rng.random(ROWS) < 0.05))
    frame["seldom"] = frame["x"].where(rng.random(ROWS) < 0.2)
    spec = loads(infer(written(frame, tmp_path)))
    assert {"strong", "mostly", "seldom"} <= set(encodings(spec))


def test_what_only_some_of_the_labelled_have_is_doubted(tmp_path: Path) -> None:
    frame = log()
    frame["review"] = bought(frame, frame["x"]).where(np.arange(ROWS) % 2 == 0)
    text = infer(written(frame, tmp_path))
    assert encodings(loads(text))["review"] == "quantiles"
    # Who purchased had clicked, which is the first of the labels.
    assert "# 'review' is there only where 'click' is 1: leave it out if" in text
    assert text.count("leave it out if") == 1


def test_a_label_blank_where_the_one_before_did_not_happen_follows_it(tmp_path: Path) -> None:
    frame = log()
    frame["purchase"] = frame["purchase"].where(frame["click"] == 1)
    text = infer(written(frame, tmp_path))
    assert [(t.name, t.given) for t in loads(text).tasks] == [
        ("click", None), ("purchase", "click"),
    ]  # fmt: skip
    assert "have no" not in text
    clicks = frame.index[frame["click"] == 1]
    frame.loc[clicks[::4], "purchase"] = np.nan
    text = infer(written(frame, tmp_path))
    share = len(clicks[::4]) / len(clicks)
    assert loads(text).tasks[1].given == "click"
    assert f"# {share:.2%} of the rows with 'click' have no 'purchase'" in text


# -------------------------------------------------------------------------------- columns


COLUMNS: dict[str, tuple[str, Change, str | None]] = {
    "fractions of few values": ("csv", lambda f: np.arange(ROWS) % 3 / 2, "quantiles"),
    "whole numbers of few values": ("csv", lambda f: np.arange(ROWS) % 3, "vocabulary"),
    "ids of 62 bits": ("csv", lambda f: 2**61 + np.arange(ROWS) % 40, "vocabulary"),
    "ids of 64 bits": (
        "csv",
        lambda f: np.uint64(2**63) + (np.arange(ROWS) % 40).astype(np.uint64),
        "vocabulary",
    ),
    "decimals": (
        "parquet",
        lambda f: f["x"].round(2).astype(str).astype(pd.ArrowDtype(pa.decimal128(9, 2))),
        "quantiles",
    ),
    "coded text": ("parquet", lambda f: f["kind"].astype("category"), "vocabulary"),
    "numbers with -": ("csv", lambda f: f["x"].astype(str).where(f["x"] < 1, "-"), "quantiles"),
    "numbers with ?": (
        "parquet",
        lambda f: f["x"].astype(str).where(f["x"] < 1, " ?"),
        "quantiles",
    ),
    "numbers with NA": ("csv", lambda f: f["x"].astype(str).where(f["x"] < 1, "NA"), "quantiles"),
    "numbers with None": (
        "parquet",
        lambda f: f["x"].astype(str).where(f["x"] < 1, "None"),
        "quantiles",
    ),
    "numbers with a word": (
        "csv",
        lambda f: f["x"].round(1).astype(str).where(f["x"] < 1, "high"),
        "vocabulary",
    ),
    "digits that are text": (
        "parquet",
        lambda f: [f"{n % 40:05}" for n in range(ROWS)],
        "vocabulary",
    ),
    "structs": ("parquet", lambda f: [{"a": n % 3} for n in range(ROWS)], None),
    "lists of lists": ("parquet", lambda f: [[[n % 3]] for n in range(ROWS)], None),
    "vectors": ("parquet", lambda f: [[n / 7, n / 9] for n in range(ROWS)], None),
    "bytes": ("parquet", lambda f: [bytes([n % 256, 255]) for n in range(ROWS)], None),
    "durations": ("parquet", lambda f: pd.to_timedelta(np.arange(ROWS), unit="s"), None),
    "times of day": ("parquet", lambda f: f["timestamp"].dt.time, None),
    "dates": ("parquet", lambda f: f["timestamp"].dt.date, None),
    "dates as text": ("csv", lambda f: f["timestamp"].dt.strftime("%d.%m.%Y"), None),
}  # fmt: skip


@pytest.mark.parametrize("case", COLUMNS)
def test_a_column_is_encoded_by_what_it_holds(tmp_path: Path, case: str) -> None:
    ending, change, kind = COLUMNS[case]
    frame = log()
    frame["new"] = change(frame)
    text = infer(written(frame, tmp_path, f"log.{ending}"))
    spec = loads(text)
    assert encodings(spec).get("new") == kind
    assert ("No feature of 'new'" in text) == (kind is None)
    assert spec.data.time is not None and spec.data.time.column == "timestamp"


@pytest.mark.parametrize("of", [str, int])
def test_lists_are_vocabularies_of_their_parts(tmp_path: Path, of: type) -> None:
    frame = log()
    frame["tags"] = [[of(k) for k in range(n % 4)] for n in range(ROWS)]
    feature = loads(infer(written(frame, tmp_path, "log.parquet"))).feature("tags")
    assert feature.is_list and feature.separator is None
    assert feature.encode.max_length == 3  # type: ignore[union-attr]


TYPES = {
    "coded parts": pa.array([["a", "b"][: n % 3] for n in range(ROWS)]).cast(
        pa.list_(pa.dictionary(pa.int8(), pa.string()))
    ),
    "pairs": pa.array([[n % 3, 1] for n in range(ROWS)], pa.list_(pa.int64(), 2)),
    "no parts": pa.array([[]] * ROWS, pa.list_(pa.string())),
    "no lists": pa.array([None] * ROWS, pa.list_(pa.null())),
    "parts of bytes": pa.array([[b"\xff"]] * ROWS),
    "maps": pa.array([[("a", 1)]] * ROWS, pa.map_(pa.string(), pa.int64())),
    "blanks": pa.array([""] * ROWS),
    "nothing": pa.nulls(ROWS),
    "narrow": pa.array((np.arange(ROWS) % 3).astype("float16")),
    "views": pa.array(["a", "b"] * (ROWS // 2), pa.string_view()),
}


@pytest.mark.parametrize("case", TYPES)
@pytest.mark.parametrize("name", ["new", "click", "timestamp", "session"])
def test_no_type_is_an_obstacle_to_the_other_columns(tmp_path: Path, case: str, name: str) -> None:
    table = pa.Table.from_pandas(log().drop(columns=name, errors="ignore"))
    path = tmp_path / "log.parquet"
    pq.write_table(table.append_column(name, TYPES[case]), path)
    spec = loads(infer(path))
    assert {"x", "kind"} <= set(encodings(spec))
    assert spec.tasks[-1].name == "purchase"


def label_of(values: pd.Series, kind: str) -> Any:
    words = values.map({0: "False", 1: "True"})
    if kind == "words":
        return words
    if kind == "codes":
        return values.astype(str).where(np.arange(len(values)) % 300 > 0).astype("category")
    return (values == 1).astype("boolean").where(np.arange(len(values)) % 300 > 0)


@pytest.mark.parametrize("kind", ["words", "codes", "truths"])
def test_labels_are_read_as_the_feature_job_reads_them(tmp_path: Path, kind: str) -> None:
    frame = log()
    frame["click"] = label_of(frame["click"], kind)
    text = infer(written(frame, tmp_path, "log.parquet"))
    assert [(t.name, t.given) for t in loads(text).tasks] == [
        ("click", None), ("purchase", "click"),
    ]  # fmt: skip
    assert ("# 0.33% of the rows have no 'click'" in text) == (kind != "words")


@pytest.mark.parametrize(
    ("column", "taken", "said"),
    [
        (lambda f: np.arange(ROWS) // 5, True, ""),
        (lambda f: "s", False, "has 1 value in 1,200 rows"),
        (lambda f: np.arange(ROWS) % 3, False, "has 3 values"),
        (lambda f: bought(f, np.arange(ROWS)), False, "is missing in"),
    ],
)
def test_a_request_has_few_rows_and_each_row_has_one(
    tmp_path: Path, column: Change, taken: bool, said: str
) -> None:
    frame = log()
    frame["session"] = column(frame)
    text = infer(written(frame, tmp_path))
    spec = loads(text)
    assert (spec.data.keys.request == "session") == taken
    assert (f"# No request: 'session' {said}" in text) == (not taken)
    assert encodings(spec).get("session") == ("vocabulary" if "3 values" in said else None)


# ---------------------------------------------------------------------------------- files


@pytest.mark.parametrize("name", ["log.tsv", "log.csv.gz", "log.pq", "LOG.CSV"])
def test_the_files_of_the_feature_job_are_read(tmp_path: Path, name: str) -> None:
    path, frame = tmp_path / name, log()
    if name.endswith("pq"):
        frame.to_parquet(path)
    else:
        text = frame.to_csv(index=False, sep="\t" if "tsv" in name else ",").encode()
        path.write_bytes(gzip.compress(text) if name.endswith("gz") else text)
    spec = loads(infer(path))
    assert (spec.data.keys.user, spec.data.impressions.path) == ("user_id", name)
    assert spec.data.split.kind == "time"


def test_rows_that_the_feature_job_passes_over_are_no_obstacle(tmp_path: Path) -> None:
    frame = log()
    frame["note"] = [f"line {n % 50}\nand another, {n % 3}" for n in range(ROWS)]
    path = written(frame, tmp_path)
    lines = path.read_text().splitlines()
    path.write_text("\n".join([*lines, "too,few"]))
    assert encodings(loads(infer(path)))["note"] == "vocabulary"


def test_the_index_of_pandas_is_a_column_only_where_it_has_a_name(tmp_path: Path) -> None:
    path = tmp_path / "log.parquet"
    log().sample(frac=0.9, random_state=0).to_parquet(path)
    assert "__index_level_0__" in pq.read_schema(path).names
    assert set(encodings(loads(infer(path)))) == {"user_id", "item_id", "x", "kind"}
    log().set_index("user_id").to_parquet(path)
    assert loads(infer(path)).data.keys.user == "user_id"


def refused(path: Path, **named: Any) -> str:
    with pytest.raises(UserError) as caught:
        infer(path, **named)
    return str(caught.value)


@pytest.mark.parametrize(("mark", "name"), [(";", "';'"), ("\t", "a tab"), ("|", "'|'")])
def test_another_separator_is_named(tmp_path: Path, mark: str, name: str) -> None:
    path = tmp_path / "log.csv"
    log().to_csv(path, index=False, sep=mark)
    error = refused(path)
    assert f"separated by {name}" in error and "columns separated by a comma" in error


def test_another_encoding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    log().rename(columns={"x": "größe"}).to_csv(path, index=False, encoding="latin-1")
    assert "UTF-8" in refused(path)
    log().replace({"kind": {"a": "é"}}).to_csv(path, index=False, encoding="latin-1")
    assert "UTF-8" in refused(path) and "'kind'" in refused(path)
    log().to_csv(path, index=False, encoding="utf-16")
    assert "UTF-8" in refused(path)


def test_a_table_that_is_none_is_named(tmp_path: Path) -> None:
    assert "no known format" in refused(written(log(), tmp_path, "log.txt"))
    assert "no rows" in refused(written(log()[:0], tmp_path))
    assert "folder" in refused(tmp_path)


def test_a_column_is_one_thing_alone(tmp_path: Path) -> None:
    frame = log()
    frame["tags"] = [["a"]] * ROWS
    path = written(frame, tmp_path, "log.parquet")
    assert "two things" in refused(path, user="item_id", item="item_id")
    assert "two things" in refused(path, user="click", labels=["click"])
    assert "cannot name a user" in refused(path, user="tags")


# ---------------------------------------------------------------------------------- times


def epoch(frame: pd.DataFrame, per_second: float) -> pd.Series:
    return (frame["timestamp"] - pd.Timestamp(0)).dt.total_seconds() * per_second


TIMES: dict[str, tuple[Change, tuple[str, str | None]]] = {
    "seconds": (lambda f: epoch(f, 1).astype(int), ("s", None)),
    "milliseconds": (lambda f: epoch(f, 1e3).astype("int64"), ("ms", None)),
    "fractions of seconds": (lambda f: epoch(f, 1) + 0.25, ("s", None)),
    "one far off": (
        lambda f: epoch(f, 1).astype("int64").where(f.index != 7, 10**15),
        ("s", None),
    ),
    "digits of a day": (lambda f: f["timestamp"].dt.strftime("%Y%m%d"), ("iso", "%Y%m%d")),
    "digits of a second": (
        lambda f: f["timestamp"].dt.strftime("%Y%m%d%H%M%S"),
        ("iso", "%Y%m%d%H%M%S"),
    ),
    "day first": (
        lambda f: f["timestamp"].dt.strftime("%d/%m/%Y %H:%M"),
        ("iso", "%d/%m/%Y %H:%M"),
    ),
    "month first": (
        lambda f: f["timestamp"].dt.strftime("%m/%d/%Y %I:%M %p"),
        ("iso", "%m/%d/%Y %I:%M %p"),
    ),
    "dots": (lambda f: f["timestamp"].dt.strftime("%d.%m.%Y"), ("iso", "%d.%m.%Y")),
    "slashes": (lambda f: f["timestamp"].dt.strftime("%Y/%m/%d"), ("iso", None)),
    "a zone": (lambda f: f["timestamp"].dt.strftime("%Y-%m-%dT%H:%M:%SZ"), ("iso", None)),
}


@pytest.mark.parametrize("case", TIMES)
@pytest.mark.parametrize("name", ["log.csv", "log.parquet"])
def test_a_time_is_read_as_it_is_written(tmp_path: Path, case: str, name: str) -> None:
    change, expected = TIMES[case]
    frame = log()
    frame["timestamp"] = change(frame)
    data = loads(infer(written(frame, tmp_path, name))).data
    time, split = data.time, data.split
    assert time is not None and (time.unit, time.format) == expected
    assert split.kind == "time"
    assert (str(split.train_to), str(split.validation_to)) == ("2026-01-16", "2026-01-18")


def test_a_day_that_could_be_a_month_is_told(tmp_path: Path) -> None:
    frame = log()
    day = frame["timestamp"].dt.day
    frame = frame[day <= 10]
    frame["timestamp"] = frame["timestamp"].dt.strftime("%d/%m/%Y")
    text = infer(written(frame, tmp_path))
    time = loads(text).data.time
    assert time is not None and time.format == "%d/%m/%Y"
    assert "# 'timestamp' could be %m/%d/%Y as well" in text


NO_TIMES: dict[str, Change] = {
    "time of day": lambda f: f["timestamp"].dt.strftime("%H:%M:%S"),
    "hour": lambda f: f["timestamp"].dt.hour,
    "words": lambda f: f["kind"] + "day",
    "mostly missing": lambda f: f["timestamp"].where(f["x"] > 1),
}


@pytest.mark.parametrize("case", NO_TIMES)
def test_what_is_no_time_is_told_or_refused(tmp_path: Path, case: str) -> None:
    frame = log()
    frame["timestamp"] = NO_TIMES[case](frame)
    path = written(frame, tmp_path)
    text = infer(path)
    assert loads(text).data.time is None and "# No time by 'timestamp'" in text
    assert "'timestamp' is no time" in refused(path, time="timestamp")
    # Another column that holds the date is the time then.
    frame["date"] = log()["timestamp"].dt.date
    time = loads(infer(written(frame, tmp_path))).data.time
    assert (time is None) == (case == "mostly missing")


def test_the_only_column_of_dates_is_the_time(tmp_path: Path) -> None:
    frame = log().rename(columns={"timestamp": "date"})
    item = frame["item_id"].str[1:].astype(int)
    frame["released"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(item, unit="D")
    spec = loads(infer(written(frame, tmp_path)))
    assert spec.data.time is not None and spec.data.time.column == "date"
    assert "released" not in encodings(spec)
    # Of two that could be it, none is taken; and neither is a word.
    frame["seen_on"] = frame["date"] + pd.to_timedelta(np.arange(ROWS) % 3, unit="D")
    text = infer(written(frame, tmp_path))
    assert loads(text).data.time is None
    assert "# No time: 'date', 'released', 'seen_on' hold dates; name one with --time" in text
    assert not {"date", "released", "seen_on"} & set(encodings(loads(text)))
