"""Cross-checks of a spec: names that must exist, parts that must agree."""

from __future__ import annotations

from collections import Counter as Count
from collections.abc import Iterator
from typing import Any

from recsys.spec.names import is_argument
from recsys.spec.records import ActionLabel, ColumnLabel, Feature, FractionSplit, Spec
from recsys.spec.schema import (
    LIST_SEPARATOR,
    RESERVED,
    SCORE,
    conditional_name,
    encoding_of,
    only_counted_by,
    tree_inputs,
    weights_name,
    weights_of,
)

Finding = tuple[tuple[str | int, ...], str, str]
"""Place, message, and the name that the place refers to (or '')."""


def cross_check(spec: Spec) -> list[Finding]:
    """Every fault that no single record can see. Places name features and tasks by name."""
    checks = (_names, _features, _leaks, _histories, _tasks, _data, _model, _rest)
    return [finding for check in checks for finding in check(spec)]


def _choices(names: list[str]) -> str:
    return f"one of {', '.join(names)}" if names else "(there are none)"


def _names(spec: Spec) -> Iterator[Finding]:
    for section, names in (
        ("features", [feature.name for feature in spec.features]),
        ("tasks", [task.name for task in spec.tasks]),
    ):
        for name, count in Count(names).items():
            if count > 1:
                yield (section, name, "name"), f"{count} {section} are named {name!r}", ""
    # Features are the arguments of the exported model's signature `numeric`, and so are weights.
    weights = {weights_name(f.name).lower(): f.name for f in spec.features if weights_of(f)}
    alike: dict[str, str] = {}
    for feature in spec.features:
        place = ("features", feature.name, "name")
        if not is_argument(feature.name):
            yield place, f"{feature.name!r} is a word of Python; keep it as `column` alone", ""
        first = alike.setdefault(feature.name.lower(), feature.name)
        if feature.name.lower() in weights:
            of = weights[feature.name.lower()]
            yield place, f"{feature.name!r} is the name of {of}'s weights", ""
        if first != feature.name:
            yield place, f"{first!r} and {feature.name!r} differ by case alone", ""


def _features(spec: Spec) -> Iterator[Finding]:
    yield from _columns(spec)
    yield from _parts(spec)
    widths: dict[str, tuple[str, int | None]] = {}
    first: dict[str, tuple[str, dict[str, Any]]] = {}
    for feature in spec.features:
        place = ("features", feature.name)
        kind = feature.encode.kind
        encode = encoding_of(feature)
        if weights_of(feature) and not feature.is_list:
            yield (*place, "encode", "weights"), "weights need a list: set encode.max_length", ""
        if getattr(encode, "combiner", "mean") != "mean" and not feature.is_list:
            said = "a combiner needs a list: set encode.max_length"
            yield (*place, "encode", "combiner"), said, ""
        if feature.raw.startswith(RESERVED):
            yield (*place, "column"), f"names that begin with {RESERVED!r} are the job's own", ""
        has_table = encode.kind in ("vocabulary", "hash", "quantiles")
        for field in ("table", "dim") if not has_table else ():
            if getattr(feature, field):
                said = "a history reads the table of the feature that it is of"
                if kind != "history":
                    said = f"a {encode.kind} feature has no embedding table"
                yield (*place, field), said, ""
        if feature.column and kind in ("history", "counter"):
            yield (*place, "column"), f"a {kind} is computed, and reads no column of its own", ""
        if feature.separator is not None and not (feature.is_list and kind != "history"):
            yield (
                (*place, "separator"),
                "a separator needs a list encoding: set encode.max_length",
                "",
            )
        if not has_table:
            continue
        table = feature.table_name
        sharer, dim = widths.setdefault(table, (feature.name, feature.dim))
        if dim != feature.dim:
            yield (
                (*place, "dim"),
                f"features {sharer!r} and {feature.name!r} share table {table!r} "
                f"but differ in dim ({dim} and {feature.dim})",
                "",
            )
        own = encode.model_dump(exclude={"max_length", "combiner", "weights"})
        sharer, theirs = first.setdefault(table, (feature.name, own))
        if own != theirs:
            yield (
                (*place, "encode"),
                f"features that share table {table!r} must be encoded alike; {sharer!r} is not",
                "",
            )


