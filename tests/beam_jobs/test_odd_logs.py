"""Logs as they come: odd names, lists in Parquet, linked folders, lines of other encodings."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import run_features, sources
from beam_jobs.plan import plan_of
from beam_jobs.validate import validate
from recsys.errors import UserError
from recsys.spec import loads
from serving.store import LocalStore

pytestmark = pytest.mark.long

SPEC = """
name: songs
data:
  impressions: {path: log.csv}
  tables: {item: {path: songs.parquet, key: song_id}}
  keys: {user: user, item: song}
  split: {validation: 0.2, test: 0.2, seed: 1}
features:
  - {name: user, owner: user, encode: vocabulary}
  - {name: song_id, owner: item, encode: {kind: vocabulary, oov_buckets: 1}}
  - {name: pitch, owner: item, column: key, encode: vocabulary}
  - {name: genres, owner: item, encode: {kind: vocabulary, max_length: 3}, separator: "|"}
  - {name: scores, owner: context, encode: {kind: vocabulary, max_length: 3}}
  - {name: code, owner: context, encode: vocabulary}
  - {name: code_number, owner: context, column: code, encode: {kind: numeric, scale: none}}
tasks:
  - {name: click, label: {column: clicked}}
"""


@pytest.fixture(scope="module")
def songs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any], pd.DataFrame]:
    """A features folder, its manifest and its log; half of the shown songs have no row."""
    folder = tmp_path_factory.mktemp("songs")
    rng = np.random.default_rng(0)
    n = 600
    log = pd.DataFrame(
        {
            "shown": np.arange(n),  # nothing reads it
            "user": rng.integers(0, 3, n),
            "song": [f"s{k}" for k in rng.integers(0, 4, n)],
            "scores": rng.choice(["7.0,8.0", "7", "True|x"], n),
            "code": rng.choice(["1e39", "12", "a"], n),
            "clicked": rng.integers(0, 2, n),
        }
    )
    log.to_csv(folder / "log.csv", index=False)
    pq.write_table(
        pa.table(
            {
                "song_id": ["s0", "s1"],
                "key": ["C", "D"],
                "genres": [["rock, pop", "jazz"], ["7.0"]],
            }
        ),
        folder / "songs.parquet",
    )
    return folder, run_features(loads(SPEC), folder, folder / "features"), log


def vocabulary(folder: Path, name: str) -> list[str]:
    assets = folder / "features" / "transform" / "transform_fn" / "assets"
    return sorted((assets / f"vocabulary_{name}").read_text().splitlines())


def examples(folder: Path) -> pd.DataFrame:
    parts = ("train", "validation", "test")
    return pd.concat(
        [pq.read_table(folder / "features" / "examples" / p).to_pandas() for p in parts]
    )


def test_rows_that_differ_in_what_nothing_reads_are_no_duplicates(songs: Any) -> None:
    _, manifest, log = songs
    assert sum(manifest["rows"].values()) == len(log)
    assert log.drop(columns="shown").duplicated().sum() > 100  # else this shows nothing


def test_an_item_column_may_be_called_key(songs: Any) -> None:
    folder, _, _ = songs
    store = LocalStore(folder / "features")
    found = store.lookup("item", ["s0", "s1", "C"])
    assert found.known.tolist() == [True, True, False]
    assert found.columns["key"].tolist() == ["C", "D", ""]


def test_lists_are_joined_and_their_parts_made_canonical(songs: Any) -> None:
    folder, _, _ = songs
    assert vocabulary(folder, "genres") == ["7", "jazz", "rock, pop"]
    assert vocabulary(folder, "scores") == ["7", "8", "True|x"]


def test_the_id_of_an_item_that_the_table_lacks_is_no_missing_one(songs: Any) -> None:
    folder, _, log = songs
    assert vocabulary(folder, "song_id") == ["s0", "s1", "s2", "s3"]
    assert (examples(folder)["song_id"] > 0).all()


def test_a_text_beyond_all_numbers_is_no_number(songs: Any) -> None:
    folder, _, log = songs
    assert vocabulary(folder, "code") == ["12", "1e39", "a"]
    numbers = examples(folder)["code_number"]
    assert sorted(set(numbers)) == [0.0, 12.0]
    assert (numbers == 12.0).sum() == (log["code"] == "12").sum()


def test_what_was_learned_is_other_where_numbers_are(tmp_path: Path) -> None:
    text = SPEC.replace("{kind: numeric, scale: none}", "{kind: quantiles, buckets: 4}")
    text = text[: text.index("  - {name: scores")] + text[text.index("  - {name: code_number") :]
    made = []
    for times in (1, 1000):
        folder = tmp_path / str(times)
        folder.mkdir()
        table = pd.DataFrame({"user": range(200), "song": "s", "code": np.arange(200.0) * times})
        table.assign(clicked=[0, 1] * 100).to_csv(folder / "log.csv", index=False)
        empty = {"song_id": pa.array([], pa.string()), "key": pa.array([], pa.string())}
        pq.write_table(pa.table(empty | {"genres": empty["key"]}), folder / "songs.parquet")
        made.append(run_features(loads(text), folder, folder / "features"))
        assert not LocalStore(folder / "features").lookup("item", ["s"]).known.any()
        empty, *others = made[-1]["warnings"]
        assert empty == "the item table has no rows"
        assert ["'genres'" in others[0], "'pitch'" in others[1]] == [True, True]
    assert made[0]["learned"] != made[1]["learned"]


# ------------------------------------------------------------------------------------ reading


def log_source(path: str = "log", **changed: Any) -> sources.Source:
    source = replace(plan_of(loads(SPEC)).impressions, path=path, whole=False)
    user = next(field for field in source.fields if field.target == "key:user")
    return replace(source, **({"fields": (user,)} | changed))


def read(
    folder: Path, source: sources.Source, most: int | None = None
) -> tuple[pa.Table, list[str]]:
    files = sources.resolve(folder, source)
    sources.check(files, source)
    blocks, lines = [], []
    for task in sources.tasks(files, source, most):
        for block, ragged in sources.read(task):
            blocks.append(block)
            lines += ragged
    return pa.concat_tables(blocks), lines


def test_linked_folders_are_read_once_each(tmp_path: Path) -> None:
    for name, where in (("a", "log/day=1"), ("b", "elsewhere")):
        (tmp_path / where).mkdir(parents=True)
        (tmp_path / where / "x.csv").write_text(f"user\n{name}\n")
    (tmp_path / "log" / "day=2").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "log" / "day=1" / "up").symlink_to(tmp_path / "log")  # a circle
    table, _ = read(tmp_path, log_source())
    assert table["user"].to_pylist() == [b"a", b"b"]


def test_names_of_folders_are_decoded(tmp_path: Path) -> None:
    for city in ("New%20York", "__HIVE_DEFAULT_PARTITION__"):
        (tmp_path / "log" / f"user={city}").mkdir(parents=True)
        (tmp_path / "log" / f"user={city}" / "x.csv").write_text("song\ns\n")
    table, _ = read(tmp_path, log_source())
    assert table["user"].to_pylist() == ["New York", None]


def test_a_path_may_lead_out_of_the_input(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "out" / "user=u").mkdir(parents=True)
    (tmp_path / "out" / "user=u" / "x.csv").write_text("song\ns\n")
    for path in ("../out", "../out/*/*.csv", str(tmp_path / "out")):
        assert read(tmp_path / "in", log_source(path))[0]["user"].to_pylist() == ["u"]


@pytest.mark.parametrize("mark", ["", "\ufeff"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_line_of_another_encoding_that_does_not_fit_is_one_bad_line(
    tmp_path: Path, mark: str, packed: bool, monkeypatch: pytest.MonkeyPatch, capfd: Any
) -> None:
    monkeypatch.setattr(sources, "BYTES_PER_BLOCK", 64)  # rows before it are read already
    good = [f"u{n},ü{n},é".encode() for n in range(20)]
    lines = [*good[:9], b"short,\xe9", *good[9:12], b"u,\xe9,x", *good[12:], b"a,b,c,\xe9"]
    content = b"\n".join([f"{mark}user,sóng,c".encode(), *lines, b""])
    (tmp_path / "log").mkdir()
    name, content = ("x.csv.gz", gzip.compress(content)) if packed else ("x.csv", content)
    (tmp_path / "log" / name).write_bytes(content)
    source = log_source()
    song = replace(source.fields[0], target="key:item", column="sóng")
    table, ragged = read(tmp_path, replace(source, fields=(*source.fields, song)))
    expected = [f"u{n}".encode() for n in range(12)] + [b"u"]
    assert table["user"].to_pylist() == expected + [f"u{n}".encode() for n in range(12, 20)]
    songs = table["sóng"].to_pylist()
    assert songs[0] == "ü0".encode() and songs[12] == b"\xe9" and songs[20] == "ü19".encode()
    assert ragged == [
        "2 fields in place of 3: short,é",
        "4 fields in place of 3: a,b,c,é",
    ]
    assert table["key:row"].to_pylist() == list(range(21))
    assert "Traceback" not in capfd.readouterr().err


def test_a_sample_has_as_many_bad_lines_as_rows(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    lines = ["u,s" if n % 500 else "torn" for n in range(50_000)]
    (tmp_path / "log" / "x.csv").write_text("\n".join(["user,song", *lines, ""]))
    table, ragged = read(tmp_path, log_source(), 5000)
    assert len(table) == pytest.approx(5000, abs=50) and 2 <= len(ragged) <= 20


def test_columns_that_nothing_reads_are_hashed_alike_in_every_format(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    table = pa.table(
        {
            "user": ["u", "u", "u", "u"],
            "n": pa.array([1, 1, None, 2]),
            "tags": [["a"], ["a"], ["a"], ["a"]],
            "s": pa.array(["x", "x", "x", "x"]).dictionary_encode(),
        }
    )
    pq.write_table(table, tmp_path / "log" / "x.parquet")
    rest, _ = read(tmp_path, log_source(whole=True))
    hashes = rest["key:rest"].to_pylist()
    assert hashes[0] == hashes[1] and len({*hashes}) == 3
    assert rest.column_names == ["user", "key:rest", "key:row"]


def test_columns_that_nothing_reads_may_have_one_name(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    table = pa.table({"user": ["u", "u", "u"], "a": [1, 1, 1], "b": [1, 1, 2]})
    pq.write_table(table.rename_columns(["user", "a", "a"]), tmp_path / "log" / "x.parquet")
    first, second, third = read(tmp_path, log_source(whole=True))[0]["key:rest"].to_pylist()
    assert first == second != third


@pytest.mark.parametrize("most", [None, 2])
def test_a_header_of_another_encoding(tmp_path: Path, most: int | None) -> None:
    (tmp_path / "log").mkdir()
    (tmp_path / "log" / "x.csv").write_bytes("größe,user,n\n1,u,1\n2,v,2\n".encode("latin1"))
    table, _ = read(tmp_path, log_source(whole=True), most)
    assert table["user"].to_pylist() == [b"u", b"v"]


def test_a_pattern_below_an_input_that_looks_like_one(tmp_path: Path) -> None:
    (tmp_path / "x[1]*?" / "day=1").mkdir(parents=True)
    (tmp_path / "x[1]*?" / "day=1" / "log-1.csv").write_text("user\nu\n")
    for path in ("**/log-*.csv", "day=*"):
        assert read(tmp_path / "x[1]*?", log_source(path))[0]["user"].to_pylist() == [b"u"]


def test_parquet_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (tmp_path / "log").mkdir()
    pq.write_table(
        pa.Table.from_arrays([pa.array(["a"]), pa.array(["b"])], names=["user", "user"]),
        tmp_path / "log" / "x.parquet",
    )
    with pytest.raises(UserError, match="'user' is there twice"):
        read(tmp_path, log_source())


def test_a_time_beyond_the_calendar_is_a_dead_letter() -> None:
    text = SPEC.replace("  split:", "  time: {column: at}\n  split:")
    source = plan_of(loads(text)).impressions
    time = next(field for field in source.fields if field.target == "key:time")
    block = pa.table(
        {"at": pa.array([0, 10**18], pa.timestamp("us")), "key:row": pa.array([0, 1], pa.int64())}
    )
    checked = validate(block, [], replace(source, fields=(time,)))
    assert len(checked.good) == 1
    assert json.loads(checked.dead["row"][0].as_py()) == {"at": 10**18}
    words = pa.table({"at": ["now", " Today", "2026-01-01"], "key:row": pa.array([0, 1, 2])})
    assert validate(words, [], replace(source, fields=(time,))).good["row"].to_pylist() == [2]


def test_an_output_within_the_logs_is_refused(tmp_path: Path) -> None:
    text = SPEC.replace("path: log.csv", "path: .").replace(
        "  tables: {item: {path: songs.parquet, key: song_id}}\n", ""
    )
    text = text[: text.index("  - {name: song_id")] + text[text.index("tasks:") :]
    table = pd.DataFrame({"user": range(200), "song": "s", "clicked": [0, 1] * 100})
    table.to_csv(tmp_path / "log.csv", index=False)
    run_features(loads(text), tmp_path, tmp_path / "features")
    with pytest.raises(UserError, match="output lies in a folder that is read for impressions"):
        run_features(loads(text), tmp_path, tmp_path / "features")


ADS = """
name: ads
data:
  impressions: log.csv
  keys: {user: user, item: row}
  time: {column: day}
  split: {validation: 0.2, test: 0.2}
  weight: importance
