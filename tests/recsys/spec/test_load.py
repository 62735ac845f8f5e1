"""A spec is read whole or refused with every fault and its place."""

from pathlib import Path

import pytest

from recsys.errors import SpecError, UserError
from recsys.spec import dumps, fingerprints, load, loads
from recsys.spec.records import ColumnLabel, Quantiles, TimeSplit, Vocabulary

SPECS = sorted((Path(__file__).parents[3] / "infra" / "specs").glob("*.yaml"))

SHOP = """
name: shop
data:
  impressions: log.csv
  keys: {user: user, item: item, request: session}
  time: {column: ts, unit: s}
  split: {validation: 0.1, test: 0.1}
features:
- {name: user, owner: user, encode: vocabulary}
- {name: item, owner: item, encode: vocabulary}
- {name: price, owner: item, encode: {kind: quantiles, buckets: 5}}
- {name: hour, owner: context, encode: vocabulary}
tasks:
- {name: click, label: {column: clicked}}
- {name: buy, label: {column: bought}, given: click}
"""


def faults_of(text: str) -> dict[str, str]:
    with pytest.raises(SpecError) as caught:
        loads(text, "shop.yaml")
    return {fault.where: fault.message for fault in caught.value.faults}


@pytest.mark.parametrize("number", ["1e-3", "1E-3", "0.1e-2", ".1e-2", "1.0e-3", "10.e-4"])
def test_a_number_may_have_an_exponent(number: str) -> None:
    spec = loads(f"{SHOP}train: {{dense_learning_rate: {number}}}\n")
    assert spec.train.dense_learning_rate == 0.001
    # A text that looks like one stays a text.
    spec = loads(SHOP.replace("column: clicked", "column: '1e-3'"))
    assert loads(dumps(spec)) == spec and spec.tasks[0].label.column == "1e-3"


@pytest.mark.parametrize(
    ("number", "value"), [("010", 10), ("08", 8), ("+7", 7), ("0x1f", 31), ("0o17", 15)]
)
def test_whole_numbers_are_those_of_yaml_1_2(number: str, value: int) -> None:
    assert loads(f"{SHOP}model: {{dim: {number}}}\n").model.dim == value
    spec = loads(SHOP.replace("column: clicked", f"column: '{number}'"))
    assert loads(dumps(spec)) == spec and spec.tasks[0].label == ColumnLabel(column=number)


@pytest.mark.parametrize("text", ["12:30", "1_000", "2026-01-01", "2026-01-01T00:00:00Z"])
def test_what_is_no_value_of_yaml_1_2_is_a_text(text: str) -> None:
    assert loads(SHOP.replace("column: clicked", f"column: {text}")).tasks[0].label == ColumnLabel(
        column=text
    )


def test_short_forms_are_the_long_ones() -> None:
    spec = loads(SHOP)
    assert spec.features[0].encode == Vocabulary()
    assert spec.features[2].encode == Quantiles(buckets=5)
    assert spec.data.impressions.path == "log.csv"
    assert spec.data.split.kind == "fraction"


@pytest.mark.parametrize("path", SPECS, ids=lambda path: path.stem)
def test_shipped_specs_are_sound_and_read_back_equal(path: Path) -> None:
    spec = load(path)
    assert loads(dumps(spec)) == spec
    assert loads(dumps(spec.shrunk())) == spec.shrunk()


def test_all_faults_come_at_once_with_their_lines() -> None:
    text = (
        SHOP.replace("owner: user, encode", "owner: usr, encode", 1)
        .replace("buckets: 5", "bucket: 5")
        .replace("given: click", "given: clik")
        + "evaluate: {slices: [hours]}\nservee: {}\n"
    )
    faults = faults_of(text)
    assert set(faults) == {
        "shop.yaml:9 features[0].owner",
        "shop.yaml:11 features[2].encode.bucket",
        "shop.yaml:15 tasks[buy].given",
        "shop.yaml:16 evaluate.slices[0]",
        "shop.yaml:17 servee",
    }
    assert "'user', 'item' or 'context'" in faults["shop.yaml:9 features[0].owner"]
    assert "expected one of click" in faults["shop.yaml:15 tasks[buy].given"]


