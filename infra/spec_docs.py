"""Writes docs/spec.md from the spec's records: `python -m infra.spec_docs > docs/spec.md`."""

from __future__ import annotations

import inspect
import types
from typing import Annotated, Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from recsys.spec.records import Spec

HEADER = """# The spec

Written from the records in `recsys/spec/records.py` by `python -m infra.spec_docs`.

A record with a `kind` may be written as the bare kind where its other fields have defaults
(`encode: vocabulary`), the impression log as its bare path, and a split without its kind. Unknown
keys are faults; `recsys check SPEC` lists every fault at once, each with its line. After "none:"
stands what holds where a field is left out.
"""


def render() -> str:
    """The whole page."""
    order: list[type[BaseModel]] = []
    _collect(Spec, order)
    return HEADER + "".join(_section(record) for record in order)


def _collect(record: type[BaseModel], order: list[type[BaseModel]]) -> None:
    if record in order:
        return
    order.append(record)
    for field in record.model_fields.values():
        for inner in _records(field.annotation):
            _collect(inner, order)


def _records(annotation: Any) -> list[type[BaseModel]]:
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return [annotation]
    return [record for part in get_args(annotation) for record in _records(part)]


def _section(record: type[BaseModel]) -> str:
    rows = [
        f"\n## {record.__name__}\n\n{inspect.getdoc(record)}\n",
        "| Field | Takes | Default | Meaning |\n|---|---|---|---|",
    ]
    for name, field in record.model_fields.items():
        limits = ", ".join(text for text in map(_limit, field.metadata) if text)
        takes = _type(field.annotation) + (f" ({limits})" if limits else "")
        default = "required" if field.default is PydanticUndefined else f"`{_value(field.default)}`"
        meaning = " ".join((field.description or "").split())
        rows.append(f"| `{field.alias or name}` | {takes} | {default} | {meaning} |")
    return "\n".join(rows) + "\n"


def _type(annotation: Any) -> str:
    origin = get_origin(annotation)
    if origin is Annotated:
        base, *metadata = get_args(annotation)
        limits = ", ".join(
            t for m in metadata for part in getattr(m, "metadata", [m]) if (t := _limit(part))
        )
        return _type(base) + (f" ({limits})" if limits else "")
    if origin is Literal:
        return " or ".join(f"`{value}`" for value in get_args(annotation))
    if origin in (Union, types.UnionType):
        return " or ".join(_type(part) for part in get_args(annotation) if part is not type(None))
    if origin is tuple:
        return f"list of {_type(get_args(annotation)[0])}"
    if origin is dict:
        key, value = get_args(annotation)
        return f"mapping of {_type(key)} to {_type(value)}"
    if inspect.isclass(annotation) and issubclass(annotation, BaseModel):
        return f"[{annotation.__name__}](#{annotation.__name__.lower()})"
    names = {str: "text", int: "whole number", float: "number", bool: "true or false"}
    return names.get(annotation, getattr(annotation, "__name__", str(annotation)))


def _limit(item: Any) -> str:
    signs = {"gt": ">", "ge": "≥", "lt": "<", "le": "≤"}
    return " and ".join(
        f"{sign} {value:.10g}"
        for name, sign in signs.items()
        if (value := getattr(item, name, None)) is not None
    )


def _value(default: Any) -> str:
    if isinstance(default, BaseModel):
        changed = default.model_dump(exclude_defaults=True)
        inner = ", ".join(f"{key}: {_value(value)}" for key, value in changed.items())
        kind = getattr(default, "kind", None)
        return f"{{kind: {kind}{', ' + inner if inner else ''}}}" if kind else f"{{{inner}}}"
    if isinstance(default, tuple):
        return "[" + ", ".join(map(str, default)) + "]"
    if default is None or default == "":
        return "none"
    return str(default).lower() if isinstance(default, bool) else str(default)


if __name__ == "__main__":
    print(render(), end="")