features:
  - {name: user, owner: user, encode: vocabulary}
  - {name: row, owner: item, encode: vocabulary}
tasks:
  - {name: click, label: {column: clicked}}
"""


def test_equal_rows_of_a_day_are_told_of_and_may_be_kept(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    log = pd.DataFrame(
        {
            "user": rng.integers(0, 5, 500),
            "row": rng.integers(0, 3, 500),  # a name that the job has for itself
            "day": "2026-01-01",
            "clicked": rng.integers(0, 2, 500),
            "importance": 2.5,
        }
    )
    log.to_csv(tmp_path / "log.csv", index=False)
    manifest = run_features(loads(ADS), tmp_path, tmp_path / "features")
    distinct = len(log.drop_duplicates())
    assert sum(manifest["rows"].values()) == distinct == 30
    (warning,) = manifest["warnings"]
    assert warning.startswith("470 of 500 impressions equal another in every column")
    assert "data.duplicates: keep" in warning
    kept = loads(ADS.replace("  weight:", "  duplicates: keep\n  weight:"))
    manifest = run_features(kept, tmp_path, tmp_path / "features")
    assert sum(manifest["rows"].values()) == 500 and manifest["warnings"] == []
    assert set(examples(tmp_path)["key:weight"]) == {2.5}


def test_a_weight_that_is_missing_or_negative_makes_a_row_bad() -> None:
    source = plan_of(loads(ADS)).impressions
    weight = next(field for field in source.fields if field.target == "key:weight")
    block = pa.table({"importance": ["1", "0", "-1", "", "inf"], "key:row": [0, 1, 2, 3, 4]})
    checked = validate(block, [], replace(source, fields=(weight,)))
    assert checked.good["key:weight"].to_pylist() == [1.0, 0.0]
    assert checked.dead["reason"].to_pylist() == ["weight importance is missing or negative"] * 3


def test_a_part_of_a_list_with_the_separator_in_it_makes_a_row_bad() -> None:
    source = plan_of(loads(SPEC)).tables["item"]
    genres = next(field for field in source.fields if field.column == "genres")
    block = pa.table({"genres": [["a,b", "c"], ["a|b"], None], "key:row": [0, 1, 2]})
    checked = validate(block, [], replace(source, fields=(genres,)))
    assert checked.good["raw:genres"].to_pylist() == ["a,b|c", ""]
    assert checked.dead["reason"].to_pylist() == ["genres is no list of texts without '|'"]


def test_lists_in_brackets_are_lists() -> None:
    source = plan_of(loads(SPEC.replace('separator: "|"', 'separator: ","'))).tables["item"]
    genres = next(field for field in source.fields if field.column == "genres")
    texts = ["['a', 'b']", '["b"]', "[]", "a,b", "['x, y', 'a']"]
    checked = validate(
        pa.table({"genres": texts, "key:row": range(5)}), [], replace(source, fields=(genres,))
    )
    assert checked.good["raw:genres"].to_pylist() == ["a,b", "b", "", "a,b"]
    assert checked.dead["reason"].to_pylist() == ["genres is no list of texts without ','"]


def test_tables_may_have_columns_of_one_name(tmp_path: Path) -> None:
    text = """
