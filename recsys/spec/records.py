"""The spec as frozen, strict, typed records. It holds facts; paths and clusters do not belong.

Every default here is what a user gets who leaves the field out, so each one is a choice
that was measured (see docs/benchmarks.md) or the field's usual one.
"""

from __future__ import annotations

import re
from datetime import UTC, date, datetime
from typing import Annotated, Any, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Discriminator,
    Field,
    Tag,
    field_validator,
    model_validator,
)

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=100)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Text = Annotated[str, Field(min_length=1)]
Positive = Annotated[int, Field(gt=0)]
Rows = Annotated[int, Field(gt=0, lt=2**31 - 2)]
"""A number of values or of table rows, which ids of 32 bits can tell apart."""
Length = Annotated[int, Field(gt=0, le=100_000)]
"""Values of a list, of which each row holds as many, with padding."""
Widths = Annotated[tuple[Positive, ...], Field(min_length=1)]
NonNegative = Annotated[float, Field(ge=0.0)]

_DURATION = re.compile(r"0*([1-9][0-9]{0,8})\s*(s|m|h|d)")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Record(BaseModel):
    """Base of all records: unknown keys are faults, values are not coerced, nothing mutates."""

    model_config = ConfigDict(
        extra="forbid",
        strict=True,
        frozen=True,
        use_attribute_docstrings=True,
        allow_inf_nan=False,
    )


# ------------------------------------------------------------------------------- data


class TimeColumn(Record):
    """A column that says when: epoch numbers or text, in UTC where no zone is given."""

    column: Text
    """Name of the column."""
    unit: Literal["s", "ms", "us", "ns", "iso"] = "iso"
    """Unit of epoch numbers, or `iso` for ISO 8601 text; not used for date and timestamp columns of
    Parquet."""
    format: str | None = None
    """Pattern of the text, such as `%d/%m/%Y %H:%M`, in place of `unit`."""

    @field_validator("format")
    @classmethod
    def _pattern(cls, value: str | None) -> str | None:
        if value is None:
            return value
        example = datetime(2026, 7, 2, 3, 4, 5, tzinfo=UTC)
        try:
            found = datetime.strptime(example.strftime(value), value)
        except (ValueError, re.error) as error:
            raise ValueError(f"expected a pattern such as %d/%m/%Y %H:%M ({error})") from None
        if (found.year, found.month) != (example.year, example.month):
            raise ValueError("expected a pattern of a whole date, such as %d/%m/%Y %H:%M")
        return value

    @model_validator(mode="after")
    def _unit_or_format(self) -> TimeColumn:
        if self.format is not None and self.unit != "iso":
            raise ValueError("unit is of numbers, and format of text: give one of the two")
        return self


class Log(Record):
    """A log: what happened, one row an event."""

    path: Text
    """File, folder or glob below the input folder; CSV, TSV or Parquet by its ending."""
    time: TimeColumn | None = None
    """When its events happened; required of action logs, and refused for the impressions, which
    have `data.time`."""


class Table(Record):
    """A table of users or items, one row a key, joined to the impressions."""

    path: Text
    """File, folder or glob below the input folder; CSV, TSV or Parquet by its ending."""
    key: Text
    """Column of the user or item ids; of rows with the same id that differ, all but the first are
    bad records."""
    prefix: str = ""
    """Put before the names of the table's other columns, where those of another file are the same:
    with `item_`, its `country` is the column `item_country` of features and requests."""


class Tables(Record):
    """The side tables, by the owner of the features that they hold."""

    user: Table | None = None
    """Table with the columns of the user's features; none: they are in the impression log."""
    item: Table | None = None
    """Table with the columns of the item's features; none: they are in the impression log."""