def _leaks(spec: Spec) -> Iterator[Finding]:
    """What a row is trained on must not hold what it is to tell."""
    labels: dict[str, str] = {}
    for task in spec.tasks:
        if isinstance(task.label, ColumnLabel):
            labels.setdefault(task.label.column, task.name)
    alone = only_counted_by(spec)
    for feature in spec.features:
        place = ("features", feature.name)
        encode = feature.encode
        reads: list[tuple[str, tuple[str, ...]]] = []
        if encode.kind == "counter":
            reads = [(name, ("encode", "by")) for name in encode.by if name in alone]
        elif encode.kind != "history" and not _in_table(spec, feature):
            reads = [(feature.raw, ("column",)), (weights_of(feature) or "", ("encode", "weights"))]
        for column, field in reads:
            if column in labels:
                yield (
                    (*place, *field),
                    f"{column!r} is the label of task {labels[column]!r}, which is known only "
                    "after the impression; leave it out, or tell of past labels by a history or "
                    "a counter of that task",
                    "",
                )


def _in_table(spec: Spec, feature: Feature) -> bool:
    """Whether the feature's columns are those of its owner's table, not of the impressions."""
    return feature.owner != "context" and getattr(spec.data.tables, feature.owner) is not None


def _columns(spec: Spec) -> Iterator[Finding]:
    """One name is one raw column, wherever it is read: in the job, the graph and requests."""
    computed = {f.name: f.encode.kind for f in spec.features if _is_computed(f)}
    owners: dict[str, tuple[str, str]] = {}
    reads = [(f, f.raw, ("column",)) for f in spec.features if not _is_computed(f)]
    reads += [
        (f, str(weights_of(f)), ("encode", "weights")) for f in spec.features if weights_of(f)
    ]
    for feature, column, field in reads:
        place = ("features", feature.name, *field)
        if column in computed:
            yield (
                place,
                f"column {column!r} has the name of a {computed[column]}; "
                f"rename the {computed[column]}",
                "",
            )
        first, owner = owners.setdefault(column, (feature.name, feature.owner))
        if owner != feature.owner:
            yield (
                place,
                f"{first!r} reads a column {column!r} of the {owner}, and {feature.name!r} "
                f"one of the {feature.owner}: one name is one column. Give a table a prefix in "
                "data.tables, or rename the column in its file",
                "",
            )
        table = None if feature.owner == "context" else getattr(spec.data.tables, feature.owner)
        if table is None or column in (table.key, getattr(spec.data.keys, feature.owner)):
            continue
        if not column.startswith(table.prefix) or column == table.prefix:
            yield (
                place,
                f"columns of the {feature.owner}'s table begin with its prefix {table.prefix!r}; "
                f"found {column!r}",
                "",
            )
    for feature in spec.features:
        by = feature.encode.by if feature.encode.kind == "counter" else ()
        for name, count in Count(by).items():
            if count > 1:
                yield (
                    ("features", feature.name, "encode", "by"),
                    f"{name!r} stands here {count} times",
                    "",
                )
            if name in computed:
                yield (
                    ("features", feature.name, "encode", "by"),
                    f"{name!r} is a {computed[name]}; count by columns of the logs or tables",
                    "",
                )


def _parts(spec: Spec) -> Iterator[Finding]:
    """A column is one text for all features: a list with one separator, or a single value."""
    first: dict[str, tuple[str, str | None]] = {}
    for feature in spec.features:
        if _is_computed(feature):
            continue
        mark = (feature.separator or LIST_SEPARATOR) if feature.is_list else None
        reads = [(feature.raw, ("column",)), (weights_of(feature) or "", ("encode", "weights"))]
        for column, field in reads if weights_of(feature) else reads[:1]:
            name, theirs = first.setdefault(column, (feature.name, mark))
            if mark != theirs:
                yield (
                    ("features", feature.name, *field),
                    f"{name!r} reads {column!r} as {_said(theirs)}, and {feature.name!r} as "
                    f"{_said(mark)}: read it alike, or have it in the file under two names",
                    "",
                )


def _said(separator: str | None) -> str:
    return "a single value" if separator is None else f"a list with {separator!r} between its parts"


def _is_computed(feature: Feature) -> bool:
    return feature.encode.kind in ("counter", "history")


