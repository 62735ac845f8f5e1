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

from infra.bad_rows import repeated
from infra.infer import infer, look_over
from infra.report import show_inferred
from infra.roles import Named
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


def test_what_only_the_labelled_have_is_left_out(tmp_path: Path) -> None:
    frame = log()
    half = np.arange(ROWS) % 2 == 0
    frame["review"] = bought(frame, frame["x"]).where(half)
    frame["value"] = (bought(frame, 5 + frame["x"].abs()).where(np.arange(ROWS) % 30 > 0)).fillna(0)
    frame["sold"] = bought(frame, np.arange(ROWS) % 3).fillna(0).astype(int)
    frame["clicks"] = frame["click"] * (np.arange(ROWS) % 4)
    frame["opened"] = frame["click"] * half
    text = infer(written(frame, tmp_path))
    assert not {"review", "value", "sold", "clicks", "opened"} & set(encodings(loads(text)))
    # Who purchased had clicked, but the purchase says more.
    assert "'review': it is there only where 'purchase' is 1" in text
    for name in ("value", "sold"):
        assert f"'{name}': it is other than 0 only where 'purchase' is 1" in text
    assert "'clicks': it is other than 0 only where 'click' is 1" in text
    # Two can be labels.
    assert "write 0 and 1 to learn it" in text
    # To name it alone would drop the others.
    assert "to learn: --label click --label purchase --label opened." in text
    assert "--label sold" not in text


@pytest.mark.parametrize("none", ["none", "No order", ""])
def test_texts_of_which_one_stands_for_none_are_judged(tmp_path: Path, none: str) -> None:
    frame = log()
    numbers = [f"o{n}" for n in range(ROWS)]
    frame["order_ref"] = np.where(frame["click"] == 1, numbers, none)
    # Half of the clicks have one; of the others, some miss it.
    half = np.where((frame["click"] == 1) & (np.arange(ROWS) % 2 == 0), numbers, none)
    frame["ticket"] = np.where(np.arange(ROWS) % 7 == 1, None, half)
    text = infer(written(frame, tmp_path, "log.parquet"))
    assert not {"order_ref", "ticket"} & set(encodings(loads(text)))
    if none:
        assert "'order_ref': alone it tells 'click' (AUC 1.000)" in text
        assert "'ticket': it is other than its most frequent value only where 'click' is" in text


def test_where_nearly_all_rows_have_a_label_nothing_seems_to_follow_it(tmp_path: Path) -> None:
    frame = pd.concat([log()] * 5, ignore_index=True).drop(columns=["click", "purchase"])
    rng = np.random.default_rng(2)
    frame["finished"] = (rng.random(len(frame)) < 0.995).astype(int)
    frame["query"] = [f"q{n}" for n in rng.integers(0, 90, len(frame))]
    frame["stops"] = rng.integers(0, 4, len(frame))
    text = infer(written(frame, tmp_path))
    assert {"query", "stops"} <= set(encodings(loads(text))) and "Leave it out if" not in text


def test_what_tells_a_label_well_is_doubted(tmp_path: Path) -> None:
    frame = log()
    wrong = np.arange(ROWS) % 50 == 0
    frame["nearly"] = np.where(wrong, 1 - frame["click"], frame["click"])
    # Of two values, AUC is the mean of what is right among the ones and among the zeros.
    area = 1 - np.mean([wrong[frame["click"] == label].mean() for label in (0, 1)])
    frame["seldom"] = 0
    frame.loc[frame.index[frame["click"] == 1][:20], "seldom"] = 1
    text = infer(written(frame, tmp_path))
    assert encodings(loads(text))["nearly"] == encodings(loads(text))["seldom"] == "vocabulary"
    assert f"# 'nearly': alone it tells 'click' well (AUC {area:.3f})" in text
    # Twenty rows may be one user's, and all rows of one item are the item's.
    item = frame.groupby("item_id")["click"].transform("size").idxmax()
    frame["listed"] = (frame["item_id"] == frame["item_id"][item]).astype(int)
    frame.loc[frame["listed"] == 1, "click"] = 1
    assert frame["listed"].sum() >= 30
    listed = infer(written(frame, tmp_path))
    assert loads(listed).feature("listed").owner == "item"
    assert "# 'listed': it is other than 0 only where 'click' is 1. Leave it out if" in listed
    assert "# 'seldom': it is other than 0 only where 'click' is 1. Leave it out if" in text
    assert text.count("Leave it out if") == 2


