"""What wrong input gets: a clear error, and nothing left behind."""

import gzip

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import run_features
from beam_jobs.runner import CarriedError, _carried, carrying
from recsys.errors import UserError
from recsys.spec import loads

SPEC = """
name: mistakes
data:
  impressions: {path: log}
  keys: {user: user, item: item}
  time: {column: at}
  split: {train_to: 2026-03-01, validation_to: 2026-03-02}
features:
  - {name: user, owner: user, encode: vocabulary}
  - {name: price, owner: item, encode: numeric}
tasks:
  - {name: click, label: {column: clicked}}
"""


def rows(n=60):
    return pd.DataFrame(
        {
            "user": [f"u{i % 7}" for i in range(n)],
            "item": [f"p{i}" for i in range(n)],
            "at": [f"2026-03-0{1 + i % 3}T10:00:00" for i in range(n)],
            "price": np.arange(n) * 0.5,
            "clicked": np.arange(n) % 2,
        }
    )


@pytest.fixture
def refuse(tmp_path):
    """Run on these rows (or this folder) and answer the error; nothing may be left behind."""

    def run(table=None, text=SPEC, files=None, args=()):
        folder = tmp_path / "input"
        (folder / "log").mkdir(parents=True, exist_ok=True)
        if table is not None:
            table.to_csv(folder / "log" / "a.csv", index=False)
        for name, content in (files or {}).items():
            (folder / "log" / name).write_bytes(content)
        with pytest.raises(UserError) as caught:
            run_features(loads(text), folder, tmp_path / "out", pipeline_args=args)
        assert [path.name for path in tmp_path.iterdir()] == ["input"]
        return caught.value

    return run


def test_a_missing_column_names_the_nearest(refuse):
    error = refuse(rows().rename(columns={"price": "prize"}))
    assert "'price'" in error.message and "prize" in error.fix and error.where.endswith("a.csv")


def test_no_files(refuse):
    error = refuse()
    assert "No files of impressions" in error.message and "log" in error.found


def test_no_input(tmp_path):
    with pytest.raises(UserError, match="input does not exist"):
        run_features(loads(SPEC), tmp_path / "none", tmp_path / "out")


def test_a_label_that_is_not_0_or_1(refuse):
    error = refuse(rows().assign(clicked=lambda t: t["clicked"].replace(1, 2)))
    assert "30 of 60" in error.message
    assert "30 × label clicked is not 0 or 1" in error.found and '"clicked": "2"' in error.found


def test_a_negative_label_of_a_logarithm(refuse):
    loss = "{name: profit, label: {column: profit}, loss: {kind: huber, log: true}}"
    error = refuse(rows().assign(profit=np.arange(60) - 1.0), f"{SPEC}  - {loss}")
    assert "1 × label profit is negative; its loss is of log(1 + label)" in error.found
    assert "give the task's loss log: false" in error.fix


def test_few_bad_rows_pass_the_threshold_and_many_do_not(refuse):
    bad = rows(200)
    bad.loc[[3, 4, 5], "at"] = "noon"
    error = refuse(bad)
    assert error.found.startswith("1.50% (3 × at is no time)")
    assert error.where == "data.bad_records"
    assert "set data.time.unit or data.time.format" in error.fix


def test_epoch_times_without_their_unit_are_told_of_it(refuse):
    error = refuse(rows().assign(at=1_767_926_848.25 + np.arange(60)))
    assert "60 × at is no time" in error.found
    assert "set data.time.unit or data.time.format" in error.fix
    # Milliseconds that are said to be seconds lie some 50,000 years ahead.
    text = SPEC.replace("{column: at}", "{column: at, unit: s}")
    error = refuse(rows().assign(at=1_767_926_848_250 + np.arange(60)), text)
    assert "60 × at is no time" in error.found


@pytest.mark.parametrize(("mark", "name"), [(";", "';'"), ("\t", "a tab"), ("|", "'|'")])
def test_another_separator_is_named(refuse, mark, name):
    text = rows().to_csv(index=False, sep=mark)
    error = refuse(files={"a.csv": text.encode()})
    assert f"separated by {name}" in error.found
    assert error.expected == "columns separated by a comma"
    assert ("name it .tsv" in error.fix) == (mark == "\t")


