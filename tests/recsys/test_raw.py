"""Raw values are made canonical alike, from Arrow in the job and from JSON in the service."""

import math
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from recsys.raw import MISSING_TEXTS, canonical, canonical_key, canonical_values
from recsys.spec.schema import RawColumn

TEXT = RawColumn("x", "string", "item")
NUMBER = RawColumn("x", "float32", "item")


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        (pa.array([1, None, -3]), ["1", "", "-3"]),
        (pa.array([1.0, float("nan"), 2.5]), ["1", "", "2.5"]),
        (pa.array([True, False, None]), ["1", "0", ""]),
        (pa.array(["a", "", None]), ["a", "", ""]),
        (pa.array([["a", "b"], [], None]), ["a,b", "", ""]),
        (pa.array([[1, 2], [3]]), ["1,2", "3"]),
        (pa.array([b"a", None]), ["a", ""]),
        (pa.array(["a", "b", "a"]).dictionary_encode(), ["a", "b", "a"]),
        (pa.chunked_array([pa.array([1]), pa.array([2])]), ["1", "2"]),
        (pa.nulls(2), ["", ""]),
        (pa.array([0.1, 7.0, 1e-7, 1e20, None], pa.float32()), ["0.1", "7", "1e-07", "1e+20", ""]),
        (pa.array(np.array([0.1, 7.0, 60000.0], np.float16)), ["0.1", "7", "60000"]),
        (pa.array([b"7.0", None], pa.binary_view()), ["7", ""]),
        (pa.array(["7.0", "NA", None], pa.string_view()), ["7", "NA", ""]),
        (pa.array(["7.0", "-7.0", "True", "FALSE", "7.05", "1.0.0", "tRue", "7.0\n"]),
         ["7", "-7", "1", "0", "7.05", "1.0.0", "tRue", "7.0\n"]),
    ],
)  # fmt: skip
def test_text(values: pa.Array, expected: list[str]) -> None:
    result, bad = canonical(values, TEXT)
    assert result.type == pa.string()
    assert result.to_pylist() == expected
    assert not bad.any()


def test_text_that_does_not_fit_is_bad() -> None:
    result, bad = canonical(pa.array([1.5, float("inf")]), TEXT)
    assert bad.tolist() == [False, True]
    assert canonical(pa.array([b"\xff", b"a"]), TEXT)[1].tolist() == [True, False]
    assert canonical(pa.array([{"a": 1}]), TEXT)[1].tolist() == [True]


@pytest.mark.parametrize(
    ("values", "expected", "wrong"),
    [
        (pa.array([1, None]), [1.0, math.nan], [False, False]),
        (pa.array([" 1.5", "", "x", "nan", "1e2"]), [1.5, math.nan, math.nan, math.nan, 100.0],
         [False, False, True, False, False]),
        (pa.array([1e300, 2.0]), [math.nan, 2.0], [True, False]),
        (pa.array([True]), [1.0], [False]),
        (pa.array(["True", " false", "yes"]), [1.0, 0.0, math.nan], [False, False, True]),
        (pa.array([[1.0], None]), [math.nan, math.nan], [True, False]),
        (pa.nulls(1), [math.nan], [False]),
        (pa.array([2**53 + 1, -(2**63), None]), [2.0**53, -(2.0**63), math.nan], [False] * 3),
        (pa.array([2**64 - 1], pa.uint64()), [2.0**64], [False]),
        (pa.array([" 1.5", "NA", None], pa.string_view()), [1.5, math.nan, math.nan], [False] * 3),
        (pa.array([b"1.5", b"\xff", None], pa.binary_view()), [1.5, math.nan, math.nan],
         [False, True, False]),
        (pa.array([b"1", b"x"], pa.large_binary()), [1.0, math.nan], [False, True]),
        (pa.array([b"17", None], pa.binary(2)), [17.0, math.nan], [False, False]),
        (pa.array([(1, 2, 3), None], pa.month_day_nano_interval()), [math.nan] * 2, [True, False]),
    ],
)  # fmt: skip
def test_numbers(values: pa.Array, expected: list[float], wrong: list[bool]) -> None:
    result, bad = canonical(values, NUMBER)
    assert result.type == pa.float32()
    np.testing.assert_array_equal(result.to_numpy(), np.array(expected, np.float32))
    assert bad.tolist() == wrong


def test_texts_for_a_missing_number_are_missing_in_files_and_requests() -> None:
    texts = [*MISSING_TEXTS, " NA ", "\tnull"]
    for result, bad in (canonical(pa.array(texts), NUMBER), canonical_values(texts, NUMBER)):
        assert np.isnan(np.asarray(result)).all() and not bad.any()
    # They are values of ids and categories.
    assert canonical(pa.array(texts), TEXT)[0].to_pylist() == texts


@given(
    st.one_of(
        st.integers(-(2**63), 2**64 - 1),
        st.floats(allow_nan=False, allow_infinity=False),
        st.from_regex(r"-?[0-9]{1,20}(\.0)?", fullmatch=True),
        st.sampled_from(["true", "FALSE", "tRue", "7.0\n", "a.0", "1.0.0", ".0", "7.00"]),
        st.text(min_size=1),
    )
)
def test_one_id_is_written_as_a_column_of_ids(value: str | int | float) -> None:
    assert canonical_key(value) == canonical_values([value], TEXT)[0][0]


@given(st.lists(st.one_of(st.booleans(), st.integers(-(10**9), 10**9)), min_size=1, max_size=99))
@pytest.mark.parametrize("column", [TEXT, NUMBER])
def test_a_value_is_read_alike_from_every_kind_of_file(column: RawColumn, values: list) -> None:
    """A CSV has text alone, and a column of whole numbers with gaps is one of floats in pandas."""
    told = [value if isinstance(value, bool) else float(value) for value in values]
    written, _ = canonical(pa.array([str(value) for value in told]), column)
    assert written.to_pylist() == canonical_values(values, column)[0].tolist()


json_values = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**12), 10**12), st.text(max_size=5),
    st.floats(allow_infinity=False, width=32), st.lists(st.integers(0, 9), max_size=3),
)  # fmt: skip


@settings(max_examples=300, deadline=None)
@given(st.lists(json_values, min_size=1, max_size=6), st.sampled_from([TEXT, NUMBER]))
def test_a_value_is_read_alike_alone_and_among_others(values: list, column: RawColumn) -> None:
    together, bad = canonical_values(values, column)
    for row, value in enumerate(values):
        alone, alone_bad = canonical_values([value], column)
        assert bad[row] == alone_bad[0]
        if not bad[row]:
            np.testing.assert_array_equal(together[row], alone[0])


def _text_of(values):
    return canonical(values, TEXT)[0].to_pylist()


def test_decimals_and_times_are_written_alike_whatever_their_scale():
    wide = pa.array([Decimal("7.00"), Decimal("7.50"), Decimal("-0.10"), None], pa.decimal128(9, 2))
    assert _text_of(wide) == ["7", "7.5", "-0.1", ""]
    assert _text_of(pa.array([Decimal("700")], pa.decimal128(5, -2))) == ["700"]
    assert _text_of(pa.array([Decimal("100")], pa.decimal256(40, 0))) == ["100"]
    moments = pa.array([1_767_323_045_000_000, 1_767_323_045_120_000], pa.timestamp("us"))
    expected = ["2026-01-02 03:04:05", "2026-01-02 03:04:05.12"]
    assert _text_of(moments) == _text_of(moments.cast(pa.timestamp("ns"))) == expected
    assert _text_of(moments.cast(pa.timestamp("us", "UTC"))) == [f"{text}Z" for text in expected]
