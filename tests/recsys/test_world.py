"""The simulated world: what it writes, that its truth is true, and that it appears whole."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from datetime import date
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest
from disk import files_of_at_most

from recsys.artifacts import read_manifest
from recsys.errors import UserError
from recsys.world import best_auc, best_auc_of, read_truth, simulate

ROWS = 60_000
DAY_MS = 86_400_000


def read(world: Path, kind: str) -> pd.DataFrame:
    """All parts of one log, with the partition's day where there is one."""
    frames = []
    for file in sorted((world / kind).rglob("*.parquet")):
        frame = pq.ParquetFile(file).read().to_pandas()
        if file.parent.name.startswith("day="):
            frame["day"] = file.parent.name.removeprefix("day=")
        frames.append(frame)
    return pd.concat(frames, ignore_index=True)


def digest(world: Path) -> dict[str, str]:
    return {
        str(file.relative_to(world)): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(world.rglob("*"))
        if file.is_file()
    }


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("simulated") / "world"
    simulate(out, rows=ROWS, seed=3)
    return out


@pytest.fixture(scope="module")
def impressions(world: Path) -> pd.DataFrame:
    return read(world, "impressions")


@pytest.fixture(scope="module")
def clicks(world: Path) -> pd.DataFrame:
    return read(world, "clicks")


@pytest.fixture(scope="module")
def conversions(world: Path) -> pd.DataFrame:
    return read(world, "conversions")


def test_same_seed_same_bytes_and_another_seed_another_world(tmp_path: Path) -> None:
    for name, seed in (("a", 7), ("b", 7), ("c", 8)):
        simulate(tmp_path / name, rows=3_000, seed=seed, days=3)
    first, second, other = (digest(tmp_path / name) for name in "abc")
    assert first == second
    for kind in ("impressions/day=2026-01-01", "users", "items", "truth/day=2026-01-01"):
        path = f"{kind}/part-0.parquet"
        assert first[path] != other[path]


def test_schemas_are_the_documented_ones(world: Path) -> None:
    event = {"impression_id": "string", "user_id": "string", "item_id": "string", "time": "int64"}
    expected = {
        "impressions/day=2026-01-01": {
            "impression_id": "string",
            "request_id": "string",
            "user_id": "string",
            "item_id": "string",
            "time": "int64",
            "position": "int32",
            "hour": "int32",
            "device": "string",
            "surface": "string",
        },
        "clicks/day=2026-01-01": event,
        "conversions/day=2026-01-01": {**event, "value": "double"},
        # The truth lies beside the log, never in it, so that no feature can be made of it.
        "truth/day=2026-01-01": {
            "impression_id": "string",
            "p_click": "double",
            "p_conversion_given_click": "double",
        },
        "users": {
            "user_id": "string",
            "age_group": "string",
            "country": "string",
            "tenure_days": "double",
            "activity": "double",
            "interests": "string",
        },
        "items": {
            "item_id": "string",
            "category": "string",
            "brand": "string",
            "price": "double",
            "age_days": "double",
            "tags": "string",
        },
    }
    for folder, columns in expected.items():
        schema = pq.read_schema(world / folder / "part-0.parquet")
        assert {field.name: str(field.type) for field in schema} == columns, folder


def test_manifest_agrees_with_the_logs(
    world: Path, impressions: pd.DataFrame, clicks: pd.DataFrame, conversions: pd.DataFrame
) -> None:
    manifest = read_manifest(world, "world")
    assert manifest["kind"] == "world"
    assert manifest["format_version"] == 1
    assert manifest["rows"] == len(impressions) == ROWS
    assert manifest["written"] == {
        "impressions": ROWS,
        "clicks": len(clicks),
        "conversions": len(conversions),
    }
    rates = manifest["label_rates"]
    assert rates["click"] == len(clicks) / ROWS
    assert rates["conversion"] == len(conversions) / ROWS
    assert rates["conversion_given_click"] == len(conversions) / len(clicks)
    assert manifest["time_range"] == ["2026-01-01T00:00:00+00:00", "2026-01-11T00:00:00+00:00"]
    assert sorted(impressions["day"].unique()) == manifest["day_list"]
    assert manifest["best_auc"] == pytest.approx(best_auc_of(world))