def test_ragged_lines_are_bad_records(refuse):
    text = rows().to_csv(index=False) + "u1,p1\n" * 5
    error = refuse(files={"a.csv": text.encode()})
    assert "5 × wrong number of fields" in error.found and "2 fields in place of 5" in error.found


def test_text_that_is_no_utf8_is_a_bad_record(refuse):
    text = rows().to_csv(index=False).encode() + b"\xff,p,2026-03-01,1,1\n"
    error = refuse(files={"a.csv": text})
    assert "1 × user is no text" in error.found


def test_an_empty_split_says_what_was_found(refuse):
    error = refuse(rows()[lambda t: ~t["at"].str.startswith("2026-03-02")])
    assert error.message == "The split validation is empty."
    assert error.found == "train 20, validation 0, test 20; days 2026-03-01 to 2026-03-03"


ACTIONS = SPEC.replace(
    "  keys: {user: user, item: item}\n",
    "  actions: {tap: {path: taps.csv, time: {column: at, unit: ms}}}\n"
    "  keys: {user: user, item: item, impression: id}\n",
).replace("{column: clicked}", "{action: tap, within: 1h}")


@pytest.mark.parametrize(("late", "lost"), [("s", 0), ("ms", 60)])
def test_a_log_of_which_nothing_becomes_a_label(refuse, tmp_path, late, lost):
    table = rows().assign(id=range(60))
    table["id"] = [f"i{n}" for n in table["id"]]
    seconds = (
        pd.to_datetime(table["at"], utc=True).astype("datetime64[s, UTC]").astype("int64") + 60
    )
    at = seconds * (1000 if late == "ms" else 1)
    ids = table["id"] if late == "s" else "other"
    (tmp_path / "input").mkdir()
    pd.DataFrame({"id": ids, "at": at}).to_csv(tmp_path / "input" / "taps.csv", index=False)
    error = refuse(table, ACTIONS)
    assert "label 'click'" in error.message and error.where == "tasks.click.label"
    early = 60 - lost
    assert error.found == (
        f"60 events, {lost} of them of no impression that was read, {early} before theirs, 0 later"
    )
    assert "data.actions.tap.time" in error.fix


def taps(folder, delays_s, days=("2026-03-01", "2026-03-02", "2026-03-03")):
    """Write a log of impressions, and of taps of those of some days."""
    table = rows()
    table["id"] = [f"i{n}" for n in range(60)]
    table.to_csv(folder / "log.csv", index=False)
    at = pd.to_datetime(table["at"], utc=True).astype("datetime64[ms, UTC]").astype("int64")
    at += 1000 * np.resize(delays_s, 60)
    chosen = table["at"].str[:10].isin(days)
    pd.DataFrame({"id": table["id"], "at": at})[chosen].to_csv(folder / "taps.csv", index=False)


def test_actions_out_of_their_window_are_told(tmp_path):
    taps(tmp_path, [-7200, 60, 60, 60, 60, 3601])
    spec = loads(ACTIONS.replace("path: log", "path: log.csv"))
    manifest = run_features(spec, tmp_path, tmp_path / "out")
    early, late = manifest["warnings"]
    assert early.startswith("10 of 60 events of the log tap come before") and "zone" in early
    assert late.startswith("10 of 60 events of the log tap come after") and "`within`" in late
    assert manifest["counts"]["actions_before_impression"] == {"tap": 10}
    assert manifest["counts"]["actions_after_window"] == {"tap": 10}


def test_actions_of_days_outside_of_the_split_are_told(tmp_path):
    taps(tmp_path, [60], ["2026-03-03"])
    table = pd.read_csv(tmp_path / "log.csv")
    before = table.head(3).assign(at="2026-02-27T10:00:00", id=["x0", "x1", "x2"])
    pd.concat([table, before]).to_csv(tmp_path / "log.csv", index=False)
    text = ACTIONS.replace("path: log", "path: log.csv").replace(
        "{train_to: 2026-03-01, validation_to: 2026-03-02}",
        "{train_to: 2026-02-27, validation_to: 2026-03-01, test_to: 2026-03-02}",
    )
    manifest = run_features(loads(text), tmp_path, tmp_path / "out")
    first, second = manifest["warnings"]
    assert first == (
        "20 events of the label 'click' were in time, and no row has it: "
        "they are of days outside of data.split"
    )
    assert "no training row" in second


ITEMS = SPEC.replace("  keys:", "  tables: {item: {path: items.csv, key: id}}\n  keys:")


