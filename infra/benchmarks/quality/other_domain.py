"""A table of another domain: many numbers, few rows an item, most test items never seen.

Twelve days of listings that live three days each: on the last day, the test split, two thirds
of the items were not there in training. Two thirds of the signal lie in thirty numeric columns
(skewed, with gaps, partly interacting), which is where boosted trees are at home; the rest in
categories, in what users like, and in the quality of the single item.

In the domain `other` the numbers speak by curves and products of pairs, in `trees` by random
decision trees, the very form of what boosted trees learn.
"""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import pyarrow.csv
from numpy.typing import NDArray

from recsys.artifacts import write_folder

Layout = Literal["funnel", "parallel"]
Response = Literal["curves", "trees"]

DAYS, LIFE = 12, 3
START = datetime(2024, 3, 1, tzinfo=UTC)
USERS, CATEGORIES, SEGMENTS, DEVICES = 15_000, 40, 12, 5
ROWS_A_NEW_ITEM = 125
NUMBERS = {"user": 8, "item": 12, "context": 10}
TABLE = "listings.csv"
TASKS = {"funnel": ("click", "conversion"), "parallel": ("like", "share")}


def generate(
    folder: Path,
    layout: Layout,
    rows: int = 150_000,
    seed: int = 0,
    response: Response = "curves",
) -> None:
    """Write `listings.csv`, one row an impression, and `truth.csv` with its probabilities.

    Args:
        folder: The folder to make.
        layout: `funnel` (a conversion follows a click) or `parallel` (like, share).
        rows: How many impressions.
        seed: The same seed gives the same files.
        response: How labels follow the numbers.
    """
    rng = np.random.default_rng(seed)
    day = np.sort(rng.integers(0, DAYS, rows))
    born, fresh = day - rng.integers(0, LIFE, rows) + LIFE, max(1, rows // ROWS_A_NEW_ITEM)
    # A few of a day's new items are shown often.
    item = born * fresh + (fresh * rng.random(rows) ** 1.6).astype(int)
    user = np.minimum((rng.pareto(1.2, rows) * USERS / 12).astype(int), USERS - 1)
    items = (DAYS + LIFE) * fresh
    owners = {"user": USERS, "item": items, "context": rows}
    index = {"user": user, "item": item, "context": np.arange(rows)}
    numbers = {
        f"{owner}_{chr(97 + at)}": _shape(rng.normal(size=owners[owner]), at)[index[owner]]
        for owner, count in NUMBERS.items()
        for at in range(count)
    }
    category, segment = rng.integers(0, CATEGORIES, items), rng.integers(0, SEGMENTS, USERS)
    device = rng.integers(0, DEVICES, rows)
    # What a user likes lies between the user and the categories; quality lies in the item alone.
    taste, style = rng.normal(size=(USERS, 4)), rng.normal(size=(CATEGORIES, 4))
    by_segment = rng.normal(size=(SEGMENTS, CATEGORIES))
    quality = rng.normal(size=(items, 2))
    logits = []
    for task in range(2):
        speak = _curves if response == "curves" else _trees
        from_numbers = _standard(speak(rng, _ranks(list(numbers.values()))))
        from_ids = _standard(
            0.6 * (taste[user] * style[category[item]]).sum(1) / 2
            + 0.7 * by_segment[segment[user], category[item]]
            + 0.5 * rng.normal(size=DEVICES)[device]
            + 0.8 * quality[item, task]
        )
        logits.append(1.1 * from_numbers + 0.8 * from_ids - (1.3, 1.0)[task])
    if layout == "parallel":
        logits[1] = 0.6 * logits[1] + 0.4 * logits[0] - 0.8
    probs = [1 / (1 + np.exp(-logit)) for logit in logits]
    labels = [(rng.random(rows) < prob).astype(np.int8) for prob in probs]
    if layout == "funnel":
        labels[1] *= labels[0]
        probs[1] = probs[1] * probs[0]
    gaps = {
        name: np.where(rng.random(rows) < 0.1, np.nan, values) if at % 4 == 0 else values
        for at, (name, values) in enumerate(numbers.items())
    }
    second = rng.integers(0, 86_400, rows)
    when = [
        (START + timedelta(days=int(d), seconds=int(s))).isoformat()
        for d, s in zip(day, second, strict=True)
    ]
    table: dict[str, Any] = {
        "time": when,
        "user_id": _names("u", user),
        "item_id": _names("i", item),
        "category": _names("c", category[item]),
        "segment": _names("s", segment[user]),
        "device": _names("d", device),
        **{
            name: pa.array(values.astype(np.float32), from_pandas=True)
            for name, values in gaps.items()
        },
        **dict(zip(TASKS[layout], labels, strict=True)),
    }
    truth = {f"p_{name}": prob for name, prob in zip(TASKS[layout], probs, strict=True)}
    with write_folder(folder) as aside:
        pyarrow.csv.write_csv(pa.table(table), aside / TABLE)
        pyarrow.csv.write_csv(pa.table(truth), aside / "truth.csv")


def _shape(values: NDArray[Any], at: int) -> NDArray[Any]:
    """Numbers as tables have them: symmetric, skewed, bounded, counted."""
    if at % 4 == 1:
        return np.exp(1.2 * values)
    if at % 4 == 2:
        return np.round(1 / (1 + np.exp(-values)), 2)
    if at % 4 == 3:
        return np.floor(np.exp(0.9 * values + 1))
    return values


def _ranks(numbers: list[NDArray[Any]]) -> list[NDArray[Any]]:
    """The numbers' ranks, from 0 to 1."""
    # Counts have many ties, whose order in an unstable sort depends on the processor.
    return [np.argsort(np.argsort(v, kind="stable")) / len(v) for v in numbers]


def _trees(rng: np.random.Generator, ranks: list[NDArray[Any]]) -> NDArray[Any]:
    """What the numbers say as 25 trees, 3 to 5 deep, of 3 to 6 numbers each."""
    total = np.zeros(len(ranks[0]))
    for _ in range(25):
        chosen = rng.choice(len(ranks), int(rng.integers(3, 7)), replace=False)
        parts = [np.arange(len(total))]
        for _ in range(int(rng.integers(3, 6))):
            halves = []
            for part in parts:
                x, at = ranks[int(rng.choice(chosen))][part], rng.uniform(0.2, 0.8)
                halves += [part[x <= at], part[x > at]]
            parts = halves
        for part in parts:
            total[part] += rng.normal()
    return total


def _curves(rng: np.random.Generator, ranks: list[NDArray[Any]]) -> NDArray[Any]:
    """What the numbers say: steps, bumps and slopes of some, products of pairs of others."""
    total = np.zeros(len(ranks[0]))
    for rank in rng.permutation(len(ranks))[:14]:
        x, weight, at = ranks[rank], rng.normal(), rng.uniform(0.2, 0.8)
        kind = int(rng.integers(3))
        curve = (np.where(x > at, 1.0, -1.0), np.exp(-(((x - at) / 0.15) ** 2)) * 2, 3 * (x - 0.5))
        total += weight * curve[kind]
    for _ in range(8):
        a, b = (ranks[i] for i in rng.choice(len(ranks), 2, replace=False))
        total += rng.normal() * np.where((a > 0.5) == (b > rng.uniform(0.3, 0.7)), 1.0, -1.0)
    return total


def _standard(values: NDArray[Any]) -> NDArray[Any]:
    return (values - values.mean()) / values.std()


def _names(prefix: str, values: NDArray[Any]) -> list[str]:
    return [f"{prefix}{value}" for value in values]
