"""A spec is written by looking at a table."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from infra.infer import infer
from recsys.errors import UserError
from recsys.spec import Spec, loads


@pytest.fixture
def frame() -> pd.DataFrame:
    rng = np.random.default_rng(0)
    rows = 2000
    item = rng.integers(0, 100, rows)
    clicked = (rng.random(rows) < 0.3).astype(int)
    return pd.DataFrame(
        {
            "user_id": rng.integers(0, 300, rows),
            "item_id": item,
            "shop name": np.where(item % 2 == 0, "red", "blue"),
            "price": np.linspace(1, 50, 100)[item],
            "slot": rng.integers(0, 5, rows),
            "load": rng.normal(size=rows),
            "constant": 1,
            "ts": 1_700_000_000 + rng.integers(0, 8 * 86400, rows),
            "clicked": clicked,
            "bought": clicked * (rng.random(rows) < 0.4),
        }
    )


def inferred(frame: pd.DataFrame, folder: Path, name: str = "2 shop.csv") -> Spec:
    path = folder / name
    frame.to_parquet(path) if path.suffix == ".parquet" else frame.to_csv(path, index=False)
    return loads(infer(path))


@pytest.mark.parametrize("name", ["2 shop.csv", "shop.parquet"])
def test_keys_funnel_time_and_encodings(frame: pd.DataFrame, tmp_path: Path, name: str) -> None:
    spec = inferred(frame, tmp_path, name)
    assert (spec.data.keys.user, spec.data.keys.item) == ("user_id", "item_id")
    assert [(task.name, task.given) for task in spec.tasks] == [
        ("clicked", None), ("bought", "clicked"),
    ]  # fmt: skip
    assert spec.data.time is not None and spec.data.time.unit == "s"
    assert spec.data.split.kind == "time"
    kinds = {f.name: (f.owner, f.encode.kind) for f in spec.features}
    counted = {name: kinds.pop(name) for name in list(kinds) if name.endswith(("_seen", "_rate"))}
    assert kinds == {
        "user_id": ("user", "vocabulary"),
        "item_id": ("item", "vocabulary"),
        "shop_name": ("item", "vocabulary"),
        "price": ("item", "piecewise"),
        "price_bucket": ("item", "quantiles"),
        "slot": ("context", "vocabulary"),
        "load": ("context", "piecewise"),
        "load_bucket": ("context", "quantiles"),
    }
    assert counted == {
        f"{by}_{statistic}": (owner, "counter")
        for by, owner in {
            "user_id": "user",
            "item_id": "item",
            "shop_name": "item",
            "user_id_shop_name": "context",
            "slot_shop_name": "context",
        }.items()
        for statistic in ("seen", "clicked_rate", "bought_rate")
    }
    assert spec.feature("shop_name").raw == "shop name"


def test_labels_that_do_not_nest_stand_side_by_side(frame: pd.DataFrame, tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    frame["bought"] = (rng.random(len(frame)) < 0.2).astype(int)
    spec = inferred(frame.drop(columns="ts"), tmp_path)
    assert [task.given for task in spec.tasks] == [None, None]
    assert spec.data.split.kind == "fraction"
    # Without days there is no past to count.
    assert not [f.name for f in spec.features if f.encode.kind == "counter"]


def test_ids_that_new_rows_mostly_lack_are_left_out(frame: pd.DataFrame, tmp_path: Path) -> None:
    # Every day has items of its own, so none of the last days' was there in training.
    frame["item_id"] += 1000 * (frame["ts"] // 86400)
    spec = inferred(frame, tmp_path)
    names = [f.name for f in spec.features if f.encode.kind == "vocabulary"]
    assert "item_id" not in names and "user_id" in names
    assert "% of the newest rows" in infer(tmp_path / "2 shop.csv")
    # An owner with no other column keeps its id: it has nothing else.
    alone = frame.drop(columns=["shop name", "price"])
    assert spec.data.keys.item == "item_id"
    assert "item_id" in [f.name for f in inferred(alone, tmp_path).features]


def test_trees_where_there_is_something_to_read(frame: pd.DataFrame, tmp_path: Path) -> None:
    assert inferred(frame, tmp_path).model.trees is not None
    # Without any other column, keys are counted; without time as well, they are all there is.
    keys = frame[["user_id", "item_id", "ts", "clicked", "bought"]]
    assert inferred(keys, tmp_path).model.trees is not None
    assert inferred(keys.drop(columns="ts"), tmp_path).model.trees is None
    # Lists are the networks' alone; so is the place.
    rng = np.random.default_rng(2)
    tags = ["|".join(rng.choice(list("abcdef"), n % 3 + 1, False)) for n in range(len(frame))]
    listed = keys.drop(columns="ts").assign(tags=tags)
    assert inferred(listed, tmp_path).model.trees is None
    requests = np.arange(len(frame)) // 5
    listed = listed.assign(request_id=requests, position=np.arange(len(frame)) % 5)
    spec = inferred(listed, tmp_path)
    assert spec.model.position == "position" and spec.model.trees is None


def test_pairs_of_very_many_features_are_not_told_apart(
    frame: pd.DataFrame, tmp_path: Path
) -> None:
    assert inferred(frame, tmp_path).model.interactions == ("fm", "dot")
    rng = np.random.default_rng(1)
    numbers = pd.DataFrame(rng.normal(size=(len(frame), 95)), columns=[f"n{i}" for i in range(95)])
    spec = inferred(pd.concat([frame, numbers], axis=1), tmp_path)
    assert spec.model.interactions == ("fm",) and spec.model.trees is not None
    embedded = sum(1 for f in spec.features if not f.name.endswith("_seen"))
    assert embedded > 200
    fewer = inferred(pd.concat([frame, numbers.iloc[:, :80]], axis=1), tmp_path)
    assert sum(1 for f in fewer.features if not f.name.endswith("_seen")) == embedded - 30 <= 200
    assert fewer.model.interactions == ("fm", "dot")


def test_a_tenth_of_many_days_is_held_out_twice(frame: pd.DataFrame, tmp_path: Path) -> None:
    # 2024-01-01 and the 39 days after it.
    frame = pd.concat([frame] * 2, ignore_index=True)
    frame["ts"] = 1_704_067_200 + 86400 * (np.arange(len(frame)) // (len(frame) // 40))
    split = inferred(frame, tmp_path).data.split
    assert (str(split.train_to), str(split.validation_to)) == ("2024-02-01", "2024-02-05")


def test_what_cannot_be_told_is_said(frame: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame.drop(columns=["clicked", "bought"]).to_csv(path, index=False)
    with pytest.raises(UserError, match="No label"):
        infer(path)
    frame.drop(columns="item_id").to_csv(path, index=False)
    with pytest.raises(UserError, match="No item column"):
        infer(path)
    with pytest.raises(UserError, match="does not exist"):
        infer(tmp_path / "none.csv")
    (tmp_path / "bad.parquet").write_bytes(b"PAR1")
    with pytest.raises(UserError, match="cannot be read"):
        infer(tmp_path / "bad.parquet")


def test_what_is_offered_as_a_key_has_no_other_part(frame: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"

    def offered(names: dict[str, str], **named: str) -> str:
        frame.rename(columns=names).to_csv(path, index=False)
        with pytest.raises(UserError, match="column was found") as caught:
            infer(path, **named)
        return caught.value.fix

    # Not the user, by its name or by what was said.
    names = {"user_id": "customer_id", "item_id": "offer_id"}
    assert offered(names) == "Name it: --item COLUMN, such as offer_id."
    names = {"user_id": "visit_id", "item_id": "offer_id"}
    assert offered(names, user="visit_id") == "Name it: --item COLUMN, such as offer_id."
    names = {"user_id": "visit_id", "item_id": "sku_id"}
    assert offered(names, item="sku_id") == "Name it: --user COLUMN, such as visit_id."
    names = {"user_id": "visit_id"}
    assert offered(names) == "Name it: --user COLUMN, such as visit_id."
    # Where none is named like an id, other values that can be told apart, but no times or labels.
    assert offered({"item_id": "offer"}) == "Name it: --item COLUMN, such as offer."


def test_the_model_is_described_as_it_is(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame.to_csv(tmp_path / "t.csv", index=False)
    text = infer(tmp_path / "t.csv")
    assert "one without, and boosted trees beside them:\n" in text
    keys = frame[["user_id", "item_id", "clicked", "bought"]]
    keys.to_csv(tmp_path / "t.csv", index=False)
    assert "three with dropout and one without:\n" in infer(tmp_path / "t.csv")


def test_what_is_left_out_is_said(frame: pd.DataFrame, tmp_path: Path) -> None:
    days = pd.Timestamp("2025-01-01") + pd.to_timedelta(np.arange(len(frame)) % 20, "D")
    odd = frame.drop(columns="ts").assign(liked=0, order_date=days.strftime("%d %B %Y"))
    odd.to_csv(tmp_path / "shop.csv", index=False)
    text = infer(tmp_path / "shop.csv")
    assert "  # No feature of 'constant': it has one value, or none.\n" in text
    assert "  # No task of 'liked': all rows have one value.\n" in text
    assert "  # No time by 'order_date': it has a time that can be read in 0% of the rows." in text
    assert [task.name for task in loads(text).tasks] == ["clicked", "bought"]


def test_infinite_numbers_are_said(frame: pd.DataFrame, tmp_path: Path) -> None:
    price = frame["price"].where(frame.index >= len(frame) // 4, np.inf)
    assert "an infinite" not in infer(_written(frame, tmp_path / "none.csv"))
    text = infer(_written(frame.assign(price=price), tmp_path / "some.csv"))
    assert "# 25.00% of the rows have an infinite 'price'; the feature job calls them bad" in text


def _written(frame: pd.DataFrame, path: Path) -> Path:
    frame.to_csv(path, index=False)
    return path


def test_columns_that_names_do_not_tell_are_named(frame: pd.DataFrame, tmp_path: Path) -> None:
    odd = {"user_id": "plane", "item_id": "flight", "ts": "left_at", "clicked": "late"}
    path = tmp_path / "t.csv"
    frame.rename(columns=odd).to_csv(path, index=False)
    named = {"user": "plane", "item": "flight", "time": "left_at"}
    spec = loads(infer(path, **named, labels=["late"]))
    keys, time = spec.data.keys, spec.data.time
    assert (keys.user, keys.item) == ("plane", "flight")
    assert time is not None and time.column == "left_at"
    assert [task.name for task in spec.tasks] == ["late"]
    with pytest.raises(UserError, match="no column 'plain'"):
        infer(path, **(named | {"user": "plain"}))
    with pytest.raises(UserError, match="'slot' is no label"):
        infer(path, **named, labels=["slot"])


@pytest.mark.parametrize("name", ["shown, at", "on"])
def test_a_time_keeps_whatever_name_it_has(frame: pd.DataFrame, tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.csv"
    frame.rename(columns={"ts": name}).to_csv(path, index=False)
    time = loads(infer(path, time=name)).data.time
    assert time is not None and (time.column, time.unit) == (name, "s")


def test_columns_keep_whatever_names_they_have(frame: pd.DataFrame, tmp_path: Path) -> None:
    rng = np.random.default_rng(2)
    odd = ["class", "Class", "a b", "a_b", "72", "on", "it's: #1", "_hidden", "price_bucket"]
    for name in odd:
        frame[name] = rng.normal(size=len(frame))
    frame = frame.rename(columns={"user_id": "user id", "bought": "yes"})
    frame["clicked"] = frame["clicked"] == 1
    path = tmp_path / "my table's.csv"
    frame.to_csv(path)  # with its index, a column without a name
    spec = loads(infer(path, user="user id", labels=["clicked", "yes"]))
    assert (spec.data.impressions.path, spec.data.keys.user) == (path.name, "user id")
    assert [(task.name, task.label.column) for task in spec.tasks] == [
        ("clicked", "clicked"), ("yes", "yes"),
    ]  # fmt: skip
    piecewise = {f.raw: f.name for f in spec.features if f.encode.kind == "piecewise"}
    assert set(piecewise) == {*odd, "price", "load"}
    assert piecewise["a_b"] == "a_b" and piecewise["a b"] == "a_b_2"
    assert piecewise["class"] == "class_" and piecewise["price_bucket"] == "price_bucket"
    buckets = {f.raw: f.name for f in spec.features if f.encode.kind == "quantiles"}
    assert buckets["price"] == "price_bucket_2"
    by = {f.encode.by for f in spec.features if f.encode.kind == "counter"}
    assert ("user_id",) in by and spec.feature("user_id").raw == "user id"
    # An id that is left out is counted by its column.
    frame["user id"] = np.arange(len(frame)) // 2
    frame["club"] = frame["user id"] % 7
    frame.to_csv(path, index=False)
    spec = loads(infer(path, user="user id", labels=["clicked"]))
    assert "user id" not in [f.raw for f in spec.features if f.encode.kind == "vocabulary"]
    assert ("user id",) in {f.encode.by for f in spec.features if f.encode.kind == "counter"}


def test_a_column_of_the_row_itself_is_no_feature(frame: pd.DataFrame, tmp_path: Path) -> None:
    frame["impression_id"] = np.arange(len(frame))
    frame["note"] = [f"row {n}" for n in range(len(frame))]
    names = [f.name for f in inferred(frame, tmp_path).features]
    assert not {"impression_id", "note"} & set(names) and "load" in names
    assert "No feature of 'note'" in infer(tmp_path / "2 shop.csv")


def test_two_columns_of_one_name_are_refused(frame: pd.DataFrame, tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    frame.rename(columns={"slot": "load"}).to_csv(path, index=False)
    with pytest.raises(UserError, match="same name"):
        infer(path)
