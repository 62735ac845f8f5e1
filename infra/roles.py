"""What columns are beside features, for `recsys spec infer`: keys, labels, request and time."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa

from infra.columns import FEW_VALUES, Column, Looked, label, missing
from infra.owners import Groups, Owners, codes
from infra.tables import wrong_use
from infra.times import Timing, choose, holds_dates, texts

ROWS_A_REQUEST = 200
"""Rows that requests have at most on average: more, and the column names something else."""
NO_REQUEST = 0.01
"""Rows without a request above which none is read: each would be a bad record."""
MOST_PLACES = 1000
"""Places of a list that are told apart."""
MOST_OFFERED = 3
"""Columns whose names tell nothing that are offered as a key."""
SAME = 0.01
"""Of the rows of a label's rarer value, those in which one that says the same may differ."""
CHANCE = 10.0
"""-log of the chance that one label's 1s lie within another's, above which it was none."""

_LABELS = (
    r"(is_|has_|did_|was_|label_|y_)?"
    r"(click(s|ed)?|convert(ed)?|conversions?|purchased?|bought|buy|order(ed)?|paid|pay|like[sd]?|"
    r"share[sd]?|follow(s|ed)?|comment(s|ed)?|favou?rited?|save[sd]?|install(s|ed)?|cart(ed)?|"
    r"add_to_cart|long_view|watch(ed)?|finish(ed)?|subscribed?|signup|sale|lead|booked|bookings?|"
    r"apply|applied|hired|reserved|label|target)"
    r"(_(label|bool|flag|ind|yn))?"
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

    @property
    def columns(self) -> list[str]:
        """All of them."""
        keys = (self.user, self.item, self.time, self.request)
        return [*(name for name in keys if name is not None), *self.labels]


@dataclass(frozen=True)
class Request:
    """The column of the request, or why the one that is named like it is none.

    Attributes:
        others: Other columns that could name requests.
    """

    column: Column | None = None
    why_not: str = ""
    others: list[str] = field(default_factory=list)

    @property
    def single(self) -> bool:
        """Whether each row has a request of its own."""
        return self.column is not None and self.column.distinct == self.column.rows


@dataclass(frozen=True)
class Roles:
    """What columns are beside features.

    Attributes:
        rivals: Columns that could be the key as well, by `user` and `item`.
        labels: Those to learn.
        label_like: Those named like labels, chosen or not.
        attributes: Those of them that the `user` or `item` has one value of, and which of these.
        place: Where in its list an impression stood.
        dates: Those that hold dates or times.
        taken: Those that have a part other than a feature's.
    """

    user: Column
    item: Column
    rivals: dict[str, list[str]]
    labels: list[Column]
    label_like: list[Column]
    attributes: dict[str, str]
    request: Request
    place: Column | None
    timing: Timing
    dates: list[Column]
    taken: set[str]
    owners: Owners


def roles(looked: Looked, named: Named) -> Roles:
    """What the columns are.

    Raises:
        UserError: A named column is not there or does not fit, or there is no user, item or label.
    """
    table, columns = looked.sample, looked.columns
    _require_columns(looked, named)
    users, items = _keys(looked, named, "user"), _keys(looked, named, "item")
    user, item = users[0], items[0]
    _require_roles(looked, user, item, named)
    owners = Owners(table, user.name, item.name)
    labels, label_like, attributes = _labels(looked, named, owners, (user, item))
    taken = {user.name, item.name, *(c.name for c in labels)}
    free = [c for c in columns if c.name not in taken]
    request = _request(looked, free, named.request)
    dates = [c for c in free if c != request.column and holds_dates(table[c.name], c.name)]
    taken |= {c.name for c in free if re.fullmatch(_REQUEST, c.snake) and _many(c)}
    taken |= {request.column.name} if request.column else set()
    free = [c for c in free if c != request.column and c not in label_like]
    timing = choose(looked, free, dates, named.time, owners)
    taken |= {timing.time.name} if timing.time else set()
    told = None if named.request else request.column
    if told and timing.time and _lasts(looked.read.table[told.name], timing.time.day):
        request = Request(None, f"rows of one {told.name!r} lie days apart")
    place = None
    if request.column:
        owners = Owners(table, user.name, item.name, request.column.name)
        place = next((c for c in free if _is_place(c, owners)), None)
    return Roles(
        user=user,
        item=item,
        rivals={"user": [c.name for c in users[1:]], "item": [c.name for c in items[1:]]},
        labels=labels,
        label_like=label_like,
        attributes=attributes,
        request=request,
        place=place,
        timing=timing,
        dates=dates,
        taken=taken,
        owners=owners,
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


def _keys(looked: Looked, named: Named, what: str) -> list[Column]:
    """Columns that could be a key: of the usual name, then named as ids, then by their values."""
    table, columns = looked.sample, looked.columns
    wanted = named.user if what == "user" else named.item
    if wanted:
        return [c for c in columns if c.name == wanted]
    found = [c for c in columns if re.fullmatch(_KEYS[what], c.snake)]
    if not found:
        # To name a column for two things is refused, so those of another part are not offered.
        free = [c for c in columns if c.name not in named.columns]
        near = [c.name for c in _key_like(free, what) if not holds_dates(table[c.name], c.name)]
        raise wrong_use(
            looked.read.path,
            f"No {what} column was found.",
            expected=f"a column named like {what}, {what}_id",
            found=", ".join(c.name for c in columns),
            fix=f"Name it: --{what} COLUMN" + (f", such as {', '.join(near)}." if near else "."),
        )
    usual = (f"{what}_id", f"{what}id")

    def rank(column: Column) -> tuple[bool, bool, bool, int]:
        name = column.snake
        return not _is_key(column), name not in usual, not name.endswith("id"), -column.distinct

    return sorted(found, key=rank)


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


def _require_columns(looked: Looked, named: Named) -> None:
    names = [column.name for column in looked.columns]
    for name in named.columns:
        if name not in names:
            raise wrong_use(
                looked.read.path,
                f"The table has no column {name!r}.",
                found=", ".join(names),
                fix="Name one of these.",
            )


def _require_roles(looked: Looked, user: Column, item: Column, named: Named) -> None:
    """Each column that was named is one thing alone, and keys are values that can be told apart."""
    roles = [("user", user.name), ("item", item.name), ("time", named.time)]
    roles.append(("request", named.request))
    roles += [("label", column.name) for column in looked.columns if column.name in named.labels]
    names = [name for _, name in roles if name]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise wrong_use(
            looked.read.path,
            f"The column {twice[0]!r} is named for two things.",
            expected="a column each for user, item, time and labels",
            found=", ".join(f"{role} {name!r}" for role, name in roles if name),
            fix="Name another column: --user, --item, --time, --request or --label.",
        )
    for what, column in (("user", user), ("item", item)):
        if not _is_key(column):
            raise wrong_use(
                looked.read.path,
                f"The column {column.name!r} cannot name {'an' if what == 'item' else 'a'} {what}.",
                expected="a text or a whole number in each row",
                found=_no_key(column),
                fix=f"Name another column: --{what}.",
            )


def _labels(
    looked: Looked, named: Named, owners: Owners, keys: tuple[Column, Column]
) -> tuple[list[Column], list[Column], dict[str, str]]:
    """Those to learn, those named like one, and whose attributes some of these are."""
    like = [c for c in looked.columns if 1 <= c.known <= 2 and is_label_like(c)]
    labels = [c for c in looked.columns if c.name in named.labels]
    attributes: dict[str, str] = {}
    if not labels:
        free = [c for c in like if c.binary and c not in keys and c.name not in named.columns]
        whose = {c.name: owners.attribute_of(label(looked.sample, c)) for c in free}
        labels = [c for c in free if not whose[c.name]] or free
        like = [c for c in like if c in labels or c not in free]
        attributes = {name: owner for name, owner in whose.items() if owner}
    _require_labels(looked, keys, labels)
    return labels, like, attributes


def _require_labels(looked: Looked, keys: tuple[Column, Column], labels: list[Column]) -> None:
    table, columns, path = looked.sample, looked.columns, looked.read.path
    for column in labels:
        if not column.binary:
            few = 0 < column.distinct <= 3
            raise wrong_use(
                path,
                f"The column {column.name!r} is no label.",
                expected="0 and 1, both of them",
                found=f"{column.distinct} distinct values"
                + (f": {texts(table[column.name].unique())}" if few else ""),
                fix="Write 0 and 1 into it, or name columns of these; a task of numbers is written "
                "by hand (docs/spec.md).",
            )
    if not labels:
        found = [c.name for c in columns if c.binary]
        named = [
            f"; {c.name!r} holds {texts(table[c.name].unique())}"
            for c in columns
            if c.kind in ("text", "number") and c not in keys and re.fullmatch(_LABELS, c.snake)
        ]
        raise wrong_use(
            path,
            "No label was found.",
            expected="a column of 0 and 1 named like click, purchase, converted, label",
            found=f"columns of 0 and 1: {', '.join(found) or 'none'}" + "".join(named),
            fix="Write 0 and 1 into it." if named else "Name it: --label COLUMN.",
        )


def _request(looked: Looked, columns: list[Column], named: str | None) -> Request:
    found = [c for c in columns if c.name == named]
    for pattern in () if named else _REQUESTS:
        found += [c for c in columns if re.fullmatch(pattern, c.snake)]
    if not found:
        return Request()
    column = found[0]
    none = missing(looked.sample[column.name]).mean()
    why = ""
    if column.kind not in ("text", "number"):
        why = "holds neither texts nor numbers"
    elif none >= NO_REQUEST:
        why = f"is missing in {none:.0%} of the rows"
    elif not _many(column):
        rows = len(looked.sample)
        why = f"has {column.distinct:,} value{'s' * (column.distinct != 1)} in {rows:,} rows"
    if why and named:
        raise wrong_use(
            looked.read.path,
            f"The column {column.name!r} is no request: it {why}.",
            expected=f"a value for each list of items shown, of {ROWS_A_REQUEST} rows at most",
            found=texts(looked.sample[column.name]),
            fix="Name another column, or none.",
        )
    if why:
        return Request(None, f"{column.name!r} {why}")
    return Request(column, others=[c.name for c in found[1:] if _many(c)])


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


@dataclass(frozen=True)
class Task:
    """A label to learn.

    Attributes:
        given: The label that it follows, or None.
        ones: Rows that have it.
        perhaps: Labels within which it lies as well, perhaps by chance.
        rows: Those that should tell it: all, or those with the label before it.
        blank: Those of them that do not, bool [rows of the table].
    """

    name: str
    given: str | None
    ones: int
    perhaps: list[str]
    rows: int
    blank: np.ndarray


def repeats(labels: dict[str, np.ndarray]) -> dict[str, str]:
    """Labels (float [rows], NaN where missing) that say what one before them says, and that one."""
    ones = _ones(labels)
    found: dict[str, str] = {}
    for index, name in enumerate(ones):
        before = [other for other in list(ones)[:index] if other not in found]
        same = next((other for other in before if _same(ones[name], ones[other])), None)
        if same is not None:
            found[name] = same
    return found


def _ones(labels: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    # A label that is blank did not happen: where the one before it did not, logs often say so.
    return {name: np.nan_to_num(values) > 0.5 for name, values in labels.items()}


def _same(a: np.ndarray, b: np.ndarray) -> bool:
    """Whether two labels (bool [rows]) are one but for a few strays."""
    fewest = min(values.sum() for values in (a, ~a, b, ~b))
    return bool(max((a & ~b).sum(), (b & ~a).sum()) <= SAME * fewest)


def tasks(labels: dict[str, np.ndarray]) -> list[Task]:
    """Labels by falling rate; one whose positives lie within another's follows it.

    One that says the same as another does not follow it: it would be learned of rows that all
    have it.
    """
    ones = _ones(labels)
    order = sorted(ones, key=lambda name: -ones[name].mean())
    found = []
    for index, name in enumerate(order):
        given, perhaps, own = None, [], ones[name].sum()
        for other in reversed(order[:index]):
            rate, outside = ones[other].mean(), (ones[name] & ~ones[other]).sum()
            # Real logs have a few strays; the feature job repairs them.
            if outside > 0.01 * max(1, own) or not own or _same(ones[name], ones[other]):
                continue
            # Within a label that nearly all rows have, or few, one lies by chance.
            if rate < 1 and -own * np.log(rate) > CHANCE and outside < 0.2 * own * (1 - rate):
                given = other
                break
            if 0 < rate < 1:
                perhaps.append(other)
        among = np.ones(len(labels[name]), dtype=bool) if given is None else ones[given]
        blank = np.isnan(labels[name]) & among
        found.append(Task(name, given, own, perhaps, among.sum(), blank))
    return found
