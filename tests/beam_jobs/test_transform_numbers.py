"""What the transform graph learns of numbers: all columns by one analyzer, as by TF Transform."""

import pickle

import apache_beam as beam
import numpy as np
import pytest
import tensorflow as tf
import tensorflow_transform as tft
import tensorflow_transform.beam as tft_beam

from beam_jobs import distributions
from beam_jobs.distributions import Edges, Moments, Wanted
from beam_jobs.transform import preprocessing_fn
from recsys.spec import loads
from recsys.spec.schema import learned_name

BINS = (0, 2, 16, 500)


@pytest.fixture(scope="module")
def columns():
    rng = np.random.default_rng(0)
    n = 400
    some = rng.normal(size=n)
    some[rng.random(n) < 0.3] = np.nan
    rare = np.full(n, np.nan)
    rare[17] = 3.5
    wide = np.exp(rng.normal(0, 5, n))
    wide[:2] = np.inf, -np.inf
    ties = rng.choice([1, 2, 2, 2, 3], n)
    offset = 1000 + rng.normal(size=n)
    return np.stack([some, rare, np.full(n, np.nan), wide, ties, offset]).astype(np.float32)


def analyze(function, columns, folder):
    """What a preprocessing function, given in batches of columns, answers for the first row."""
    names = [f"c{number}" for number in range(len(columns))]
    rows = [dict(zip(names, row.tolist(), strict=True)) for row in columns.T]
    kind = tf.io.FixedLenFeature([], tf.float32)
    metadata = tft.DatasetMetadata.from_feature_spec(dict.fromkeys(names, kind))
    context = tft_beam.Context(temp_dir=str(folder / "temp"), desired_batch_size=64)
    with beam.Pipeline() as root, context:
        graph = (root | beam.Create(rows), metadata) | tft_beam.AnalyzeDataset(function)
        _ = graph | tft_beam.WriteTransformFn(str(folder / "transform"))
    layer = tft.TFTransformOutput(str(folder / "transform")).transform_features_layer()
    made = layer({name: tf.constant([0.0]) for name in names})
    return {name: value.numpy()[0] for name, value in made.items()}


def repeated(values, inputs):
    """Learned values as a feature, which has a row for each of the batch."""
    size = tf.shape(inputs["c0"])[0]
    return tf.repeat(tf.cast(values, tf.float32)[tf.newaxis], size, axis=0)


def test_all_columns_at_once_are_as_tf_transform_has_each(columns, tmp_path):
    groups = [[Wanted(column, bins) for column in range(len(columns))] for bins in BINS]

    def together(inputs):
        learned = distributions.learn(tf.stack(list(inputs.values())), groups)
        return {
            f"{one.column}/{one.bins}": repeated(row, inputs)
            for group, rows in zip(groups, learned, strict=True)
            for one, row in zip(group, tf.unstack(rows), strict=True)
        }

    def each(inputs):
        made = {}
        for column, values in enumerate(inputs.values()):
            there = tf.boolean_mask(values, tf.math.is_finite(values))
            wide = tf.cast(there, tf.float64)
            made[f"{column}/0"] = tf.stack([tft.mean(wide), tft.var(wide)])
            for bins in BINS[1:]:
                inner = tft.quantiles(there, bins, min(0.001, 0.1 / bins))[0]
                edges = [tft.min(there)[tf.newaxis], inner, tft.max(there)[tf.newaxis]]
                made[f"{column}/{bins}"] = tf.concat(edges, axis=0)
        return {name: repeated(values, inputs) for name, values in made.items()}

    ours = analyze(together, columns, tmp_path / "together")
    theirs = analyze(each, columns, tmp_path / "each")
    assert ours.keys() == theirs.keys() and len(ours) == len(columns) * len(BINS)
    for name, values in theirs.items():
        if name.endswith("/0"):
            np.testing.assert_allclose(ours[name], values, rtol=1e-6)
        else:
            np.testing.assert_array_equal(ours[name], values)


def spec_of(columns):
    """Every encoding of a number, of each of so many columns."""
    encodings = [
        "{kind: numeric}",
        "{kind: numeric, scale: log_zscore}",
        "{kind: numeric, scale: none}",
        "{kind: quantiles, buckets: 5}",
        "{kind: piecewise, bins: 200}",
    ]
    features = "\n".join(
        f"  - {{name: f{column}_{number}, owner: context, column: c{column}, encode: {encode}}}"
        for column in range(columns)
        for number, encode in enumerate(encodings)
    )
    return loads(f"""
name: numbers
data:
  impressions: {{path: rows.csv}}
  keys: {{user: user, item: item}}
  split: {{kind: fraction, validation: 0.2, test: 0.2}}
features:
{features}
tasks:
  - {{name: click, label: {{column: click}}}}
""")


