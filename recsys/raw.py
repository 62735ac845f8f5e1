"""Raw values made canonical, by the same code in the feature job and in the service.

Text columns become strings: missing is '', whole numbers lose their `.0`, true and false
become 1 and 0, lists are joined by their separator. Text that says such a number or word becomes
the same, since CSV has nothing but text: `7.0` in a log is the 7 of a request. Number columns
become float32: missing is NaN, and so are texts that other programs write for it, such as `NA` and
`?`. A value that fits neither is marked bad, for the caller to name (a dead letter, a 422).
"""

from __future__ import annotations

import re
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from recsys.spec.schema import LIST_SEPARATOR, RawColumn

MISSING_TEXTS = (
    "", "NA", "N/A", "n/a", "#N/A", "NULL", "null", "None", "NaN", "nan", "-", "?",
)  # fmt: skip
"""Texts that stand for no value where a number, a key or a time is wanted, space around them
aside. In ids and categories they are values as any other: `None` may be a colour."""

_SHORT = {
    r"^(true|True|TRUE)\z": "1",
    r"^(false|False|FALSE)\z": "0",
    r"^(-?[0-9]+)\.0\z": r"\1",
}
_FRACTIONS = {r"\.0+(Z?)\z": r"\1", r"(\.[0-9]*[1-9])0+(Z?)\z": r"\1\2"}
"""Zeros at the end of a time's seconds."""
_ANY = "|".join(_SHORT)
_WRITTEN = re.compile(_ANY.replace(r"\z", r"\Z"))
_TRUTH = {"true": "1", "True": "1", "TRUE": "1", "false": "0", "False": "0", "FALSE": "0"}
_BRACKETED = r"^\s*\[([^\[\]]*)\]\s*\z"
_QUOTED = (r"^'([^']*)'\z", r'^"([^"]*)"\z')
_TORN = r"""^['"].*[^'"]\z|^[^'"].*['"]\z|^['"]\z"""
"""A quote at one end of a part alone: the separator stood inside of the quotes."""
_FEW = 64
"""Values up to which Python's matching is quicker than Arrow's."""
EXACT = 2**53
"""Below it, each whole number is a double of its own."""


def canonical(
    values: pa.Array | pa.ChunkedArray, column: RawColumn, separator: str | None = None
) -> tuple[pa.Array, np.ndarray]:
    """Values of one raw column in canonical form, and which of them are bad.

    Args:
        values: [rows], of any Arrow type.
        column: The raw column that they belong to.
        separator: Between the parts of a text, where the column holds lists; each part is then
            made canonical, and brackets and quotes as of `['a', 'b']` are left out. Arrow's own
            lists are joined by it, or by a comma.

    Returns:
        An array of `string` or `float32` without nulls, [rows], and a bool array [rows] that
        is true where a value does not fit; such a value is replaced by the column's default.

    >>> canonical(pa.array([7.0, None, 2.5]), RawColumn("tag", "string", "item"))[0].to_pylist()
    ['7', '', '2.5']
    >>> values, bad = canonical(pa.array(["1.5", "x", ""]), RawColumn("price", "float32", "item"))
    >>> values.to_pylist(), bad.tolist()
    ([1.5, nan, nan], [False, True, False])
    """
    if isinstance(values, pa.ChunkedArray):
        values = values.combine_chunks()
    if pa.types.is_dictionary(values.type):
        values = values.dictionary_decode()
    if isinstance(values.type, pa.BaseExtensionType):
        values = _stored(values)
    try:
        return _text(values, separator) if column.dtype == "string" else _number(values)
    except (pa.ArrowInvalid, pa.ArrowTypeError, pa.ArrowNotImplementedError):
        # A type that Arrow makes no text or number of: what is there does not fit.
        missing = pa.scalar(column.default, getattr(pa, column.dtype)())
        return pa.repeat(missing, len(values)), _present(values)


def canonical_key(value: str | int | float) -> str:
    """One id as text, as `canonical` makes it of a column; quick, for requests with thousands.

    >>> [canonical_key(value) for value in (7, 7.0, "7.0", "7", "a.0", 2.5)]
    ['7', '7', '7', '7', 'a.0', '2.5']
    """
    if isinstance(value, str):
        if value.endswith(".0") and _WRITTEN.match(value):
            return value[:-2]
        return _TRUTH.get(value, value)
    if isinstance(value, float) and value.is_integer() and abs(value) < EXACT:
        return f"{value:.0f}"
    return str(value)


def is_missing(text: pa.Array) -> pa.Array:
    """Which texts stand for no value, bool [rows]."""
    return pc.is_in(pc.utf8_trim_whitespace(text), value_set=pa.array(MISSING_TEXTS))