def _histories(spec: Spec) -> Iterator[Finding]:
    items = [
        f.name
        for f in spec.features
        if f.owner == "item" and f.encode.kind in ("vocabulary", "hash") and not f.is_list
    ]
    tasks = [task.name for task in spec.tasks]
    for feature in spec.features:
        place = ("features", feature.name, "encode")
        if feature.encode.kind == "history":
            if feature.encode.of not in items:
                yield (
                    (*place, "of"),
                    f"no item feature with ids is named {feature.encode.of!r}; "
                    f"expected {_choices(items)}",
                    feature.encode.of,
                )
            if feature.owner != "user":
                yield (*place[:2], "owner"), "a history belongs to the user", ""
            if feature.encode.action is not None and feature.encode.action not in tasks:
                yield (
                    (*place, "action"),
                    f"no task is named {feature.encode.action!r}; expected {_choices(tasks)}",
                    feature.encode.action,
                )
        if feature.encode.kind == "counter":
            needs = feature.encode.statistic != "impressions" or feature.encode.task is not None
            if needs and feature.encode.task not in tasks:
                yield (
                    (*place, "task"),
                    f"no task is named {feature.encode.task!r}; expected {_choices(tasks)}",
                    feature.encode.task or "",
                )
        if feature.encode.kind in ("history", "counter") and spec.data.time is None:
            yield (
                place,
                f"a {feature.encode.kind} needs to know when impressions were: set data.time",
                "",
            )


def _tasks(spec: Spec) -> Iterator[Finding]:
    names = [task.name for task in spec.tasks]
    parents = {task.name: task.given for task in spec.tasks}
    for task in spec.tasks:
        place = ("tasks", task.name)
        if task.given is not None:
            if task.given not in names:
                others = [name for name in names if name != task.name]
                yield (
                    (*place, "given"),
                    f"no task is named {task.given!r}; expected {_choices(others)}",
                    task.given,
                )
            elif spec.task(task.given).is_regression:
                yield (*place, "given"), f"{task.given!r} is a regression; no funnel follows it", ""
            seen = {task.name}
            step: str | None = task.given
            while step is not None and step in parents:
                if step in seen:
                    yield (*place, "given"), f"the funnel of {task.name!r} runs in a circle", ""
                    break
                seen.add(step)
                step = parents[step]
        elif task.inverse_propensity or task.space != "entire":
            yield (
                (*place, "inverse_propensity" if task.inverse_propensity else "space"),
                "only a task with `given` is observed on part of the impressions, or joint",
                "",
            )
        if task.is_regression and task.space == "joint":
            yield (*place, "space"), "a regression has no probability to join", ""
        if task.inverse_propensity and task.space != "observed":
            yield (*place, "inverse_propensity"), "needs space: observed", ""
        if isinstance(task.label, ActionLabel) and task.label.action not in spec.data.actions:
            known = list(spec.data.actions)
            yield (
                (*place, "label", "action"),
                f"no log is named {task.label.action!r} in data.actions; "
                f"expected {_choices(known)}",
                "",
            )
        if task.ranking is not None and spec.data.keys.request is None:
            yield (*place, "ranking"), "a ranking loss needs data.keys.request", ""
        listwise = task.ranking is not None and task.ranking.kind == "listwise"
        if listwise and task.is_regression and not task.by_logarithm:
            yield (
                (*place, "ranking"),
                "listwise needs labels of at least 0: take pairwise, or a loss with log: true",
                "",
            )
    if spec.train.negative_sampling < 1.0 and all(task.is_regression for task in spec.tasks):
        yield ("train", "negative_sampling"), "needs a task whose label is 0 or 1", ""
    yield from _answers(spec)
    if all(task.weight == 0.0 for task in spec.tasks):
        yield ("tasks",), "all tasks have weight 0; nothing would be learned", ""


def _answers(spec: Spec) -> Iterator[Finding]:
    """Names under which the model answers must differ, also in a file's name."""
    taken = {SCORE: "the score of the blend"}
    for task in spec.tasks:
        names = {task.name: f"task {task.name!r}"}
        if task.given is not None:
            names[conditional_name(task.name, task.given)] = f"task {task.name!r} given its parent"
        for name, what in names.items():
            other = taken.setdefault(name.lower(), what)
            if other != what:
                yield (
                    ("tasks", task.name, "name"),
                    f"the model would answer {name!r} twice: for {what} and for {other}",
                    "",
                )