@pytest.mark.parametrize("seed", range(4))
def test_rates_and_best_aucs_lie_in_their_bands_whatever_the_seed(
    seed: int, tmp_path: Path
) -> None:
    manifest = simulate(tmp_path / "world", rows=ROWS, seed=seed)
    rates, best = manifest["label_rates"], manifest["best_auc"]
    assert 0.09 < rates["click"] < 0.11
    assert 0.008 < rates["conversion"] < 0.012
    assert 0.74 < best["click"] < 0.81
    assert 0.79 < best["conversion"] < 0.88
    assert 0.66 < best["conversion_given_click"] < 0.80


def test_a_request_shows_ten_distinct_items_to_one_user_at_one_time(
    impressions: pd.DataFrame,
) -> None:
    assert impressions["impression_id"].is_unique
    requests = impressions.groupby("request_id")
    assert (requests["position"].agg(list).map(lambda p: p == list(range(10)))).all()
    assert (requests["item_id"].nunique() == 10).all()
    for column in ("user_id", "time", "device", "surface", "day"):
        assert (requests[column].nunique() == 1).all(), column
    assert impressions["time"].is_monotonic_increasing


def test_rows_are_exact_when_nothing_divides(tmp_path: Path) -> None:
    manifest = simulate(tmp_path / "world", rows=103, seed=1, days=4)
    log = read(tmp_path / "world", "impressions")
    assert manifest["rows"] == len(log) == 103
    assert log.groupby("day").size().tolist() == [25, 26, 26, 26]
    assert log["impression_id"].is_unique


def test_more_days_than_rows_leaves_empty_days(tmp_path: Path) -> None:
    simulate(tmp_path / "world", rows=2, seed=1, days=4)
    assert len(list((tmp_path / "world" / "impressions").glob("day=*"))) == 4
    assert len(read_truth(tmp_path / "world")) == 2


def test_clicks_follow_impressions_and_conversions_follow_clicks(
    impressions: pd.DataFrame, clicks: pd.DataFrame, conversions: pd.DataFrame
) -> None:
    keys = ["impression_id", "user_id", "item_id"]
    assert clicks["impression_id"].is_unique
    assert conversions["impression_id"].is_unique
    clicked = clicks.merge(impressions, on=keys, suffixes=("", "_shown"))
    converted = conversions.merge(clicks, on=keys, suffixes=("", "_click"))
    assert len(clicked) == len(clicks)
    assert len(converted) == len(conversions)
    assert (clicked["time"] >= clicked["time_shown"]).all()
    assert (converted["time"] >= converted["time_click"]).all()
    assert (conversions["value"] > 0).all()
    # Delayed labels are the point: some conversions come on a later day, some after the log ends.
    assert (converted["day"] > converted["day_click"]).mean() > 0.1
    assert conversions["day"].max() > impressions["day"].max()