def test_rows_of_one_id_that_differ_name_its_column(refuse, tmp_path):
    (tmp_path / "input").mkdir()
    items = pd.DataFrame({"id": ["p1", "p2"] * 2, "price": range(4)})
    items.to_csv(tmp_path / "input" / "items.csv", index=False)
    error = refuse(rows().drop(columns="price"), ITEMS)
    assert "2 × id is there twice, with different values" in error.found
    assert "leave one row of each id" in error.fix


def test_an_item_whose_own_id_is_a_feature_and_no_number(tmp_path):
    rows().assign(item=range(60)).drop(columns="price").to_csv(tmp_path / "log.csv", index=False)
    items = pd.DataFrame({"id": ["1", "x9"], "price": [1.0, 2.0]})
    items.to_csv(tmp_path / "items.csv", index=False)
    own = "  - {name: number, owner: item, column: item, encode: numeric}\ntasks:"
    text = ITEMS.replace("path: log", "path: log.csv").replace("tasks:", own)
    run_features(loads(text), tmp_path, tmp_path / "out")
    table = pq.read_table(tmp_path / "out" / "tables" / "item.parquet").to_pandas()
    assert table["item"].tolist()[0] == 1 and np.isnan(table["item"].tolist()[1])


def test_a_table_of_other_ids(refuse, tmp_path):
    (tmp_path / "input").mkdir()
    items = pd.DataFrame({"id": ["item-7"], "price": [1.0]})
    items.to_csv(tmp_path / "input" / "items.csv", index=False)
    shown = rows().drop(columns="price").assign(item="p7").drop_duplicates()
    error = refuse(shown, ITEMS)
    assert error.message == "No impression has a row in the item table."
    assert error.where == "data.tables.item.key (id) and data.keys.item (item)"
    assert error.found == (
        "1 rows of the table, with ids such as 'item-7', "
        f"and {len(shown)} impressions, with ids such as 'p7'"
    )


@pytest.mark.parametrize("known", [29, 30])
def test_a_table_that_most_impressions_miss_is_told(tmp_path, known):
    rows().drop(columns="price").to_csv(tmp_path / "log.csv", index=False)
    items = pd.DataFrame({"id": [f"p{n}" for n in range(known)], "price": 1.0})
    items.to_csv(tmp_path / "items.csv", index=False)
    spec = loads(ITEMS.replace("path: log", "path: log.csv"))
    warnings = run_features(spec, tmp_path, tmp_path / "out")["warnings"]
    told = "31 of 60 impressions have no row in the item table: their columns of it are missing"
    assert warnings == ([told] if known == 29 else [])


def test_a_label_without_positives_in_training_is_told(tmp_path):
    table = rows()
    table.loc[table["at"] < "2026-03-02", "clicked"] = 0
    table.to_csv(tmp_path / "log.csv", index=False)
    spec = loads(SPEC.replace("path: log", "path: log.csv"))
    manifest = run_features(spec, tmp_path, tmp_path / "out")
    (warning,) = manifest["warnings"]
    assert "'click'" in warning and "no training row" in warning


def test_a_split_by_too_few_requests_names_their_column(refuse):
    text = SPEC.replace("item: item}", "item: item, request: page}").replace(
        "{train_to: 2026-03-01, validation_to: 2026-03-02}",
        "{kind: fraction, validation: 0.1, test: 0.1}",
    )
    error = refuse(rows().assign(page="home"), text)
    assert "empty" in error.message
    assert "data.keys.request (page) has 1 distinct value:" in error.fix


def test_an_empty_log(refuse):
    error = refuse(rows(0))
    assert "train and validation and test" in error.message and "no impressions" in error.found


