"""The README of a converted model: how to feed it, for someone who writes that on a device."""

from __future__ import annotations

from recsys.spec.records import Spec
from recsys.spec.schema import output_names

_RULES = """\
# {name}, for a device

`{model}` is a LiteRT (TensorFlow Lite) model of built-in ops alone. Its one signature, `numeric`,
takes one tensor an input, a row a candidate (resize the first axis to the number of candidates),
and answers float32 `[rows]` under each of: {outputs}.

Compared with the SavedModel on {rows} validation rows, the largest difference was {largest:.2g}.

`{lookup}` says how each input is made; nothing else is needed. Its `inputs` are in no order that
matters: set tensors by name.

## Raw values

`raw.column` names the raw value, `raw.type` its form.

- `text`: a string. Missing is `""`. A whole number is written without `.0` (`7`, not `7.0`), true
  and false are `1` and `0`, other numbers are written as short as they can be read back, those of
  1e16 and more and those below 0.0001 with an exponent of a sign and at least two digits (`1e+16`,
  `1.5e-05`), and the parts of a list, each written so, are joined by its `separator`. A list within
  a text may stand in brackets (`[a, b]`, `['a', 'b']`): these, blanks around its parts and quotes
  around a part are left out. Text that reads `7.0`, `True`,
  `true` or `TRUE` (and so on for false) is `7`, `1` and `0` too. Nothing is trimmed or folded:
  `"A"`, `"a"` and `" a"` are three values.
- `number`: a 32-bit float. Missing is NaN; infinity is missing.
- Where `raw.number` is given, the raw value is text that is read as a number: if the whole of it
  matches that regular expression, it is the nearest 32-bit float, and else it is missing. Beyond
  the largest 32-bit float (`1e40`) it is missing too; below the smallest (`1e-60`) it is 0.
- `raw.computed_by_feature_job` is `history` or `counter` where the value is none of your own
  columns but one that the feature job made. A history is a column of its table of `raw.owner`s
  (`tables/user.parquet` of the features, or `item`). A counter has a table of its own, `tables/`
  and then `raw.table`: the value is in the column `raw.value` of the row whose columns are those
  of `raw.by`, as text, and `raw.default` where there is no such row (null: missing).

## Lists

An input with `split` is a list. Split the text at `separator`; strip the characters of `strip`
from both ends of each part; drop empty parts; keep the first `max_length`. Make an id of each part
as below, and fill the tail up to `max_length` with `padding`. An empty list is all padding. An
input without `split` is one value, and makes one id or number.

## kind: weights

What each part of a list counts, a 32-bit float. The text is split and its parts are stripped as
above. Where `list` names the raw column of the list, empty parts are not dropped: if the list's own
text, split likewise, has as many parts, drop those at the places where the list's part is empty,
and else none. Where `list` is null, drop empty parts. A part that matches `raw.number` in whole is
that number, or 0 where it is negative; any other part is `missing`, and so is one beyond the
largest 32-bit float, of either sign. The tail is filled with `padding`.

## kind: vocabulary

Missing (`""`) gives `missing`. The token on line n of the file `vocabulary` (counted from 0) gives
`first_row + n`. Any other text gives `oov.first_row`, plus, where `oov.buckets` is above 1,
`hash(text) mod oov.buckets`. Compare bytes of UTF-8, without normalization.

A vocabulary file is UTF-8, one JSON string a line (quotes and backslashes are escaped as JSON has
them), and lines end with `\\n` alone: other separators of lines, such as U+2028, may stand within a
token.

## kind: hash

Missing gives `missing`; any other text gives `first_row + hash(text) mod buckets`.

## hash

`farmhash_fingerprint64`: Google FarmHash's `Fingerprint64` of the UTF-8 bytes, an unsigned 64-bit
number, and an unsigned remainder. It is what TensorFlow's `tf.strings.to_hash_bucket_fast` uses,
`Hashing.farmHashFingerprint64()` of Guava (read its `asLong` as unsigned, and take
`Long.remainderUnsigned`), and `util::Fingerprint64` of the C++ library, which Swift can link.

## kind: numeric

x is the raw number. If `log`, x becomes sign(x) * ln(1 + |x|), in 32 bits. If `mean` is a number,
x becomes (x - mean) / deviation, in 64 bits, or 0 where the deviation is 0. Missing gives
`missing`.

## kind: quantiles

Missing gives `missing`; else 1 plus the number of `boundaries` that are at most x (compared in 32
bits; they are sorted).

## kind: piecewise

One number for each pair of neighbours (begin, end) of `edges`: (x - begin) / (end - begin) cut to
[0, 1] where end is above begin, and else 1 where x is at least begin and 0 where not, in 32 bits.
Edges that JSON cannot hold are the strings `"Infinity"` and `"-Infinity"`. Missing gives `missing`
for each.

## An example

In Kotlin, a vocabulary and its lookup (`Json` of kotlinx.serialization, `Hashing` of Guava):

```kotlin
val ids = file.readText().trimEnd('\\n').split('\\n')
    .withIndex().associate {{ (line, text) -> Json.decodeFromString<String>(text) to line }}

fun row(text: String): Int {{
    if (text == "") return missing
    ids[text]?.let {{ return firstRow + it }}
    val hash = Hashing.farmHashFingerprint64().hashString(text, Charsets.UTF_8).asLong()
    return oovFirstRow + java.lang.Long.remainderUnsigned(hash, oovBuckets).toInt()
}}
```
"""


def device_readme(spec: Spec, model: str, lookup: str, rows: int, largest: float) -> str:
    """The page, with the names of files and what the comparison showed.

    Args:
        spec: The spec.
        model: Name of the LiteRT file.
        lookup: Name of the file that says how inputs are made.
        rows: Validation rows compared.
        largest: Largest difference found.
    """
    return _RULES.format(
        name=spec.name,
        model=model,
        lookup=lookup,
        outputs=", ".join(f"`{name}`" for name in (*output_names(spec), "score")),
        rows=rows,
        largest=largest,
    )
