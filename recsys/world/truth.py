"""The best that a model can do: the AUC of the true probabilities."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import ArrayLike

from recsys.artifacts import read_manifest
from recsys.errors import UserError
from recsys.metrics import auc


def best_auc(
    click: ArrayLike, conversion: ArrayLike, p_click: ArrayLike, p_conversion_given_click: ArrayLike
) -> dict[str, float | None]:
    """AUC of the true probabilities against the labels that were drawn from them.

    Args:
        click: (rows,), 0 or 1.
        conversion: (rows,), 0 or 1.
        p_click: (rows,), true p(click).
        p_conversion_given_click: (rows,), true p(conversion given click).

    Returns:
        ``click`` and ``conversion`` (CTCVR) over all rows, ``conversion_given_click`` over the
        clicked ones; None where the rows have only one of the two labels.

    >>> best = best_auc([1, 1, 0, 0], [1, 0, 0, 0], [0.9, 0.8, 0.2, 0.1], [0.5, 0.1, 0.5, 0.5])
    >>> best["click"], best["conversion"], best["conversion_given_click"]
    (1.0, 1.0, 1.0)
    """
    clicked = np.asarray(click).astype(bool)
    converted = np.asarray(conversion).astype(bool)
    ctr = np.asarray(p_click, np.float64)
    cvr = np.asarray(p_conversion_given_click, np.float64)
    return {
        "click": _auc(clicked, ctr),
        "conversion": _auc(converted, ctr * cvr),
        "conversion_given_click": _auc(converted[clicked], cvr[clicked]),
    }


def read_truth(world: Path, days: Iterable[str] | None = None) -> pa.Table:
    """True probabilities and labels of a simulated world, one row an impression.

    Args:
        world: the folder that :func:`recsys.world.simulate` wrote.
        days: days of the impressions (``YYYY-MM-DD``); all days if None.

    Returns:
        Columns ``impression_id``, ``p_click``, ``p_conversion_given_click``, and ``click`` and
        ``conversion`` as bool, whatever their delay. Impressions that dirt has given a conversion
        without a click count as not converted.

    Raises:
        UserError: the folder is no simulated world, or a day is not in it.
    """
    world = Path(world)
    manifest = read_manifest(world, "world")
    wanted = list(manifest["day_list"]) if days is None else list(days)
    unknown = sorted(set(wanted) - set(manifest["day_list"]))
    if unknown:
        raise UserError(
            "The simulated world has no such day.",
            expected=f"{manifest['day_list'][0]} to {manifest['day_list'][-1]}",
            found=", ".join(unknown),
            where=str(world),
            fix="Name days of the world, or simulate a longer one.",
        )
    tables = [
        pq.ParquetFile(world / "truth" / f"day={day}" / "part-0.parquet").read() for day in wanted
    ]
    if not tables:
        raise UserError(
            "No days were asked for.",
            expected="at least one day",
            found="none",
            where=str(world),
            fix="Name one or more days, or leave days out for all of them.",
        )
    truth = pa.concat_tables(tables)
    ids = truth["impression_id"]
    clicked = _is_in(ids, world / "clicks")
    converted = _is_in(ids, world / "conversions") & clicked
    return truth.append_column("click", pa.array(clicked)).append_column(
        "conversion", pa.array(converted)
    )


def best_auc_of(world: Path, days: Iterable[str] | None = None) -> dict[str, float | None]:
    """:func:`best_auc` over the impressions of some days (all if None) of a world on disk."""
    truth = read_truth(world, days)
    return best_auc(
        truth["click"].to_numpy(),
        truth["conversion"].to_numpy(),
        truth["p_click"].to_numpy(),
        truth["p_conversion_given_click"].to_numpy(),
    )


def _is_in(ids: pa.ChunkedArray, log: Path) -> np.ndarray:
    files = sorted(log.glob("day=*/part-*.parquet"))
    found = pa.concat_tables(
        [pq.ParquetFile(file).read(columns=["impression_id"]) for file in files]
        or [pa.table({"impression_id": pa.array([], pa.string())})]
    )["impression_id"]
    return pc.is_in(ids, value_set=found.combine_chunks()).to_numpy()


def _auc(labels: np.ndarray, scores: np.ndarray) -> float | None:
    if not len(labels) or labels.all() or not labels.any():
        return None
    return float(auc(labels.astype(np.float64), scores))