def test_each_feature_has_its_own_numbers(columns, tmp_path):
    # Six columns of 201 edges: more than are encoded together.
    spec = spec_of(len(columns))
    made = analyze(preprocessing_fn(spec), columns, tmp_path)
    for number, column in enumerate(columns.astype(np.float64)):
        there = column[np.isfinite(column)]
        logs = np.sign(there) * np.log1p(np.abs(there))
        for name, values in ((f"f{number}_0", there), (f"f{number}_1", logs)):
            mean, spread = (values.mean(), values.std()) if len(values) else (0.0, 0.0)
            expected = -mean / spread if spread else 0.0
            np.testing.assert_allclose(made[name], expected, rtol=1e-4)
        assert made[f"f{number}_2"] == 0.0
        bucket, bins = made[f"f{number}_3"], made[f"f{number}_4"]
        assert bins.shape == (200,)
        if len(there):
            below = (there < 0).mean()
            assert abs((bucket - 1) / 5 - below) <= 0.2 + 1e-6
            assert abs(bins.mean() - below) < 0.02
    graph = tf.saved_model.load(str(tmp_path / "transform" / "transform_fn")).transform_fn.graph
    names = {operation.name for operation in graph.get_operations()}
    for number in range(len(columns)):
        learned = ((0, "mean"), (0, "variance"), (1, "mean"), (3, "boundaries"), (4, "edges"))
        assert {learned_name(f"f{number}_{f}", value) for f, value in learned} <= names


def test_more_columns_make_no_more_steps(columns, tmp_path):
    def steps(count):
        metadata = tft.DatasetMetadata.from_feature_spec(
            {f"c{n}": tf.io.FixedLenFeature([], tf.float32) for n in range(count)}
        )
        root = beam.Pipeline()
        with tft_beam.Context(temp_dir=str(tmp_path)):
            _ = (root | beam.Create([]), metadata) | tft_beam.AnalyzeDataset(
                preprocessing_fn(spec_of(count))
            )
        return len(root.to_runner_api().components.transforms)

    assert steps(1) == steps(6)


def test_summaries_travel_and_merge():
    rng = np.random.default_rng(2)
    parts = [rng.normal(100, 1, n).astype(np.float32) for n in (0, 900, 1, 0, 3000)]
    for begin in (Moments, lambda: Edges([Wanted(0, 7), Wanted(0, 16)])):
        whole, merged = begin(), begin()
        whole.add(np.concatenate(parts))
        for part in parts:
            summary = begin()
            summary.add(part)
            summary.compact()
            merged.merge(pickle.loads(pickle.dumps(summary)))
        np.testing.assert_allclose(merged.answer(), whole.answer(), rtol=1e-9)


def test_quantiles_of_many_numbers_are_within_their_error():
    rng = np.random.default_rng(3)
    values = rng.normal(size=300_000).astype(np.float32)
    wanted = Wanted(0, 50)
    merged = Edges([wanted])
    for part in np.split(values, 60):
        summary = Edges([wanted])
        summary.add(part)
        merged.merge(summary)
    ranks = np.searchsorted(np.sort(values), merged.answer()) / len(values)
    assert np.abs(ranks - np.arange(51) / 50).max() < wanted.epsilon
    assert merged.answer()[[0, -1]].tolist() == [values.min(), values.max()]


LISTS = """
name: lists
data:
  impressions: log.csv
  keys: {user: user, item: item}
  split: {validation: 0.1, test: 0.1}
features:
  - {name: tags, owner: item, separator: "|",
     encode: {kind: hash, buckets: 50, max_length: 3, weights: shares}}
  - {name: words, owner: item, separator: " ",
     encode: {kind: hash, buckets: 50, max_length: 3, weights: parts}}
tasks:
  - {name: click, label: {column: clicked}}
"""


@pytest.mark.parametrize(
    ("tags", "shares", "expected"),
    [
        ("a|b|c", "0.5||0.25", [0.5, 1, 0.25]),
        ("a||c", "0.5|9|0.25", [0.5, 0.25, 1]),  # a blank part takes its weight along
        ("a|| c", "0.5|0.25", [0.5, 0.25, 1]),  # of another length: weights of what is not blank
        ("|a|b|c|", "0.5|| 0.25", [0.5, 1, 0.25]),
        ("a|b|c|d|e", "|2|-1|4|5", [1, 2, 0]),
        ("", "", [1, 1, 1]),
        ("a", "3|4|5|6", [3, 4, 5]),
    ],
)
def test_weights_of_a_list_stand_at_their_places(tags, shares, expected):
    inputs = {"tags": tf.constant([tags, "a|b"]), "shares": tf.constant([shares, "7|8"])}
    nothing = tf.constant(["", ""])
    made = preprocessing_fn(loads(LISTS))(inputs | {"words": nothing, "parts": nothing})
    assert made["tags_weights"].numpy().tolist() == [expected, [7, 8, 1]]


def test_between_spaces_no_weight_is_blank():
    texts = {"tags": "", "shares": "", "words": " a  b c", "parts": "0.5  2 3"}
    made = preprocessing_fn(loads(LISTS))({n: tf.constant([t]) for n, t in texts.items()})
    assert made["words_weights"].numpy().tolist() == [[0.5, 2, 3]]