class Keys(Record):
    """Columns of the impression log that identify things."""

    user: Text
    """Column of the user's id; a row without one is a bad record."""
    item: Text
    """Column of the item's id; a row without one is a bad record."""
    request: Text | None = None
    """Column that says which impressions were shown together, for ranking losses and for a split by
    fraction."""
    impression: Text | None = None
    """Column of the impression's own id, by which action logs are joined; it has the same name in
    them."""


class TimeSplit(Record):
    """Split by day."""

    kind: Literal["time"] = "time"
    """Chooses this split."""
    train_to: date
    """Last day of the training rows."""
    validation_to: date
    """Last day of the validation rows, which begin the day after `train_to`."""
    test_to: date | None = None
    """Last day of the test rows, after which rows are left out; none: to the end of the log."""
    column: TimeColumn | None = None
    """Column of the impression log to take the day from; none: the day of `data.time` in UTC."""


class FractionSplit(Record):
    """Split by a stable hash of the request (or of the impression, or of the row)."""

    kind: Literal["fraction"] = "fraction"
    """Chooses this split."""
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the requests that go to validation; with `test` it must be below 1."""
    test: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    """Share of the requests that go to the test."""
    seed: int = 0
    """Changes which requests go where."""


class Data(Record):
    """Where the rows come from and how they are divided."""

    impressions: Log
    """The impression log: one row for each item shown."""
    actions: dict[Name, Log] = {}
    """Logs of what followed, such as clicks and orders, each by a name that labels refer to."""
    tables: Tables = Tables()
    """Tables of users and items, joined to the impressions by id."""
    keys: Keys
    """Columns of the impression log that hold ids."""
    time: TimeColumn | None = None
    """When impressions were shown; required for action logs, histories, counters, and a time split
    without `column`."""
    split: Annotated[TimeSplit | FractionSplit, Field(discriminator="kind")]
    """How rows are divided into training, validation and test."""
    bad_records: Fraction = 0.01
    """Largest share of a log's or table's rows that may be bad; above it the feature job stops."""
    duplicates: Literal["remove", "keep"] = "remove"
    """What becomes of impressions that equal another in every column; of those with a time of day,
    in every column that is read. `keep` them where rows have neither an id nor a time of day, and
    equal ones are impressions of their own."""
    weight: Text | None = None
    """Column of the impression log with how much a row counts in training, a number of at least 0;
    none: all count alike. Metrics and calibration count all rows alike."""
    max_rows: Positive | None = None
    """Most impressions to read, in short runs spread evenly over the log; none: all."""


# --------------------------------------------------------------------------- features


class Vocabulary(Record):
    """Ids learned from the training rows; all others share out-of-vocabulary embeddings."""

    kind: Literal["vocabulary"] = "vocabulary"
    """Chooses this encoding."""
    min_count: Rows = 1
    """Occurrences in the training rows from which a value has an embedding of its own."""
    top_k: Rows | None = None
    """Most values with embeddings of their own, the most frequent first; none: no limit."""
    oov_buckets: Rows = 1
    """Embeddings that all other values share, each value one of them by its hash."""
    max_length: Length | None = None
    """Reads the column as a list, of which the first so many values are used; none: a single
    value."""
    combiner: Literal["mean", "sum"] = "mean"
    """How the embeddings of a list are joined into one."""
    weights: Text | None = None
    """Column with a list of numbers, one for each part of this list, or for each that is not blank,
    by which `mean` and `sum` weigh the parts; a missing one is 1, a negative one 0. None: all parts
    count alike."""


class Hash(Record):
    """Ids hashed into the rows of a table, so that none needs to be known from training."""

    kind: Literal["hash"] = "hash"
    """Chooses this encoding."""
    buckets: Annotated[int, Field(gt=1, lt=2**31 - 2)]
    """Rows of the embedding table, without the one for missing values."""
    hashes: Annotated[int, Field(ge=1, le=4)] = 1
    """Rows that are summed for one value, so that few values have the same embedding."""
    max_length: Length | None = None
    """Reads the column as a list, of which the first so many values are used; none: a single
    value."""
    combiner: Literal["mean", "sum"] = "mean"
    """How the embeddings of a list are joined into one."""
    weights: Text | None = None
    """Column with a list of numbers, one for each part of this list, or for each that is not blank,
    by which `mean` and `sum` weigh the parts; a missing one is 1, a negative one 0. None: all parts
    count alike."""


class Quantiles(Record):
    """A number cut at quantiles of the training rows; each bucket has an embedding."""

    kind: Literal["quantiles"] = "quantiles"
    """Chooses this encoding."""
    buckets: Annotated[int, Field(gt=1, le=1000)] = 20
    """Buckets, with about equally many training rows each; missing values have one more."""


class Numeric(Record):
    """A number that enters the dense towers, scaled.

    Each number also has one first-order weight per task. With `match`, its value times a learned
    vector is added to its owner's sum of embeddings. A missing number counts as 0 once scaled.
    """

    kind: Literal["numeric"] = "numeric"
    """Chooses this encoding."""
    scale: Literal["zscore", "log_zscore", "none"] = "zscore"
    """`zscore` subtracts the training rows' mean and divides by their standard deviation,
    `log_zscore` takes the signed log(1 + size) first, `none` does nothing."""


class Piecewise(Record):
    """A number encoded piecewise-linearly over quantile bins, with a learned embedding.

    Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning, 2022.
    """

    kind: Literal["piecewise"] = "piecewise"
    """Chooses this encoding."""
    bins: Annotated[int, Field(gt=1, le=256)] = 16
    """Bins between quantiles of the training rows; each says from 0 to 1 how far the number fills
    it."""


class History(Record):
    """The user's past items, latest first.

    A history holds what was known at the end of the day before the impression's, which is
    what a daily feature job can serve: the same values offline and online.
    """

    kind: Literal["history"] = "history"
    """Chooses this encoding."""
    of: str
    """Item feature, a single id by vocabulary or hash, whose values are listed and whose embeddings
    are read."""
    action: str | None = None
    """Task that must have happened on an impression for its item to be listed; none: all items
    shown."""
    max_length: Length = 20
    """Most items that are listed."""


class Counter(Record):
    """How often a task happened, among past impressions that share some values.

    Counted to the end of the day before the impression's. The smoothed rate is
    `(positives + prior_weight * overall rate) / (impressions + prior_weight)`.
    """

    kind: Literal["counter"] = "counter"
    """Chooses this encoding."""
    by: Annotated[tuple[Text, ...], Field(min_length=1)]
    """Features, or columns of the impression log, whose values must be equal for an impression to
    be counted."""
    task: str | None = None
    """Task whose positives are counted; not needed where `statistic` is `impressions`."""
    statistic: Literal["impressions", "positives", "rate"] = "rate"
    """Number of past impressions, of positives of `task` among them, or their smoothed rate."""
    prior_weight: Annotated[float, Field(gt=0.0)] = 20.0
    """How many impressions the overall rate counts for in the smoothed rate."""
    as_: Annotated[Quantiles | Numeric | Piecewise, Field(discriminator="kind")] = Field(
        alias="as", default=Quantiles()
    )
    """How the number is encoded."""


Encoding = Annotated[
    Vocabulary | Hash | Quantiles | Numeric | Piecewise | History | Counter,
    Field(discriminator="kind"),
]


class Feature(Record):
    """One feature: whose it is, its raw column, and how it is encoded."""

    name: Name
    """Name of the feature, different from all others also when case is ignored, and no keyword of
    Python."""
    owner: Literal["user", "item", "context"]
    """Whose value it is: when serving, those of the user and the item are looked up by id, and
    those of the context come with the request."""
    encode: Encoding
    """How the value is given to the network."""
    column: str = ""
    """Column that holds the value; none: the one named like the feature."""
    separator: Text | None = None
    """Text between the values of a list; none: a comma."""
    table: Name | Literal[""] = ""
    """Name of the embedding table, for several features to share one; none: the feature's name."""
    dim: Positive | None = None
    """Width of the embedding table, whose rows are projected to `model.dim` where it differs; none:
    `model.dim`."""

    @property
    def raw(self) -> str:
        """The raw column; by default it has the feature's name."""
        return self.column or self.name

    @property
    def table_name(self) -> str:
        """The embedding table; by default it has the feature's name."""
        return self.table or self.name

    @property
    def is_list(self) -> bool:
        """Whether the encoded feature is a list of ids, padded with -1."""
        kind = self.encode.kind
        return kind == "history" or (
            kind in ("vocabulary", "hash") and self.encode.max_length is not None  # type: ignore[union-attr]
        )


