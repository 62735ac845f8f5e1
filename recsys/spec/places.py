"""A spec as one flat record, its values by their places, so that two can be told apart by name."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from recsys.spec.records import Spec

_FEW = 5
"""So many differences are listed one by one."""

_LONGEST = 200
"""Characters of a value that are shown: the names of hundreds of features are one."""


def values_by_place(spec: Spec) -> dict[str, Any]:
    """Every value of a spec by its place, as `--set` writes it, in the order of the flow.

    Features and tasks go by their names, and `features` and `tasks` themselves are lists of these,
    since their order counts. Any other list is one value.

    >>> from recsys.spec import loads
    >>> spec = loads('''
    ... name: shop
    ... data: {impressions: log.csv, keys: {user: u, item: i},
    ...        split: {validation: 0.1, test: 0.1}}
    ... features: [{name: price, owner: item, encode: quantiles}]
    ... tasks: [{name: click, label: {column: click}}]
    ... ''')
    >>> places = values_by_place(spec)
    >>> places["features"], places["features.price.encode.buckets"]
    (['price'], 20)
    """
    tree = json.loads(spec.model_dump_json(by_alias=True))
    places: dict[str, Any] = {}
    for section, value in tree.items():
        if section in ("features", "tasks"):
            places[section] = [record["name"] for record in value]
            value = {record["name"]: record for record in value}
        places |= _flat(section, value)
    return places


def _flat(place: str, value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        return {place: value}
    return {
        inner: leaf
        for key, part in value.items()
        for inner, leaf in _flat(f"{place}.{key}", part).items()
    }


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any]) -> tuple[str, str] | None:
    """Where two differ, each with its own values; the first few one by one. None: nowhere.

    >>> differences({"model.dim": 8, "model.members": 1}, {"model.dim": 8})
    ('model.members 1', 'model.members (none)')
    """
    # A part that is left out is none, and what it would hold is listed of the other.
    places = [place for place in {**theirs, **ours} if ours.get(place) != theirs.get(place)]
    return (_listed(ours, places), _listed(theirs, places)) if places else None


def _listed(values: Mapping[str, Any], places: Sequence[str]) -> str:
    few = [f"{place} {_said(values, place)}" for place in places[:_FEW]]
    more = len(places) - _FEW
    return "; ".join([*few, *([f"and {more} more that differ"] if more > 0 else [])])


def _said(values: Mapping[str, Any], place: str) -> str:
    if place not in values:
        return "(none)"
    text = json.dumps(values[place], ensure_ascii=False)
    return text if len(text) <= _LONGEST else text[: _LONGEST - 3] + "..."
