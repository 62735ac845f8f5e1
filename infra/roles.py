"""What columns are beside features, for `recsys spec infer`: keys, labels, request and time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa

from infra.owners import Groups, Owners, codes
from infra.tables import FEW_VALUES, Column, Read, label, missing
from infra.times import Time, choose, holds_dates, texts
from recsys.errors import EXIT_WRONG_USE, UserError

ROWS_A_REQUEST = 200
"""Rows that requests have at most on average: more, and the column names something else."""
NO_REQUEST = 0.01
"""Rows without a request above which none is read: each would be a bad record."""
MOST_PLACES = 1000
"""Places of a list that are told apart."""
MOST_OFFERED = 3
"""Columns whose names tell nothing that are offered as a key."""
CHANCE = 10.0
"""-log of the chance that one label's 1s lie within another's, above which it was none."""

_LABELS = (
    r"(is_|has_|did_|was_|label_|y_)?"
    r"(click(s|ed)?|convert(ed)?|conversions?|purchased?|bought|buy|order(ed)?|paid|pay|like[sd]?|"
    r"share[sd]?|follow(s|ed)?|comment(s|ed)?|favou?rited?|save[sd]?|install(s|ed)?|cart(ed)?|"
    r"add_to_cart|long_view|watch(ed)?|finish(ed)?|subscribed?|signup|sale|lead|label|target)"
    r"(_label)?"
)
_KEYS = {
    "user": r"user|user_?id|uid|customer|customer_?id|member_?id|visitor_?id",
    "item": r"item|item_?id|iid|product|product_?id|video_?id|article_?id|ad_?id|doc_?id|sku|"
    r"movie_?id",
}
_REQUESTS = (
    r"request|request_?id",
    r"search_?id|srch_?id|query_?id|impression_group",
    r"session|session_?id",
)
_REQUEST = "|".join(_REQUESTS)
_PLACE = r"((display|item|list|result|ad)_)?(position|pos|rank|slot)(_id)?"


@dataclass(frozen=True)
class Named:
    """Columns that someone named, in place of those that their names tell."""

    user: str | None = None
    item: str | None = None
    time: str | None = None
    request: str | None = None
    labels: Sequence[str] = ()


@dataclass(frozen=True)
class Roles:
    """What columns are beside features.

    Attributes:
        label_like: Those named like labels, chosen or not.
        place: Where in its list an impression stood.
        dates: Those that hold dates or times.
        untimed: Why those that are named like a time tell none.
        taken: Those that have a part other than a feature's.
        key_notes: What is to be said of the keys; `request_notes`, `time_notes` and `label_notes`
            of the others.
    """

    user: Column
    item: Column
    labels: list[Column]
    label_like: list[Column]
    request: Column | None
    place: Column | None
    time: Time | None
    dates: list[Column]
    untimed: dict[str, str]
    taken: set[str]
    owners: Owners
    key_notes: list[str]
    request_notes: list[str]
    time_notes: list[str]
    label_notes: list[str]


def roles(path: Path, read: Read, table: pa.Table, columns: list[Column], named: Named) -> Roles:
    """What the columns are.

    Raises:
        UserError: A named column is not there or does not fit, or there is no user, item or label.
    """
    by_name = {column.name: column for column in columns}
    wanted = (named.user, named.item, named.time, named.request, *named.labels)
    for name in wanted:
        if name is not None and name not in by_name:
            raise UserError(
                f"The table has no column {name!r}.",
                where=str(path),
                found=", ".join(by_name),
                fix="Name one of these.",
                exit_code=EXIT_WRONG_USE,
            )
    user, user_notes = _key(table, columns, by_name.get(named.user or ""), "user", wanted, path)
    item, item_notes = _key(table, columns, by_name.get(named.item or ""), "item", wanted, path)
    label_like = [c for c in columns if 1 <= c.known <= 2 and is_label_like(c)]
    chosen = [c for c in columns if c.name in named.labels]
    _require_roles(path, user, item, named, chosen)
    owners = Owners(table, user.name, item.name)
    given = set(wanted) - {None}
    found = [c for c in label_like if c.binary and c.name not in given and c not in (user, item)]
    labels, label_notes = chosen, list[str]()
    if not chosen:
        labels, label_notes = _without_attributes(table, owners, found)
        label_like = [c for c in label_like if c in labels or c not in found]
    labels = [c for c in labels if c not in (user, item)]
    _require_labels(path, table, columns, (user, item), labels)
    taken = {user.name, item.name, *(c.name for c in labels)}
    free = [c for c in columns if c.name not in taken]
    request, request_notes = _request(table, free, by_name.get(named.request or ""), path)
    taken |= {c.name for c in free if re.fullmatch(_REQUEST, c.snake) and _many(c)}
    taken |= {request.name} if request else set()
    dates = [c for c in free if c != request and holds_dates(table[c.name], c.name)]
    free = [c for c in free if c != request and c not in label_like]
    time, time_notes, untimed = choose(read.table, table, free, dates, named.time, owners, path)
    taken |= {time.name} if time else set()
    if request and time and not named.request and _lasts(read.table[request.name], time.day):
        request_notes = [f"  # No request: rows of one {request.name!r} lie days apart."]
        request = None
    if request:
        owners = Owners(table, user.name, item.name, request.name)
    place = next((c for c in free if request and _is_place(c, owners)), None)
    return Roles(
        user,
        item,
        labels,
        label_like,
        request,
        place,
        time,
        dates,
        untimed,
        taken,
        owners,
        user_notes + item_notes,
        request_notes,
        time_notes,
        label_notes,
    )


def is_label_like(column: Column) -> bool:
    """Whether a column is named like a label."""
    return re.fullmatch(_LABELS, column.snake) is not None


def _is_place(column: Column, owners: Owners) -> bool:
    return (
        column.kind == "number"
        and column.whole
        and 1 < column.distinct <= MOST_PLACES
        and re.fullmatch(_PLACE, column.snake) is not None
        and owners.differs_in_requests(column.name)
    )


def _key(
    table: pa.Table,
    columns: list[Column],
    named: Column | None,
    what: str,
    wanted: Sequence[str | None],
    path: Path,
) -> tuple[Column, list[str]]:
    """A key's column: the usual name first, then that of an id, then that of the most values."""
    if named is not None:
        return named, []
    found = [c for c in columns if re.fullmatch(_KEYS[what], c.snake)]
    if not found:
        # To name a column for two things is refused, so those of another part are not offered.
        free = [c for c in columns if c.name not in wanted]
        near = [c.name for c in _key_like(free, what) if not holds_dates(table[c.name], c.name)]
        raise UserError(
            f"No {what} column was found.",
            where=str(path),
            expected=f"a column named like {what}, {what}_id",
            found=", ".join(c.name for c in columns),
            fix=f"Name it: --{what} COLUMN" + (f", such as {', '.join(near)}." if near else "."),
            exit_code=EXIT_WRONG_USE,
        )
    usual = (f"{what}_id", f"{what}id")

    def rank(column: Column) -> tuple[bool, bool, bool, int]:
        name = column.snake
        return not _is_key(column), name not in usual, not name.endswith("id"), -column.distinct

    chosen, *others = sorted(found, key=rank)
    if not others:
        return chosen, []
    also = ", ".join(repr(c.name) for c in others)
    return chosen, [f"  # The {what} is {chosen.name!r}; {also} could be it: --{what} names it."]


