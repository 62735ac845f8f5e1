"""What the job reads and makes, derived from the spec: logs, their columns, computed columns.

Inside the job an impression is a row of an Arrow table with these columns:

=================  =======================================================================
`row`              int64, where the row was read; orders rows when all else is equal
`key:user` …       string keys: `key:user`, `key:item`, `key:request`, `key:impression`
`key:time`         int64, milliseconds since the epoch, where the spec has `data.time`
`key:weight`       float32, where the spec has `data.weight`
`day`              int32, days since the epoch, by the split's column or by `key:time` in UTC
`identity`         uint64, hash by which a fraction split divides
`rest`             uint64, hash of the columns that nothing reads, where it tells rows apart
`raw:<column>`     string or float32, a raw column in canonical form
`label:<task>`     float32
`known:<task>`     int64, when a positive label was known, where histories or counters ask
=================  =======================================================================
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from recsys.spec.records import ColumnLabel, Counter, Feature, Spec, TimeColumn, TimeSplit
from recsys.spec.schema import (
    REQUEST_KEY,
    TIME,
    USER_KEY,
    WEIGHT,
    RawColumn,
    counted_by,
    is_own_id,
    label_column,
    only_counted_by,
    raw_columns,
    separators,
)

ROW = "row"
USER, ITEM, REQUEST, IMPRESSION = USER_KEY, "key:item", REQUEST_KEY, "key:impression"
DAY = "day"
IDENTITY = "identity"
REST = "rest"
PLACE, UNREAD = "key:row", "key:rest"
"""Columns of a block as it is read that become `row` and `rest`; no log's column is named so."""
TABLE_KEY = "key"

FieldKind = Literal["text", "number", "key", "time", "day", "binary", "value", "weight"]
Owner = Literal["user", "item"]
OWNERS: tuple[Owner, Owner] = ("user", "item")


def raw(column: str) -> str:
    """Name of a raw column inside the job, where it cannot meet a key or a label."""
    return f"raw:{column}"


def known(task: str) -> str:
    """Name of the column that says when a positive of the task was known."""
    return f"known:{task}"


@dataclass(frozen=True)
class Field:
    """One column of a log: where it is read from, what it becomes, and how it is checked.

    Of a label, `after` are the targets of the labels before it in the funnel, first to last, and
    `logarithm` says whether its loss is of log(1 + label). Of a list, `separator` is between its
    parts.
    """

    target: str
    column: str
    kind: FieldKind
    time: TimeColumn | None = None
    after: tuple[str, ...] = ()
    logarithm: bool = False
    separator: str | None = None


@dataclass(frozen=True)
class Source:
    """One log or table: its name in messages, its path below the input, and its fields.

    `whole` says that its rows may differ in columns that no field reads.
    """

    name: str
    path: str
    fields: tuple[Field, ...]
    whole: bool = False

    @property
    def columns(self) -> tuple[str, ...]:
        """The columns to read, each once."""
        return tuple(dict.fromkeys(field.column for field in self.fields))


@dataclass(frozen=True)
class By:
    """A column that counters count by: the job's column, and its raw name."""

    name: str
    column: str


@dataclass(frozen=True)
class Plan:
    """All that the pipelines need to know of a spec."""

    spec: Spec
    impressions: Source
    actions: dict[str, Source]
    tables: dict[Owner, Source]
    owned: dict[Owner, tuple[RawColumn, ...]]
    raw: tuple[RawColumn, ...]
    histories: tuple[Feature, ...]
    counters: tuple[Feature, ...]
    tracked: tuple[str, ...]

    @property
    def sources(self) -> tuple[Source, ...]:
        """Every log and table."""
        return (self.impressions, *self.actions.values(), *self.tables.values())

    @property
    def counts_local_days(self) -> bool:
        """Whether days are of a column, and what follows an impression is known later than it."""
        split = self.spec.data.split
        local = isinstance(split, TimeSplit) and split.column is not None
        return local and bool(self.tracked and self.actions)

    def by(self, counter: Feature) -> tuple[By, ...]:
        """The columns of a counter, named as the spec names them."""
        assert isinstance(counter.encode, Counter)
        columns = counted_by(self.spec)[counter.name]
        return tuple(
            By(name, raw(column)) for name, column in zip(counter.encode.by, columns, strict=True)
        )