# ------------------------------------------------------------------------------ tasks


class ColumnLabel(Record):
    """The label is a column of the impression log."""

    column: Text
    """The column: 0 or 1, or any number for a regression."""


class ActionLabel(Record):
    """The label is 1 where an event follows the impression in time, else 0."""

    action: str
    """The log's name in `data.actions`."""
    within: str = "24h"
    """Longest time from the impression to the event: a whole number and `s`, `m`, `h` or `d`."""

    @field_validator("within")
    @classmethod
    def _duration(cls, value: str) -> str:
        if not _DURATION.fullmatch(value):
            raise ValueError("expected a duration above 0 such as 30m, 24h or 7d")
        return value

    @property
    def within_seconds(self) -> int:
        """The attribution window in seconds."""
        match = _DURATION.fullmatch(self.within)
        assert match is not None
        return int(match.group(1)) * _SECONDS[match.group(2)]


def _label_kind(value: Any) -> str:
    by_action = "action" in value if isinstance(value, dict) else isinstance(value, ActionLabel)
    return "ActionLabel" if by_action else "ColumnLabel"


Label = Annotated[
    Annotated[ColumnLabel, Tag("ColumnLabel")] | Annotated[ActionLabel, Tag("ActionLabel")],
    Discriminator(_label_kind),
]


