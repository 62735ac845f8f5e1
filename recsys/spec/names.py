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

    >>> argument_names(["size", "Size (cm)", "Size", "class", "72"])
    {'size': 'size', 'Size (cm)': 'Size__cm_', 'Size': 'Size_2', 'class': 'class_', '72': 'f_72'}
    """
    return Names(columns).of


class Names:
    """Names that a signature can have, made of others: their own where it can be.

    No two differ by case alone, which TensorFlow does not tell apart.

    Args:
        texts: What names are made of, each once.
        longest: Characters of a text that are kept, or None for all.

    Attributes:
        of: The name of each text, in their order.
    """

    def __init__(self, texts: Iterable[str], longest: int | None = None) -> None:
        self._longest = longest
        self._taken: set[str] = set()
        given = list(texts)
        # Those that can stay as they are come first, so that no other takes their place.
        order = sorted(given, key=lambda text: self.allowed(text) != text)
        made = {text: self.new(text) for text in order}
        self.of = {text: made[text] for text in given}

    def new(self, text: str) -> str:
        """One more name, like the text and still free."""
        base = self.allowed(text)
        name, number = base, 2
        while name.lower() in self._taken:
            name, number = f"{base}_{number}", number + 1
        self._taken.add(name.lower())
        return name

    def allowed(self, text: str) -> str:
        """The text as a name, whether or not that is free."""
        name = re.sub("[^A-Za-z0-9_]", "_", text)[: self._longest]
        name = name if name[:1].isalpha() else f"f_{name}"
        return name if is_argument(name) else f"{name}_"