def _key_like(columns: list[Column], what: str) -> list[Column]:
    """Columns that could be a key: those named like ids, or else names, then whole numbers."""
    other = "|".join((_LABELS, _REQUEST, *(_KEYS[key] for key in _KEYS if key != what)))
    likely = [
        c for c in columns if _is_key(c) and not c.one_a_row and not re.fullmatch(other, c.snake)
    ]
    ids = [c for c in likely if c.snake.endswith("id")]
    many = [c for c in likely if c.distinct > FEW_VALUES]
    return ids or sorted(many, key=lambda c: (not c.name_like, -c.distinct))[:MOST_OFFERED]


def _is_key(column: Column) -> bool:
    return not _no_key(column)


def _no_key(column: Column) -> str:
    """Why a column tells no two things apart; '' where it does."""
    if column.kind not in ("text", "number"):
        return column.why or f"{column.kind}s"
    if column.distinct < 2:
        return "one value, or none"
    return "" if column.whole or column.huge else "numbers with fractions"


def _without_attributes(
    table: pa.Table, owners: Owners, found: list[Column]
) -> tuple[list[Column], list[str]]:
    """Labels without those that are known of the user or the item; what is to be said of these."""
    whose = {c.name: owners.attribute_of(label(table, c)) for c in found}
    labels = [c for c in found if not whose[c.name]]
    notes = []
    for name, owner in whose.items():
        if owner and labels:
            notes.append(
                f"  # No task of {name!r}: each {owner} has one value, as an attribute has. If it "
                "is an outcome, name"
            )
            notes.append("  # all labels with --label.")
        elif owner:
            notes.append(f"  # Each {owner} has one value of {name!r}: is it an outcome?")
    return labels or found, notes


def _require_roles(
    path: Path, user: Column, item: Column, named: Named, labels: list[Column]
) -> None:
    """Each column that was named is one thing alone, and keys are values that can be told apart."""
    time, request = named.time, named.request
    others = [name for name in (time, request) if name]
    roles = [user.name, item.name, *others, *(c.name for c in labels)]
    twice = [name for name in dict.fromkeys(roles) if roles.count(name) > 1]
    if twice:
        raise UserError(
            f"The column {twice[0]!r} is named for two things.",
            where=str(path),
            expected="a column each for user, item, time and labels",
            found=f"user {user.name!r}, item {item.name!r}"
            + (f", time {time!r}" if time else "")
            + (f", request {request!r}" if request else "")
            + "".join(f", label {c.name!r}" for c in labels),
            fix="Name another column: --user, --item, --time, --request or --label.",
            exit_code=EXIT_WRONG_USE,
        )
    for what, column in (("user", user), ("item", item)):
        if not _is_key(column):
            raise UserError(
                f"The column {column.name!r} cannot name {'an' if what == 'item' else 'a'} {what}.",
                where=str(path),
                expected="a text or a whole number in each row",
                found=_no_key(column),
                fix=f"Name another column: --{what}.",
                exit_code=EXIT_WRONG_USE,
            )


