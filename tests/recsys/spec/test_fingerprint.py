"""Which fields of the spec make which artifacts stale: each, by lists that a person can read."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from recsys.spec import covered, differences, fingerprints, loads
from recsys.spec.records import Record, Spec, Variant

# Every field of every record, by what a change of it makes stale. A new field must be put here,
# and in recsys/spec/fingerprint.py if it does not belong with its neighbours.
NOTHING = "name data.bad_records"
FEATURES = """
data.impressions.path data.impressions.time
data.actions.*.path
data.actions.*.time.column data.actions.*.time.unit data.actions.*.time.format
data.tables.user.path data.tables.user.key data.tables.user.prefix
data.tables.item.path data.tables.item.key data.tables.item.prefix
data.keys.user data.keys.item data.keys.request data.keys.impression
data.time.column data.time.unit data.time.format
data.split.train_to data.split.validation_to data.split.test_to
data.split.column.column data.split.column.unit data.split.column.format
data.split.validation data.split.test data.split.seed
data.duplicates data.weight data.max_rows
features.*.owner features.*.column features.*.separator features.*.table
features.*.encode.min_count features.*.encode.top_k features.*.encode.oov_buckets
features.*.encode.max_length features.*.encode.weights
features.*.encode.buckets features.*.encode.hashes
features.*.encode.scale features.*.encode.bins
features.*.encode.of features.*.encode.action
features.*.encode.by features.*.encode.task features.*.encode.statistic
features.*.encode.prior_weight features.*.encode.as.buckets
"""
MODEL = """
features.*.dim features.*.encode.combiner
tasks.*.space tasks.*.inverse_propensity tasks.*.weight
tasks.*.loss.label_smoothing tasks.*.loss.alpha tasks.*.loss.gamma tasks.*.loss.delta
tasks.*.ranking tasks.*.ranking.weight
model.dim model.interactions model.cross_layers model.cross_projection model.first_order
model.sharing.experts
model.sharing.shared_experts model.sharing.task_experts model.sharing.levels
model.gated model.shared model.towers model.dropout model.embedding_dropout
model.history.window model.history.hidden model.position model.members model.variants
model.trees.count model.trees.leaves model.trees.leaf_rows model.trees.learning_rate
model.trees.rows model.recompute model.xla
train.batch_size train.epochs train.table_learning_rate train.table_initial_accumulator
train.dense_learning_rate train.schedule train.warmup_steps train.weight_decay
train.balancing.alpha train.balancing.temperature train.calibration
train.early_stopping.metric train.early_stopping.patience
train.precision train.negative_sampling train.checkpoint_every train.max_steps train.refit
train.seed
"""
FEATURES_AND_MODEL = """
features.*.name tasks.*.given tasks.*.label.column tasks.*.label.action tasks.*.label.within
tasks.*.loss.log
"""
FEATURES_MODEL_AND_GATE = "tasks.*.name"
GATE = "tasks.*.gate.min_auc tasks.*.gate.max_ece tasks.*.gate.max_auc_drop"
FEATURES_AND_EVALUATE = "evaluate.slices"
EVALUATE = "evaluate.largest"
MODEL_AND_SERVE = "serve.blend"
SERVE = "serve.max_candidates serve.max_body_bytes serve.deadline_ms"

STALE = {
    place: sections
    for places, sections in (
        (NOTHING, set()),
        (FEATURES, {"features"}),
        (MODEL, {"model"}),
        (FEATURES_AND_MODEL, {"features", "model"}),
        (FEATURES_MODEL_AND_GATE, {"features", "model", "gate"}),
        (GATE, {"gate"}),
        (FEATURES_AND_EVALUATE, {"features", "evaluate"}),
        (EVALUATE, {"evaluate"}),
        (MODEL_AND_SERVE, {"model", "serve"}),
        (SERVE, {"serve"}),
    )
    for place in places.split()
}

SPECS = [
    loads(
        f"""
name: all
data:
  impressions: log.csv
  actions: {{tap: {{path: taps.csv, time: {{column: t, unit: s}}}}}}
  tables: {{user: {{path: u.csv, key: u}}, item: {{path: i.csv, key: i}}}}
  keys: {{user: u, item: i, request: r, impression: n}}
  time: {{column: t, unit: s}}
  split: {split}
features:
- {{name: user, column: u, owner: user, encode: vocabulary}}
- {{name: item, column: i, owner: item, encode: {{kind: hash, buckets: 9}}}}
- {{name: price, owner: item, encode: {{kind: numeric}}}}
- {{name: size, owner: item, encode: {{kind: piecewise}}}}
- {{name: age, owner: user, encode: {{kind: quantiles}}}}
- {{name: past, owner: user, encode: {{kind: history, of: item}}}}
- {{name: rate, owner: item, encode: {{kind: counter, by: [i], task: click}}}}
- {{name: place, owner: context, encode: vocabulary}}
tasks:
- {{name: click, label: {{action: tap}}, loss: focal, ranking: {{kind: pairwise}}}}
- {{name: buy, label: {{column: bought}}, loss: bce, given: click}}
- {{name: spent, label: {{column: spent}}, loss: mse}}
- {{name: seen, label: {{column: seen}}, loss: huber}}
model: {{sharing: {sharing}, position: place, trees: {{}}, variants: [{{members: 1}}]}}
"""
    )
    for split, sharing in (
        ("{train_to: 2026-01-02, validation_to: 2026-01-03, column: {column: d}}", "mmoe"),
        ("{validation: 0.1, test: 0.1}", "ple"),
    )
]


def _other(value: Any) -> Any:
    """A value unlike this one; whether the spec could have it does not matter here."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if isinstance(value, tuple | list):
        return (*value, "other")
    if isinstance(value, dict):
        return {**value, "other": 1.0}
    return "other"


