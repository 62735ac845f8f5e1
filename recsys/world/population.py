"""Who and what lives in the simulated world: users, items, and their latent tastes.

Attributes that are written to the user and item tables explain most of a taste; a small
idiosyncratic rest is left for id embeddings to find, as in real logs.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

AGE_GROUPS = ("18-24", "25-34", "35-44", "45-54", "55-64", "65+")
COUNTRIES = ("BR", "DE", "FR", "GB", "IN", "JP", "MX", "US")
CATEGORIES = (
    "art", "auto", "beauty", "books", "fashion", "food",
    "games", "garden", "home", "music", "sports", "travel",
)  # fmt: skip
BRANDS = tuple(f"brand{k:02d}" for k in range(30))
TAGS = (
    "basic", "bundle", "classic", "compact", "eco", "exclusive", "gift", "handmade",
    "import", "limited", "local", "luxury", "new", "outdoor", "retro", "sale",
)  # fmt: skip
DEVICES = ("desktop", "mobile", "tablet")

TASTE_DIM = 4


@dataclass(frozen=True)
class Users:
    """One row a user; ``taste`` is (users, 4), ``interests`` (users, categories) of bool."""

    age: Ints
    country: Ints
    tenure: Floats
    tenure_known: NDArray[np.bool_]
    activity: Floats
    interests: NDArray[np.bool_]
    device: Ints
    taste: Floats
    click_bias: Floats
    conversion_bias: Floats
    spend: Floats

    def __len__(self) -> int:
        return len(self.age)

    @property
    def ids(self) -> pa.Array:
        """``u0``, ``u1``, … as an Arrow string array."""
        return pa.array([f"u{k}" for k in range(len(self))], pa.string())

    def table(self) -> pa.Table:
        """The observable part, as the user table of the logs."""
        return pa.table(
            {
                "user_id": self.ids,
                "age_group": pa.array(np.array(AGE_GROUPS)[self.age].tolist(), pa.string()),
                "country": pa.array(np.array(COUNTRIES)[self.country].tolist(), pa.string()),
                "tenure_days": pa.array(self.tenure, mask=~self.tenure_known),
                "activity": pa.array(self.activity),
                "interests": _joined(self.interests, CATEGORIES),
            }
        )


@dataclass(frozen=True)
class Items:
    """One row an item; ``log_popularity`` is (days, items), minus infinity before the launch."""

    category: Ints
    brand: Ints
    tags: NDArray[np.bool_]
    price: Floats
    price_known: NDArray[np.bool_]
    log_price: Floats
    age: Floats
    launch_day: Ints
    taste: Floats
    click_bias: Floats
    conversion_bias: Floats
    log_popularity: Floats

    def __len__(self) -> int:
        return len(self.category)

    @property
    def ids(self) -> pa.Array:
        """``i0``, ``i1``, … as an Arrow string array."""
        return pa.array([f"i{k}" for k in range(len(self))], pa.string())

    def table(self) -> pa.Table:
        """The observable part, as the item table of the logs."""
        return pa.table(
            {
                "item_id": self.ids,
                "category": pa.array(np.array(CATEGORIES)[self.category].tolist(), pa.string()),
                "brand": pa.array(np.array(BRANDS)[self.brand].tolist(), pa.string()),
                "price": pa.array(self.price, mask=~self.price_known),
                "age_days": pa.array(self.age),
                "tags": _joined(self.tags, TAGS),
            }
        )


def draw_population(
    rng: np.random.Generator, n_users: int, n_items: int, days: int
) -> tuple[Users, Items]:
    """Draw users and items who share one taste space.

    Args:
        rng: the only source of chance.
        n_users: how many users.
        n_items: how many items; a fifth of them is launched after the first day.
        days: length of the world, for launches and popularity drift.
    """
    categories = _spread(rng, len(CATEGORIES))
    # An interest carries its category's name, so it mostly means a taste for that category.
    interests = 0.85 * categories + 0.5 * _spread(rng, len(CATEGORIES))
    users = _draw_users(rng, n_users, interests)
    items = _draw_items(rng, n_items, days, categories)
    return users, items


def _draw_users(rng: np.random.Generator, n: int, interest_taste: Floats) -> Users:
    age = rng.choice(len(AGE_GROUPS), n, p=_weights(rng, len(AGE_GROUPS)))
    country = rng.choice(len(COUNTRIES), n, p=_weights(rng, len(COUNTRIES)))
    by_age = (
        rng.gumbel(size=(n, len(CATEGORIES)))
        + 0.7 * _normal(rng, len(AGE_GROUPS), len(CATEGORIES))[age]
    )
    interests = _top(by_age, rng.integers(1, 5, n))
    tenure = rng.exponential(400.0, n)
    activity = rng.gamma(1.5, 2.0, n) + 0.3
    device = rng.choice(len(DEVICES), n, p=(0.3, 0.6, 0.1))

    means = interests / interests.sum(1, keepdims=True) @ interest_taste
    taste = (
        means
        + 0.5 * _spread(rng, len(AGE_GROUPS))[age]
        + 0.35 * _spread(rng, len(COUNTRIES))[country]
        + 0.09 * _normal(rng, n, TASTE_DIM)
    )
    click_bias = (
        0.25 * _effects(rng, len(AGE_GROUPS))[age]
        + 0.2 * _effects(rng, len(COUNTRIES))[country]
        - 0.15 * _standard(np.log(activity))
        - 0.1 * _standard(np.log1p(tenure))
        + 0.12 * _normal(rng, n)
    )
    spend = (
        0.8 * _effects(rng, len(AGE_GROUPS))[age]
        + 0.6 * _effects(rng, len(COUNTRIES))[country]
        + 0.1 * _normal(rng, n)
    )
    conversion_bias = 0.15 * _standard(np.log1p(tenure)) + 0.08 * _normal(rng, n)
    return Users(
        age=age,
        country=country,
        tenure=np.round(tenure, 2),
        tenure_known=rng.random(n) >= 0.02,
        activity=np.round(activity, 4),
        interests=interests,
        device=device,
        taste=taste,
        click_bias=click_bias,
        conversion_bias=conversion_bias,
        spend=spend,
    )


def _draw_items(rng: np.random.Generator, n: int, days: int, category_taste: Floats) -> Items:
    category = rng.choice(len(CATEGORIES), n, p=_weights(rng, len(CATEGORIES)))
    brand = (
        rng.gumbel(size=(n, len(BRANDS))) + _normal(rng, len(CATEGORIES), len(BRANDS))[category]
    ).argmax(1)
    tags = _top(
        rng.gumbel(size=(n, len(TAGS))) + _normal(rng, len(CATEGORIES), len(TAGS))[category],
        rng.integers(1, 4, n),
    )
    log_price = _standard(
        0.6 * _effects(rng, len(CATEGORIES))[category]
        + 0.5 * _effects(rng, len(BRANDS))[brand]
        + 0.6 * _normal(rng, n)
    )
    launch_day, age = _launches(rng, n, days)

    tag_share = tags / tags.sum(1, keepdims=True)
    taste = (
        category_taste[category]
        + 0.6 * tag_share @ _spread(rng, len(TAGS))
        + 0.3 * _spread(rng, len(BRANDS))[brand]
        + 0.09 * _normal(rng, n, TASTE_DIM)
    )
    click_bias = (
        0.2 * _effects(rng, len(CATEGORIES))[category]
        + 0.2 * _effects(rng, len(BRANDS))[brand]
        + 0.2 * tag_share @ _effects(rng, len(TAGS))
        - 0.12 * log_price
        - 0.1 * _standard(np.log1p(age))
        + 0.14 * _normal(rng, n)
    )
    conversion_bias = (
        0.35 * _effects(rng, len(CATEGORIES))[category] - 0.35 * log_price + 0.08 * _normal(rng, n)
    )
    return Items(
        category=category,
        brand=brand,
        tags=tags,
        price=np.round(np.exp(3.0 + 0.8 * log_price), 2).astype(np.float64),
        price_known=rng.random(n) >= 0.01,
        log_price=log_price,
        age=age,
        launch_day=launch_day,
        taste=taste,
        click_bias=click_bias,
        conversion_bias=conversion_bias,
        log_popularity=_popularity(rng, launch_day, days),
    )


def _launches(rng: np.random.Generator, n: int, days: int) -> tuple[Ints, Floats]:
    """Launch day (0 = there from the start) and age in days at the end of the world."""
    late = rng.permutation(n) < (n // 5 if days > 1 else 0)
    launch_day = np.where(late, rng.integers(1, max(days, 2), n), 0)
    before = np.where(late, 0.0, rng.exponential(200.0, n))
    return launch_day, np.round(before + days - launch_day, 2)


def _popularity(rng: np.random.Generator, launch_day: Ints, days: int) -> Floats:
    """Log popularity by day: Zipf over a random order, a daily random walk, a launch boost."""
    n = len(launch_day)
    zipf = -0.9 * np.log(rng.permutation(n) + 10.0)
    walk = np.cumsum(0.15 * _normal(rng, days, n), axis=0)
    since = np.arange(days)[:, None] - launch_day[None, :]
    boost = np.where(launch_day > 0, np.exp(-np.maximum(since, 0) / 3.0), 0.0)
    return np.where(since >= 0, zipf + walk + boost, -np.inf)


def _normal(rng: np.random.Generator, *shape: int) -> Floats:
    return rng.standard_normal(shape)


def _effects(rng: np.random.Generator, n: int) -> Floats:
    """One effect a level, centred and of unit deviation, whatever the seed."""
    return _standard(_normal(rng, n))


def _spread(rng: np.random.Generator, n: int) -> Floats:
    """One taste vector a level, centred, so that no attribute adds a constant direction."""
    vectors = _normal(rng, n, TASTE_DIM)
    return vectors - vectors.mean(0)


def _standard(values: Floats) -> Floats:
    return (values - values.mean()) / max(float(values.std()), 1e-12)


def _weights(rng: np.random.Generator, n: int) -> Floats:
    weights = rng.uniform(0.5, 1.5, n)
    return weights / weights.sum()


def _top(scores: Floats, counts: Ints) -> NDArray[np.bool_]:
    """Mark the ``counts[r]`` highest scores of each row ``r``."""
    ranks = np.argsort(np.argsort(-scores, axis=1), axis=1)
    return ranks < counts[:, None]


def _joined(marks: NDArray[np.bool_], names: tuple[str, ...]) -> pa.Array:
    return pa.array([",".join(names[k] for k in np.flatnonzero(row)) for row in marks], pa.string())
