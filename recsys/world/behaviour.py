"""How users of the simulated world behave: requests, what is shown, and true probabilities."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from recsys.world.population import DEVICES, Floats, Ints, Items, Users

POSITIONS = 10
SURFACES = ("detail", "feed", "search")
MS_PER_DAY = 86_400_000
MS_PER_HOUR = 3_600_000

CLICK_RATE = 0.10
CONVERSION_RATE_OF_CLICKS = 0.10
# Deviations of the logits, and of the part of them that is taste, before their scaling.
_CLICK_DEVIATION = 1.12
_CONVERSION_DEVIATION = 0.8
_CLICK_TASTE_DEVIATION = 0.8
_CONVERSION_TASTE_DEVIATION = 0.40
# Conversion weighs the taste dimensions otherwise than click does, so that a model which
# ranks by click alone loses conversions.
_CONVERSION_DIRECTION = np.array([1.2, 0.8, -0.5, 0.3])

_POSITION_EFFECT = -0.6 * np.log1p(np.arange(POSITIONS))
_DEVICE_CLICK = np.array([-0.15, 0.1, 0.0])
_DEVICE_CONVERSION = np.array([0.3, -0.2, 0.05])
_SURFACE_CLICK = np.array([0.0, -0.2, 0.3])
_SURFACE_CONVERSION = np.array([0.15, -0.15, 0.2])
_HOURS = np.arange(24)
_HOUR_WEIGHT = 1.0 + 0.7 * np.cos(2 * np.pi * (_HOURS - 20) / 24)
_HOUR_CLICK = 0.2 * np.cos(2 * np.pi * (_HOURS - 21) / 24)

# Candidates drawn by popularity, of which the logging policy shows the best POSITIONS.
_POOL = 32
_CHUNK = 20_000


@dataclass(frozen=True)
class Impressions:
    """Columns of equal length, one row an impression; ``user`` and ``item`` are row numbers.

    ``time`` is in ms since the day's midnight, ``request`` counts from 0 within the day.
    """

    request: Ints
    user: Ints
    item: Ints
    position: Ints
    time: Ints
    device: Ints
    surface: Ints

    def __len__(self) -> int:
        return len(self.user)

    @property
    def hour(self) -> Ints:
        """Hour of the day, UTC, 0 to 23."""
        return self.time // MS_PER_HOUR


def draw_impressions(
    rng: np.random.Generator, users: Users, items: Items, day: int, rows: int
) -> Impressions:
    """Draw one day of requests, ordered by time, and the items shown at each position.

    Every request has ``POSITIONS`` distinct items, except the last, which is cut so that the
    day has exactly ``rows`` impressions.
    """
    n = -(-rows // POSITIONS)
    hour = rng.choice(24, n, p=_HOUR_WEIGHT / _HOUR_WEIGHT.sum())
    time = np.sort(hour * MS_PER_HOUR + rng.integers(0, MS_PER_HOUR, n))
    user = rng.choice(len(users), n, p=users.activity / users.activity.sum())
    other = rng.random(n) < 0.2
    device = np.where(other, rng.integers(0, len(DEVICES), n), users.device[user])
    surface = rng.choice(len(SURFACES), n, p=(0.2, 0.5, 0.3))
    shown = np.empty((n, POSITIONS), np.int64)
    for begin in range(0, n, _CHUNK):
        part = slice(begin, begin + _CHUNK)
        shown[part] = _show(rng, users, items, items.log_popularity[day], user[part])
    request = np.repeat(np.arange(n), POSITIONS)[:rows]
    return Impressions(
        request=request,
        user=user[request],
        item=shown.reshape(-1)[:rows],
        position=np.tile(np.arange(POSITIONS), n)[:rows],
        time=time[request],
        device=device[request],
        surface=surface[request],
    )


def _show(
    rng: np.random.Generator, users: Users, items: Items, log_popularity: Floats, user: Ints
) -> Ints:
    """Items shown, (requests, POSITIONS): popular ones, ordered by a noisy guess of taste."""
    popularity = np.exp(log_popularity)
    cumulative = np.cumsum(popularity)
    draws = rng.random((len(user), _POOL)) * cumulative[-1]
    pool = np.sort(np.searchsorted(cumulative, draws, side="right"), axis=1)
    affinity = np.einsum("rd,rpd->rp", users.taste[user], items.taste[pool])
    keys = 0.35 * affinity + rng.gumbel(size=pool.shape)
    keys[:, 1:][pool[:, 1:] == pool[:, :-1]] = -np.inf
    best = np.argsort(-keys, axis=1, kind="stable")[:, :POSITIONS]
    shown = np.take_along_axis(pool, best, axis=1)
    # A pool with too few distinct items: draw without replacement from all items instead.
    short = np.flatnonzero(np.isneginf(np.take_along_axis(keys, best, axis=1)[:, -1]))
    if len(short):
        everything = (
            0.35 * users.taste[user[short]] @ items.taste.T
            + log_popularity
            + rng.gumbel(size=(len(short), len(items)))
        )
        shown[short] = np.argsort(-everything, axis=1, kind="stable")[:, :POSITIONS]
    return shown


@dataclass(frozen=True)
class Truth:
    """The true probabilities of the world, as functions of an impression.

    Scales and intercepts are fitted on a pilot sample, so that every seed yields about
    the same rates and about the same best possible AUC.
    """

    users: Users
    items: Items
    taste_scales: tuple[float, float] = (1.0, 1.0)
    scales: tuple[float, float] = (1.0, 1.0)
    intercepts: tuple[float, float] = (0.0, 0.0)

    @classmethod
    def fitted(cls, users: Users, items: Items, pilot: Impressions) -> Truth:
        """Scale and centre on ``pilot`` so that rates and deviations meet their targets."""
        click_taste, conversion_taste = _tastes(users, items, pilot)
        raw = cls(
            users,
            items,
            taste_scales=(
                _CLICK_TASTE_DEVIATION / float(click_taste.std()),
                _CONVERSION_TASTE_DEVIATION / float(conversion_taste.std()),
            ),
        )
        click, conversion = raw.logits(pilot)
        click_scale = _CLICK_DEVIATION / float(click.std())
        click_intercept = _intercept(click_scale * click, np.ones(len(pilot)), CLICK_RATE)
        # Conversions only happen among clicks, so their targets hold there.
        clicked = _sigmoid(click_scale * click + click_intercept)
        conversion_scale = _CONVERSION_DEVIATION / _deviation(conversion, clicked)
        conversion_intercept = _intercept(
            conversion_scale * conversion, clicked, CONVERSION_RATE_OF_CLICKS
        )
        return replace(
            raw,
            scales=(click_scale, conversion_scale),
            intercepts=(click_intercept, conversion_intercept),
        )

    def logits(self, shown: Impressions) -> tuple[Floats, Floats]:
        """Logits of p(click) and of p(conversion given click), each (rows,)."""
        users, items = self.users, self.items
        click_taste, conversion_taste = _tastes(users, items, shown)
        click = (
            self.taste_scales[0] * click_taste
            + users.click_bias[shown.user]
            + items.click_bias[shown.item]
            + _POSITION_EFFECT[shown.position]
            + _DEVICE_CLICK[shown.device]
            + _SURFACE_CLICK[shown.surface]
            + _HOUR_CLICK[shown.hour]
        )
        conversion = (
            self.taste_scales[1] * conversion_taste
            + users.conversion_bias[shown.user]
            + items.conversion_bias[shown.item]
            + 0.4 * users.spend[shown.user] * items.log_price[shown.item]
            + _DEVICE_CONVERSION[shown.device]
            + _SURFACE_CONVERSION[shown.surface]
        )
        return (
            self.scales[0] * click + self.intercepts[0],
            self.scales[1] * conversion + self.intercepts[1],
        )

    def probabilities(self, shown: Impressions) -> tuple[Floats, Floats]:
        """True p(click) and p(conversion given click), each (rows,) in (0, 1)."""
        click, conversion = self.logits(shown)
        return _sigmoid(click), _sigmoid(conversion)


def _tastes(users: Users, items: Items, shown: Impressions) -> tuple[Floats, Floats]:
    match = users.taste[shown.user] * items.taste[shown.item]
    return match.sum(1), match @ _CONVERSION_DIRECTION


def _sigmoid(logit: Floats) -> Floats:
    return 1.0 / (1.0 + np.exp(-logit))


def _deviation(values: Floats, weight: Floats) -> float:
    mean = np.average(values, weights=weight)
    return float(np.sqrt(np.average((values - mean) ** 2, weights=weight)))


def _intercept(logit: Floats, weight: Floats, rate: float) -> float:
    """The shift at which the weighted mean probability is ``rate``, by bisection."""
    low, high = -30.0, 30.0
    for _ in range(60):
        middle = (low + high) / 2
        if np.average(_sigmoid(logit + middle), weights=weight) < rate:
            low = middle
        else:
            high = middle
    return (low + high) / 2