def test_a_truncated_parquet_file(refuse, tmp_path):
    pq.write_table(pa.Table.from_pandas(rows()), tmp_path / "x.parquet")
    content = (tmp_path / "x.parquet").read_bytes()
    (tmp_path / "x.parquet").unlink()
    error = refuse(files={"b.parquet": content[: len(content) // 2]})
    assert "damaged" in error.message and error.where.endswith("b.parquet")


def test_parquet_pages_that_are_damaged_are_met_by_a_worker(refuse, tmp_path):
    pq.write_table(pa.Table.from_pandas(rows()), tmp_path / "x.parquet", compression="zstd")
    content = bytearray((tmp_path / "x.parquet").read_bytes())
    (tmp_path / "x.parquet").unlink()
    content[4:400] = bytes(396)
    error = refuse(files={"b.parquet": bytes(content)})
    assert "damaged" in error.message and error.where.endswith("b.parquet")


def test_a_csv_file_of_no_bytes(refuse):
    error = refuse(files={"a.csv": b""})
    assert "'user'" in error.message and error.found == "no columns"


@pytest.mark.parametrize("name", ["b.csv", "b.csv.gz", "b.parquet"])
def test_files_of_no_bytes_beside_others_are_told(tmp_path, name):
    (tmp_path / "log").mkdir()
    rows().to_csv(tmp_path / "log" / "a.csv", index=False)
    (tmp_path / "log" / name).write_bytes(gzip.compress(b"") if name.endswith("gz") else b"")
    manifest = run_features(loads(SPEC), tmp_path, tmp_path / "out")
    assert manifest["warnings"] == [
        f"1 of 2 files of impressions are empty: {tmp_path / 'log' / name}"
    ]
    assert sum(manifest["rows"].values()) == 60


@pytest.mark.parametrize(
    ("name", "packed", "found", "advice"),
    [
        ("a.csv", "parquet", "Parquet", "name it .parquet"),
        ("a.csv", "gzip", "gzip", "name it .csv.gz"),
        ("a.csv", "utf-16", "UTF-16", "Write it as its name says."),
        ("a.parquet", "gzip", "gzip", "Write it as its name says"),
    ],
)
def test_a_file_of_another_format_is_named(refuse, tmp_path, name, packed, found, advice):
    text = rows().to_csv(index=False)
    if packed == "parquet":
        pq.write_table(pa.Table.from_pandas(rows()), tmp_path / "x")
        content = (tmp_path / "x").read_bytes()
        (tmp_path / "x").unlink()
    else:
        content = gzip.compress(text.encode()) if packed == "gzip" else text.encode(packed)
    error = refuse(files={name: content})
    assert (error.message, error.found) == (
        "A file is damaged or is not what its name says.", found
    )  # fmt: skip
    assert advice in error.fix


def test_what_a_terminal_would_obey_is_escaped(refuse):
    error = refuse(files={"a.csv": b"us\x1b[31mer,\x00\x07,\xc3\xbc\n1,2,3\n"})
    assert error.found == r"us\x1b[31mer, \x00\x07, ü"


@pytest.mark.parametrize("most", ["", "  max_rows: 50\n"])
def test_a_truncated_packed_file(refuse, most):
    content = gzip.compress(rows(4000).to_csv(index=False).encode())
    text = SPEC.replace("features:", f"{most}features:", 1)
    error = refuse(text=text, files={"b.csv.gz": content[: len(content) // 2]})
    assert "damaged" in error.message and error.where.endswith("b.csv.gz")


def test_a_column_that_is_there_twice(refuse):
    error = refuse(files={"a.csv": b"user,user,item,at,price,clicked\n"})
    assert "'user' is there twice" in error.message


def test_unknown_pipeline_options(refuse):
    error = refuse(rows(), args=["--direct_num_wrkers=2"])
    assert "--direct_num_wrkers=2" in error.found and error.exit_code == 2


def test_a_wrong_value_of_a_pipeline_option(refuse):
    assert refuse(rows(), args=["--direct_num_workers=many"]).exit_code == 2


def test_an_unknown_runner(refuse):
    assert "NoSuchRunner" in refuse(rows(), args=["--runner=NoSuchRunner"]).found


def test_errors_come_out_of_workers_whole():
    error = UserError("What.", expected="a: b", found="c\nd", where="e", fix="f", exit_code=3)
    with pytest.raises(CarriedError) as caught, carrying():
        raise error
    # Runners pass on the text of an exception, wrapped in their own.
    back = _carried(RuntimeError(f"Traceback\n  {caught.value} [while running 'Read']"))
    assert str(back) == str(error) and back.exit_code == 3


def test_a_full_disk_is_told_without_a_traceback():
    with pytest.raises(CarriedError) as caught, carrying():
        raise OSError(28, "No space left on device", "/data/part-0")
    back = _carried(RuntimeError(str(caught.value)))
    assert back.where == "/data/part-0" and "No space" in back.message and "space" in back.fix