def test_few_labelled_rows_are_judged_and_fewer_are_said(tmp_path: Path) -> None:
    frame = log().drop(columns=["click", "purchase"])
    frame["like"] = (np.arange(ROWS) % 200 == 7).astype(int)
    frame["amount"] = frame["x"].where(frame["like"] == 1)
    frame["state"] = np.where(frame["like"] == 1, "done", "none")
    assert frame["like"].sum() == 6
    text = infer(written(frame, tmp_path))
    assert not {"amount", "state"} & set(encodings(loads(text)))
    assert "was not judged" not in text
    frame.loc[frame.index[frame["like"] == 1][:2], "like"] = 0
    text = infer(written(frame, tmp_path))
    assert "only after 'like' was not judged: fewer than 5 rows differ" in text


@pytest.mark.parametrize(
    ("first", "then"),
    [("click_bool", "booking_bool"), ("Applied", "hired"), ("is_click_flag", "reserved_yn")],
)
def test_labels_of_hotels_and_jobs_are_known(tmp_path: Path, first: str, then: str) -> None:
    frame = log().rename(columns={"click": first, "purchase": then})
    frame["random_bool"] = np.arange(ROWS) % 2
    frame["promotion_flag"] = np.arange(ROWS) % 3 // 2
    spec = loads(infer(written(frame, tmp_path)))
    assert [(task.name, task.given) for task in spec.tasks] == [(first, None), (then, first)]
    assert {"random_bool", "promotion_flag"} <= set(encodings(spec))


def test_an_attribute_is_no_task(tmp_path: Path) -> None:
    frame = log()
    frame["subscribed"] = (frame["user_id"].str[1:].astype(int) % 3 == 0).astype(int)
    frame["sale"] = (frame["item_id"].str[1:].astype(int) % 3 == 0).astype(int)
    text = infer(written(frame, tmp_path))
    spec = loads(text)
    assert [task.name for task in spec.tasks] == ["click", "purchase"]
    assert (spec.feature("subscribed").owner, spec.feature("sale").owner) == ("user", "item")
    assert "# No task of 'subscribed': each user has one value" in text
    # Someone who names it knows better.
    named = loads(infer(written(frame, tmp_path), labels=["subscribed"]))
    assert [task.name for task in named.tasks] == ["subscribed"]


def test_a_funnel_is_no_chance(tmp_path: Path) -> None:
    frame = log()
    frame["share"] = 0
    frame.loc[frame.index[frame["click"] == 1][:3], "share"] = 1
    text = infer(written(frame, tmp_path))
    tasks = {task.name: task.given for task in loads(text).tasks}
    # By chance three rows lie within 30% in 2.7%, and 180 in none of all cases.
    assert tasks == {"click": None, "purchase": "click", "share": None}
    assert "# 'share' lies within 'click', perhaps by chance (3 rows have it)" in text
    # Nearly all rows were seen, so that any label lies within.
    frame = log().drop(columns="purchase")
    frame["watched"] = (np.arange(ROWS) % 300 > 0).astype(int)
    assert [t.given for t in loads(infer(written(frame, tmp_path))).tasks] == [None, None]


