"""A request that the service takes, made from the feature tables."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from recsys.artifacts import read_json
from recsys.errors import UserError
from recsys.spec import Spec
from recsys.spec.schema import raw_columns
from serving.columns import context_only
from serving.store import LocalStore

STATISTICS = "statistics.json"


def example_request(spec: Spec, features: str | Path, n: int = 10) -> dict[str, Any]:
    """A request of the first user of the user table for the first `n` items of the item table.

    Args:
        spec: The spec of the model that serves.
        features: Folder of the feature job.
        n: Number of candidates, at most `serve.max_candidates`.

    Returns:
        The body of `POST /v1/rank`; each context column has its commonest training value.

    Raises:
        UserError: The folder is none of features, or a table in it is damaged or empty.
    """
    store = LocalStore(features)
    items = store.keys("item", min(n, spec.serve.max_candidates))
    users = store.keys("user", 1)
    if not items or not users:
        raise UserError(
            "The feature tables are empty.",
            where=str(Path(features) / "tables"),
            fix="Build them again with: recsys features SPEC --input IN --output FEATURES",
        )
    context = [
        c
        for c in (*raw_columns(spec), *context_only(spec))
        if c.owner == "context" and not c.computed
    ]
    typical = _typical(Path(features))
    return {
        "user": {"id": users[0]},
        "context": {column.name: typical.get(column.name) for column in context},
        "candidates": items,
        "top_k": None,
    }


def _typical(features: Path) -> dict[str, Any]:
    """The commonest text, or the mean, of each column in the statistics of training rows."""
    try:
        statistics = read_json(features / STATISTICS)
    except UserError:
        return {}
    train = statistics.get("train") if isinstance(statistics, dict) else None
    values: dict[str, Any] = {}
    for name, facts in (train or {}).items():
        if isinstance(facts, dict) and facts.get("top"):
            values[name] = next(iter(facts["top"]))
        elif isinstance(facts, dict) and facts.get("mean") is not None:
            values[name] = facts["mean"]
    return values