class Bce(Record):
    """Binary cross-entropy."""

    kind: Literal["bce"] = "bce"
    """Chooses this loss."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of each label that is moved to one half."""


class Focal(Record):
    """Focal loss (Lin et al., 2017): cross-entropy that counts what is predicted well less."""

    kind: Literal["focal"] = "focal"
    """Chooses this loss."""
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    """Weight of positives, where negatives have 1 - `alpha`; none: both have 1."""
    gamma: NonNegative = 1.0
    """How much less rows count that are predicted well already; at 0 all count the same."""
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of each label that is moved to one half."""


class SquaredError(Record):
    """Squared error of a regression task, such as watch time or value.

    Errors are measured in standard deviations of the training labels.
    """

    kind: Literal["mse"] = "mse"
    """Chooses this loss."""
    log: bool = False
    """Whether log(1 + label) is learned, with labels below 0 as 0; answers are turned back."""


class Huber(Record):
    """Huber loss of a regression task: quadratic for small errors, linear for large ones."""

    kind: Literal["huber"] = "huber"
    """Chooses this loss."""
    delta: Annotated[float, Field(gt=0.0)] = 1.0
    """Error from which the loss is linear, in standard deviations of the training labels."""
    log: bool = False
    """Whether log(1 + label) is learned, with labels below 0 as 0; answers are turned back."""


class Ranking(Record):
    """A ranking loss over the impressions of one request, added to the task's own loss."""

    kind: Literal["pairwise", "listwise"]
    """`pairwise`: logistic loss of pairs with different labels (RankNet); `listwise`: cross-entropy
    of a softmax over the request (ListNet)."""
    weight: NonNegative = 1.0
    """Factor of the ranking loss where it is added."""