@pytest.mark.parametrize("strays", [0, 3])
def test_a_label_that_says_what_another_one_says_is_no_second_task(
    tmp_path: Path, strays: int
) -> None:
    frame = log()
    frame["label"] = frame["click"]
    # Of some 360 clicks three are 0.8%.
    frame.loc[frame.index[frame["click"] == 1][:strays], "label"] = 0
    frame.loc[frame.index[frame["click"] == 0][:strays], "label"] = 1
    path = written(frame, tmp_path)
    text = infer(path)
    tasks = {task.name: task.given for task in loads(text).tasks}
    assert tasks == {"click": None, "purchase": "click"}
    assert "# No task of 'label': it says the same as 'click'." in text
    assert "label" not in encodings(loads(text))
    # Someone who names both gets both, but not one of rows that all have it.
    named = infer(path, labels=["click", "label"])
    assert [task.given for task in loads(named).tasks] == [None, None]
    assert "# 'label' says the same as 'click'." in named
    # Of labels that nearly all rows have, most rows have both by chance.
    frame["label"] = (np.arange(ROWS) % 300 > 0).astype(int)
    frame["watched"] = (np.arange(ROWS) % 290 > 0).astype(int)
    assert "says the same" not in infer(written(frame, tmp_path))


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
    assert time is not None and time.column == "date"
    assert "timestamp" not in encodings(loads(text)) or case in ("hour", "words")


def test_the_only_column_of_dates_is_the_time(tmp_path: Path) -> None:
    frame = log().rename(columns={"timestamp": "date"})
    item = frame["item_id"].str[1:].astype(int)
    frame["released"] = pd.Timestamp("2020-01-01") + pd.to_timedelta(item, unit="D")
    spec = loads(infer(written(frame, tmp_path)))
    assert spec.data.time is not None and spec.data.time.column == "date"
    assert "released" not in encodings(spec)
    # Of two that could be it, the earlier is taken; and neither is a word.
    frame["seen_on"] = frame["date"] + pd.to_timedelta(np.arange(ROWS) % 3, unit="D")
    frame = frame[["seen_on", *frame.columns.drop("seen_on")]]
    text = infer(written(frame, tmp_path))
    time = loads(text).data.time
    assert time is not None and time.column == "date"
    assert "# The time is 'date', the earliest; 'seen_on' holds times too." in text
    assert not {"date", "released", "seen_on"} & set(encodings(loads(text)))


@pytest.mark.parametrize(
    ("name", "per_second", "unit"),
    [("event_timestamp", 1, "s"), ("created_at", 1000, "ms"), ("logTime", 1, "s")],
)
def test_numbers_named_like_a_time_are_one(
    tmp_path: Path, name: str, per_second: int, unit: str
) -> None:
    frame = log()
    frame["timestamp"] = epoch(frame, per_second).astype("int64")
    # What comes later is no time, nor is what was noted only where something happened.
    later = pd.Timestamp("2026-06-01") + pd.to_timedelta(np.arange(ROWS) % 50, unit="D")
    frame["valid_until"] = later.strftime("%Y-%m-%d")
    frame["click_time"] = frame["timestamp"].where(frame["click"] == 1, 0)
    # Nor is half past three.
    frame["departure_time"] = 1530 + np.arange(ROWS) % 200
    frame = frame.rename(columns={"timestamp": name})
    text = infer(written(frame, tmp_path))
    time = loads(text).data.time
    assert time is not None and (time.column, time.unit) == (name, unit)
    assert f"# The time is {name!r}, the only one with times of the moment." in text
    assert not {name, "valid_until", "click_time"} & set(encodings(loads(text)))
    assert encodings(loads(text))["departure_time"] == "quantiles"


@pytest.mark.parametrize("file", ["log.csv", "log.parquet"])
@pytest.mark.parametrize(
    ("name", "number", "expected"),
    [
        ("date", lambda f: f["timestamp"].dt.strftime("%Y%m%d"), ("iso", "%Y%m%d")),
        ("event_date", lambda f: f["timestamp"].dt.strftime("%Y%m%d"), ("iso", "%Y%m%d")),
        ("dt", lambda f: epoch(f, 1), ("s", None)),
        ("ds", lambda f: epoch(f, 1e9), ("ns", None)),
    ],
)
def test_whole_numbers_named_like_a_day_are_read(
    tmp_path: Path, file: str, name: str, number: Change, expected: tuple[str, str | None]
) -> None:
    frame = log()
    frame[name] = number(frame).astype("int64")
    beside = loads(infer(written(frame, tmp_path, file)))
    assert beside.data.time is not None and beside.data.time.column == "timestamp"
    assert name not in encodings(beside)
    alone = loads(infer(written(frame.drop(columns="timestamp"), tmp_path, file)))
    time = alone.data.time
    assert time is not None and (time.column, time.unit, time.format) == (name, *expected)
    # The day of the week is a number of that name, too.
    frame[name] = frame["timestamp"].dt.dayofweek
    assert encodings(loads(infer(written(frame, tmp_path, file))))[name] == "vocabulary"