name: shops
data:
  impressions: log.csv
  tables:
    user: {path: users.csv, key: id}
    item: {path: items.csv, key: id, prefix: item_}
  keys: {user: user, item: item}
  split: {validation: 0.2, test: 0.2}
features:
  - {name: country, owner: user, encode: vocabulary}
  - {name: item_country, owner: item, encode: vocabulary}
  - {name: item_id, owner: item, column: id, encode: vocabulary}
tasks:
  - {name: click, label: {column: clicked}}
"""
    log = pd.DataFrame({"user": range(200), "item": [f"i{n % 4}" for n in range(200)]})
    log.assign(clicked=[0, 1] * 100).to_csv(tmp_path / "log.csv", index=False)
    pd.DataFrame({"id": range(200), "country": "DE"}).to_csv(tmp_path / "users.csv", index=False)
    items = pd.DataFrame({"id": [f"i{n}" for n in range(4)], "country": ["CN", "FR"] * 2})
    items.to_csv(tmp_path / "items.csv", index=False)
    run_features(loads(text), tmp_path, tmp_path / "features")
    assert vocabulary(tmp_path, "country") == ["DE"]
    assert vocabulary(tmp_path, "item_country") == ["CN", "FR"]
    assert vocabulary(tmp_path, "item_id") == ["i0", "i1", "i2", "i3"]
    store = LocalStore(tmp_path / "features")
    assert store.lookup("item", ["i0", "i1"]).columns["item_country"].tolist() == ["CN", "FR"]
    assert store.lookup("user", ["7"]).columns["country"].tolist() == ["DE"]


LOCAL = """
name: local
data:
  impressions: shown.csv
  actions: {click: {path: clicks.csv, time: {column: at, unit: s}}}
  keys: {impression: id, user: user, item: item}
  time: {column: at, unit: s}
  split: {column: {column: day}, train_to: 2026-01-04, validation_to: 2026-01-05}
