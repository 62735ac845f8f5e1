"""Settings changed on the command line: what they reach, and what is refused."""

import pytest

from recsys.errors import SpecError, UserError
from recsys.spec import change, fingerprints, loads

SPEC = loads("""
name: shop
data: {impressions: log.csv, keys: {user: user, item: item}, split: {validation: 0.1, test: 0.1}}
features:
  - {name: price, owner: item, encode: {kind: quantiles, buckets: 20}}
  - {name: country, owner: user, encode: vocabulary}
tasks:
  - {name: click, label: {column: click}}
  - {name: order, label: {column: order}, given: click, loss: bce}
model: {shared: [32]}
""")


def test_nothing_to_change_is_the_same_spec() -> None:
    assert change(SPEC, []) is SPEC


def test_settings_reach_sections_features_and_tasks() -> None:
    changed = change(
        SPEC,
        [
            "train.balancing.kind=pcgrad",
            "model.towers=[8, 4]",
            "features.country.dim=3",
            "tasks.order.loss=focal",
            "name=other",
        ],
    )
    assert changed.train.balancing.kind == "pcgrad"
    assert changed.model.towers == (8, 4) and changed.model.shared == (32,)
    assert changed.feature("country").dim == 3 and changed.feature("price").dim is None
    assert changed.task("order").loss.kind == "focal" and changed.task("order").given == "click"
    assert changed.name == "other"
    assert SPEC.model.towers == (64,), "the spec itself stays as it was"


def test_a_number_may_have_an_exponent() -> None:
    assert change(SPEC, ["train.dense_learning_rate=2e-3"]).train.dense_learning_rate == 0.002


def test_a_change_of_training_leaves_the_features_as_they_are() -> None:
    before, after = fingerprints(SPEC), fingerprints(change(SPEC, ["train.epochs=7"]))
    assert before["features"] == after["features"] and before["model"] != after["model"]


def test_the_last_of_two_counts() -> None:
    assert change(SPEC, ["train.epochs=3", "train.epochs=4"]).train.epochs == 4


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.epochs", "no `=`"),
        ("=3", "no key"),
        ("train.epochs=[1", "[1"),
        ("features.weight.dim=3", "price, country"),
        ("model.shared.units=3", "a path to one setting"),
        ("name.first=3", "holds a value"),
        ("tasks.click=3", "holds a value"),
    ],
)
def test_a_setting_that_leads_nowhere(setting: str, said: str) -> None:
    with pytest.raises(UserError, match="cannot be changed") as caught:
        change(SPEC, [setting])
    assert f"--set {setting}" in str(caught.value) and said in str(caught.value)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("setting", "said"),
    [
        ("train.epoch=3", "train.epoch: unknown key"),
        ("train.epochs=0", "train.epochs: "),
        ("train.epochs=", "train.epochs: "),
    ],
)
def test_a_changed_spec_is_checked_as_its_file_would_be(setting: str, said: str) -> None:
    with pytest.raises(SpecError) as caught:
        change(SPEC, [setting], "shop.yaml")
    title, fault = str(caught.value).splitlines()
    assert title == f"shop.yaml with --set {setting} has 1 fault:"
    assert fault.startswith(f"  {said}")