class Gate(Record):
    """What a challenger must show on the evaluated split to be published.

    Regressions are not judged, nor is a task of `weight: 0` unless a limit here differs from its
    default. A challenger that lacks a task of the champion's is refused.
    """

    min_auc: Fraction | None = None
    """Least AUC; none: not asked for."""
    max_ece: Fraction | None = None
    """Largest expected calibration error, in probability; none: not asked for."""
    max_auc_drop: Fraction = 0.005
    """How far the AUC may be below the champion's, the newest published model's, on the same
    rows."""


class Task(Record):
    """One label with its head, loss, metrics and weight.

    Tasks with `given` make a funnel, and `space` says what their heads answer and where they are
    trained. `entire`: the probability given the other task, trained over all impressions through
    the product of the funnel (ESMM). `observed`: the same, trained on the impressions where the
    given task happened, as regressions always are. `joint`: the probability of both, trained over
    all impressions as a task of its own; an answer is never above that of the given task.
    """

    name: Name
    """Name of the task and of its answer, unlike those of all others."""
    label: Label
    """What counts as a positive, or the number to predict."""
    given: str | None = None
    """Task that must happen first, as a click before an order; where it did not, the label is set
    to 0."""
    loss: Annotated[Bce | Focal | SquaredError | Huber, Field(discriminator="kind")] = Focal()
    """Loss that trains the task's head; `mse` and `huber` make the task a regression."""
    space: Literal["entire", "observed", "joint"] = "entire"
    """What the head of a task with `given` answers, and on which rows it is trained (see above)."""
    inverse_propensity: bool = False
    """With `space: observed`, whether rows weigh the inverse of the given task's predicted
    probability, taken as at least 0.05."""
    ranking: Ranking | None = None
    """Ranking loss that is added; needs `data.keys.request`."""
    weight: NonNegative = 1.0
    """Factor of the task's loss; at 0 its networks are not trained, it does not choose the best
    epoch, and it is judged only by a `gate` of its own."""
    gate: Gate = Gate()
    """What the task's metrics must show for a model to be published."""

    @property
    def is_regression(self) -> bool:
        """Whether the task predicts a number rather than a probability."""
        return self.loss.kind in ("mse", "huber")

    @property
    def by_logarithm(self) -> bool:
        """Whether a regression learns log(1 + label)."""
        return isinstance(self.loss, SquaredError | Huber) and self.loss.log


# ------------------------------------------------------------------------------ model


class SharedBottom(Record):
    """One tower shared by all tasks."""

    kind: Literal["shared_bottom"] = "shared_bottom"
    """Chooses this way of sharing."""


class Mmoe(Record):
    """Multi-gate mixture of experts (Ma et al., 2018): each task has its own mix of all experts."""

    kind: Literal["mmoe"] = "mmoe"
    """Chooses this way of sharing."""
    experts: Annotated[int, Field(ge=2, le=32)] = 4
    """Expert towers, each with the layers of `model.shared`."""


class Ple(Record):
    """Progressive layered extraction (Tang et al., 2020).

    On each level, a task mixes the shared experts and its own.
    """

    kind: Literal["ple"] = "ple"
    """Chooses this way of sharing."""
    shared_experts: Annotated[int, Field(ge=1, le=16)] = 2
    """Expert towers of all tasks on each level, with the layers of `model.shared`."""
    task_experts: Annotated[int, Field(ge=1, le=16)] = 1
    """Expert towers of each task alone on each level, with the layers of `model.shared`."""
    levels: Annotated[int, Field(ge=1, le=4)] = 1
    """Levels of experts, one after the other."""


class HistoryAttention(Record):
    """How the items of a history become one vector."""

    kind: Literal["mean", "target", "local"] = "target"
    """`mean` of the items, `target`: a sum weighed by the candidate item, `local`: the same after
    self-attention among the items."""
    window: Annotated[int, Field(ge=4, le=1024)] = 64
    """With `local`, items in a block; each item sees its own block and the one before."""
    hidden: Widths = (32,)
    """With `target` and `local`, widths of the hidden layers that weigh an item for the
    candidate."""


