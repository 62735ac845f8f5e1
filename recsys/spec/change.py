"""Settings of a spec changed without editing its file: `--set train.epochs=3`."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import yaml

from recsys.errors import EXIT_WRONG_USE, SpecError, UserError
from recsys.spec.load import YamlDumper, YamlLoader, dumps, loads
from recsys.spec.records import Spec


def change(spec: Spec, settings: Sequence[str], where: str = "spec") -> Spec:
    """A spec with some settings changed, checked as if its file said so.

    Args:
        spec: The spec.
        settings: `KEY=VALUE` each: a path of names with dots between, and a value as YAML. A
            feature or a task is named by its name.
        where: Names the spec in errors.

    Raises:
        UserError: A setting has no `=`, or its path leads into a value or to no such name.
        SpecError: The spec has faults with them.

    >>> from recsys.spec import loads
    >>> spec = loads('''
    ... name: shop
    ... data: {impressions: log.csv, keys: {user: u, item: i},
    ...        split: {validation: 0.1, test: 0.1}}
    ... features: [{name: price, owner: item, encode: quantiles}]
    ... tasks: [{name: click, label: {column: click}}]
    ... ''')
    >>> changed = change(spec, ["train.epochs=5", "tasks.click.weight=0.5"])
    >>> changed.train.epochs, changed.tasks[0].weight
    (5, 0.5)
    """
    if not settings:
        return spec
    tree = yaml.load(dumps(spec), Loader=YamlLoader)
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals or not key:
            raise _wrong(setting, "KEY=VALUE, like train.epochs=3", "no `=`" if key else "no key")
        try:
            value = yaml.load(text, Loader=YamlLoader)
        except yaml.YAMLError:
            raise _wrong(setting, "a value in YAML", text) from None
        _put(tree, key.split("."), value, setting)
    name = f"{where} with {' '.join(f'--set {setting}' for setting in settings)}"
    try:
        return loads(yaml.dump(tree, Dumper=YamlDumper, sort_keys=False), name)
    except SpecError as error:
        # Lines are those of a text that nobody has; the paths say it.
        faults = [
            replace(fault, where=fault.where.removeprefix(f"{name}:{fault.line} "))
            for fault in error.faults
        ]
        raise SpecError(name, faults) from None


def _put(tree: Any, path: list[str], value: Any, setting: str) -> None:
    node = tree
    for name in path[:-1]:
        if isinstance(node, dict):
            # A section that the spec leaves to its defaults is not there yet.
            node = node.setdefault(name, {})
        else:
            node = _named(node, name, setting)
    if not isinstance(node, dict):
        raise _wrong(setting, "a path to one setting", f"{'.'.join(path[:-1])} holds a value")
    node[path[-1]] = value


def _named(node: Any, name: str, setting: str) -> Any:
    """The feature or task of a name."""
    found = [part for part in node if isinstance(part, dict)] if isinstance(node, list) else []
    for part in found:
        if part.get("name") == name:
            return part
    names = ", ".join(str(part.get("name")) for part in found)
    raise _wrong(setting, names or "a path to one setting", name)


def _wrong(setting: str, expected: str, found: str) -> UserError:
    return UserError(
        "A setting cannot be changed.",
        where=f"--set {setting}",
        expected=expected,
        found=found,
        fix="Write it as in the spec's file, names from the outermost on (docs/spec.md).",
        exit_code=EXIT_WRONG_USE,
    )
