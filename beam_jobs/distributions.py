"""Learn how the numbers of all columns are distributed, in one analyzer.

`tft.quantiles`, `tft.min`, `tft.mean` and the like cost a dozen Beam stages for each column,
whatever the rows: most of the time of a small job, and minutes for a table of hundreds of
numbers. Here all columns travel as one matrix, and one analyzer answers one vector of all that
is learned. Quantiles come from the sketch that `tft.quantiles` uses, so they are the same.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import apache_beam as beam
import numpy as np
import pyarrow as pa
import tensorflow as tf
import tensorflow_transform as tft
from numpy.typing import NDArray
from tfx_bsl.sketches import QuantilesSketch

# The sketch keeps its error below epsilon up to so many rows; as TF Transform has it.
_MOST_ROWS = 1 << 32


@dataclass(frozen=True)
class Wanted:
    """What is wanted of a column: quantile `bins`, or mean and variance where they are 0."""

    column: int
    bins: int = 0

    @property
    def size(self) -> int:
        """How many numbers that is."""
        return self.bins + 1 if self.bins else 2

    @property
    def epsilon(self) -> float:
        """How far the ranks of edges may be off; 0 for mean and variance, which are exact."""
        return min(0.001, 0.1 / self.bins) if self.bins else 0.0


def learn(matrix: tf.Tensor, wanted: list[list[Wanted]]) -> list[tf.Tensor]:
    """An analyzer that learns how numbers are distributed over the whole data set.

    Args:
        matrix: The columns, float32 [columns, batch]; what is not finite is left out.
        wanted: Groups, each of equal bins.

    Returns:
        For each group, float64 [in group, numbers]: `mean, variance`, 0 where there is no number;
        or the `bins + 1` edges of the quantile bins, the least and the greatest number among
        them. Without any number these are infinity and minus infinity, and 0 between them.
    """
    if not wanted:
        return []
    # One sketch answers any number of bins: a column that is cut both into buckets and into
    # piecewise bins is sketched once.
    shared: dict[tuple[int, float], list[Wanted]] = {}
    for one in dict.fromkeys(one for group in wanted for one in group):
        shared.setdefault((one.column, one.epsilon), []).append(one)
    parts = list(shared.values())
    places: dict[Wanted, NDArray[np.int64]] = {}
    end = 0
    for one in (one for part in parts for one in part):
        places[one] = np.arange(end, end + one.size)
        end += one.size
    # One output, since each would be a Beam collection with stages of its own.
    (learned,) = tft.experimental.ptransform_analyzer(
        inputs=[matrix],
        ptransform=LearnDistributions(parts),
        output_dtypes=[tf.float64],
        output_shapes=[[end]],
        name="distributions",
    )
    return [tf.gather(learned, np.stack([places[one] for one in group])) for group in wanted]


class LearnDistributions(beam.PTransform):
    """Summarize each column and concatenate what the parts want of them, in their order.

    Args:
        parts: Each is answered by one summary: one column, one epsilon.
    """

    def __init__(self, parts: list[list[Wanted]]) -> None:
        super().__init__()
        self.parts = parts

    def expand(self, batches: beam.PCollection) -> beam.PCollection:
        # A key for each part, so that no worker ever holds the sketches of all columns.
        return (
            batches
            | "Divide" >> beam.FlatMap(_divide, self.parts)
            | "Summarize" >> beam.CombinePerKey(_Summarize())
            | "One key" >> beam.Map(lambda answer: (0, answer))
            | "Gather" >> beam.GroupByKey()
            | "In order" >> beam.Map(_in_order)
        )


def _divide(
    batch: tuple[NDArray[np.float32]], parts: list[list[Wanted]]
) -> Iterator[tuple[int, tuple[list[Wanted], NDArray[np.float32]]]]:
    (matrix,) = batch
    for number, part in enumerate(parts):
        values = matrix[part[0].column]
        yield number, (part, values[np.isfinite(values)])


def _in_order(group: tuple[int, Iterable[tuple[int, NDArray[np.float64]]]]) -> NDArray[np.float64]:
    answers = dict(group[1])
    return np.concatenate([answers[number] for number in sorted(answers)])


class _Summarize(beam.CombineFn):
    """Combine values into a summary, which begins with the first: its kind comes with them."""

    def create_accumulator(self) -> None:
        return None

    def add_input(self, held: Any, element: tuple[list[Wanted], NDArray[np.float32]]) -> Any:
        part, values = element
        if held is None:
            held = Edges(part) if part[0].bins else Moments()
        held.add(values)
        return held

    def merge_accumulators(self, accumulators: Iterable[Any]) -> Any:
        merged = None
        for held in accumulators:
            if merged is None:
                merged = held
            elif held is not None:
                merged.merge(held)
        return merged

    def compact(self, held: Any) -> Any:
        if held is not None:
            held.compact()
        return held

    def extract_output(self, held: Any) -> NDArray[np.float64]:
        return held.answer()


@dataclass
class Moments:
    """Mean and variance of the numbers so far, in a form that merges without cancellation."""

    count: int = 0
    mean: float = 0.0
    variance: float = 0.0

    def add(self, values: NDArray[np.float32]) -> None:
        """Take more numbers."""
        if len(values):
            wide = values.astype(np.float64)
            self.merge(Moments(len(wide), float(wide.mean()), float(wide.var())))

    def merge(self, other: Moments) -> None:
        """Take the numbers of another summary."""
        count = self.count + other.count
        if not other.count:
            return
        share, gap = other.count / count, other.mean - self.mean
        self.variance += share * (other.variance - self.variance + (1 - share) * gap * gap)
        self.mean += share * gap
        self.count = count

    def compact(self) -> None:
        """There is nothing to make smaller."""

    def answer(self) -> NDArray[np.float64]:
        """Mean and variance."""
        return np.array([self.mean, self.variance])


@dataclass
class Edges:
    """The numbers so far, as a sketch of their quantiles, with their exact least and greatest."""

    wanted: list[Wanted]
    low: float = np.inf
    high: float = -np.inf
    sketch: QuantilesSketch = field(init=False)

    def __post_init__(self) -> None:
        self.sketch = QuantilesSketch(self.wanted[0].epsilon, _MOST_ROWS, 1)

    def add(self, values: NDArray[np.float32]) -> None:
        """Take more numbers."""
        if len(values):
            self.low = min(self.low, float(values.min()))
            self.high = max(self.high, float(values.max()))
            self.sketch.AddValues(pa.array(values))

    def merge(self, other: Edges) -> None:
        """Take the numbers of another summary."""
        self.low, self.high = min(self.low, other.low), max(self.high, other.high)
        self.sketch.Merge(other.sketch)

    def compact(self) -> None:
        """Make the sketch fit for travel."""
        self.sketch.Compact()

    def answer(self) -> NDArray[np.float64]:
        """The edges of each wanted number of bins, one after the other."""
        return np.concatenate([self._edges(one.bins) for one in self.wanted])

    def _edges(self, bins: int) -> NDArray[np.float64]:
        # An empty sketch answers nothing.
        quantiles = self.sketch.GetQuantiles(bins).to_pylist()
        inner = quantiles[0][1:-1] if quantiles else [0.0] * (bins - 1)
        return np.array([self.low, *inner, self.high], np.float64)