class Variant(Record):
    """Networks of another kind beside the model's own; what is left out is as in `model`."""

    members: Annotated[int, Field(ge=1, le=16)] | None = None
    """Networks of this kind."""
    shared: Widths | None = None
    """Widths of the layers that tasks share."""
    towers: tuple[Positive, ...] | None = None
    """Widths of the layers of each task's tower."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of each tower layer's outputs that are set to 0 in training."""
    embedding_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    """Share of the embeddings' numbers that are set to 0 in training."""


class Trees(Record):
    """Gradient-boosted trees beside the networks, for tables where numbers say most.

    Each task has its own, and fitting stops when the validation loss no longer falls. They read
    numbers and single ids (by frequency; neither the keys' own nor hashes). One process fits them
    once the networks are trained. The mean of the networks and the trees each have a weight per
    task, fitted on validation rows.
    """

    count: Annotated[int, Field(ge=1, le=2000)] = 1000
    """Most trees of each task."""
    leaves: Annotated[int, Field(ge=2, le=64)] = 16
    """Most leaves of a tree."""
    leaf_rows: Positive = 50
    """Fewest training rows in a leaf."""
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    """Factor of what each tree adds."""
    rows: Positive = 500_000
    """Most training rows to fit on, and most validation rows to stop by; of more, a random
    sample."""


class Model(Record):
    """The network.

    Of the `interactions`, the towers read `fm` (the products of all pairs of embeddings, by
    element, in one sum), `dot` (the dot product of each pair) and `cross` (a cross network of
    embeddings and numbers, DCN-v2). `match` is added to the logits: the sum of the user's
    embeddings, times a matrix of each task, times the sum of the item's. A number enters its
    owner's sum as its value times a learned vector. Ids of `data.keys` stay out of a sum that
    has other embeddings. `match` is worth most where one task has many labels and another few,
    which then borrows the factors of the first.
    """

    dim: Annotated[int, Field(ge=1, le=512)] = 16
    """Width of the embeddings that the network reads."""
    interactions: tuple[Literal["fm", "cross", "dot", "match"], ...] = ("fm", "dot")
    """Products of features that are made (see above)."""
    cross_layers: Annotated[int, Field(ge=1, le=8)] = 2
    """Layers of `cross`; each raises the degree of its products by one."""
    cross_projection: Positive | None = None
    """Rank of the matrices of `cross`; none: full matrices."""
    first_order: bool = True
    """Whether each id and each scaled number has a weight of its own per task, added to the
    logit."""
    sharing: Annotated[SharedBottom | Mmoe | Ple, Field(discriminator="kind")] = SharedBottom()
    """How tasks share the layers below their own towers."""
    gated: bool = True
    """Whether a learned sigmoid gate scales each tower layer's outputs, at twice the cost."""
    shared: Widths = (256, 128)
    """Widths of the layers that tasks share, of each expert where there are several."""
    towers: tuple[Positive, ...] = (64,)
    """Widths of the layers of each task's tower."""
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of each tower layer's outputs that are set to 0 in training."""
    embedding_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    """Share of the embeddings' numbers that are set to 0 in training."""
    history: HistoryAttention = HistoryAttention()
    """How histories are read."""
    position: str | None = None
    """Context feature with the display position; its effect is learned in training and left out
    when serving."""
    members: Annotated[int, Field(ge=1, le=16)] = 1
    """Networks trained side by side; their logits are averaged."""
    variants: Annotated[tuple[Variant, ...], Field(max_length=4)] = ()
    """Further kinds of network, trained beside the model's own; weights fitted on validation rows
    join them."""
    trees: Trees | None = None
    """Boosted trees beside the networks; none: no trees."""
    recompute: bool = False
    """Whether the backward pass computes activations again, for less memory and more time."""
    xla: bool = False
    """Whether XLA compiles the layers above the embeddings in training."""

    @property
    def kinds(self) -> tuple[Model, ...]:
        """The model's own kind of network, and that of each variant."""
        own = self.model_copy(update={"variants": (), "trees": None})
        changes = [variant.model_dump(exclude_none=True) for variant in self.variants]
        return (own, *(own.model_copy(update=change) for change in changes))