def _stored(values: pa.ExtensionArray) -> pa.Array:
    """What an extension of Arrow's types is stored as; the ids of UUIDs as their text."""
    if values.type.extension_name != "arrow.uuid":
        return values.storage
    ids = [None if own is None else str(UUID(bytes=own)) for own in values.storage.to_pylist()]
    return pa.array(ids, pa.string())


def _good(values: pa.Array) -> np.ndarray:
    return np.zeros(len(values), dtype=bool)


def _present(values: pa.Array) -> np.ndarray:
    """Which rows hold a value: of a type that does not fit, those are bad, and nulls missing."""
    return values.is_valid().to_numpy(zero_copy_only=False)


def _text(values: pa.Array, separator: str | None = None) -> tuple[pa.Array, np.ndarray]:
    kind = values.type
    bad = _good(values)
    if is_list(kind):
        parts = pc.list_flatten(values)
        text, bad_parts = _text(parts)
        if separator is not None:
            # A part with the separator in it would be read back as several.
            inside = pc.match_substring(text, separator)
            bad_parts = bad_parts | inside.to_numpy(zero_copy_only=False)
        if bad_parts.any():
            bad[np.unique(pc.list_parent_indices(values).to_numpy()[bad_parts])] = True
        lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int32)
        lists = pa.ListArray.from_arrays(pa.array(offsets), text)
        return pc.binary_join(lists, separator or LIST_SEPARATOR).cast(pa.string()), bad
    if pa.types.is_null(kind):
        return pa.array([""] * len(values), pa.string()), bad
    if pa.types.is_boolean(kind):
        values = values.cast(pa.int8())
    elif pa.types.is_floating(kind):
        own = values.to_numpy(zero_copy_only=False)
        numbers = own.astype(np.float64)
        whole = np.isfinite(numbers) & (numbers == np.floor(numbers)) & (np.abs(numbers) < EXACT)
        if own.dtype != np.float64:
            # The 0.1 of a narrow float is no double 0.1; its shortest text is.
            numbers[~whole] = [float(str(n)) for n in own[~whole]]
        text = np.array(
            [
                f"{n:.0f}" if w else f"{n!r}"
                for n, w in zip(numbers.tolist(), whole.tolist(), strict=True)
            ],
            dtype=object,
        )
        text[np.isnan(numbers)] = ""
        return pa.array(text, pa.string()), bad | np.isinf(numbers)
    elif pa.types.is_nested(kind):
        return pa.array([""] * len(values), pa.string()), _present(values)
    elif pa.types.is_decimal(kind):
        numbers = [None if n is None else f"{n:f}" for n in values.to_pylist()]
        short = [n.rstrip("0").rstrip(".") if n and "." in n else n for n in numbers]
        values = pa.array(short, pa.string())
    elif pa.types.is_timestamp(kind) or pa.types.is_time(kind):
        # The same moment is written alike, whatever unit it is counted in.
        values = values.cast(pa.string())
        for pattern, kept in _FRACTIONS.items():
            values = pc.replace_substring_regex(values, pattern, kept)
    elif _is_bytes(kind):
        raw = values.to_pylist()
        text = []
        for row, value in enumerate(raw):
            try:
                text.append((value or b"").decode("utf-8"))
            except UnicodeDecodeError:
                text.append("")
                bad[row] = True
        values = pa.array(text, pa.string())
    text = pc.fill_null(values.cast(pa.string()), "")
    if separator is None:
        return _alike(text), bad
    text, torn = unbracketed(text, separator)
    return _alike(text, separator), bad | torn


def unbracketed(text: pa.Array, separator: str) -> tuple[pa.Array, np.ndarray]:
    """Lists as pandas and JSON write them into text, without their brackets and quotes.

    Args:
        text: [rows], without nulls.
        separator: Between the parts of a list.

    Returns:
        The texts, and a bool array [rows] that is true where a quoted part holds the separator;
        such a text becomes ''.

    >>> unbracketed(pa.array(["['a', 'b']", "[1, 2]", "[]", "c,d"]), ",")[0].to_pylist()
    ['a,b', '1,2', '', 'c,d']
    """
    is_list = pc.match_substring_regex(text, _BRACKETED)
    bad = _good(text)
    if not pc.any(is_list).as_py():
        return text, bad
    rows = is_list.to_numpy(zero_copy_only=False)
    lists = pc.split_pattern(pc.replace_substring_regex(text, _BRACKETED, r"\1"), separator)
    parts = pc.utf8_trim_whitespace(lists.flatten())
    for quoted in _QUOTED:
        parts = pc.replace_substring_regex(parts, quoted, r"\1")
    torn = pc.match_substring_regex(parts, _TORN).to_numpy(zero_copy_only=False)
    bad[pc.list_parent_indices(lists).to_numpy()[torn]] = True
    joined = pc.binary_join(pa.ListArray.from_arrays(lists.offsets, parts), separator)
    bad &= rows
    return pc.if_else(pa.array(bad), "", pc.if_else(is_list, joined, text)), bad