def test_a_name_that_dangles_since_its_record_is_faulty_is_no_second_fault() -> None:
    text = SHOP.replace("{name: hour, owner: context", "{name: hour, owner: contxt")
    assert list(faults_of(text + "evaluate: {slices: [hour]}\n")) == [
        "shop.yaml:12 features[3].owner"
    ]


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        (("name: buy", "name: click"), "tasks", "2 tasks are named 'click'"),
        (("name: item,", "name: user,"), "features", "2 features are named 'user'"),
        (("validation: 0.1, test: 0.1", "validation: 0.5, test: 0.5"), "split", "no rows"),
        (("{column: ts, unit: s}", "{column: ts, unit: sec}"), "unit", "'s', 'ms'"),
        (("encode: vocabulary}", "encode: vocab}"), "encode", "expected a kind of"),
        (("given: click", "given: buy"), "given", "circle"),
        (("given: click", "given: click, weight: -1"), "weight", "greater than or equal to 0"),
        (("test: 0.1", 'test: "0.1"'), "test", "valid number"),
        (("bought}", "bought}, ranking: pairwise, inverse_propensity: true"), "tasks[buy]",
         "needs space: observed"),
        (("given: click", "space: joint"), "tasks[buy].space", "only a task with `given`"),
        (("bought}", "bought}, space: joint, loss: {kind: mse}"), "space", "no probability"),
        (("name: shop", "name: shop\nname: shop"), "name", "twice"),
        (("name: shop", "name: shop\nserve: {blend: {buys: 1.0}}"), "blend", "no task is named"),
        (("name: shop", "name: shop\nserve: {blend: {buy: 0.0}}"), "blend", "score the same"),
        (("name: shop", "name: shop\nmodel: {position: item}"), "position", "context feature"),
        (("features:\n- {name: user, owner: user, encode: vocabulary}",
          "model: {interactions: [match]}\nfeatures:"), "interactions", "a feature of the user"),
        (("- {name: price, owner: item, encode: {kind: quantiles, buckets: 5}}\n"
          "- {name: hour, owner: context, encode: vocabulary}\n", "model: {trees: {}}\n"),
         "trees", "a number or single ids"),
        (("quantiles, buckets: 5", "history, of: price"), "encode.of", "no item feature"),
        (("quantiles, buckets: 5", "counter, by: [item], task: by"), "encode.task", "'by'"),
        (("  impressions: log.csv", "  actions: {click: {path: clicks}}\n  impressions: a.csv"),
         "actions", "time column"),
        (("encode: vocabulary}", "encode: vocabulary, separator: ';'}"), "separator", "max_length"),
        (("impressions: log.csv", "impressions: {path: log.csv, time: {column: ts}}"),
         "impressions.time",
         "is data.time"),
        (("name: click", "name: score"), "tasks[score].name", "twice: for task 'score' and for"),
        (("name: click, label: {column: clicked}}", "name: click, label: {column: clicked}}\n"
          "- {name: buy_given_click, label: {column: other}}"), "tasks[buy].name", "twice"),
        (("bought}", "bought}, loss: {kind: mse}, ranking: {kind: listwise}"), "ranking",
         "at least 0"),
        (("encode: {kind: quantiles, buckets: 5}", "table: item, encode: {kind: quantiles}"),
         "features[price].encode", "share table 'item' must be encoded alike"),
        (("quantiles, buckets: 5}", "piecewise}, dim: 8"), "dim", "no embedding table"),
        (("quantiles, buckets: 5}", "counter, by: [item]}, column: x"), "column", "is computed"),
        (("quantiles, buckets: 5}", "counter, by: [item], task: by, statistic: impressions}"),
         "encode.task", "'by'"),
        (("{name: hour, owner: context,", "{name: hour, owner: context, column: price,"),
         "features[hour].column", "'price' of the item, and 'hour' one of the context"),
        (("  impressions: log.csv", "  impressions: log.csv\n"
          "  tables: {item: {path: items.csv, key: item, prefix: item_}}"),
         "features[price].column", "begin with its prefix 'item_'; found 'price'"),
        (("{name: hour, owner: context,", "{name: hour, owner: context, column: 'key:x',"),
         "features[hour].column", "the job's own"),
        (("- {name: hour, owner: context, encode: vocabulary}", "- {name: sold, owner: item, "
          "encode: {kind: counter, by: [item], task: buy}}\n"
          "- {name: hour, owner: context, column: sold, encode: vocabulary}"),
         "features[hour].column", "has the name of a counter; rename the counter"),
        (("- {name: hour, owner: context, encode: vocabulary}", "- {name: sold, owner: item, "
          "encode: {kind: counter, by: [hour], task: buy}}\n"
          "- {name: hour, owner: item, encode: {kind: counter, by: [item], task: buy}}"),
         "features[sold].encode.by", "'hour' is a counter"),
        (("{name: hour, owner: context,", "{name: hour, owner: context, column: clicked,"),
         "features[hour].column", "'clicked' is the label of task 'click', which is known only"),
        (("- {name: price,", "- {name: bought, owner: item, encode: numeric}\n- {name: price,"),
         "features[bought].column", "'bought' is the label of task 'buy'"),
        (("encode: vocabulary}", "encode: {kind: vocabulary, max_length: 2, weights: bought}}"),
         "features[user].encode.weights", "'bought' is the label of task 'buy'"),
        (("quantiles, buckets: 5", "counter, by: [item, bought], task: buy"),
         "features[price].encode.by", "'bought' is the label of task 'buy'"),
        (("encode: vocabulary}", "encode: {kind: vocabulary, weights: shares}}"),
         "encode.weights", "set encode.max_length"),
        (("encode: vocabulary}", "encode: {kind: vocabulary, max_length: 2, weights: price}}"),
         "features[user].encode.weights", "'price' of the item"),
        (("- {name: hour, owner: context, encode: vocabulary}", "- {name: hour, owner: context, "
          "encode: {kind: vocabulary, max_length: 2, weights: w}}\n"
          "- {name: Hour_weights, owner: context, encode: vocabulary}"),
         "features[Hour_weights].name", "is the name of hour's weights"),
        (("  impressions: log.csv", "  actions: {impressions: {path: clicks, time: {column: ts}}}\n"
          "  impressions: a.csv"), "actions.impressions", "another log"),
        (("  impressions: log.csv", "  actions: {taps: {path: t, time: {column: ts, unit: s}}}\n"
          "  impressions: a.csv"), "actions.taps", "no task reads this log"),
        (("name: shop", "name: shop\nmodel: {interactions: [fm, fm]}"), "interactions", "2 times"),
        (("name: shop", "name: shop\nmodel: {shared: []}"), "shared", "at least 1 item"),
        (("name: shop", "name: shop\ntrain: {seed: -1}"), "seed", "greater than or equal to 0"),
        (("name: shop", "name: shop\ntrain: {weight_decay: .inf}"), "weight_decay", "finite"),
        (("name: shop", "name: shop\nserve: {blend: {buy: .nan}}"), "blend", "finite"),
        (("given: click", "given: click, weight: 1e999"), "weight", "finite"),
        (("name: shop", "name: shop\nevaluate: {slices: [price, price]}"), "slices[1]", "twice"),
        (("encode: vocabulary}", "table: a/b, encode: vocabulary}"), "table", "a/b"),
        (("encode: vocabulary}", "encode: {kind: hash, buckets: 3000000000}}"), "buckets",
         "less than"),
        (("encode: vocabulary}", "separator: '', encode: {kind: vocabulary, max_length: 3}}"),
         "separator", "at least 1 character"),
        (("encode: vocabulary}", "encode: {kind: vocabulary, combiner: sum}}"),
         "encode.combiner", "set encode.max_length"),
        (("name: shop", "name: shop\nmodel: !!set {dim, members}"), "shop.yaml:3 model", "no set"),
        (("name: shop", "name: shop\nmodel: {shared: [8, !!binary aGVsbG8=]}"),
         "shop.yaml:3 model.shared[1]", "no binary"),
        (("name: shop", "name: shop\nmodel: {dim: !!int x}"), "shop.yaml:3", "'x' is no int"),
        (("{validation: 0.1, test: 0.1}", "{train_to: 2026-02-30, validation_to: 2026-03-05}"),
         "shop.yaml:7 data.split.train_to", "valid date"),
        (("{validation: 0.1, test: 0.1}",
          "{train_to: 2026-02-03T23:59:59-08:00, validation_to: 2026-03-05}"),
         "shop.yaml:7 data.split.train_to", "valid date"),
        (("unit: s}", "unit: s, format: '%Y%m%d'}"), "data.time", "give one of the two"),
        (("unit: s}", "format: '%Y/%m/%Q'}"), "data.time.format", "'Q' is a bad directive"),
        (("unit: s}", "format: '%'}"), "data.time.format", "stray %"),
        (("unit: s}", "format: '%s'}"), "data.time.format", "a pattern such as %d/%m/%Y"),
        (("unit: s}", "format: ''}"), "data.time.format", "a whole date"),
        (("unit: s}", "format: '%d %d'}"), "data.time.format", "a pattern such as"),
        (("unit: s}", "format: '%H:%M'}"), "data.time.format", "a whole date"),
        (("unit: s}", "format: '%Y week %U'}"), "data.time.format", "a whole date"),
        (("encode: vocabulary}", "encode: {kind: vocabulary, oov_buckets: 3000000000}}"),
         "oov_buckets", "less than"),
        (("encode: vocabulary}", f"encode: {{kind: vocabulary, min_count: {10**23}}}}}"),
         "min_count", "less than"),
        (("encode: vocabulary}", f"encode: {{kind: hash, buckets: 9, max_length: {10**12}}}}}"),
         "max_length", "less than"),
        (("- {name: price,", "- {name: a, owner: item, column: tags, encode: {kind: vocabulary, "
          "max_length: 3}}\n- {name: b, owner: item, column: tags, separator: '|', "
          "encode: {kind: vocabulary, max_length: 3}}\n- {name: price,"),
         "features[b].column", "as a list with ',' between its parts, and 'b' as a list with '|'"),
        (("- {name: price,", "- {name: a, owner: item, column: tags, encode: {kind: vocabulary, "
          "max_length: 3}}\n- {name: b, owner: item, column: tags, encode: vocabulary}\n"
          "- {name: price,"),
         "features[b].column", "between its parts, and 'b' as a single value"),
        (("- {name: price,", "- {name: a, owner: item, column: tags, separator: '|', encode: "
          "{kind: vocabulary, max_length: 3, weights: w}}\n- {name: b, owner: item, column: w, "
          "encode: numeric}\n- {name: price,"),
         "features[b].column", "'a' reads 'w' as a list"),
        (("item: item,", "item: user,"), "data.keys.item", "'user' is the column of the user's"),
        (("request: session", "impression: item"), "data.keys.impression", "of the item's id"),
        (("{user: user,", "{user: '',"), "data.keys.user", "at least 1 character"),
        (("impressions: log.csv", "impressions: {path: ''}"), "impressions.path", "at least 1"),
        (("{column: clicked}", "{column: ''}"), "label", "at least 1 character"),
        (("quantiles, buckets: 5", "counter, by: [item, item], task: buy"),
         "features[price].encode.by", "'item' stands here 2 times"),
        (("quantiles, buckets: 5", "counter, by: [''], task: buy"), "encode.by[0]", "at least 1"),
        (("{column: clicked}", "{action: click, within: 0s}"), "within", "above 0"),
        (("{column: clicked}", '{action: click, within: "1h\\n"}'), "within", "above 0"),
        (("{column: clicked}", "{action: click, within: 99999999999999999d}"), "within", "above"),
        (("name: shop", "name: shop\nmodel: &all {shared: [*all]}"), "", "holds itself"),
    ],
)  # fmt: skip
def test_each_fault_is_named(change: tuple[str, str], where: str, message: str) -> None:
    text = SHOP.replace(*change, 1)
    assert text != SHOP
    found = [w for w, m in faults_of(text).items() if where in w and message in m]
    assert found, faults_of(text)


