"""The endpoint's request and answer, derived from the spec.

A request names a user (by id, by features, or both), a context and candidates. The keys of
`features` and `context` are the spec's raw columns. What is null, NaN or left out is missing;
inline features stand above looked-up ones; an id that comes twice is ranked once.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Set
from dataclasses import dataclass
from difflib import get_close_matches
from functools import lru_cache
from typing import Annotated, Any

import numpy as np
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    WrapValidator,
    create_model,
)
from pydantic_core import ErrorDetails, PydanticCustomError

from recsys.raw import EXACT, canonical_key
from recsys.spec import Spec
from recsys.spec.schema import RawColumn, output_names, raw_columns, separators, value_names
from serving.body import parse_json
from serving.columns import MAX_TEXT, canonical_column, context_only, id_columns, longest_text
from serving.faults import SHOWN_FAULTS, BodyFault, Faults, RequestError

_BODY_KEYS = dict.fromkeys(("user", "context", "candidates", "top_k")).keys()
_OWNER_KEYS = dict.fromkeys(("id", "features")).keys()

Given = dict[str, tuple[np.ndarray, np.ndarray]]
"""Inline item features: column → (positions [k] of the candidates, values [k])."""


@dataclass(frozen=True)
class RankRequest:
    """A request whose every value is in canonical form.

    `ids` are the candidates' ids as the caller wrote them, without repeats, and `keys` the
    same as the feature tables write them; `user`, `context` hold one inline value a column.
    """

    user_key: str | None
    user: dict[str, Any]
    context: dict[str, Any]
    ids: list[str | int | float]
    keys: list[str]
    items: Given
    top_k: int | None
    duplicates: int


class _Model(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def _is_id(value: Any) -> bool:
    kind = type(value)
    return (
        (kind is str and 0 < len(value) <= MAX_TEXT)
        or kind is int
        or (kind is float and value.is_integer() and abs(value) < EXACT)
    )


def _check_id(value: Any) -> str | int | float:
    if not _is_id(value):
        # JSON's whole numbers beyond 64 bits come as floats: many of them are one.
        if type(value) is float and abs(value) >= EXACT:
            raise PydanticCustomError("id_size", "An id is beyond what a number holds exactly.")
        if type(value) is str and value:
            raise PydanticCustomError("id_length", "An id is too long.")
        raise PydanticCustomError("id", "An id is a text that is not empty, or a whole number.")
    return value  # type: ignore[no-any-return]


_TEXT_ID = {"type": "string", "minLength": 1, "maxLength": MAX_TEXT}

Id = Annotated[
    str | int | float,
    PlainValidator(_check_id),
    WithJsonSchema({"anyOf": [_TEXT_ID, {"type": "integer"}]}),
]


def _wrap_candidates(value: Any, handler: Callable[[Any], Any]) -> Any:
    if not isinstance(value, list):
        return handler(value)
    # Bare ids are the usual request, so they take no record each.
    if all(map(_is_id, value)):
        return value
    return handler([item if isinstance(item, dict) else {"id": item} for item in value])


class Contract:
    """The request and answer of one spec: `parse` a body, or describe both for OpenAPI."""

    def __init__(self, spec: Spec) -> None:
        self.spec = spec
        self.columns = raw_columns(spec)
        self.values = value_names(spec)
        self.probabilities = tuple(name for name in output_names(spec) if name not in self.values)
        self.separators = separators(spec)
        self.by_owner: dict[str, dict[str, RawColumn]] = {"user": {}, "item": {}, "context": {}}
        for column in (*self.columns, *context_only(spec)):
            self.by_owner[column.owner][column.name] = column
        # The records are made here, so no checker can know them as types.
        user_features: Any = self._features("user")
        item_features: Any = self._features("item")
        context: Any = self._features("context")
        user = create_model(
            "User",
            __base__=_Model,
            id=(Id | None, Field(None, description="Looked up in the user table.")),
            features=(user_features | None, None),
        )
        candidate = create_model(
            "Candidate",
            __base__=_Model,
            id=(Id, Field(description="Looked up in the item table.")),
            features=(item_features | None, None),
        )
        candidates = Annotated[list[candidate], WrapValidator(_wrap_candidates)]  # type: ignore
        self.model = create_model(
            "RankRequest",
            __base__=_Model,
            user=(user, Field(description="An id, features, or both.")),
            context=(context | None, None),
            candidates=(candidates, Field(description="Ids, or objects with id and features.")),
            top_k=(int | None, Field(None, ge=1, description="Answer so many items; null: all.")),
        )

    def _features(self, owner: str) -> type[BaseModel]:
        fields: dict[str, Any] = {}
        for position, column in enumerate(self.by_owner[owner].values()):
            # A raw column may have any name, a field may not: the alias is the column's name.
            schema = self._value_schema(column)
            kind = Annotated[Any, WithJsonSchema(schema)]
            fields[f"c{position}"] = (kind, Field(None, alias=column.name))
        title = "Context" if owner == "context" else f"{owner.capitalize()}Features"
        return create_model(title, __base__=_Model, **fields)

    def _value_schema(self, column: RawColumn) -> dict[str, Any]:
        scalars = ["string", "number", "boolean", "null"]
        schema: dict[str, Any] = {"type": scalars}
        said = []
        if column.dtype == "float32":
            schema = {"type": ["number", "null"]}
            said = ["null or NaN: missing"]
        elif column.name in self.separators:
            schema = {"anyOf": [schema, {"type": "array", "items": {"type": scalars}}]}
        if column.computed:
            said = ["computed by the feature job and looked up; send only to override", *said]
        return {**schema, "description": "; ".join(said)} if said else schema

    def _asked(self, owner: str) -> tuple[str, ...]:
        """The columns of an owner that a request tells, since no table does."""
        return tuple(c.name for c in self.by_owner[owner].values() if not c.computed)

    # ------------------------------------------------------------------------ parse

    def parse(self, body: bytes) -> RankRequest:
        """The request of a body.

        Raises:
            RequestError: 400 where the body is no JSON, 422 where it breaks the contract.
        """
        tree = parse_json(body)
        if isinstance(tree, dict):
            self._check_count(tree.get("candidates"))
        surplus = self._drop_surplus(tree)
        try:
            request: Any = self.model.model_validate(tree)
        except ValidationError as error:
            raise RequestError.of(self._faults(error, surplus)) from None
        user, context = request.user, request.context
        if user.id is None and user.features is None:
            raise _one_fault(
                "user",
                "The user is not given.",
                "an `id`, `features`, or both",
                "neither",
                'For a user of whom nothing is known send {"features": {}}.',
            )
        faults = Faults()
        ids, keys, features, duplicates = _distinct(request.candidates)
        parsed = RankRequest(
            user_key=None if user.id is None else canonical_key(user.id),
            user=self._one(_given(user.features), "user", "user.features", faults),
            context=self._one(_given(context), "context", "context", faults),
            ids=ids,
            keys=keys,
            items=self._items(features, faults),
            top_k=request.top_k,
            duplicates=duplicates,
        )
        if faults.count:
            raise RequestError.of(faults)
        return parsed

    def _check_count(self, candidates: Any) -> None:
        if not isinstance(candidates, list):
            return
        most = self.spec.serve.max_candidates
        if not candidates:
            raise _one_fault(
                "candidates",
                "There are no candidates to rank.",
                f"1 to {most} candidates",
                "0",
                "Send the items to rank in `candidates`.",
            )
        if len(candidates) > most:
            raise _one_fault(
                "candidates",
                "There are too many candidates in one request.",
                f"at most {most} (serve.max_candidates)",
                f"{len(candidates)}",
                "Rank fewer at once, or raise serve.max_candidates and publish.",
            )

    def _drop_surplus(self, tree: Any) -> int:
        """Take the unknown keys that no answer shows out of a body, and count them.

        Pydantic makes a record of each, which would take seconds for those that a body can hold.
        """
        shown = dropped = 0
        for part, known in self._objects(tree):
            if part.keys() <= known:
                continue
            unknown = [key for key in part if key not in known]
            surplus = unknown[max(SHOWN_FAULTS - shown, 0) :]
            for key in surplus:
                del part[key]
            shown += len(unknown) - len(surplus)
            dropped += len(surplus)
        return dropped

    def _objects(self, tree: Any) -> Iterator[tuple[dict[str, Any], Set[str]]]:
        """The objects of a body in the order of pydantic's faults, and the keys each may have."""
        if not isinstance(tree, dict):
            return

        def owner(value: Any, name: str) -> Iterator[tuple[dict[str, Any], Set[str]]]:
            if isinstance(value, dict):
                if isinstance(features := value.get("features"), dict):
                    yield features, self.by_owner[name].keys()
                yield value, _OWNER_KEYS

        yield from owner(tree.get("user"), "user")
        if isinstance(context := tree.get("context"), dict):
            yield context, self.by_owner["context"].keys()
        candidates = tree.get("candidates")
        for candidate in candidates if isinstance(candidates, list) else ():
            yield from owner(candidate, "item")
        yield tree, _BODY_KEYS

    def _one(self, given: dict[str, Any], owner: str, where: str, faults: Faults) -> dict[str, Any]:
        result = {}
        for name, value in given.items():
            column = self.by_owner[owner][name]
            values, bad = canonical_column([value], column, self.separators.get(name))
            if bad[0]:
                faults.add([self._bad_value(f"{where}.{name}", column, value)], 1)
            result[name] = values[0]
        return result

    def _items(self, features: dict[int, tuple[int, dict[str, Any]]], faults: Faults) -> Given:
        places: defaultdict[str, list[int]] = defaultdict(list)
        for position, (_, given) in features.items():
            for name in given:
                places[name].append(position)
        result: Given = {}
        for name, positions in places.items():
            column = self.by_owner["item"][name]
            found = [features[position][1][name] for position in positions]
            values, bad = canonical_column(found, column, self.separators.get(name))
            places_of = [features[position][0] for position in positions]
            faults.add(self._bad_values(column, places_of, found, bad), int(bad.sum()))
            result[name] = (np.array(positions), values)
        return result

    def _bad_values(
        self, column: RawColumn, candidates: list[int], values: list[Any], bad: np.ndarray
    ) -> Iterator[BodyFault]:
        for row in np.flatnonzero(bad):
            place = f"candidates[{candidates[row]}].features.{column.name}"
            yield self._bad_value(place, column, values[row])

    def _bad_value(self, where: str, column: RawColumn, value: Any) -> BodyFault:
        if (length := longest_text(value, self.separators.get(column.name))) > MAX_TEXT:
            return BodyFault(
                where,
                f"The value of `{column.name}` is too long.",
                f"at most {MAX_TEXT} characters in a text, or in each part of a list",
                f"{length} characters",
            )
        if column.dtype == "float32":
            expected = "a finite number, or null for a missing one"
        elif column.name in self.separators:
            expected = "a text or number, a list of these, or null for a missing one"
        else:
            expected = "a text or number, or null for a missing one"
        return BodyFault(
            where, f"The value of `{column.name}` does not fit.", expected, _shown(value)
        )

    # ----------------------------------------------------------------------- faults

    def _faults(self, error: ValidationError, surplus: int) -> Faults:
        faults = Faults()
        items = error.errors(include_url=False)
        faults.add(map(self._explained, items), len(items) + surplus)
        return faults

    def _explained(self, item: ErrorDetails) -> BodyFault:
        where, kind = _place(item["loc"]), item["type"]
        if kind == "extra_forbidden":
            return self._unknown_key(item["loc"], where)
        if kind == "missing":
            return BodyFault(where, f"`{where}` is missing.", f"`{where}`", "nothing")
        found = _shown(item["input"])
        if kind in ("model_type", "model_attributes_type"):
            message = f"`{where}` is no JSON object." if where else "The body is no JSON object."
            return BodyFault(where, message, "a JSON object", found)
        message, expected, fix = _WORDS.get(kind, (item["msg"], "", ""))
        return BodyFault(where, message, expected, found, fix)

    def _unknown_key(self, loc: tuple[int | str, ...], where: str) -> BodyFault:
        key = str(loc[-1])
        inner = [str(part) for part in loc[:-1] if not isinstance(part, int)]
        allowed: tuple[str, ...]
        if not inner:
            allowed = tuple(_BODY_KEYS)
        elif inner[0] == "context":
            allowed = self._asked("context")
        elif inner[-1] == "features":
            allowed = self._asked("user" if inner[0] == "user" else "item")
        else:
            allowed = tuple(_OWNER_KEYS)
        places = {"user": "user.features", "item": "candidates[].features", "context": "context"}
        home = next((places[owner] for owner, names in self.by_owner.items() if key in names), "")
        if home:
            fix = f"`{key}` belongs into {home}."
        elif near := _near(key, allowed):
            fix = f"Did you mean `{near}`?"
        else:
            fix = "Leave it out, or declare it in the spec."
        key = _cut(key)
        expected = "one of " + ", ".join(allowed) if allowed else "no key"
        return BodyFault(where, f"`{key}` is unknown here.", expected, key, fix)

    # ---------------------------------------------------------------------- OpenAPI

    def request_schema(self, ref_template: str = "#/$defs/{model}") -> dict[str, Any]:
        """JSON Schema of a request body."""
        schema = self.model.model_json_schema(ref_template=ref_template)
        candidates = schema["properties"]["candidates"]
        identity = [_TEXT_ID, {"type": "integer"}]
        candidates["items"] = {"anyOf": [*identity, candidates["items"]]}
        candidates |= {"minItems": 1, "maxItems": self.spec.serve.max_candidates}
        schema["example"] = self.example()
        return schema

    def answer_schema(self) -> dict[str, Any]:
        """JSON Schema of an answer."""
        number, whole, flag = ({"type": name} for name in ("number", "integer", "boolean"))
        item = {
            "id": {"type": ["string", "integer"]},
            "rank": {**whole, "minimum": 1},
            "score": {**number, "description": f"blend of {self.spec.blend()}"},
            "probabilities": _object({name: number for name in self.probabilities}),
            "known": {**flag, "description": "false: ranked by defaults and inline features"},
        }
        if self.values:
            item["values"] = {
                **_object({name: number for name in self.values}),
                "description": "answers of regressions, in the unit of their labels",
            }
        return _object(
            {
                "model_version": whole,
                "user": _object({"known": flag}),
                "items": {"type": "array", "items": _object(item)},
                "unknown_items": {**whole, "description": "candidates that the item table lacks"},
                "duplicates": {**whole, "description": "repeated candidates that were left out"},
                "took_ms": number,
            }
        )

    def example(self) -> dict[str, Any]:
        """A request of this contract, with placeholders for values that no table holds."""

        def values(owner: str) -> dict[str, Any]:
            hidden = () if owner == "context" else id_columns(self.spec, owner)
            return {
                name: 1.5 if self.by_owner[owner][name].dtype == "float32" else "a"
                for name in self._asked(owner)
                if name not in hidden
            }

        return {
            "user": {"id": "u1"},
            "context": values("context"),
            "candidates": ["i1", {"id": "i2", "features": values("item")}],
            "top_k": 2,
        }