features:
  - {name: item, owner: item, encode: vocabulary}
  - {name: clicked, owner: user, encode: {kind: history, of: item, action: click, max_length: 100}}
  - {name: rate, owner: item, encode: {kind: counter, by: [item], task: click,
     statistic: positives, as: {kind: numeric, scale: none}}}
tasks:
  - {name: click, label: {action: click, within: 3h}}
"""


@pytest.mark.parametrize("shards", [1, 60])
def test_local_days_are_those_of_all_rows_however_they_are_divided(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shards: int
) -> None:
    monkeypatch.setattr("beam_jobs.job.FEWEST_SHARDS", shards)
    rng = np.random.default_rng(5)
    n, start = 700, 1767225600  # six days from 2026-01-01, by a clock eight hours ahead
    local = start + np.sort(rng.integers(0, 6 * 86400, n))
    shown = pd.DataFrame({"id": [f"i{k}" for k in range(n)], "at": local - 8 * 3600})
    shown["user"] = [f"u{k}" for k in rng.integers(0, 40, n)]
    shown["item"] = [f"p{k}" for k in rng.integers(0, 9, n)]
    shown["day"] = pd.to_datetime(local, unit="s").strftime("%Y-%m-%d")
    clicks = shown[["id", "at"]][rng.random(n) < 0.5].copy()
    clicks["at"] += rng.integers(0, 3 * 3600, len(clicks))
    shown.to_csv(tmp_path / "shown.csv", index=False)
    clicks.to_csv(tmp_path / "clicks.csv", index=False)
    run_features(loads(LOCAL), tmp_path, tmp_path / "features")
    found = pq.read_table(tmp_path / "features" / "raw" / "test").to_pandas()

    events = shown.merge(clicks, on="id", suffixes=("", "_click")).sort_values("at_click")
    known = (events["at_click"] + 8 * 3600 - start) // 86400
    assert (known > pd.to_datetime(events["day"]).dt.day - 1).sum() > 10  # else this shows nothing
    last = shown[shown["day"] == "2026-01-06"]
    before = events[known < 5]  # to the end of the 5th
    pasts = before[::-1].groupby("user")["item"].agg(",".join)
    counts = before["item"].value_counts()
    expected = sorted(
        (row.item, pasts.get(row.user, ""), counts.get(row.item, 0)) for row in last.itertuples()
    )
    assert sorted(zip(found["item"], found["clicked"], found["rate"], strict=True)) == expected


def days_log(seconds: int) -> pa.Table:
    """2,000 rows of few users, items and moments, which only a number tells apart."""
    rng = np.random.default_rng(1)
    n = 2000
    return pa.table(
        {
            "user": rng.integers(0, 20, n),
            "row": rng.integers(0, 3, n),
            "day": 1_772_323_200 + seconds * rng.integers(0, 4, n),
            "importance": np.ones(n),
            "clicked": rng.integers(0, 2, n),
            "number": np.arange(n),
        }
    )


@pytest.mark.parametrize("kind", ["numbers", "dates"])
def test_days_in_any_form_do_not_tell_rows_apart(tmp_path: Path, kind: str) -> None:
    log = days_log(86_400)
    if kind == "dates":
        days = log["day"].cast(pa.timestamp("s")).cast(pa.date32())
        log = log.set_column(2, "day", days)
    pq.write_table(log, tmp_path / "log.parquet")
    text = ADS.replace("log.csv", "log.parquet").replace("{column: day}", "{column: day, unit: s}")
    manifest = run_features(loads(text), tmp_path, tmp_path / "features")
    assert sum(manifest["rows"].values()) == 2000 and manifest["warnings"] == []


def test_equal_rows_at_the_same_moment_are_told_of(tmp_path: Path) -> None:
    log = days_log(3600)
    pq.write_table(log, tmp_path / "log.parquet")
    text = ADS.replace("log.csv", "log.parquet").replace("{column: day}", "{column: day, unit: s}")
    manifest = run_features(loads(text), tmp_path, tmp_path / "features")
    moments = log.filter(pa.array(log["day"].to_numpy() % 86_400 != 0)).drop_columns("number")
    lost = len(moments) - len(moments.to_pandas().drop_duplicates())
    (warning,) = manifest["warnings"]
    assert warning.startswith(f"{lost:,} of 2,000 impressions equal another in every column")


def test_only_days_make_the_job_read_what_nothing_needs(tmp_path: Path) -> None:
    text = ADS.replace("{column: day}", "{column: day, unit: s}").replace("log.csv", "log.parquet")
    source = plan_of(loads(text)).impressions
    days = days_log(86_400)
    moments = pa.array(days["day"].to_numpy() + 1 + np.arange(len(days)))
    for log, expected in ((days, False), (days.set_column(2, "day", moments), True)):
        pq.write_table(log, tmp_path / "log.parquet")
        files = sources.resolve(tmp_path, source)
        assert source.whole and sources.tells_moments(files, source) == expected