def test_every_event_lies_in_the_day_on_which_it_happened(
    impressions: pd.DataFrame, clicks: pd.DataFrame, conversions: pd.DataFrame
) -> None:
    for log in (impressions, clicks, conversions):
        assert (pd.to_datetime(log["time"], unit="ms").dt.strftime("%Y-%m-%d") == log["day"]).all()
    assert (impressions["hour"] == impressions["time"] % DAY_MS // 3_600_000).all()


@pytest.mark.parametrize("task", ["click", "conversion"])
def test_truth_is_the_empirical_rate_in_bins(world: Path, task: str) -> None:
    rows = read_truth(world).to_pandas()
    p = rows["p_click"]
    if task == "conversion":
        rows = rows[rows["click"]]
        p = rows["p_conversion_given_click"]
    bins = pd.qcut(p, 10, labels=False)
    for one in range(10):
        here = bins == one
        mean, rate = p[here].mean(), rows[task][here].mean()
        assert abs(rate - mean) < 4.5 * np.sqrt(mean * (1 - mean) / here.sum())


def test_truth_has_one_row_an_impression_in_the_same_order(
    world: Path, impressions: pd.DataFrame
) -> None:
    assert read(world, "truth")["impression_id"].tolist() == impressions["impression_id"].tolist()


def test_every_id_in_the_log_is_in_its_table(world: Path, impressions: pd.DataFrame) -> None:
    users, items = read(world, "users"), read(world, "items")
    assert set(impressions["user_id"]) <= set(users["user_id"])
    assert set(impressions["item_id"]) <= set(items["item_id"])
    assert 0 < users["tenure_days"].isna().mean() < 0.1
    assert 0 < items["price"].isna().mean() < 0.1
    assert users["interests"].str.split(",").map(len).between(1, 4).all()
    assert items["tags"].str.split(",").map(len).between(1, 3).all()
    assert (items["age_days"] >= 0).all()


def test_new_items_appear_after_their_launch(world: Path, impressions: pd.DataFrame) -> None:
    days = read_manifest(world, "world")["day_list"]
    age = read(world, "items").set_index("item_id")["age_days"]
    seen = impressions.groupby("item_id")["day"].min().map(days.index)
    new = age[age < len(days)].index.intersection(seen.index)
    # An item of age 3 at the end of a ten-day world was launched on day 7 of 0 to 9.
    assert (seen[new] >= len(days) - age[new] - 1e-9).all()
    assert (seen > 0).mean() > 0.1


def test_upper_positions_are_clicked_more_for_the_same_taste(
    world: Path, impressions: pd.DataFrame
) -> None:
    p = read_truth(world).to_pandas()["p_click"]
    logit = np.log(p / (1 - p)).groupby(impressions["position"]).mean()
    # The examined effect alone is -0.6 log(10) = -1.38 from first to last.
    assert logit[9] - logit[0] < -1.3
    assert logit.is_monotonic_decreasing


def test_dirt_adds_repeats_and_strays_and_changes_nothing_else(tmp_path: Path) -> None:
    clean, dirty = tmp_path / "clean", tmp_path / "dirty"
    simulate(clean, rows=20_000, seed=5, days=3)
    manifest = simulate(dirty, rows=20_000, seed=5, days=3, dirt=0.2)
    for kind in ("users", "items", "truth"):
        assert digest(clean / kind) == digest(dirty / kind)
    for kind in ("impressions", "clicks"):
        before, after = read(clean, kind), read(dirty, kind)
        assert 1.1 < len(after) / len(before) < 1.3
        pd.testing.assert_frame_equal(after.drop_duplicates(ignore_index=True), before)
    clicked = set(read(clean, "clicks")["impression_id"])
    sales = read(dirty, "conversions")
    stray = ~sales["impression_id"].isin(clicked)
    assert 10 < stray.sum() < 90  # a fifth of 20,000 / 100, were no row clicked: 40
    pd.testing.assert_frame_equal(sales[~stray].reset_index(drop=True), read(clean, "conversions"))
    assert manifest["label_rates"] == read_manifest(clean, "world")["label_rates"]
    assert manifest["written"]["conversions"] == len(sales)
    assert best_auc_of(dirty) == best_auc_of(clean)


def test_progress_ends_with_all_rows(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    simulate(tmp_path / "world", 500, 0, 5, progress=lambda done, all_: seen.append((done, all_)))
    assert seen == [(100, 500), (200, 500), (300, 500), (400, 500), (500, 500)]


def test_start_names_the_days(tmp_path: Path) -> None:
    manifest = simulate(tmp_path / "world", 200, days=2, start=date(2024, 2, 28))
    assert manifest["day_list"] == ["2024-02-28", "2024-02-29"]
    log = read(tmp_path / "world", "impressions")
    assert str(pd.to_datetime(log["time"].min(), unit="ms").date()) == "2024-02-28"


@pytest.mark.parametrize("kind", ["folder", "file"])
def test_an_output_in_use_is_refused_and_left_alone(tmp_path: Path, kind: str) -> None:
    out = tmp_path / "out"
    kept = out
    if kind == "folder":
        out.mkdir()
        kept = out / "mine.txt"
    kept.write_text("mine")
    with pytest.raises(UserError, match="not empty") as error:
        simulate(out, 100)
    assert error.value.where == str(out)
    assert kept.read_text() == "mine"
    assert list(tmp_path.iterdir()) == [out]


def test_an_empty_folder_and_missing_parents_are_fine(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for out in (tmp_path / "empty", tmp_path / "a" / "b"):
        simulate(out, 100, days=1)
        assert read_manifest(out, "world")["rows"] == 100


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    def stop(done: int, rows: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        simulate(tmp_path / "world", 1_000, progress=stop)
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_is_a_clear_error_and_leaves_nothing(tmp_path: Path) -> None:
    with files_of_at_most(20_000), pytest.raises(UserError, match="File too large") as error:
        simulate(tmp_path / "world", 50_000)
    assert "space" in error.value.fix and error.value.where == str(tmp_path / "world")
    assert list(tmp_path.iterdir()) == []


def test_a_killed_process_leaves_no_world(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys; from pathlib import Path; from recsys.world import simulate\n"
        "kill = lambda done, rows: done > 500 and os.kill(os.getpid(), signal.SIGKILL)\n"
        "simulate(Path(sys.argv[1]), 1000, progress=kill)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path / "world")],
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert done.returncode == -9
    assert not (tmp_path / "world").exists()
    simulate(tmp_path / "world", 1000)
    assert read_manifest(tmp_path / "world", "world")["rows"] == 1000


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("rows", 0),
        ("rows", -1),
        ("seed", -1),
        ("days", 0),
        ("dirt", -0.1),
        ("dirt", 0.6),
        ("dirt", float("nan")),
        ("start", date(9999, 12, 30)),
    ],
)
def test_wrong_arguments_are_named(tmp_path: Path, name: str, value: object) -> None:
    with pytest.raises(UserError) as error:
        simulate(tmp_path / "world", **{name: value})  # type: ignore[arg-type]
    assert error.value.where == name
    assert error.value.exit_code == 2
    assert list(tmp_path.iterdir()) == []


def test_best_auc_by_hand() -> None:
    # click: 3 of 4 (clicked, not clicked) pairs are in order; products .45 .08 .35 .05 put the
    # one conversion above all; among clicks .5 > .1.
    best = best_auc([1, 1, 0, 0], [1, 0, 0, 0], [0.9, 0.6, 0.7, 0.1], [0.5, 0.1, 0.5, 0.5])
    assert best == {"click": 0.75, "conversion": 1.0, "conversion_given_click": 1.0}


def test_best_auc_is_none_where_there_is_one_label_only() -> None:
    best = best_auc([1, 0], [0, 0], [0.9, 0.1], [0.5, 0.5])
    assert best == {"click": 1.0, "conversion": None, "conversion_given_click": None}


def test_truth_of_some_days_only(world: Path, impressions: pd.DataFrame) -> None:
    day = read_manifest(world, "world")["day_list"][-1]
    truth = read_truth(world, [day])
    shown = impressions[impressions["day"] == day]
    assert truth["impression_id"].to_pylist() == shown["impression_id"].tolist()
    # Conversions of the last day come after it, and still count.
    assert sum(truth["conversion"].to_pylist()) > 0
    assert 0.7 < (best_auc_of(world, [day])["click"] or 0) < 0.85
    with pytest.raises(UserError, match="no such day"):
        read_truth(world, ["2030-01-01"])
    with pytest.raises(UserError, match="No days"):
        read_truth(world, [])


@pytest.mark.parametrize(
    ("content", "refusal"),
    [
        (None, "no world folder"),
        ("{", "A file is damaged"),
        ("[]", "artifact of another kind"),
        (json.dumps({"kind": "run"}), "artifact of another kind"),
    ],
)
def test_the_truth_of_a_folder_that_is_no_world_is_refused(
    tmp_path: Path, content: str | None, refusal: str
) -> None:
    if content is not None:
        (tmp_path / "manifest.json").write_text(content)
    with pytest.raises(UserError, match=refusal):
        read_truth(tmp_path)