def test_a_date_in_parts_is_to_be_joined(tmp_path: Path) -> None:
    frame = log()
    day = frame["timestamp"] + pd.to_timedelta(np.arange(ROWS) % 3 * 31, unit="D")
    frame = frame.drop(columns="timestamp")
    frame["Year"] = 2025 + np.arange(ROWS) % 2
    frame["month"] = day.dt.month
    said = "# No time: join {} into one column of dates (YYYY-MM-DD) to split by day."
    assert said.format("'Year', 'month'") in infer(written(frame, tmp_path))
    frame["day"] = day.dt.day
    text = infer(written(frame, tmp_path))
    assert said.format("'Year', 'month', 'day'") in text
    assert {"Year", "month", "day"} <= set(encodings(loads(text)))
    # Beside a time they are features alone; so are those of an item.
    beside = infer(written(frame.assign(timestamp=log()["timestamp"]), tmp_path))
    assert "No time" not in beside and loads(beside).data.split.kind == "time"
    frame["Year"] = 1990 + frame["item_id"].str[1:].astype(int)
    assert "No time" not in infer(written(frame, tmp_path))


def test_a_word_that_only_has_a_time_in_it_is_none(tmp_path: Path) -> None:
    frame = log().drop(columns="timestamp")
    words = [f"w{n % 40}" for n in range(ROWS)]
    named = ["candidate_city", "sentiment", "updateText", "multimedia", "time_zone", "sale_date"]
    dated = ["saleDate", "date_of_stay", "arrival_time"]
    day = log()["timestamp"]
    frame = frame.assign(**dict.fromkeys(named, words))
    # None of these can be read, but none is a name that comes again, either.
    frame["saleDate"] = day.dt.strftime("%b %d, %Y")
    frame["date_of_stay"] = day.dt.strftime("%d.%m.%y")
    frame["arrival_time"] = day.dt.strftime("%H:%M").where(day.dt.day > 2, "late")
    text = infer(written(frame, tmp_path))
    assert {encodings(loads(text)).get(name) for name in named} == {"vocabulary"}
    assert not set(dated) & set(encodings(loads(text)))
    for name in dated:
        assert f"No feature of {name!r}: it is named like a time, but has a time that can" in text