def _require_labels(
    path: Path,
    table: pa.Table,
    columns: list[Column],
    keys: tuple[Column, Column],
    labels: list[Column],
) -> None:
    for column in labels:
        if not column.binary:
            few = 0 < column.distinct <= 3
            raise UserError(
                f"The column {column.name!r} is no label.",
                where=str(path),
                expected="0 and 1, both of them",
                found=f"{column.distinct} distinct values"
                + (f": {texts(table[column.name].unique())}" if few else ""),
                fix="Write 0 and 1 into it, or name columns of these; a task of numbers is written "
                "by hand (docs/spec.md).",
                exit_code=EXIT_WRONG_USE,
            )
    if not labels:
        found = [c.name for c in columns if c.binary]
        named = [
            f"; {c.name!r} holds {texts(table[c.name].unique())}"
            for c in columns
            if c.kind in ("text", "number") and c not in keys and re.fullmatch(_LABELS, c.snake)
        ]
        raise UserError(
            "No label was found.",
            where=str(path),
            expected="a column of 0 and 1 named like click, purchase, converted, label",
            found=f"columns of 0 and 1: {', '.join(found) or 'none'}" + "".join(named),
            fix="Write 0 and 1 into it." if named else "Name it: --label COLUMN.",
            exit_code=EXIT_WRONG_USE,
        )


def _request(
    table: pa.Table, columns: list[Column], named: Column | None, path: Path
) -> tuple[Column | None, list[str]]:
    """The request's column, or why the one that is named like it is none."""
    found = [named] if named else []
    for pattern in () if named else _REQUESTS:
        found += [c for c in columns if re.fullmatch(pattern, c.snake)]
    if not found:
        return None, []
    column = found[0]
    none = missing(table[column.name]).mean()
    values = f"{column.distinct:,} value{'s' * (column.distinct != 1)}"
    why = ""
    if column.kind not in ("text", "number"):
        why = "holds neither texts nor numbers"
    elif none >= NO_REQUEST:
        why = f"is missing in {none:.0%} of the rows"
    elif not _many(column):
        why = f"has {values} in {len(table):,} rows"
    if why and named:
        raise UserError(
            f"The column {column.name!r} is no request: it {why}.",
            where=str(path),
            expected=f"a value for each list of items shown, of {ROWS_A_REQUEST} rows at most",
            found=texts(table[column.name]),
            fix="Name another column, or none.",
            exit_code=EXIT_WRONG_USE,
        )
    if why:
        return None, [f"  # No request: {column.name!r} {why}."]
    notes = []
    if column.distinct == column.rows:
        notes.append(f"  # Each row has a request of its own, by {column.name!r}.")
    others = ", ".join(repr(c.name) for c in found[1:] if _many(c))
    if others:
        notes.append(f"  # No features of {others}, which could name requests: --request.")
    return column, notes


def _lasts(request: pa.ChunkedArray, day: np.ndarray) -> bool:
    """Whether rows of most requests lie further apart than midnight parts them."""
    groups = Groups.of(np.where(np.isnan(day), -1, codes(request)))
    several = groups.sizes > 1
    if not several.any():
        return False
    own = day[groups.order]
    days = np.maximum.reduceat(own, groups.starts) - np.minimum.reduceat(own, groups.starts)
    return bool((days[several] > 1).mean() > 0.5)


def _many(column: Column) -> bool:
    return column.distinct * ROWS_A_REQUEST >= column.rows


def tasks(labels: dict[str, np.ndarray]) -> tuple[list[tuple[str, str | None]], list[str]]:
    """Labels by falling rate; one whose positives lie within another's follows it.

    Returns:
        Names with the name before each, or None; and what is to be said of the choice.
    """
    # A label that is blank did not happen: where the one before it did not, logs often say so.
    ones = {name: np.nan_to_num(values) > 0.5 for name, values in labels.items()}
    order = sorted(ones, key=lambda name: -ones[name].mean())
    found: list[tuple[str, str | None]] = []
    notes: list[str] = []
    for index, name in enumerate(order):
        given = None
        for other in reversed(order[:index]):
            own, rate = ones[name].sum(), ones[other].mean()
            outside = (ones[name] & ~ones[other]).sum()
            # Real logs have a few strays; the feature job repairs them.
            if outside > 0.01 * max(1, own) or not own:
                continue
            # Within a label that nearly all rows have, or few, one lies by chance.
            if rate < 1 and -own * np.log(rate) > CHANCE and outside < 0.2 * own * (1 - rate):
                given = other
                break
            if 0 < rate < 1:
                notes.append(
                    f"  # {name!r} lies within {other!r}, perhaps by chance ({own:,} rows have "
                    f"it): if it follows it, add given: {other}."
                )
        found.append((name, given))
    return found, notes
