"""The fitted map, as a record of plain numbers that travels in JSON."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import ArrayLike, NDArray

Kind = Literal["identity", "temperature", "platt", "isotonic"]
_PARAMETERS: dict[str, tuple[str, ...]] = {
    "identity": (),
    "temperature": ("temperature",),
    "platt": ("slope", "intercept"),
    "isotonic": ("x", "y", "slope"),
}


@dataclass(frozen=True)
class Calibration:
    """A strictly increasing map from logit to calibrated logit.

    Attributes:
        kind: "identity"; "temperature", x / temperature; "platt", slope x + intercept;
            "isotonic", straight lines between the knots (x, y), and lines of `slope` outside.
        parameters: the numbers that the kind needs; knots are tuples, both increasing. The
            slope of "isotonic" is 1 where it is not given, as in older records.
        warning: why the fit fell back to something simpler, or None.

    >>> Calibration("platt", {"slope": 1.0, "intercept": 0.0}).apply([0.0]).tolist()
    [0.5]
    """

    kind: Kind = "identity"
    parameters: Mapping[str, float | tuple[float, ...]] = field(default_factory=dict)
    warning: str | None = None

    def __post_init__(self) -> None:
        if self.kind not in _PARAMETERS:
            raise ValueError(f"kind must be one of {sorted(_PARAMETERS)}; received {self.kind!r}.")
        given = {"slope": 1.0, **self.parameters} if self.kind == "isotonic" else self.parameters
        if set(given) != set(_PARAMETERS[self.kind]):
            raise ValueError(
                f"{self.kind} needs parameters {_PARAMETERS[self.kind]}; "
                f"received {sorted(self.parameters)}."
            )
        p: dict[str, Any] = {k: tuple(v) if isinstance(v, list) else v for k, v in given.items()}
        object.__setattr__(self, "parameters", p)
        if not all(np.isfinite(v).all() for v in p.values()):
            raise ValueError(f"{self.kind} needs finite parameters; received {dict(p)}.")
        for name in ("temperature", "slope"):
            if name in p and not p[name] > 0:
                raise ValueError(f"{name} must be above 0; received {p[name]}.")
        if self.kind == "isotonic":
            x, y = np.asarray(p["x"]), np.asarray(p["y"])
            if (
                x.size == 0
                or x.shape != y.shape
                or (np.diff(x) <= 0).any()
                or (np.diff(y) <= 0).any()
            ):
                raise ValueError("isotonic needs knots x and y, equally many, both increasing.")

    def segments(self) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any], NDArray[Any]]:
        """Return the map as straight pieces: (breaks [n], x0, y0, slope, each [n + 1]).

        Piece i holds for logits from breaks[i - 1] (included) to breaks[i]:
        y0 + slope (x - x0).
        """
        p: Mapping[str, Any] = self.parameters
        if self.kind == "isotonic":
            x, y = np.asarray(p["x"]), np.asarray(p["y"])
            slopes = np.r_[p["slope"], np.diff(y) / np.diff(x), p["slope"]]
            return x, np.r_[x[0], x], np.r_[y[0], y], slopes
        slope = p.get("slope", 1.0 / p.get("temperature", 1.0))
        return np.zeros(0), np.zeros(1), np.array([p.get("intercept", 0.0)]), np.array([slope])

    def apply_logit(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Return calibrated logits, float64, of the shape of `logits`; NaN stays NaN."""
        x = np.asarray(logits, dtype=np.float64)
        breaks, x0, y0, slope = self.segments()
        piece = np.searchsorted(breaks, x, side="right")
        piece = np.minimum(piece, breaks.size)
        return y0[piece] + slope[piece] * (x - x0[piece])

    def apply(self, logits: ArrayLike) -> NDArray[np.float64]:
        """Return calibrated probabilities, float64, of the shape of `logits`; NaN stays NaN."""
        return sigmoid(self.apply_logit(logits))

    def to_json(self) -> dict[str, Any]:
        """Return a dict of JSON values."""
        parameters = {k: list(v) if isinstance(v, tuple) else v for k, v in self.parameters.items()}
        return {"kind": self.kind, "parameters": parameters, "warning": self.warning}

    @classmethod
    def from_json(cls, value: Mapping[str, Any]) -> Calibration:
        """Return the record that `to_json` wrote."""
        return cls(value["kind"], dict(value["parameters"]), value.get("warning"))


IDENTITY = Calibration()


def sigmoid(x: NDArray[Any]) -> NDArray[np.float64]:
    """1 / (1 + exp(-x)) without overflow, float64."""
    e = np.exp(-np.abs(x))
    return np.where(x >= 0, 1.0, e) / (1.0 + e)


def logit(p: float) -> float:
    """log(p / (1 - p))."""
    return math.log(p) - math.log1p(-p)
