"""The whole job on a small, dirty world, against a plain computation row by row."""

import json
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from beam_jobs import run_features
from recsys.artifacts import read_manifest
from recsys.spec import fingerprints, loads
from recsys.spec.schema import example_columns, raw_columns

SPEC = """
name: shop
data:
  impressions: {path: shown}
  actions:
    click: {path: clicks.csv, time: {column: at}}
    buy: {path: buys.parquet, time: {column: at, unit: s}}
  tables:
    user: {path: users.csv, key: uid}
    item: {path: items.parquet, key: item}
  keys: {impression: id, request: request, user: user, item: item}
  time: {column: at, unit: ms}
  split: {train_to: 2026-03-04, validation_to: 2026-03-05, test_to: 2026-03-06}
  bad_records: 0.05
features:
  - {name: user, owner: user, encode: {kind: vocabulary, min_count: 20}}
  - {name: item, owner: item, encode: {kind: vocabulary, top_k: 8, oov_buckets: 2}}
  - {name: kind, owner: item, encode: {kind: hash, buckets: 50}}
  - {name: wide, owner: item, column: kind, encode: {kind: hash, buckets: 5, hashes: 2}}
  - {name: tags, owner: item, encode: {kind: vocabulary, max_length: 2}, separator: "|", table: tag}
  - {name: likes, owner: user, encode: {kind: vocabulary, max_length: 3},
     separator: "|", table: tag}
  - {name: price, owner: item, encode: {kind: quantiles, buckets: 3}}
  - {name: price_scaled, owner: item, column: price, encode: {kind: numeric, scale: log_zscore}}
  - {name: price_plain, owner: item, column: price, encode: {kind: numeric, scale: none}}
  - {name: price_bins, owner: item, column: price, encode: {kind: piecewise, bins: 4}}
  - {name: empty, owner: user, encode: numeric}
  - {name: empty_buckets, owner: user, column: empty, encode: {kind: quantiles, buckets: 4}}
  - {name: empty_bins, owner: user, column: empty, encode: {kind: piecewise, bins: 3}}
  - {name: empty_text, owner: user, column: nothing, encode: vocabulary}
  - {name: device, owner: context, encode: vocabulary}
  - {name: seen, owner: user, encode: {kind: history, of: item, max_length: 3}}
  - {name: clicked, owner: user,
     encode: {kind: history, of: item, action: click, max_length: 2}}
  - {name: item_rate, owner: item,
     encode: {kind: counter, by: [item], task: buy, prior_weight: 5,
              as: {kind: numeric, scale: none}}}
  - {name: pair, owner: context,
     encode: {kind: counter, by: [kind, device], statistic: impressions,
              as: {kind: numeric, scale: none}}}
tasks:
  - {name: click, label: {action: click, within: 1h}}
  - {name: buy, label: {action: buy, within: 2d}, given: click}
evaluate: {slices: [device, price]}
"""

START = datetime(2026, 3, 1, tzinfo=UTC)
DAY_MS = 86_400_000


def ms(moment: datetime) -> int:
    return round(moment.timestamp() * 1000)