_WORDS = {
    "id": ("An id does not fit.", "a text that is not empty, or a whole number", ""),
    "id_size": (
        "An id is beyond what a number holds exactly.",
        "a whole number of 64 bits without a point, or a text",
        "Send it as text.",
    ),
    "id_length": ("An id is too long.", f"at most {MAX_TEXT} characters", ""),
    "int_type": ("A whole number is needed.", "an integer", ""),
    "greater_than_equal": ("The number is too small.", "1 or more, or null for all", ""),
    "list_type": (
        "A JSON list is needed.",
        "a list of ids, or of objects with id and features",
        "",
    ),
}
"""By pydantic's kind of fault: what is wrong, what is expected, what to do."""


def _one_fault(where: str, message: str, expected: str, found: str, fix: str) -> RequestError:
    return RequestError.of(Faults([BodyFault(where, message, expected, found, fix)], 1))


@lru_cache(maxsize=1024)
def _near(key: str, allowed: tuple[str, ...]) -> str:
    """The allowed key that a caller may have meant, or ''."""
    # A key as long as a body would be compared for seconds.
    near = get_close_matches(key, allowed, n=1) if len(key) <= 200 else []
    return near[0] if near else ""


def _object(properties: Mapping[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": dict(properties), "required": list(properties)}


def _given(features: BaseModel | None) -> dict[str, Any]:
    if features is None:
        return {}
    sent = features.model_fields_set
    return {
        str(field.alias): getattr(features, name)
        for name, field in type(features).model_fields.items()
        if name in sent
    }


def _distinct(
    candidates: list[Any],
) -> tuple[list[str | int | float], list[str], dict[int, tuple[int, dict[str, Any]]], int]:
    """Ids and keys without repeats, and inline features: position → (place in body, values)."""
    ids: dict[str, str | int | float] = {}
    features: dict[int, tuple[int, dict[str, Any]]] = {}
    for place, candidate in enumerate(candidates):
        bare = not isinstance(candidate, BaseModel)
        identity = candidate if bare else candidate.id  # type: ignore[attr-defined]
        key = canonical_key(identity)
        if key in ids:
            continue
        if not bare and (given := _given(candidate.features)):
            features[len(ids)] = (place, given)
        ids[key] = identity
    return list(ids.values()), list(ids), features, len(candidates) - len(ids)


def _place(loc: tuple[int | str, ...]) -> str:
    text = ""
    for part in loc:
        name = part if isinstance(part, int) else _cut(part)
        text += f"[{name}]" if isinstance(name, int) else f".{name}" if text else name
    return text


def _shown(value: Any) -> str:
    if isinstance(value, float):
        return repr(value)
    try:
        return _cut(json.dumps(value, default=str))
    except RecursionError:
        return "a deeply nested value"


def _cut(text: str) -> str:
    return text if len(text) <= 80 else text[:77] + "..."