# ------------------------------------------------------------------------------ train


class Balancing(Record):
    """How the tasks' losses share the gradient."""

    kind: Literal["fixed", "uncertainty", "gradnorm", "dwa", "pcgrad"] = "fixed"
    """`fixed`: by the tasks' `weight` alone; `uncertainty`: more for small losses; `gradnorm`:
    equal pace of learning; `dwa`: more for losses that fall slowly; `pcgrad`: without the parts of
    gradients that conflict."""
    alpha: NonNegative = 1.5
    """With `gradnorm`, how strongly tasks are pulled to an equal pace; 0 asks for equal gradient
    norms."""
    temperature: Annotated[float, Field(gt=0.0)] = 2.0
    """With `dwa`, how alike the weights are: the higher, the more alike."""


class EarlyStopping(Record):
    """Stop when validation gets no better, and keep the best epoch."""

    metric: Literal["auc", "log_loss"] = "auc"
    """What epochs are compared by: the mean of the tasks' AUC or log loss, or of their root mean
    squared error where all are regressions."""
    patience: Positive = 1
    """Epochs in a row without a better value after which training stops."""


class Train(Record):
    """The training run.

    Tables are trained by Adagrad with one accumulator a row, all other weights by Adam.
    `table_initial_accumulator` holds back rows that were seen seldom, as a prior does: at 0 the
    first example already moves a row by a whole learning rate. `weight_decay` leaves tables,
    vectors (biases), the weights of numbers and those of `match` alone; biases of piecewise-linear
    numbers are a matrix, and decay. With `refit`, once validation has settled the epochs, the
    weights of kinds, the number of trees and the calibration, training begins anew on training
    and validation rows together, for as many epochs as were best: what is served then knows the
    newest days too, for twice the time.
    """

    batch_size: Positive = 256
    """Rows in a step, over all workers."""
    epochs: Positive = 2
    """Most passes over the training rows."""
    table_learning_rate: Annotated[float, Field(gt=0.0)] = 0.1
    """Highest learning rate of the embedding tables."""
    table_initial_accumulator: NonNegative = 1.0
    """Where the Adagrad accumulator of each table row starts, in squared gradients of a single
    example."""
    dense_learning_rate: Annotated[float, Field(gt=0.0)] = 0.001
    """Highest learning rate of all other weights."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """How learning rates fall to a fiftieth by the end of the last epoch, on a line or half a
    cosine wave, or that they do not."""
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    """Steps in which learning rates rise at the start, at most a tenth of the run."""
    weight_decay: NonNegative = 0.0
    """Share by which a step shrinks the layers' matrices, by unit of learning rate."""
    balancing: Balancing = Balancing()
    """How the tasks' losses share the gradient."""
    calibration: Literal["none", "temperature", "platt", "isotonic"] = "platt"
    """What is fitted on validation rows to each task's logit: nothing, a scale (`temperature`), a
    scale and a shift (`platt`) or a free rising curve (`isotonic`)."""
    early_stopping: EarlyStopping = EarlyStopping()
    """When training stops before the last epoch."""
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    """Number type that layers compute in; weights are float32 in all three. `mixed_bfloat16` makes
    large batches faster on processors that multiply it (`avx512_bf16`, `amx_bf16`)."""
    negative_sampling: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    """Share of the rows without any positive label that is trained on; those kept weigh its
    inverse."""
    checkpoint_every: Positive | None = None
    """Steps between checkpoints within an epoch; none: only at the end of each epoch."""
    max_steps: Positive | None = None
    """Most steps of the run; none: no limit but `epochs`."""
    refit: bool = False
    """Whether what is served is trained anew on training and validation rows together."""
    seed: Annotated[int, Field(ge=0, lt=2**32)] = 0
    """Seed of first weights, dropout, the order of rows and sampling."""