def test_a_column_of_a_table_may_have_the_name_of_a_label() -> None:
    text = SHOP.replace("impressions: log.csv", "impressions: log.csv\n  tables: {item: TABLE}")
    text = text.replace("name: price,", "name: clicked,")
    assert loads(text.replace("TABLE", "{path: items.csv, key: item}"))
    assert "features[clicked].column" in str(faults_of(text.replace("item: TABLE", "")))


@pytest.mark.parametrize(
    "format",
    ["%d/%m/%Y %H:%M", "%Y%m%d", "%d-%b-%y", "%Y-%j", "%G-%V-%u", "%Y-%m-%dT%H:%M:%S.%f%z",
     "%a %b %d %H:%M:%S %Z %Y", "%I:%M %p, %x", "%m/%Y", "100%% %Y-%m-%d"],
)  # fmt: skip
def test_a_pattern_of_a_date_is_taken(format: str) -> None:
    assert loads(SHOP.replace("unit: s}", f"format: '{format}'}}")).data.time is not None


@pytest.mark.parametrize(
    ("label", "place"),
    [
        ("{column: ''}", "column"),
        ("{action: click, within: soon}", "within"),
        ("{action: click, column: clicked}", "column"),
    ],
)
def test_a_fault_of_a_label_is_told_of_its_own_kind_alone(label: str, place: str) -> None:
    assert list(faults_of(SHOP.replace("{column: clicked}", label))) == [
        f"shop.yaml:14 tasks[0].label.{place}"
    ]