@pytest.mark.parametrize(("seconds", "what"), [(60, "minutes"), (3600, "hours"), (86_400, "days")])
def test_coarse_numbers_since_1970_are_no_seconds(tmp_path: Path, seconds: int, what: str) -> None:
    frame = log()
    frame["timestamp"] = (epoch(frame, 1) // seconds).astype("int64")
    text = infer(written(frame, tmp_path))
    assert loads(text).data.time is None
    assert f"# No time by 'timestamp': it looks like {what} since 1970" in text
    # From the start of the log, they are days that can be told apart.
    frame["timestamp"] = (epoch(log(), 1) - epoch(log(), 1).min()).astype("int64")
    text = infer(written(frame, tmp_path))
    assert loads(text).data.split.kind == "time" and "'timestamp' lies near 1970" in text


# --------------------------------------------------------------------------------- splits


@pytest.mark.parametrize("stray", ["2098-01-01", "2026-01-21"])
def test_a_few_rows_at_the_end_are_no_test(tmp_path: Path, stray: str) -> None:
    frame = log()
    frame.loc[ROWS - 1, "timestamp"] = pd.Timestamp(stray)
    text = infer(written(frame, tmp_path))
    split = loads(text).data.split
    assert split.kind == "time"
    assert (str(split.train_to), str(split.validation_to), str(split.test_to)) == (
        "2026-01-16", "2026-01-18", "2026-01-20",
    )  # fmt: skip
    assert "# 1 row after 2026-01-20, the last day with many: left out." in text


def test_days_are_held_out_by_their_rows(tmp_path: Path) -> None:
    frame = log()
    # The last two days have 12 rows each, a hundredth; three more have 72 each.
    rows = np.repeat(np.arange(20), [960 // 15] * 15 + [72, 72, 72, 12, 12])
    frame["timestamp"] = pd.Timestamp("2026-01-01 08:00") + pd.to_timedelta(rows, unit="D")
    split = loads(infer(written(frame, tmp_path))).data.split
    assert split.kind == "time"
    assert (str(split.train_to), str(split.validation_to)) == ("2026-01-15", "2026-01-17")


def test_a_split_without_a_label_is_said(tmp_path: Path) -> None:
    frame = log()
    frame["purchase"] = frame["purchase"].where(frame.index < ROWS * 0.5, 0)
    text = infer(written(frame, tmp_path))
    for part in ("validation", "test"):
        assert f"# No row of the {part} split has 'purchase'" in text
    assert "No row of the training split" not in text and "Each row" not in text
    full = log().drop(columns="purchase")
    full["click"] = full["click"].where(full.index < ROWS * 0.5, 1)
    text = infer(written(full, tmp_path))
    for part in ("validation", "test"):
        assert f"# Each row of the {part} split has 'click': choose other days." in text
    rare = log().assign(click=(np.arange(ROWS) % 300 == 0).astype(int))
    text = infer(written(rare.drop(columns=["timestamp", "purchase"]), tmp_path))
    assert "# Only 4 rows have 'click': validation and test have about a tenth" in text


def test_doubts_and_gaps_are_told_beside_the_file(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frame = log()
    frame["purchase"] = frame["purchase"].where(frame.index < ROWS * 0.5, 0)
    wrong = np.arange(ROWS) % 50 == 0
    for n in range(10):
        frame[f"near{n}"] = np.where(wrong, 1 - frame["click"], frame["click"])
    path = written(frame, tmp_path)
    found = look_over(path, Named())
    show_inferred(loads(found.text), found, path, tmp_path / "spec.yaml")
    lines = capsys.readouterr().out.splitlines()
    doubts = [line for line in lines if line.startswith("  doubtful  ")]
    assert "  doubtful  'near0': alone it tells 'click' well (AUC 0.97" in doubts[0]
    assert len(doubts) == 9 and doubts[-1] == "  doubtful  and 2 more; they are in the file"
    assert [line for line in lines if line.startswith("  split ")] == [
        f"  split     No row of the {part} split has 'purchase': choose other days."
        for part in ("validation", "test")
    ]


def test_a_table_sorted_by_its_label_is_judged_as_a_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infra.infer.SAMPLE_ROWS", 400)
    frame = log().drop(columns=["timestamp", "purchase"]).sort_values("click", kind="stable")
    frame["country"] = np.where(np.arange(ROWS) == 7, "fr", "de")
    spec = loads(infer(written(frame, tmp_path)))
    assert [task.name for task in spec.tasks] == ["click"]
    assert "country" in encodings(spec)


# ------------------------------------------------------------------ ids, keys and requests


def test_whole_numbers_that_name_things_are_no_amounts(tmp_path: Path) -> None:
    frame = log()
    rng = np.random.default_rng(3)
    frame["campaign_id"] = rng.integers(1000, 1100, ROWS)
    frame["storeId"] = np.where(rng.random(ROWS) < 0.9, rng.integers(0, 40, ROWS), np.nan)
    frame["zip"] = [f"{n:05}" for n in rng.integers(100, 130, ROWS)]
    frame["shelf"] = [f"{n:03}" for n in rng.integers(0, 99, ROWS)]
    frame["score_id"] = frame["x"]
    frame["yearID"] = rng.integers(1990, 2020, ROWS)
    frame["txn_id"] = np.arange(ROWS) * 7
    frame["order_no"] = np.arange(ROWS) * 3 + 5
    frame["line"] = np.arange(ROWS) + 500
    frame["uuid"] = [f"e{n}" for n in range(ROWS)]
    # Of 1,200 rows five are there twice, which still leaves 99% of all values.
    frame.loc[:4, ["txn_id", "order_no", "line", "uuid"]] = frame.loc[
        5:9, ["txn_id", "order_no", "line", "uuid"]
    ].to_numpy()
    text = infer(written(frame, tmp_path))
    found = encodings(loads(text))
    assert {found.get(name) for name in ("campaign_id", "storeId", "zip", "shelf")} == {
        "vocabulary"
    }
    assert {found.get(name) for name in ("score_id", "yearID")} == {"quantiles"}
    assert not {"txn_id", "order_no", "line", "uuid"} & set(found)
    assert "No feature of 'order_no': each row has a value of its own" in text
    # Ids that the newest rows have not seen before are no use, as those of keys.
    frame["campaign_id"] = np.arange(ROWS) // 20
    assert "campaign_id" not in encodings(loads(infer(written(frame, tmp_path))))


def test_the_likeliest_of_the_keys_is_taken(tmp_path: Path) -> None:
    frame = log()
    frame.insert(0, "user", np.where(np.arange(ROWS) % 2, "new", "old"))
    frame.insert(0, "ad_id", np.arange(ROWS) % 7)
    text = infer(written(frame, tmp_path))
    spec = loads(text)
    assert (spec.data.keys.user, spec.data.keys.item) == ("user_id", "item_id")
    assert "# The user is 'user_id'; 'user' could be it: --user names it." in text
    # One of another name has more values.
    other = frame.rename(columns={"item_id": "video_id"})
    assert loads(infer(written(other, tmp_path))).data.keys.item == "video_id"
    one = frame.assign(item_id=1).drop(columns="ad_id")
    assert "cannot name an item" in refused(written(one, tmp_path))
    parts = frame.assign(user_id=np.arange(ROWS) % 9 + 0.5).drop(columns="user")
    assert "fractions" in refused(written(parts, tmp_path))


def test_names_are_known_however_they_are_written(tmp_path: Path) -> None:
    frame = log().rename(columns={"user_id": " userId", "item_id": "ITEM ID", "click": "isClick"})
    spec = loads(infer(written(frame, tmp_path)))
    assert (spec.data.keys.user, spec.data.keys.item) == (" userId", "ITEM ID")
    assert [task.label.column for task in spec.tasks] == ["isClick", "purchase"]  # type: ignore[union-attr]
    far = log().rename(columns={"item_id": "hotel_id"})
    assert "--item COLUMN, such as hotel_id." in refused(written(far, tmp_path))


@pytest.mark.parametrize("name", ["request_id", "srch_id", "page"])
def test_what_differs_within_requests_is_of_the_candidates(tmp_path: Path, name: str) -> None:
    frame = log()
    frame["request_id"] = np.arange(ROWS) // 6
    frame["position"] = np.arange(ROWS) % 6
    frame["device"] = np.array(["web", "ios", "tv"])[frame["request_id"] % 3]
    path = written(frame.rename(columns={"request_id": name}), tmp_path)
    text = infer(path, request=name if name == "page" else None)
    spec = loads(text)
    owners = {f.raw: f.owner for f in spec.features if f.encode.kind != "counter"}
    assert spec.data.keys.request == name
    assert (owners["x"], owners["device"], owners["position"]) == ("item", "context", "context")
    assert spec.model.position == "position"
    assert "position" not in {by for f in spec.features for by in getattr(f.encode, "by", ())}
    assert "# 'x' differs within requests: each candidate brings its own." in text
    assert "No request tells" not in text
    assert "is no request" in refused(path, request="kind")
    without = infer(written(frame.drop(columns="request_id"), tmp_path))
    assert "No request tells what was shown together" in without
    assert loads(without).feature("x").owner == "context"


def test_what_lasts_for_days_is_no_request(tmp_path: Path) -> None:
    frame = log()
    frame["session_id"] = "s" + frame["user_id"]
    text = infer(written(frame, tmp_path))
    assert loads(text).data.keys.request is None
    assert "# No request: rows of one 'session_id' lie days apart." in text
    named = loads(infer(written(frame, tmp_path), request="session_id"))
    assert named.data.keys.request == "session_id"


def test_what_is_nearly_always_missing_or_0_is_nobodys(tmp_path: Path) -> None:
    frame = log()
    rng = np.random.default_rng(5)
    chosen = rng.random(ROWS) < 0.02
    frame["coupon"] = np.where(chosen, rng.integers(5, 50, ROWS), np.nan)
    frame["promo"] = (rng.random(ROWS) < 0.001).astype(int)
    user = frame["user_id"].str[1:].astype(int)
    frame["member"] = np.where(user % 50 == 0, user / 3, np.nan)
    spec = loads(infer(written(frame, tmp_path)))
    assert spec.feature("coupon").owner == spec.feature("promo").owner == "context"
    assert spec.feature("member").owner == "user"


# ---------------------------------------------------------------- what the job will refuse


def test_a_bad_cell_leaves_a_number_a_number(tmp_path: Path) -> None:
    frame = log()
    frame["age"] = frame["user_id"].str[1:]
    frame.loc[[3, 700], "age"] = "unknown"
    text = infer(written(frame, tmp_path))
    assert encodings(loads(text))["age"] == "quantiles"
    # Two of 1,200 rows, which the job sets apart.
    assert "# 0.17% of the rows have a text that is no number in 'age'" in text
    assert "bad_records" not in text


def test_more_bad_rows_than_the_job_allows_are_said(tmp_path: Path) -> None:
    frame = log()
    frame.loc[: ROWS // 4 - 1, "user_id"] = None
    frame["big"] = frame["x"].where(frame.index != ROWS - 1, 1e300)
    path = written(frame, tmp_path)
    with path.open("a") as file:
        file.write("too,few\n" * 100)
    text = infer(path)
    assert "# 25.00% of the rows have no 'user_id'" in text
    assert "# 0.08% of the rows have too large a number in 'big'" in text
    assert "# 100 lines have too few or too many fields" in text
    # 300 + 1 + 100 of 1,300 are 30.85%.
    assert "# In all 30.85% are bad records" in text and "# bad_records: 0.32" in text
    back = text.replace("  # bad_records", "  bad_records")
    assert loads(back).data.bad_records == 0.32


@pytest.mark.parametrize("day", [True, False])
def test_equal_rows_are_told_where_no_moment_tells_them_apart(tmp_path: Path, day: bool) -> None:
    frame = log().drop(columns="x")
    frame = pd.concat([frame] * 2, ignore_index=True)
    if day:
        frame["timestamp"] = frame["timestamp"].dt.strftime("%Y-%m-%d")
    text = infer(written(frame, tmp_path))
    # With the time of the day, a row that is there twice was written twice.
    assert ("of the rows equal another one in all columns" in text) == day
    assert ("  duplicates: keep\n" in text) == day


def test_equal_rows_are_kept_where_no_column_differs() -> None:
    # Of ten rows, nine equal one before them.
    table = pa.table({"a": [1] * 10, "b": ["x"] * 10, "c": [[1, 2]] * 10})
    assert repeated(table) == 0.9
    assert repeated(table.append_column("n", pa.array(range(10)))) == 0


def test_a_bad_cell_is_no_obstacle_where_there_is_no_time(tmp_path: Path) -> None:
    frame = log().drop(columns="timestamp")
    frame["age"] = frame["user_id"].str[1:]
    frame.loc[3, "age"] = "unknown"
    assert encodings(loads(infer(written(frame, tmp_path))))["age"] == "quantiles"
    # Text in which nearly all cells are times could be one as others could.
    frame["moment"] = epoch(log(), 1).astype("int64").astype(str)
    frame.loc[3, "moment"] = "unknown"
    assert "# 'moment' could be times: name one with --time" in infer(written(frame, tmp_path))


@pytest.mark.parametrize("name", ["position", "position_id"])
def test_a_place_that_is_no_feature_is_not_learned_apart(tmp_path: Path, name: str) -> None:
    rows = np.arange(600)
    frame = log()[: len(rows)].assign(request_id=rows // 6)
    # Each row has a place of its own, or the newest rows have ids that training lacks.
    frame[name] = rows if name == "position" else rows // 3
    spec = loads(infer(written(frame, tmp_path)))
    assert spec.data.keys.request == "request_id" and spec.model.position is None


# ---------------------------------------------------------------------------------- lists


def test_lists_in_text_are_read_as_lists(tmp_path: Path) -> None:
    rng = np.random.default_rng(6)
    frame = log()
    frame["tags"] = ["|".join(rng.choice(list("abcdef"), n % 3 + 1, False)) for n in range(ROWS)]
    frame["words"] = [" ".join(rng.choice(list("abcdef"), n % 3 + 1)) for n in range(ROWS)]
    frame["pair"] = [f"{n % 9}|{n % 7}" for n in range(ROWS)]
    text = infer(written(frame, tmp_path))
    tags, pair = loads(text).feature("tags"), loads(text).feature("pair")
    assert (tags.separator, tags.encode.max_length) == ("|", 3)  # type: ignore[union-attr]
    assert not pair.is_list and not loads(text).feature("words").is_list
    assert "# 'words' seems to hold lists" in text


def test_lists_in_brackets_are_read_as_lists(tmp_path: Path) -> None:
    frame = log()
    tags = [[f"t{k % 11}" for k in range(n, n + n % 4)] for n in range(ROWS)]
    frame["tags"], frame["sizes"] = tags, [str(np.arange(n % 3)) for n in range(ROWS)]
    frame["quoted"] = [f"[{word}]" if n else word for n, word in enumerate(["sale"] * ROWS)]
    frame["comma"] = [["Sports, US", f"b{n % 9}"] for n in range(ROWS)]
    spec = loads(infer(written(frame, tmp_path)))  # by pandas: ['t3', 't4'] and [0 1 2]
    feature = spec.feature("tags")
    assert (feature.separator, feature.encode.max_length) == (",", 3)  # type: ignore[union-attr]
    assert spec.feature("sizes").separator == " "
    assert not spec.feature("comma").is_list


def test_parts_with_a_comma_are_parted_by_another_mark(tmp_path: Path) -> None:
    frame = log()
    frame["tags"] = [["Sports, US", "b|c"][: n % 3] for n in range(ROWS)]
    feature = loads(infer(written(frame, tmp_path, "log.parquet"))).feature("tags")
    assert feature.separator == ";"
    frame["tags"] = [["a", "b"][: n % 3] for n in range(ROWS)]
    feature = loads(infer(written(frame, tmp_path, "log.parquet"))).feature("tags")
    assert feature.separator is None


# ------------------------------------------------------------------------------- messages


def test_what_to_write_is_said(tmp_path: Path) -> None:
    frame = log().drop(columns="purchase")
    frame["click"] = np.where(frame["click"] == 1, "yes", "no")
    error = refused(written(frame, tmp_path))
    assert "'click' holds 'yes', 'no'" in error or "'click' holds 'no', 'yes'" in error
    assert "Write 0 and 1 into it" in error
    assert "Write 0 and 1 into it" in refused(written(frame, tmp_path), labels=["click"])
    path = tmp_path / "log.csv"
    log().rename(columns={"x": "price, EUR"}).to_csv(path, index=False, sep=";")
    assert "columns separated by a comma" in refused(path)
    frame = log()
    frame["timestamp"] = epoch(frame, 1).astype(int)
    frame["user_id"] = frame["user_id"].str[1:]
    frame.to_csv(path, index=False, header=False)
    assert "has no header" in refused(path)
    log().to_csv(path, index=False, encoding="utf-16")
    assert "iconv -f utf-16" in refused(path)
    for name, fix in {"log.json": "as CSV or Parquet", "log.csv.zip": "Unpack it"}.items():
        (tmp_path / name).write_text("x")
        assert fix in refused(tmp_path / name)
    # The job keeps some names to itself.
    spec = loads(infer(written(log().rename(columns={"x": "key:x"}), tmp_path)))
    assert "key:x" not in encodings(spec)