class World:
    """900 impressions over seven days; actions inside and outside their windows; dirt."""

    def __init__(self, folder: Path) -> None:
        rng = np.random.default_rng(5)
        self.folder = folder
        n = 900
        offsets = np.sort(rng.choice(7 * DAY_MS // 1000, n, replace=False)) * 1000
        self.shown = pd.DataFrame(
            {
                "id": [f"i{n}" for n in range(n)],
                "request": [f"r{n // 5}" for n in range(n)],
                "user": rng.choice([f"u{n}" for n in range(30)] + ["ghost"], n),
                "item": rng.choice([f"p{n}" for n in range(14)] + ["lost"], n),
                "at": ms(START) + offsets,
                "device": rng.choice(["phone", "desk", ""], n, p=[0.6, 0.3, 0.1]),
            }
        )
        clicked = self.shown[rng.random(n) < 0.4]
        delay = rng.choice([0, 1000, 3_600_000, 3_600_001, -1000], len(clicked))
        self.clicks = pd.DataFrame({"id": clicked["id"], "at": clicked["at"] + delay})
        bought = self.shown[rng.random(n) < 0.25]
        delay = rng.integers(-DAY_MS // 4, 3 * DAY_MS, len(bought)) // 1000 * 1000
        self.buys = pd.DataFrame({"id": bought["id"], "at": bought["at"] + delay})
        self.items = pd.DataFrame(
            {
                "item": [f"p{n}" for n in range(14)],
                "kind": ["a", "b", "c", ""] * 3 + ["a", "b"],
                "price": [1.5, None, 3, 4, 5, 6, 7, 7, 7, 10, 20, 30, 40, 50],
                "tags": ["x|y|z", "", "y", "|x|", "z|x"] * 2 + ["w"] * 4,
            }
        )
        self.users = pd.DataFrame(
            {
                "uid": [f"u{n}" for n in range(30)],
                "likes": ["x", "y|q", ""] * 10,
                "empty": "",
                "nothing": "",
            }
        )
        self.write()

    def write(self) -> None:
        day = (self.shown["at"] - ms(START)) // DAY_MS
        for number in range(7):
            part = self.shown[day == number]
            if number == 2:  # delivered twice
                part = pd.concat([part, part.iloc[:7]])
            if number == 3:  # one id with other content; one row without a user
                other = part.iloc[:1].assign(device="other")
                part = pd.concat([part, other, part.iloc[1:2].assign(user=None, id="bad")])
            where = self.folder / "shown" / f"day={number}"
            where.mkdir(parents=True)
            pq.write_table(pa.Table.from_pandas(part, preserve_index=False), where / "0.parquet")
        iso = self.clicks.assign(
            at=[
                (datetime.fromtimestamp(at / 1000, UTC)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
                for at in self.clicks["at"]
            ]
        )
        text = iso.to_csv(index=False)
        (self.folder / "clicks.csv").write_text(text + "i3\n" + "i4,yesterday\n")
        unknown = pd.DataFrame({"id": ["nobody"], "at": [ms(START)]})
        buys = pd.concat([self.buys, unknown])
        pq.write_table(
            pa.table({"id": buys["id"].tolist(), "at": buys["at"] // 1000}),
            self.folder / "buys.parquet",
        )
        self.users.to_csv(self.folder / "users.csv", index=False)
        pq.write_table(pa.Table.from_pandas(self.items), self.folder / "items.parquet")


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return World(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def spec():
    return loads(SPEC)


@pytest.fixture(scope="module")
def stages():
    return []


@pytest.fixture(scope="module")
def folder(world, spec, stages, tmp_path_factory):
    output = tmp_path_factory.mktemp("out") / "features"
    run_features(spec, world.folder, output, progress=lambda *step: stages.append(step))
    return output


def read_split(folder, split):
    return pq.read_table(folder / "examples" / split).to_pandas()


@pytest.fixture(scope="module")
def examples(folder):
    """All examples by the row of the world that they were made from."""
    tables = [
        read_split(folder, split).assign(split=split) for split in ("train", "validation", "test")
    ]
    return pd.concat(tables).set_index("key:time").sort_index()


@pytest.fixture(scope="module")
def naive(world):
    """Labels, histories and counters by the plainest loops."""
    rows = []
    for shown in world.shown.to_dict("records"):
        clicks = [
            at
            for id, at in world.clicks.to_numpy()
            if id == shown["id"] and 0 <= at - shown["at"] <= 3_600_000
        ]
        buys = [
            at
            for id, at in world.buys.to_numpy()
            if id == shown["id"] and 0 <= at - shown["at"] <= 2 * DAY_MS
        ]
        shown["click"], shown["stray"] = bool(clicks), bool(buys) and not clicks
        shown["buy"] = bool(clicks) and bool(buys)
        shown["click_known"] = min(clicks) if clicks else None
        shown["buy_known"] = max(min(clicks), min(buys)) if shown["buy"] else None
        shown["kind"] = next(
            (
                kind
                for item, kind in world.items[["item", "kind"]].to_numpy()
                if item == shown["item"]
            ),
            "",
        )
        rows.append(shown)
    for row in rows:
        dawn = row["at"] // DAY_MS * DAY_MS
        mine = [other for other in rows if other["user"] == row["user"]]
        row["seen"] = [r["item"] for r in mine if r["at"] < dawn][::-1][:3]
        clicks = sorted(
            (r["click_known"], r["item"]) for r in mine if r["click"] and r["click_known"] < dawn
        )
        row["clicked"] = [item for _, item in clicks][::-1][:2]
        past = [r for r in rows if r["at"] < dawn]
        bought = [r for r in rows if r["buy"] and r["buy_known"] < dawn]
        rate = len(bought) / len(past) if past else float("nan")
        row["item_rate"] = (sum(r["item"] == row["item"] for r in bought) + 5 * rate) / (
            sum(r["item"] == row["item"] for r in past) + 5
        )
        row["pair"] = sum((r["kind"], r["device"]) == (row["kind"], row["device"]) for r in past)
    return pd.DataFrame(rows).set_index("at")


def vocabulary(folder, name):
    path = folder / "transform" / "transform_fn" / "assets" / f"vocabulary_{name}"
    return path.read_text().splitlines()


def test_every_row_is_in_its_split_once(examples, naive):
    expected = np.select(
        [
            naive.index < ms(START + timedelta(days=4)),
            naive.index < ms(START + timedelta(days=5)),
            naive.index < ms(START + timedelta(days=6)),
        ],
        ["train", "validation", "test"],
        "outside",
    )
    inside = naive.index[expected != "outside"]
    assert examples.index.tolist() == inside.tolist()
    assert examples["split"].tolist() == expected[expected != "outside"].tolist()


def test_columns_are_the_schemas(spec, folder):
    table = pq.read_table(folder / "examples" / "test")
    assert tuple(table.column_names) == example_columns(spec)
    assert table.schema.field("tags").type == pa.list_(pa.int32(), 2)
    assert table.schema.field("price_bins").type == pa.list_(pa.float32(), 4)
    assert table.schema.field("user").type == pa.int32()
    assert table.schema.field("label:buy").type == pa.float32()
    assert table.schema.field("key:time").type == pa.int64()


def test_labels_follow_windows_and_funnel(examples, naive):
    expected = naive.loc[examples.index]
    assert examples["label:click"].tolist() == expected["click"].astype(float).tolist()
    assert examples["label:buy"].tolist() == expected["buy"].astype(float).tolist()
    assert 0 < expected["buy"].sum() < expected["click"].sum()


def test_keys_and_slices_pass_through(examples, naive):
    expected = naive.loc[examples.index]
    assert examples["key:user"].tolist() == expected["user"].tolist()
    assert examples["key:request"].tolist() == expected["request"].tolist()
    assert examples["slice:device"].tolist() == expected["device"].tolist()
    assert set(examples["slice:price"]) >= {"", "1.5", "3"}


def test_vocabulary_ids_by_hand(folder, examples, naive, world):
    train = naive.loc[examples.index[examples["split"] == "train"]]
    counts = sorted(Counter(train["user"]).items(), key=lambda pair: pair[0], reverse=True)
    frequent = sorted((c for c in counts if c[1] >= 20), key=lambda pair: -pair[1])
    names = [name for name, _ in frequent]
    assert 0 < len(names) < 31
    assert vocabulary(folder, "user") == names
    expected = [
        1 + names.index(user) if user in names else 1 + len(names)
        for user in naive.loc[examples.index, "user"]
    ]
    assert examples["user"].tolist() == expected
    items = vocabulary(folder, "item")
    assert len(items) == 8
    ids = dict(zip(naive.loc[examples.index, "item"], examples["item"], strict=True))
    assert {ids[name] for name in items} == set(range(1, 9))
    assert {ids[name] for name in ids if name not in items} <= {9, 10}


def test_missing_text_is_row_zero(examples):
    assert set(examples["device"][examples["slice:device"] == ""]) == {0}
    assert (examples["empty_text"] == 0).all()


def test_lists_share_a_table_and_are_padded(folder, examples, naive, world):
    tags = vocabulary(folder, "tag")
    assert sorted(tags) == ["q", "w", "x", "y", "z"]  # z is among the first two of "z|x"
    held = dict(zip(world.items["item"], world.items["tags"], strict=True))
    for item, ids in zip(naive.loc[examples.index, "item"], examples["tags"], strict=True):
        parts = [part for part in held.get(item, "").split("|") if part][:2]
        assert list(ids) == [1 + tags.index(part) for part in parts] + [-1] * (2 - len(parts))
    ghost = examples[examples["key:user"] == "ghost"]
    assert all(list(ids) == [-1, -1, -1] for ids in ghost["likes"])


def test_hashes(examples, naive):
    kinds = naive.loc[examples.index, "kind"]
    assert set(examples["kind"][kinds == ""]) == {0} == set(examples["wide"][kinds == ""])
    known = {kind: set(examples["kind"][kinds == kind]) for kind in "abc"}
    assert all(len(ids) == 1 and 1 <= min(ids) <= 50 for ids in known.values())
    assert examples["wide"][kinds != ""].between(1, 2**31 - 2).all()
    assert examples["wide"][kinds != ""].nunique() == 3


def price_of(examples, naive, world):
    price = dict(zip(world.items["item"], world.items["price"].astype(np.float32), strict=True))
    return np.array(
        [price.get(item, np.nan) for item in naive.loc[examples.index, "item"]], dtype=np.float32
    )


def test_numbers_by_hand(examples, naive, world):
    price = price_of(examples, naive, world)
    missing = np.isnan(price)
    assert 0 < missing.sum() < len(price)
    np.testing.assert_array_equal(examples["price_plain"], np.where(missing, 0, price))
    train = np.log1p(price[(examples["split"] == "train").to_numpy() & ~missing].astype(float))
    scaled = (np.log1p(price.astype(float)) - train.mean()) / train.std()
    np.testing.assert_allclose(examples["price_scaled"], np.where(missing, 0, scaled), atol=1e-5)


def test_buckets_by_hand(examples, naive, world):
    price = price_of(examples, naive, world)
    missing = np.isnan(price)
    bucket = examples["price"].to_numpy()
    assert (bucket[missing] == 0).all() and set(bucket[~missing]) == {1, 2, 3}
    train = (examples["split"] == "train").to_numpy() & ~missing
    share = np.bincount(bucket[train], minlength=4)[1:] / train.sum()
    # 13 prices, three of them equal: a bucket holds a third but for one price's share.
    assert (np.abs(share - 1 / 3) < 0.25).all()
    assert all(np.diff(bucket[~missing][np.argsort(price[~missing], kind="stable")]) >= 0)


def test_piecewise_is_linear_within_bins(examples, naive, world):
    price = price_of(examples, naive, world)
    bins = np.stack(examples["price_bins"].to_numpy())
    assert (bins[np.isnan(price)] == 0).all()
    there = ~np.isnan(price)
    train = there & (examples["split"] == "train").to_numpy()
    assert (bins[there & (price <= price[train].min())] == 0).all()
    np.testing.assert_array_equal(bins[price >= np.nanmax(price[train])], 1)
    # Filled from the first bin on: a bin has something only where those before it are full.
    assert (bins[there][:, :-1][bins[there][:, 1:] > 0] == 1).all()


def test_a_column_without_values_is_missing_everywhere(examples):
    assert (examples["empty"] == 0).all() and (examples["empty_buckets"] == 0).all()
    assert (np.stack(examples["empty_bins"].to_numpy()) == 0).all()


def test_histories_know_the_days_before_only(folder, examples, naive):
    items = vocabulary(folder, "item")
    for feature, length in (("seen", 3), ("clicked", 2)):
        lengths = set()
        for wanted, ids in zip(naive.loc[examples.index, feature], examples[feature], strict=True):
            lengths.add(len(wanted))
            assert (np.array(ids) >= 0).sum() == len(wanted)
            for part, id in zip(wanted, ids, strict=False):
                assert id == 1 + items.index(part) if part in items else id in (9, 10)
        assert lengths == set(range(length + 1))


def test_counters_know_the_days_before_only(examples, naive):
    expected = naive.loc[examples.index]
    np.testing.assert_array_equal(examples["pair"], expected["pair"])
    rate = expected["item_rate"].fillna(0.0)
    assert expected["item_rate"].isna().any()
    np.testing.assert_allclose(examples["item_rate"], rate, rtol=1e-5)


def test_serving_tables_hold_the_end_of_all_data(folder, naive, world):
    users = pq.read_table(folder / "tables" / "user.parquet").to_pandas().set_index("key:owner")
    assert sorted(users.index) == sorted([*world.users["uid"], "ghost"])
    last = naive[naive["user"] == "u3"]
    assert users.loc["u3", "seen"] == ",".join(last["item"].tolist()[::-1][:3])
    assert users.loc["u3", "user"] == "u3" and users.loc["u1", "likes"] == "y|q"
    assert np.isnan(users.loc["ghost", "empty"]) and users.loc["ghost", "likes"] == ""
    items = pq.read_table(folder / "tables" / "item.parquet").to_pandas().set_index("key:owner")
    assert sorted(items.index) == sorted(world.items["item"])
    assert items.loc["p0", "price"] == 1.5 and items.loc["p0", "tags"] == "x|y|z"
    assert np.isnan(items.loc["p1", "price"])


def test_counter_tables_hold_the_end_of_all_data(folder, naive):
    manifest = read_manifest(folder, "features")
    table = pq.read_table(folder / "tables" / "counter-item_rate.parquet").to_pandas()
    overall = naive["buy"].mean()
    for item, value in table[["item", "key:value"]].to_numpy():
        mine = naive[naive["item"] == item]
        assert value == pytest.approx((mine["buy"].sum() + 5 * overall) / (len(mine) + 5))
    assert manifest["counters"]["item_rate"]["default"] == pytest.approx(overall)
    pairs = pq.read_table(folder / "tables" / "counter-pair.parquet").to_pandas()
    assert pairs["key:value"].sum() == len(naive)
    assert manifest["counters"]["pair"] == {"default": 0.0}


def test_manifest(folder, spec, naive, examples):
    manifest = read_manifest(folder, "features")
    assert manifest["fingerprints"]["features"] == fingerprints(spec)["features"]
    assert manifest["rows"] == examples["split"].value_counts().to_dict()
    for split, rates in manifest["labels"].items():
        assert rates["click"] == pytest.approx(
            examples["label:click"][examples["split"] == split].mean()
        )
    assert manifest["time_range"]["test"] == [
        int(examples.index[examples["split"] == "test"].min()),
        int(examples.index[examples["split"] == "test"].max()),
    ]
    counts = manifest["counts"]
    assert counts["duplicates_removed"] == 7
    assert counts["conversion_without_given"] == {"buy": int(naive["stray"].sum())}
    assert counts["outside_split"] == len(naive) - len(examples)
    assert counts["actions_without_impression"] == {"buy": 1}
    assert counts["item_rows_unmatched"] == int((naive["item"] == "lost").sum())
    assert counts["read"]["impressions"] == len(naive) + 9
    assert manifest["tables"]["item"] == 1 + 8 + 2
    assert manifest["tables"]["kind"] == 51 and manifest["tables"]["wide"] == 6
    assert manifest["tables"]["price"] == 4 and manifest["tables"]["tag"] == 1 + 5 + 1


def test_dead_letters_have_reasons_and_the_row(folder):
    letters = pq.read_table(folder / "dead_letter").to_pandas()
    found = {(source, reason) for source, reason in letters[["source", "reason"]].to_numpy()}
    assert found == {
        ("impressions", "user is missing"),
        ("impressions", "id is there twice, with different values"),
        ("click", "at is no time"),
        ("click", "wrong number of fields"),
    }
    row = letters[letters["reason"] == "user is missing"]["row"].iloc[0]
    assert json.loads(row)["id"] == "bad"
    assert read_manifest(folder, "features")["counts"]["bad_records"]["at is no time"] == 1


def test_statistics_and_schema(folder, examples):
    statistics = json.loads((folder / "statistics.json").read_text())
    device = statistics["train"]["device"]
    train = examples[examples["split"] == "train"]
    assert device["top"]["phone"] == int((train["slice:device"] == "phone").sum())
    assert device["missing"] == int((train["slice:device"] == "").sum())
    assert statistics["train"]["price"]["max"] == 50.0
    assert 'name: "price"' in (folder / "schema.pbtxt").read_text()


def test_the_graph_needs_raw_columns_only_and_gives_the_examples(folder, spec, world, naive):
    import tensorflow as tf
    import tensorflow_transform as tft

    output = tft.TFTransformOutput(str(folder / "transform"))
    assert set(output.raw_feature_spec()) == {column.name for column in raw_columns(spec)}
    layer = output.transform_features_layer()
    test = read_split(folder, "test")
    items = world.items.set_index("item")
    users = world.users.set_index("uid")
    raw = {name: [] for name in output.raw_feature_spec()}
    for time, user in test[["key:time", "key:user"]].to_numpy():
        row = naive.loc[time]
        for name in raw:
            if name in ("seen", "clicked"):
                value = ",".join(row[name])
            elif name in row.index:
                value = row[name]
            elif name in users.columns:
                value = users[name].get(user, "") or ("" if name != "empty" else np.nan)
            else:
                value = items[name].get(row["item"], "" if name != "price" else np.nan)
            raw[name].append(value)
    made = layer(
        {
            name: tf.constant(values, spec_.dtype)
            for (name, spec_), values in zip(
                output.raw_feature_spec().items(), raw.values(), strict=True
            )
        }
    )
    for feature in spec.features:
        expected = np.stack(test[feature.name].to_numpy())
        np.testing.assert_allclose(
            made[feature.name].numpy(), expected, rtol=1e-6, err_msg=feature.name
        )


def test_progress_moves_through_all_stages(folder, stages):
    assert list(dict.fromkeys(stage for stage, _, _ in stages)) == [
        "read",
        "join",
        "analyze",
        "transform",
        "write",
    ]
    last = {stage: (done, total) for stage, done, total in stages}
    assert all(done == total > 0 for done, total in last.values())
