"""One table with fractions, and the shipped specs made small, through the whole job."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet as pq
import pytest

from beam_jobs import job, run_features
from beam_jobs.sinks import read_arrow
from recsys.artifacts import read_json
from recsys.errors import UserError
from recsys.spec import change, fingerprints, load, loads
from recsys.spec.schema import example_columns, model_inputs
from recsys.world import simulate

pytestmark = pytest.mark.long

ROOT = Path(__file__).parents[2]
KUAIRAND = ROOT.parent / "shared" / "data" / "kuairand_pure"

TABLE = """
name: table
data:
  impressions: {path: rows.csv}
  keys: {user: user, item: item}
  split: {kind: fraction, validation: 0.2, test: 0.2}
features:
  - {name: user, owner: user, encode: vocabulary}
  - {name: colour, owner: item, encode: vocabulary}
  - {name: colour_number, owner: item, column: size, encode: numeric}
  - {name: colour_text, owner: item, column: size, encode: vocabulary}
tasks:
  - {name: click, label: {column: click}}
  - {name: watched, label: {column: seconds}, given: click, loss: {kind: mse}}
"""


@pytest.fixture(scope="module")
def rows():
    rng = np.random.default_rng(1)
    n = 1000
    return pd.DataFrame(
        {
            "user": rng.integers(0, 50, n),
            "item": rng.integers(0, 20, n),
            "colour": rng.choice(["red", "green"], n),
            "size": rng.integers(0, 2000, n) / 10,
            "click": rng.integers(0, 2, n),
            "seconds": rng.integers(0, 100, n),
        }
    ).drop_duplicates()


@pytest.fixture(scope="module")
def table(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("table")
    rows.to_csv(folder / "rows.csv", index=False)
    manifest = run_features(loads(TABLE), folder / "rows.csv", folder / "features")
    return folder, manifest


def read(folder, split):
    return pq.read_table(folder / "examples" / split).to_pandas()


def test_one_file_is_input_enough(table, rows):
    _, manifest = table
    assert sum(manifest["rows"].values()) == len(rows)
    for split, share in (("train", 0.6), ("validation", 0.2), ("test", 0.2)):
        assert manifest["rows"][split] / len(rows) == pytest.approx(share, abs=0.05)
    assert manifest["time_range"] == {"train": None, "validation": None, "test": None}


def test_labels_may_be_blank_where_the_click_did_not_happen(rows, tmp_path):
    blank = rows.assign(seconds=rows["seconds"].where(rows["click"] == 1))
    blank.to_csv(tmp_path / "rows.csv", index=False)
    run_features(loads(TABLE), tmp_path / "rows.csv", tmp_path / "features")
    made = pd.concat([read(tmp_path / "features", s) for s in ("train", "validation", "test")])
    assert len(made) == len(blank.drop_duplicates())
    assert (made["label:watched"][made["label:click"] == 0] == 0).all()
    assert made["label:watched"].sum() == blank["seconds"].sum()


def test_columns_without_request_and_time(table):
    columns = set(read(table[0] / "features", "train").columns)
    assert set(example_columns(loads(TABLE))) - columns == {"key:request", "key:time"}


def test_a_regression_is_zero_where_what_it_follows_did_not_happen(table, rows):
    made = pd.concat([read(table[0] / "features", s) for s in ("train", "validation", "test")])
    assert (made["label:watched"][made["label:click"] == 0] == 0).all()
    assert made["label:watched"].sum() == rows["seconds"][rows["click"] == 1].sum()


def test_a_column_may_be_text_and_number(table, rows):
    train = read(table[0] / "features", "train")
    assert abs(train["colour_number"].mean()) < 1e-5 and train["colour_number"].std() > 0.9
    assert train["colour_text"].nunique() > 100


def test_without_tables_the_newest_values_serve(table, rows):
    items = pq.read_table(table[0] / "features" / "tables" / "item.parquet").to_pandas()
    assert items.columns.tolist() == ["key:owner", "colour", "size"]
    last = rows.drop_duplicates("item", keep="last").set_index("item")
    for key, colour, size in items.to_numpy():
        assert (colour, float(size)) == (last["colour"][int(key)], last["size"][int(key)])


def test_rows_are_shuffled(table, rows):
    users = read(table[0] / "features", "train")["key:user"].astype(int).to_numpy()
    assert abs(np.corrcoef(users[:-1], users[1:])[0, 1]) < 0.2
    assert (users[:100] != rows["user"].to_numpy()[:100]).any()


def test_a_ranking_loss_finds_the_rows_of_a_request_side_by_side(rows, tmp_path):
    requests = [f"r{n // 5}" for n in range(len(rows))]
    rows.assign(request=requests).to_csv(tmp_path / "rows.csv", index=False)
    text = TABLE.replace("item: item}", "item: item, request: request}")
    text = text.replace("column: click}}", "column: click}, ranking: {kind: pairwise}}")
    manifest = run_features(loads(text), tmp_path / "rows.csv", tmp_path / "features")
    plain = loads(text.replace(", ranking: {kind: pairwise}", ""))
    assert manifest["fingerprints"]["features"] != fingerprints(plain)["features"]
    found = read(tmp_path / "features", "train")["key:request"].to_numpy()
    runs = 1 + int((found[1:] != found[:-1]).sum())
    assert runs == len(set(found)) > 50
    order = [int(name[1:]) for name in found]
    assert abs(np.corrcoef(order[:-5], order[5:])[0, 1]) < 0.3


def test_what_judges_or_shapes_the_model_leaves_features_as_they_are(table, tmp_path):
    folder, manifest = table
    changed = change(
        loads(TABLE),
        [
            "name=other",
            "data.bad_records=0.5",
            "features.user.dim=3",
            "tasks.click.gate.min_auc=0.9",
            "tasks.click.loss.kind=bce",
            "tasks.watched.space=observed",
            "tasks.watched.weight=0.1",
            "model.dim=5",
            "train.seed=7",
            "evaluate.largest=3",
            "serve.max_candidates=9",
        ],
    )
    again = run_features(changed, folder / "rows.csv", tmp_path / "features")
    assert set(again) == set(manifest)
    assert {n for n in again if again[n] != manifest[n]} <= {"spec", "created"}
    for path in sorted((folder / "features").rglob("*.parquet")):
        other = tmp_path / "features" / path.relative_to(folder / "features")
        assert pq.read_table(path).equals(pq.read_table(other)), path


def test_what_was_learned_has_a_fingerprint(table, rows, tmp_path):
    learned = table[1]["learned"]
    made = {}
    for name, changed in (
        ("again", rows),
        ("fewer", rows.iloc[:-30]),
        ("renamed", rows.assign(colour=rows["colour"].replace("red", "crimson"))),
    ):
        changed.to_csv(tmp_path / f"{name}.csv", index=False)
        manifest = run_features(loads(TABLE), tmp_path / f"{name}.csv", tmp_path / name)
        made[name] = manifest["learned"]
    assert made["again"] == learned
    assert len({*made.values()}) == 3


def test_a_second_run_is_the_same_and_replaces_only_features(table):
    folder, _ = table
    before = {
        path: path.read_bytes()
        for path in sorted((folder / "features").rglob("*"))
        if path.suffix == ".parquet" or (path.parent.name == "assets" and path.is_file())
    }
    run_features(loads(TABLE), folder / "rows.csv", folder / "features")
    assert len(before) > 8
    assert all(path.read_bytes() == content for path, content in before.items())
    other = folder / "precious"
    other.mkdir()
    (other / "note.txt").write_text("mine")
    with pytest.raises(UserError, match="already exists"):
        run_features(loads(TABLE), folder / "rows.csv", other)
    assert (other / "note.txt").read_text() == "mine"


def test_joined_rows_do_not_depend_on_shards(tmp_path, monkeypatch):
    simulate(tmp_path / "world", rows=3000, seed=2)
    spec = load(ROOT / "infra" / "specs" / "world.yaml")
    found = []
    for shards in (1, 5):
        monkeypatch.setattr(job, "FEWEST_SHARDS", shards)
        made = job._Job(
            spec, tmp_path / "world", tmp_path / "out", tmp_path / str(shards), [], None
        )
        reads, number = made._look()
        assert number == shards
        made._join(reads, number)
        files = sorted(made.joined.glob("train/*.arrow"))
        frame = pd.concat([read_arrow(str(file)).to_pandas() for file in files])
        found.append(frame.sort_values("row", ignore_index=True).sort_index(axis=1))
        assert len(files) == shards
    pd.testing.assert_frame_equal(*found)


def test_statistics_are_exact_and_do_not_depend_on_shards(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    n = 50_000
    # Most colours are there once; the commonest are rare in any one shard.
    colours = [*(f"a{row}" for row in range(n - 100)), *(f"z{row % 20}" for row in range(100))]
    pd.DataFrame(
        {
            "user": rng.integers(0, 9, n),
            "item": rng.integers(0, 9, n),
            "colour": colours,
            "size": rng.lognormal(0.0, 9.0, n),
            "click": rng.integers(0, 2, n),
            "seconds": rng.lognormal(0.0, 9.0, n),
        }
    ).to_csv(tmp_path / "rows.csv", index=False)
    spec = loads(
        TABLE.replace("- {name: colour_text, owner: item, column: size, encode: vocabulary}", "")
    )
    found = []
    for shards in (1, 5):
        monkeypatch.setattr(job, "FEWEST_SHARDS", shards)
        made = job._Job(
            spec, tmp_path / "rows.csv", tmp_path / "out", tmp_path / str(shards), [], None
        )
        made._join(*made._look())
        found.append(read_json(made.joined / "train.json"))
    assert found[0] == found[1]
    files = made.joined.glob("train/*.arrow")
    rows = pd.concat([read_arrow(str(file)).to_pandas() for file in files])
    seen = rows["raw:colour"].value_counts()
    assert len(seen) > 20_000
    top = found[0]["columns"]["colour"]["top"]
    assert list(top.items()) == sorted(seen.items(), key=lambda pair: (-pair[1], pair[0]))[:20]
    watched = sum(map(Fraction, rows["label:watched"].tolist())) / len(rows)
    assert found[0]["labels"]["watched"] == float(watched)


def test_dead_letters_of_a_large_log_are_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr(job, "FEWEST_SHARDS", 12)
    rows = [f"{'' if n % 2 else n % 7},i{n % 5},red,{n},0,0" for n in range(400)]
    header = "user,item,colour,size,click,seconds"
    (tmp_path / "rows.csv").write_text("\n".join([header, *rows]))
    made = job._Job(
        loads(TABLE), tmp_path / "rows.csv", tmp_path / "out", tmp_path / "job", [], None
    )
    made._join(*made._look())
    parts = sorted((tmp_path / "job" / "dead_letter").glob("*.parquet"))
    letters = [pq.read_table(part) for part in parts]
    assert [part.name for part in parts] == [f"part-{n:05d}.parquet" for n in range(3)]
    assert sum(map(len, letters)) == 200 and all(map(len, letters))
    with pytest.raises(UserError, match="bad: 200 of 400") as error:
        made._judge()
    assert error.value.found.count("user is missing: {") == 3


def check_examples(spec, folder, manifest):
    """Ids lie inside their tables, and lists are padded at their tails."""
    for split in ("train", "validation", "test"):
        table = pq.read_table(folder / "examples" / split)
        assert table.num_rows == manifest["rows"][split] > 0
        assert set(table.column_names) <= set(example_columns(spec))
        for model_input in model_inputs(spec):
            values = np.stack(table[model_input.name].to_pandas().to_numpy())
            if model_input.table is not None:
                rows = manifest["tables"][model_input.table]
                assert values.min() >= -1 and values.max() < rows, model_input.name
            if model_input.kind == "ids":
                padded = values == -1
                assert (padded[:, 1:] >= padded[:, :-1]).all()
            assert np.isfinite(values).all()


def test_the_world_spec_made_small(tmp_path):
    simulate(tmp_path / "world", rows=20_000, seed=1, dirt=0.01)
    spec = load(ROOT / "infra" / "specs" / "world.yaml").shrunk(rows=3000)
    manifest = run_features(spec, tmp_path / "world", tmp_path / "features")
    check_examples(spec, tmp_path / "features", manifest)
    counts = manifest["counts"]
    assert sum(manifest["rows"].values()) + counts["duplicates_removed"] == 3000
    assert counts["duplicates_removed"] > 0
    assert len(counts["day"]) == 10  # fewer rows, but of every day


def kuairand_tables(folder):
    """The files of KuaiRand-Pure with the columns that the shipped spec reads, drawn at random."""
    rng = np.random.default_rng(3)
    rows, users, videos = 900, 40, 60
    at = pd.Timestamp("2022-05-02", tz="Asia/Shanghai") + pd.to_timedelta(
        np.sort(rng.integers(0, 6 * 86_400_000, rows)), unit="ms"
    )
    click = rng.random(rows) < 0.4
    log = pd.DataFrame(
        {
            "user_id": rng.integers(0, users, rows),
            "video_id": rng.integers(0, videos, rows),
            "date": at.strftime("%Y%m%d"),
            "hourmin": at.hour * 100,
            "time_ms": at.as_unit("ms").astype(np.int64),
            "is_click": click.astype(int),
            "long_view": (click & (rng.random(rows) < 0.6)).astype(int),
            "duration_ms": rng.integers(3_000, 200_000, rows),
            "tab": rng.integers(0, 5, rows),
        }
    )
    counts = ("follow_user_num", "fans_user_num", "friend_user_num", "register_days")
    user = pd.DataFrame(
        {
            "user_id": np.arange(users),
            "user_active_degree": rng.choice(["full_active", "high_active"], users),
            "is_live_streamer": rng.choice([-124, 0, 1], users),
            "is_video_author": rng.integers(0, 2, users),
            **{name: rng.integers(0, 900, users) for name in counts},
            **{f"onehot_feat{n}": rng.integers(0, 4, users) for n in range(12)},
        }
    )
    item = pd.DataFrame(
        {
            "video_id": np.arange(videos),
            "author_id": rng.integers(0, 20, videos),
            "video_type": rng.choice(["NORMAL", "AD"], videos),
            "upload_type": rng.choice(["LongImport", "Kmovie"], videos),
            "video_duration": rng.choice([87433.0, 218066.0, np.nan], videos),
            "server_width": rng.choice([720.0, 1080.0], videos),
            "server_height": rng.choice([1280.0, 1920.0], videos),
            "music_id": rng.integers(0, 2**33, videos),
            "music_type": rng.choice([9.0, 4.0, np.nan], videos),
            "tag": rng.choice(["39", "12,39", None], videos),
        }
    )
    folder.mkdir()
    log.to_csv(folder / "log_standard_4_22_to_5_08_pure.csv", index=False)
    user.to_csv(folder / "user_features_pure.csv", index=False)
    item.to_csv(folder / "video_features_basic_pure.csv", index=False)
    return log


def test_the_kuairand_spec_on_drawn_tables(tmp_path):
    spec = load(ROOT / "infra" / "specs" / "kuairand.yaml")
    log = kuairand_tables(tmp_path / "logs")
    manifest = run_features(spec, tmp_path / "logs", tmp_path / "features")
    check_examples(spec, tmp_path / "features", manifest)
    # The last day lies after the test day.
    assert sum(manifest["rows"].values()) == (log["date"] <= "20220506").sum() < len(log)


@pytest.mark.skipif(not KUAIRAND.exists(), reason="the real logs are not on this machine")
def test_the_kuairand_spec_made_small(tmp_path):
    spec = load(ROOT / "infra" / "specs" / "kuairand.yaml").shrunk(rows=3000)
    manifest = run_features(spec, KUAIRAND, tmp_path / "features")
    check_examples(spec, tmp_path / "features", manifest)
    assert sum(manifest["rows"].values()) > 2900