def plan_of(spec: Spec) -> Plan:
    """Derive the plan of a spec."""
    columns = raw_columns(spec)
    read = [column for column in columns if not column.computed]
    counters = tuple(f for f in spec.features if f.encode.kind == "counter")
    histories = tuple(f for f in spec.features if f.encode.kind == "history")
    tasks = {f.encode.task for f in counters if f.encode.statistic != "impressions"}  # type: ignore[union-attr]
    tasks |= {f.encode.action for f in histories}  # type: ignore[union-attr]
    return Plan(
        spec=spec,
        impressions=_impressions(spec, read),
        actions={name: _action(spec, name) for name in spec.data.actions},
        tables={
            owner: _table(spec, owner, [c for c in read if _lives_in(spec, c) == owner])
            for owner in OWNERS
            if getattr(spec.data.tables, owner) is not None
        },
        owned={
            owner: tuple(c for c in columns if c.owner == owner and c.computed != "counter")
            for owner in OWNERS
        },
        raw=columns,
        histories=histories,
        counters=counters,
        tracked=tuple(task.name for task in spec.tasks if task.name in tasks),
    )


def _lives_in(spec: Spec, column: RawColumn) -> str:
    """Which source holds a raw column: the owner's table, or the impressions."""
    if column.owner == "context":
        return "impressions"
    table = getattr(spec.data.tables, column.owner)
    if table is None or is_own_id(spec, column):
        return "impressions"
    return column.owner


def _text_or_number(spec: Spec, column: RawColumn, source: str) -> Field:
    if column.dtype != "string":
        return Field(raw(column.name), source, "number")
    return Field(raw(column.name), source, "text", separator=separators(spec).get(column.name))


def _may_share_a_moment(spec: Spec) -> bool:
    """Whether impressions may share user, item and time without being one and the same.

    As the spec tells it: whether epoch numbers are days, the values alone say (`tells_moments`).
    """
    time = spec.data.time
    if spec.data.keys.impression is not None or spec.data.duplicates == "keep":
        return False
    if time is None or time.format is None:
        return True
    return not has_any(time.format, "HIcsTXR")


def has_any(format: str, letters: str) -> bool:
    """Whether a pattern of times has one of the letters after a `%`."""
    return any(f"%{letter}" in format for letter in letters)


def _impressions(spec: Spec, read: list[RawColumn]) -> Source:
    data, keys = spec.data, spec.data.keys
    fields = [Field(USER, keys.user, "key"), Field(ITEM, keys.item, "key")]
    if keys.request:
        fields.append(Field(REQUEST, keys.request, "key"))
    if keys.impression:
        fields.append(Field(IMPRESSION, keys.impression, "key"))
    if data.time:
        fields.append(Field(TIME, data.time.column, "time", data.time))
    if data.weight:
        fields.append(Field(WEIGHT, data.weight, "weight"))
    if isinstance(data.split, TimeSplit) and data.split.column:
        fields.append(Field(DAY, data.split.column.column, "day", data.split.column))
    for task in spec.tasks:
        if isinstance(task.label, ColumnLabel):
            kind: FieldKind = "value" if task.is_regression else "binary"
            fields.append(
                Field(
                    label_column(task.name),
                    task.label.column,
                    kind,
                    after=tuple(label_column(before.name) for before in spec.chain(task.name)[:-1]),
                    logarithm=task.by_logarithm,
                )
            )
    for column in read:
        if _lives_in(spec, column) == "impressions":
            own = is_own_id(spec, column)
            source = getattr(keys, column.owner) if own else column.name
            fields.append(_text_or_number(spec, column, source))
    # A counter may count by a column that is no feature; then the impressions hold it.
    fields += [Field(raw(name), name, "text") for name in only_counted_by(spec)]
    return Source("impressions", data.impressions.path, tuple(fields), _may_share_a_moment(spec))


def _action(spec: Spec, name: str) -> Source:
    log = spec.data.actions[name]
    assert log.time is not None and spec.data.keys.impression is not None
    return Source(
        name,
        log.path,
        (
            Field(IMPRESSION, spec.data.keys.impression, "key"),
            Field(TIME, log.time.column, "time", log.time),
        ),
    )


def _table(spec: Spec, owner: Owner, columns: list[RawColumn]) -> Source:
    table = getattr(spec.data.tables, owner)
    fields = [Field(TABLE_KEY, table.key, "key")]
    fields += [_text_or_number(spec, c, c.name.removeprefix(table.prefix)) for c in columns]
    return Source(f"{owner} table", table.path, tuple(fields))