def _parts(name: str, value: Any) -> Iterator[tuple[str, Record, Callable[[Any], Any]]]:
    """The records that a field holds, with how each is put back."""
    if isinstance(value, Record):
        yield "", value, lambda new: new
    elif name == "actions":
        for key, part in value.items():
            yield ".*", part, lambda new, key=key: {**value, key: new}
    elif name in ("features", "tasks"):
        for at, part in enumerate(value):
            yield ".*", part, lambda new, at=at: (*value[:at], new, *value[at + 1 :])


def _changes(record: Record, place: str = "") -> Iterator[tuple[str, type, str, Record]]:
    """The record with each of its fields changed, at any depth: place, class, field, record."""
    for name, field in type(record).model_fields.items():
        value, here = getattr(record, name), f"{place}{field.alias or name}"
        parts = list(_parts(name, value))
        for star, part, put in parts:
            for at, kind, inner, changed in _changes(part, f"{here}{star}."):
                yield at, kind, inner, record.model_copy(update={name: put(changed)})
        if not parts and name != "kind":
            yield here, type(record), name, record.model_copy(update={name: _other(value)})


@pytest.mark.filterwarnings("ignore:Pydantic serializer warnings")
def test_each_field_makes_stale_what_the_lists_say() -> None:
    found: dict[str, set[str]] = {}
    seen: set[tuple[type, str]] = set()
    for spec in SPECS:
        before = fingerprints(spec)
        for place, kind, name, changed in _changes(spec):
            after = fingerprints(changed)
            stale = {section for section in before if before[section] != after[section]}
            seen.add((kind, name))
            # A part that one of the specs lacks, like `data.time.format` of an action log.
            assert found.setdefault(place, stale) == stale, place
    assert found == STALE
    fields = {
        (kind, name)
        for kind in Record.__subclasses__()
        if kind is not Variant  # `model.variants` is one value
        for name in kind.model_fields
        if name != "kind"
    }
    parts = {(kind, name) for kind, name in fields if (kind, name) not in seen}
    assert {f"{kind.__name__}.{name}" for kind, name in parts} <= CONTAINERS


CONTAINERS = {
    *(f"Spec.{name}" for name in Spec.model_fields if name != "name"),
    *(f"Data.{name}" for name in ("impressions", "actions", "tables", "keys", "split", "time")),
    *("Tables.user", "Tables.item", "Log.time", "TimeSplit.column"),
    *("Feature.encode", "Counter.as_"),
    *("Task.label", "Task.loss", "Task.ranking", "Task.gate"),
    *("Model.sharing", "Model.history", "Model.trees"),
    *("Train.balancing", "Train.early_stopping"),
}
"""Fields that hold records, which the test goes into."""


def _spec(settings: str = "", task: str = "loss: focal", encode: str = "vocabulary") -> Spec:
    return loads(f"""
name: shop
data:
  impressions: log.csv
  keys: {{user: u, item: i, request: r}}
  split: {{validation: 0.1, test: 0.1}}
features:
- {{name: user, column: u, owner: user, encode: {encode}}}
- {{name: item, column: i, owner: item, encode: vocabulary}}
tasks:
- {{name: click, label: {{column: click}}, {task}}}
{settings}
""")


@pytest.mark.parametrize(
    ("change", "stale"),
    [
        ({"task": "loss: bce"}, {"model"}),
        ({"task": "loss: mse"}, {"features", "model"}),  # any number may be a label
        ({"task": "ranking: {kind: listwise}"}, {"features", "model"}),  # requests lie together
        ({"encode": "{kind: hash, buckets: 9}"}, {"features"}),
        ({"settings": "model: {sharing: {kind: mmoe}}"}, {"model"}),
        ({"settings": "train: {balancing: {kind: dwa}}"}, {"model"}),
        ({"settings": "serve: {blend: {click: 1.0}}"}, {"serve"}),  # what the default was
    ],
)
def test_kinds_make_stale_what_they_change(change: dict[str, str], stale: set[str]) -> None:
    before, after = fingerprints(_spec()), fingerprints(_spec(**change))
    assert {section for section in before if before[section] != after[section]} == stale


def test_the_order_of_features_and_tasks_counts() -> None:
    spec = SPECS[0]
    turned = spec.model_copy(update={"features": spec.features[::-1]})
    assert fingerprints(turned)["features"] != fingerprints(spec)["features"]
    turned = spec.model_copy(update={"tasks": spec.tasks[::-1]})
    assert fingerprints(turned)["model"] != fingerprints(spec)["model"]


def test_differences_are_named_with_both_values() -> None:
    ours, theirs = _spec(), _spec(encode="{kind: vocabulary, min_count: 3}")
    named = differences(covered(ours)["features"], covered(theirs)["features"])
    assert named == ("features.user.encode.min_count 1", "features.user.encode.min_count 3")
    assert differences(covered(ours)["model"], covered(theirs)["model"]) is None
    long = differences({"features": ["f" * 9] * 99}, {"features": []})
    assert long is not None and len(long[0]) < 250 and long[0].endswith("...")
