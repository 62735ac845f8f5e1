"""Names that an exported model's signatures can have."""

from __future__ import annotations

import keyword
import re
from collections.abc import Iterable


def is_argument(name: str) -> bool:
    """Whether a signature of a SavedModel can have an argument of this name.

    >>> is_argument("size"), is_argument("Size (cm)"), is_argument("class"), is_argument("72")
    (True, False, False, False)
    """
    # TensorFlow binds arguments as Python's, to a method.
    word = keyword.iskeyword(name) or name == "self"
    return re.fullmatch("[A-Za-z][A-Za-z0-9_]*", name) is not None and not word


def argument_names(columns: Iterable[str]) -> dict[str, str]:
    """Arguments of the signature `serving_default`, by raw column.

    A column's own name where a signature can have it; else one made of it. No two of them
    differ by case alone, which TensorFlow does not tell apart.

    >>> argument_names(["size", "Size (cm)", "Size", "class", "72"])
    {'size': 'size', 'Size (cm)': 'Size__cm_', 'Size': 'Size_2', 'class': 'class_', '72': 'c72'}
    """
    given = list(columns)
    names, taken = {}, set()
    # Those that can stay as they are come first, so that no other takes their place.
    for column in sorted(given, key=lambda name: not is_argument(name)):
        name = re.sub("[^A-Za-z0-9_]", "_", column)
        name = name if name[:1].isalpha() else f"c{name}"
        name = name if is_argument(name) else f"{name}_"
        free, number = name, 2
        while free.lower() in taken:
            free, number = f"{name}_{number}", number + 1
        taken.add(free.lower())
        names[column] = free
    return {column: names[column] for column in given}