class Evaluate(Record):
    """How metrics are split, beside those of all rows."""

    slices: tuple[str, ...] = ()
    """Features by whose raw values metrics are split; after a change the features must be built
    again."""
    largest: Annotated[int, Field(ge=1, le=100)] = 10
    """Most values of each feature that are told, those with the most rows."""


class Serve(Record):
    """The ranking endpoint, which orders candidates by one score."""

    blend: dict[str, float] = {}
    """Weight of each task's answer in the score; empty: equal for all probabilities, or all numbers
    where there are none."""
    max_candidates: Positive = 2000
    """Most candidates in a request; one with more is refused."""
    max_body_bytes: Positive = 4_000_000
    """Most bytes in a request's body; a longer one is refused with status 413."""
    deadline_ms: Positive = 1000
    """Milliseconds from the start of a request to its answer, after which it fails with status
    504, or 408 where its body has not come by then."""


class Spec(Record):
    """The whole spec; see `recsys.spec.load`."""

    name: Name
    """Name of the spec, which manifests and the service show."""
    data: Data
    """Where the rows come from and how they are divided."""
    features: Annotated[tuple[Feature, ...], Field(min_length=1)]
    """What the model knows of user, item and context."""
    tasks: Annotated[tuple[Task, ...], Field(min_length=1)]
    """What the model predicts."""
    model: Model = Model()
    """The network."""
    train: Train = Train()
    """The training run."""
    evaluate: Evaluate = Evaluate()
    """What metrics are split by."""
    serve: Serve = Serve()
    """The ranking endpoint."""

    def feature(self, name: str) -> Feature:
        """The feature of that name."""
        return next(feature for feature in self.features if feature.name == name)

    def task(self, name: str) -> Task:
        """The task of that name."""
        return next(task for task in self.tasks if task.name == name)

    def chain(self, name: str) -> tuple[Task, ...]:
        """The funnel that ends in the task: its ancestors, first to last, then itself."""
        task = self.task(name)
        return (*self.chain(task.given), task) if task.given else (task,)

    def blend(self) -> dict[str, float]:
        """Weights of the tasks in the score.

        By default equal over tasks with probabilities, or over all where none has one.
        """
        if self.serve.blend:
            return dict(self.serve.blend)
        binary = [task.name for task in self.tasks if not task.is_regression]
        names = binary or [task.name for task in self.tasks]
        return {name: 1.0 / len(names) for name in names}

    def shrunk(self, *, rows: int = 2000, steps: int = 20, **train: Any) -> Spec:
        """This spec made small for tests: the same parts, narrower, on fewer rows and steps."""

        def narrow(widths: tuple[int, ...] | None) -> tuple[int, ...] | None:
            return widths and tuple(min(width, 8) for width in widths)

        model = self.model.model_copy(
            update={
                "dim": min(self.model.dim, 4),
                "shared": narrow(self.model.shared),
                "towers": narrow(self.model.towers),
                "members": min(self.model.members, 2),
                "variants": tuple(
                    v.model_copy(
                        update={
                            "shared": narrow(v.shared),
                            "towers": narrow(v.towers),
                            "members": v.members and min(v.members, 2),
                        }
                    )
                    for v in self.model.variants
                ),
                "trees": self.model.trees
                and self.model.trees.model_copy(update={"count": min(self.model.trees.count, 5)}),
            }
        )
        small = {"epochs": 1, "batch_size": 64, "max_steps": steps, **train}
        return self.model_copy(
            update={
                "data": self.data.model_copy(update={"max_rows": rows}),
                "features": tuple(f.model_copy(update={"dim": None}) for f in self.features),
                "model": model,
                "train": self.train.model_copy(update=small),
            }
        )
