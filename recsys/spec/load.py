"""Read a spec from YAML, with every fault at once, each with its place."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError
from yaml.constructor import ConstructorError

from recsys.errors import Fault, SpecError, UserError
from recsys.spec.check import cross_check
from recsys.spec.records import Spec

Loc = tuple[str | int, ...]


# The C parser is eight times as fast; PyYAML has it where libyaml was at hand.
class YamlLoader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """PyYAML's safe loader with the numbers of YAML 1.2: `1e-3` is one, and `010` is ten.

    Dates stay texts, of which the records make dates.
    """

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """As PyYAML does it, with an error of its own for what a tag cannot be made of."""
        try:
            return super().construct_object(node, deep)
        except (ValueError, KeyError, AttributeError):
            problem = f"{node.value!r} is no {_kind(node)}"
            raise ConstructorError(None, None, problem, node.start_mark) from None


class YamlDumper(yaml.SafeDumper):
    """PyYAML's safe dumper, which quotes what `YamlLoader` or PyYAML's own would take for more."""


_INT, _FLOAT = "tag:yaml.org,2002:int", "tag:yaml.org,2002:float"
_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_BASES = {"0o": 8, "0x": 16}

YamlLoader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag not in (_INT, _TIMESTAMP)]
    for first, resolvers in YamlLoader.yaml_implicit_resolvers.items()
}
for _each in (YamlLoader, YamlDumper):
    _each.add_implicit_resolver(
        _FLOAT,
        re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)[eE][-+]?[0-9]+$"),
        list("-+.0123456789"),
    )
    _each.add_implicit_resolver(
        _INT, re.compile(r"^([-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+)$"), list("-+0123456789")
    )
YamlLoader.add_constructor(
    _INT, lambda _, node: int(str(node.value), _BASES.get(str(node.value)[:2], 10))
)


def _kind(node: yaml.Node) -> str:
    return str(node.tag).removeprefix("tag:yaml.org,2002:")


def load(path: str | Path) -> Spec:
    """Parse and check a spec file.

    Raises:
        UserError: The file cannot be read.
        SpecError: The spec has faults; all of them are in the error.
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise UserError(
            "The spec file does not exist.",
            where=str(path),
            fix="Name an existing YAML file.",
            exit_code=2,
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(
            "The spec file cannot be read.", where=str(path), found=str(error), exit_code=2
        ) from None
    return loads(text, str(path))


def loads(text: str, where: str = "spec") -> Spec:
    """Parse and check a spec text; `where` names it in errors. Raises `SpecError`.

    >>> loads("name: shop").name
    Traceback (most recent call last):
    ...
    recsys.errors.SpecError: spec has 3 faults:
      spec:1 data: required, but missing
      spec:1 features: required, but missing
      spec:1 tasks: required, but missing
    """
    try:
        root = yaml.compose(text, Loader=YamlLoader)
        wrong = [] if root is None else list(_endless(where, root) or _Places(where, root).odd())
        # Built from the composed nodes, so that the text is parsed once.
        tree = None if root is None or wrong else YamlLoader("").construct_document(root)
    except yaml.YAMLError as error:
        line = getattr(getattr(error, "problem_mark", None), "line", 0) + 1
        problem = getattr(error, "problem", None) or str(error)
        raise SpecError(where, [Fault(f"{where}:{line}", f"not valid YAML: {problem}")]) from None
    if wrong:
        raise SpecError(where, wrong)
    if not isinstance(tree, dict) or root is None:
        raise SpecError(where, [Fault(f"{where}:1", "expected a mapping of sections")])
    places = _Places(where, root)
    faults = list(places.duplicates())
    spec, broken, structural = _validate(_expand(tree), places)
    faults += structural
    if spec is not None:
        faults += [
            places.fault(loc, message)
            for loc, message, refers_to in cross_check(spec)
            # A name that dangles only because its record is itself at fault is no second fault.
            if refers_to not in broken
        ]
    if faults or spec is None:
        raise SpecError(where, sorted(faults, key=lambda fault: fault.line))
    return spec


def dumps(spec: Spec) -> str:
    """The spec as YAML that `loads` reads back to an equal record."""
    tree = json.loads(spec.model_dump_json(exclude_defaults=True, by_alias=True))
    full = json.loads(spec.model_dump_json(by_alias=True))
    # Discriminators are defaults, so exclude_defaults drops them; put them back.
    return yaml.dump(_with_kinds(tree, full), Dumper=YamlDumper, sort_keys=False)


def _with_kinds(tree: Any, full: Any) -> Any:
    if isinstance(tree, dict):
        kept = {"kind": full["kind"]} if "kind" in full else {}
        return kept | {key: _with_kinds(value, full[key]) for key, value in tree.items()}
    if isinstance(tree, list):
        return [_with_kinds(a, b) for a, b in zip(tree, full, strict=True)]
    return tree


# Fields whose value may be written as the bare kind (`encode: vocabulary`).
_KINDED = {"encode", "loss", "as", "sharing", "balancing", "history", "ranking"}
_SPLIT_KIND = {
    "train_to": "time",
    "validation_to": "time",
    "validation": "fraction",
    "test": "fraction",
}


def _expand(tree: Any, path: Loc = ("",)) -> Any:
    """Undo the short forms: a bare kind, a split without kind, a path in place of the log."""
    key = path[-1]
    if isinstance(tree, dict):
        tree = {name: _expand(value, (*path, str(name))) for name, value in tree.items()}
        if path == ("", "data", "split") and "kind" not in tree:
            kinds = [kind for name, kind in _SPLIT_KIND.items() if name in tree]
            tree["kind"] = kinds[0] if kinds else "time"
        return tree
    if isinstance(tree, list):
        return [_expand(value, (*path, "")) for value in tree]
    if key in _KINDED and isinstance(tree, str):
        return {"kind": tree}
    if path == ("", "data", "impressions") and isinstance(tree, str):
        return {"path": tree}
    return tree


def _validate(tree: dict[str, Any], places: _Places) -> tuple[Spec | None, set[str], list[Fault]]:
    """The record, the names of faulty parts left out of it, and the faults.

    The faulty parts are taken out so that what remains can still be cross-checked: a typing
    mistake in one feature must not hide a dangling name in another.
    """
    faults: list[Fault] = []
    broken: set[str] = set()
    for attempt in range(3):
        try:
            # In JSON mode strict still reads lists as tuples and ISO text as dates.
            return Spec.model_validate_json(json.dumps(tree)), broken, faults
        except ValidationError as error:
            items = [i for i in error.errors(include_url=False) if not _emptied(i, tree)]
            if attempt == 0:
                faults = list(dict.fromkeys(places.fault(tuple(i["loc"]), _say(i)) for i in items))
            broken |= _take_out(tree, [tuple(item["loc"]) for item in items])
    return None, broken, faults


def _emptied(item: Any, tree: dict[str, Any]) -> bool:
    """Whether a list is called too short since all that is in it is at fault."""
    loc = tuple(item["loc"])
    return item["type"] == "too_short" and len(loc) == 1 and bool(tree.get(str(loc[0])))


def _take_out(tree: dict[str, Any], locs: list[Loc]) -> set[str]:
    """Remove the faulty keys, or the whole feature or task that a fault is in; names of those."""
    records: dict[str, set[int]] = {}
    names: set[str] = set()
    for loc in locs:
        if len(loc) > 1 and loc[0] in ("features", "tasks") and isinstance(loc[1], int):
            records.setdefault(str(loc[0]), set()).add(loc[1])
            continue
        node: Any = tree
        for part in loc[:-1]:
            if isinstance(node, dict) and part in node:
                node = node[part]
        if isinstance(node, dict):
            node.pop(loc[-1], None)
    for section, indices in records.items():
        found = tree.get(section, [])
        for index in sorted(indices, reverse=True):
            if index >= len(found):
                continue
            record = found.pop(index)
            if isinstance(record, dict) and isinstance(record.get("name"), str):
                names.add(record["name"])
    return names


def _say(item: Any) -> str:
    kind, ctx, found = item["type"], item.get("ctx", {}), item.get("input")
    if kind == "missing":
        return "required, but missing"
    if kind == "extra_forbidden":
        return "unknown key"
    if kind in ("union_tag_invalid", "union_tag_not_found"):
        tags = str(ctx.get("expected_tags", "")).replace("'", "")
        return f"expected a kind of {tags}; found {ctx.get('tag', 'none')!r}"
    shown = json.dumps(found, default=str)
    shown = shown if len(shown) <= 60 else shown[:57] + "..."
    return f"{item['msg'].removeprefix('Value error, ')}; found {shown}"


class _Places:
    """Where in the YAML text each part of the spec stands."""

    def __init__(self, name: str, root: yaml.Node) -> None:
        self._name = name
        self._root = root

    def fault(self, loc: Loc, message: str) -> Fault:
        node, line, path = self._root, self._root.start_mark.line, ""
        for part in loc:
            if isinstance(node, yaml.MappingNode):
                pairs = {key.value: (key, value) for key, value in node.value}
                if part in pairs:
                    key, node = pairs[part]
                    line = key.start_mark.line
                    path += f".{part}"
                elif part == loc[-1] and isinstance(part, str):
                    path += f".{part}"
            elif isinstance(node, yaml.SequenceNode):
                path += f"[{part}]"
                index = part if isinstance(part, int) else _named(node, part)
                if index is not None and index < len(node.value):
                    node = node.value[index]
                    line = node.start_mark.line
        return Fault(f"{self._name}:{line + 1} {path.lstrip('.')}".rstrip(), message, line + 1)

    def duplicates(self) -> Iterator[Fault]:
        """Keys written twice in one mapping, which YAML would silently resolve to the last."""
        for node, _ in self._parts():
            seen: set[str] = set()
            for key, _ in node.value if isinstance(node, yaml.MappingNode) else ():
                if key.value in seen:
                    line = key.start_mark.line + 1
                    yield Fault(
                        f"{self._name}:{line} {key.value}",
                        "this key stands twice in one mapping",
                        line,
                    )
                seen.add(key.value)

    def odd(self) -> Iterator[Fault]:
        """Values of a kind that is none of a spec's, such as `!!set`."""
        for node, loc in self._parts():
            if _kind(node) in ("binary", "omap", "pairs", "set"):
                yield self.fault(loc, f"a spec holds no {_kind(node)}; write it without the tag")

    def _parts(self) -> Iterator[tuple[yaml.Node, Loc]]:
        """Every value, with its place."""
        stack: list[tuple[yaml.Node, Loc]] = [(self._root, ())]
        while stack:
            node, loc = stack.pop()
            yield node, loc
            if isinstance(node, yaml.MappingNode):
                stack += [(value, (*loc, key.value)) for key, value in node.value]
            elif isinstance(node, yaml.SequenceNode):
                stack += [(value, (*loc, i)) for i, value in enumerate(node.value)]


def _endless(name: str, root: yaml.Node) -> list[Fault]:
    """The first part that stands in itself, by an alias of what it lies in."""
    stack: list[tuple[yaml.Node, frozenset[int]]] = [(root, frozenset())]
    whole: set[int] = set()
    while stack:
        node, above = stack.pop()
        if id(node) in above:
            line = node.start_mark.line + 1
            return [Fault(f"{name}:{line}", "this part holds itself, by an alias", line)]
        if id(node) in whole or not isinstance(node, yaml.CollectionNode):
            continue
        whole.add(id(node))
        own = above | {id(node)}
        pairs = isinstance(node, yaml.MappingNode)
        parts = [part for pair in node.value for part in pair] if pairs else node.value
        stack += [(part, own) for part in parts]
    return []


def _named(node: yaml.SequenceNode, name: str) -> int | None:
    """Index of the record of that name in a list of records."""
    for index, item in enumerate(node.value):
        if isinstance(item, yaml.MappingNode) and any(
            key.value == "name" and value.value == name for key, value in item.value
        ):
            return index
    return None