def is_list(kind: pa.DataType) -> bool:
    """Whether Arrow's values of this type are lists."""
    return (
        pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind)
    )


def _is_bytes(kind: pa.DataType) -> bool:
    return (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_binary_view(kind)
        or pa.types.is_fixed_size_binary(kind)
    )


def _is_text(kind: pa.DataType) -> bool:
    return (
        pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind)
    )


def _alike(text: pa.Array, separator: str | None = None) -> pa.Array:
    """Text in which whole numbers and truth values are as those of other types."""
    if separator is not None:
        lists = pc.split_pattern(text, separator)
        parts = lists.flatten()
        alike = _alike(parts)
        if alike is parts:
            return text
        return pc.binary_join(pa.ListArray.from_arrays(lists.offsets, alike), separator)
    if len(text) <= _FEW:
        if not any(map(_WRITTEN.match, text.to_pylist())):
            return text
    elif not pc.any(pc.match_substring_regex(text, _ANY)).as_py():
        return text
    for pattern, short in _SHORT.items():
        text = pc.replace_substring_regex(text, pattern, short)
    return text


def _number(values: pa.Array) -> tuple[pa.Array, np.ndarray]:
    kind = values.type
    bad = _good(values)
    if pa.types.is_null(kind):
        return pa.array(np.full(len(values), np.nan, np.float32)), bad
    if _is_bytes(kind):
        text, bad = _text(values)
        result, bad_numbers = _number(text)
        return result, bad | bad_numbers
    if _is_text(kind):
        text = pc.utf8_trim_whitespace(pc.fill_null(values.cast(pa.string()), ""))
        text = pc.if_else(is_missing(text), "", _alike(text))
        try:
            blank = pc.equal(text, "")
            numbers = pc.if_else(blank, pa.scalar(None, pa.string()), text).cast(pa.float64())
        except pa.ArrowInvalid:
            parsed = [_parse(value) for value in text.to_pylist()]
            bad = np.array([value is None for value in parsed], dtype=bool)
            numbers = pa.array([np.nan if value is None else value for value in parsed])
    elif pa.types.is_nested(kind) or pa.types.is_temporal(kind):
        return pa.array(np.full(len(values), np.nan, np.float32)), _present(values)
    elif pa.types.is_boolean(kind):
        numbers = values.cast(pa.int8()).cast(pa.float64())
    else:
        # Not safe: beyond 2^53 a whole number is rounded, as it is in a float32 anyway.
        numbers = values.cast(pa.float64(), safe=False)
    array = numbers.to_numpy(zero_copy_only=False).astype(np.float64)
    with np.errstate(over="ignore"):
        result = array.astype(np.float32)
    infinite = np.isinf(result)
    result = np.where(infinite, np.float32(np.nan), result)
    return pa.array(result, pa.float32()), bad | infinite


def _parse(text: str) -> float | None:
    try:
        # Python reads 1_000 as a number; no log means one by it.
        return None if "_" in text else float(text) if text else float("nan")
    except ValueError:
        return None


def canonical_values(
    values: list[Any], column: RawColumn, separator: str | None = None
) -> tuple[np.ndarray, np.ndarray]:
    """As `canonical`, from Python values as JSON gives them (mixed types allowed).

    Returns:
        An object array of str, or a float32 array, [rows]; and the bool array of bad rows.

    >>> canonical_values([3, "3", True, [1, 2], None], RawColumn("x", "string", "item"))[0].tolist()
    ['3', '3', '1', '1,2', '']
    """
    if len({type(value) for value in values if value is not None}) <= 1:
        array = _array(values)
        if array is not None:
            result, bad = canonical(array, column, separator)
            return _to_numpy(result, column), bad
    pieces = [
        canonical_values([value], column, separator) if _array([value]) is not None else None
        for value in values
    ]
    flat = [column.default if piece is None else piece[0][0] for piece in pieces]
    bad = np.array([piece is None or bool(piece[1][0]) for piece in pieces], dtype=bool)
    return np.array(flat, dtype=object if column.dtype == "string" else np.float32), bad


def _array(values: list[Any]) -> pa.Array | None:
    """An Arrow array of Python values, or None where Arrow has none."""
    try:
        try:
            return pa.array(values)
        except OverflowError:
            return pa.array(values, pa.uint64())  # hashes of 64 bits
    except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError):
        return None


def _to_numpy(values: pa.Array, column: RawColumn) -> np.ndarray:
    return values.to_numpy(zero_copy_only=False).astype(
        object if column.dtype == "string" else np.float32
    )