@pytest.mark.parametrize(
    ("change", "where", "message"),
    [
        (("label: {column: clicked}", "label: clicked"), "tasks[0].label", "an object"),
        (("owner: user", "owner: users"), "features[0].owner", "'user', 'item'"),
    ],
)
def test_a_fault_of_all_that_a_list_holds_is_one_fault(
    change: tuple[str, str], where: str, message: str
) -> None:
    text = SHOP.replace("- {name: buy, label: {column: bought}, given: click}\n", "")
    text = "\n".join(
        line for line in text.splitlines() if "name: user" in line or "owner" not in line
    )
    assert loads(text)
    found = faults_of(text.replace(*change))
    assert len(found) == 1
    (place, said), *_ = found.items()
    assert where in place and message in said


def test_a_log_of_actions_may_have_any_name() -> None:
    for name in ("split", "loss", "history"):
        text = SHOP.replace(
            "  impressions: log.csv",
            f"  actions: {{{name}: {{path: clicks, time: {{column: at, unit: s}}}}}}\n"
            "  impressions: log.csv",
        )
        assert not any("kind" in where for where in faults_of(text))


@pytest.mark.parametrize(
    "text",
    ["", "- a", "name: [", "name: shop\n\tx: 1", "3", "a: &a {b: *a}", "a: &a [*a]"],
)
def test_what_is_no_spec_is_one_clear_fault(text: str) -> None:
    with pytest.raises(SpecError, match="shop.yaml:1|shop.yaml:2"):
        loads(text, "shop.yaml")


def test_a_missing_file_is_said(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        load(tmp_path / "none.yaml")


def test_dates_are_dates() -> None:
    split = loads(
        SHOP.replace(
            "{validation: 0.1, test: 0.1}", "{train_to: 2026-01-02, validation_to: 2026-01-03}"
        )
    ).data.split
    assert isinstance(split, TimeSplit) and split.train_to.isoformat() == "2026-01-02"


def test_fingerprints_change_with_what_they_cover_alone() -> None:
    before = fingerprints(loads(SHOP))
    tower = fingerprints(loads(SHOP + "model: {towers: [8]}\n"))
    blend = fingerprints(loads(SHOP + "serve: {blend: {buy: 1.0}}\n"))
    bucket = fingerprints(loads(SHOP.replace("buckets: 5", "buckets: 6")))
    assert {k for k in before if before[k] != tower[k]} == {"model"}
    assert {k for k in before if before[k] != blend[k]} == {"model", "serve"}
    limit = fingerprints(loads(SHOP + "serve: {max_candidates: 5}\n"))
    assert {k for k in before if before[k] != limit[k]} == {"serve"}
    assert {k for k in before if before[k] != bucket[k]} == {"features"}