def _data(spec: Spec) -> Iterator[Finding]:
    data, split = spec.data, spec.data.split
    keys = data.keys
    if keys.item == keys.user:
        yield ("data", "keys", "item"), f"{keys.item!r} is the column of the user's id too", ""
    for owner in ("user", "item"):
        if keys.impression == getattr(keys, owner):
            yield (
                ("data", "keys", "impression"),
                f"{keys.impression!r} is the column of the {owner}'s id, which many impressions "
                "have; name the impression's own, or none",
                "",
            )
    if data.duplicates == "keep" and data.keys.impression is not None:
        yield (
            ("data", "duplicates"),
            "an impression has one row where data.keys.impression names it; only `remove` fits",
            "",
        )
    if data.impressions.time is not None:
        yield ("data", "impressions", "time"), "the impressions' time is data.time", ""
    if isinstance(split, FractionSplit):
        if split.validation + split.test >= 1.0:
            yield ("data", "split"), "validation and test leave no rows to train on", ""
    else:
        if split.column is None and data.time is None:
            yield ("data", "split"), "a time split needs data.time or split.column", ""
        last = split.test_to
        if split.validation_to <= split.train_to:
            yield ("data", "split", "validation_to"), "must be after train_to", ""
        if last is not None and last <= split.validation_to:
            yield ("data", "split", "test_to"), "must be after validation_to", ""
    if data.actions:
        if data.keys.impression is None:
            yield ("data", "keys"), "actions are joined by data.keys.impression; set it", ""
        if data.time is None:
            yield ("data", "actions"), "attribution windows need data.time", ""
    read = {task.label.action for task in spec.tasks if isinstance(task.label, ActionLabel)}
    for name, log in data.actions.items():
        if name not in read:
            yield (
                ("data", "actions", name),
                f"no task reads this log; name it in a task's label (label: {{action: {name}}}), "
                "or leave it out",
                "",
            )
        if name in ("impressions", "user table", "item table"):
            yield ("data", "actions", name), f"{name!r} is another log; choose another name", ""
        if log.time is None:
            yield ("data", "actions", name), "attribution windows need the log's time column", ""


def _model(spec: Spec) -> Iterator[Finding]:
    read = [f for f in spec.features if f.name != spec.model.position]
    embedded = [f for f in read if encoding_of(f).kind != "numeric"]
    if not read:
        yield ("features",), "the model needs a feature beside the position", ""
    for kind, count in Count(spec.model.interactions).items():
        if count > 1:
            yield ("model", "interactions"), f"{kind!r} is named {count} times", ""
    if not embedded and spec.model.interactions:
        yield ("model", "interactions"), "interactions need features with embeddings", ""
    elif "match" in spec.model.interactions:
        for owner in ("user", "item"):
            if not any(f.owner == owner for f in embedded):
                yield (
                    ("model", "interactions"),
                    f"match needs a feature of the {owner} with an embedding (not numeric)",
                    "",
                )
    if spec.model.trees is not None and not tree_inputs(spec):
        yield (
            ("model", "trees"),
            "trees need a feature with a number or single ids (neither a key, a hash, a list "
            "nor the position)",
            "",
        )
    if spec.model.position is not None:
        ids = [
            f.name
            for f in spec.features
            if f.owner == "context"
            and f.encode.kind in ("vocabulary", "hash", "quantiles")
            and not f.is_list
            and getattr(f.encode, "hashes", 1) == 1
        ]
        if spec.model.position not in ids:
            yield (
                ("model", "position"),
                f"no context feature with ids is named {spec.model.position!r}; "
                f"expected {_choices(ids)}",
                spec.model.position,
            )


def _rest(spec: Spec) -> Iterator[Finding]:
    features = [feature.name for feature in spec.features]
    for index, name in enumerate(spec.evaluate.slices):
        if name in spec.evaluate.slices[:index]:
            yield ("evaluate", "slices", index), f"{name!r} stands here twice", name
        if name not in features:
            yield (
                ("evaluate", "slices", index),
                f"no feature is named {name!r}; expected {_choices(features)}",
                name,
            )
    tasks = [task.name for task in spec.tasks]
    for name, weight in spec.serve.blend.items():
        if name not in tasks:
            yield (
                ("serve", "blend", name),
                f"no task is named {name!r}; expected {_choices(tasks)}",
                name,
            )
        elif weight < 0.0:
            yield ("serve", "blend", name), "a negative weight would rank the best items last", ""
    if spec.serve.blend and not any(spec.serve.blend.values()):
        yield ("serve", "blend"), "all weights are 0; every item would score the same", ""
