"""The spec as frozen, strict, typed records. It holds facts; paths and clusters do not belong.

Every default here is what a user gets who leaves the field out, so each one is a choice
that was measured (see docs/benchmarks.md) or the field's usual one.
"""

from __future__ import annotations

import re
from datetime import date
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, field_validator

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_]*$", max_length=100)]
Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
Positive = Annotated[int, Field(gt=0)]
NonNegative = Annotated[float, Field(ge=0.0)]

_DURATION = re.compile(r"^(\d+)\s*(s|m|h|d)$")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


class Record(BaseModel):
    """Base of all records: unknown keys are faults, values are not coerced, nothing mutates."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


# ------------------------------------------------------------------------------- data


class TimeColumn(Record):
    """A column that says when: epoch numbers by `unit`, ISO 8601 text, or text by `format`."""

    column: str
    unit: Literal["s", "ms", "us", "ns", "iso"] = "iso"
    format: str | None = None


class Log(Record):
    """A log below the input folder: a file, a folder or a glob; CSV or Parquet by ending."""

    path: str
    time: TimeColumn | None = None


class Table(Record):
    """A table of users or items, one row a key, joined to the impressions."""

    path: str
    key: str


class Tables(Record):
    """The side tables, by the owner of the features that they hold."""

    user: Table | None = None
    item: Table | None = None


class Keys(Record):
    """Columns of the impression log that identify things."""

    user: str
    item: str
    request: str | None = None
    impression: str | None = None


class TimeSplit(Record):
    """Split by day, each bound inclusive: train to, validation to, test to (or to the end)."""

    kind: Literal["time"] = "time"
    train_to: date
    validation_to: date
    test_to: date | None = None
    column: TimeColumn | None = None


class FractionSplit(Record):
    """Split by a stable hash of the request (or of the impression, or of the row)."""

    kind: Literal["fraction"] = "fraction"
    validation: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    test: Annotated[float, Field(gt=0.0, lt=1.0)] = 0.1
    seed: int = 0


class Data(Record):
    """Where the rows come from and how they are divided."""

    impressions: Log
    actions: dict[Name, Log] = {}
    tables: Tables = Tables()
    keys: Keys
    time: TimeColumn | None = None
    split: Annotated[TimeSplit | FractionSplit, Field(discriminator="kind")]
    bad_records: Fraction = 0.01
    max_rows: Positive | None = None


# --------------------------------------------------------------------------- features


class Vocabulary(Record):
    """Ids learned from the training rows; rarer than `min_count` goes to out-of-vocabulary rows."""

    kind: Literal["vocabulary"] = "vocabulary"
    min_count: Positive = 1
    top_k: Positive | None = None
    oov_buckets: Positive = 1
    max_length: Positive | None = None
    combiner: Literal["mean", "sum"] = "mean"


class Hash(Record):
    """Ids hashed into `buckets` rows; `hashes` > 1 sums that many rows an id (compositional)."""

    kind: Literal["hash"] = "hash"
    buckets: Annotated[int, Field(gt=1)]
    hashes: Annotated[int, Field(ge=1, le=4)] = 1
    max_length: Positive | None = None
    combiner: Literal["mean", "sum"] = "mean"


class Quantiles(Record):
    """A number cut at quantiles of the training rows; each bucket has an embedding."""

    kind: Literal["quantiles"] = "quantiles"
    buckets: Annotated[int, Field(gt=1, le=1000)] = 20


class Numeric(Record):
    """A number that enters the dense towers, scaled.

    It also has a first-order weight of each task, and in `match` a vector, times which it counts
    in its owner's sum.
    """

    kind: Literal["numeric"] = "numeric"
    scale: Literal["zscore", "log_zscore", "none"] = "zscore"


class Piecewise(Record):
    """A number encoded piecewise-linearly over quantile bins, with a learned embedding.

    Gorishniy et al., On Embeddings for Numerical Features in Tabular Deep Learning, 2022.
    """

    kind: Literal["piecewise"] = "piecewise"
    bins: Annotated[int, Field(gt=1, le=256)] = 16


class History(Record):
    """The user's past items (feature `of`) on which the task `action` happened, latest first.

    A history holds what was known at the end of the day before the impression's, which is
    what a daily feature job can serve: the same values offline and online.
    """

    kind: Literal["history"] = "history"
    of: str
    action: str | None = None
    max_length: Positive = 20


class Counter(Record):
    """How often a task happened, among past impressions that share the columns `by`.

    Counted to the end of the day before the impression's. `statistic` is the number of past
    impressions, of positives of `task`, or their smoothed rate
    `(positives + prior_weight * overall rate) / (impressions + prior_weight)`.
    """

    kind: Literal["counter"] = "counter"
    by: tuple[str, ...] = Field(min_length=1)
    task: str | None = None
    statistic: Literal["impressions", "positives", "rate"] = "rate"
    prior_weight: Annotated[float, Field(gt=0.0)] = 20.0
    as_: Annotated[Quantiles | Numeric | Piecewise, Field(alias="as", discriminator="kind")] = (
        Quantiles()
    )


Encoding = Annotated[
    Vocabulary | Hash | Quantiles | Numeric | Piecewise | History | Counter,
    Field(discriminator="kind"),
]


class Feature(Record):
    """One feature: whose it is, its raw column, and how it is encoded."""

    name: Name
    owner: Literal["user", "item", "context"]
    encode: Encoding
    column: str = ""
    separator: str | None = None
    table: str = ""
    dim: Positive | None = None

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
    """The label is a column of the impression log (0 or 1, or a number for regression)."""

    column: str


class ActionLabel(Record):
    """The label is 1 where an event of the log `action` follows the impression `within` a time."""

    action: str
    within: str = "24h"

    @field_validator("within")
    @classmethod
    def _duration(cls, value: str) -> str:
        if not _DURATION.match(value):
            raise ValueError("expected a duration such as 30m, 24h or 7d")
        return value

    @property
    def within_seconds(self) -> int:
        """The attribution window in seconds."""
        match = _DURATION.match(self.within)
        assert match is not None
        return int(match.group(1)) * _SECONDS[match.group(2)]


class Bce(Record):
    """Binary cross-entropy."""

    kind: Literal["bce"] = "bce"
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class Focal(Record):
    """Focal loss (Lin et al., 2017): `alpha` weighs positives and `1 - alpha` negatives."""

    kind: Literal["focal"] = "focal"
    alpha: Annotated[float, Field(gt=0.0, lt=1.0)] | None = None
    gamma: NonNegative = 1.0
    label_smoothing: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0


class SquaredError(Record):
    """Squared error of a regression task (watch time, value), optionally of log(1 + label).

    Errors are measured in standard deviations of the training labels.
    """

    kind: Literal["mse"] = "mse"
    log: bool = False


class Huber(Record):
    """Huber loss of a regression task, optionally of log(1 + label).

    It turns from quadratic to linear at an error of `delta` standard deviations of the training
    labels.
    """

    kind: Literal["huber"] = "huber"
    delta: Annotated[float, Field(gt=0.0)] = 1.0
    log: bool = False


class Ranking(Record):
    """A ranking loss over the impressions of one request, added to the task's own loss."""

    kind: Literal["pairwise", "listwise"]
    weight: NonNegative = 1.0


class Gate(Record):
    """What a challenger must show on the evaluated split to be published."""

    min_auc: Fraction | None = None
    max_ece: Fraction | None = None
    max_auc_drop: Fraction = 0.005


class Task(Record):
    """One label with its head, loss, metrics and weight.

    `given` names the task that it follows in the funnel. `space` says what the head of such a
    task answers, and where it is trained. `entire`: its probability given the other task, which is
    trained over all impressions through the funnel product (ESMM). `observed`: the same, trained
    on impressions where the given task happened, optionally weighted by the inverse of that
    task's predicted probability. `joint`: the probability of both, trained over all impressions
    as a task of its own; an answer is never above that of the given task.
    """

    name: Name
    label: ColumnLabel | ActionLabel
    given: str | None = None
    loss: Annotated[Bce | Focal | SquaredError | Huber, Field(discriminator="kind")] = Focal()
    space: Literal["entire", "observed", "joint"] = "entire"
    inverse_propensity: bool = False
    ranking: Ranking | None = None
    weight: NonNegative = 1.0
    gate: Gate = Gate()

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


class Mmoe(Record):
    """Multi-gate mixture of experts (Ma et al., 2018)."""

    kind: Literal["mmoe"] = "mmoe"
    experts: Annotated[int, Field(ge=2, le=32)] = 4


class Ple(Record):
    """Progressive layered extraction (Tang et al., 2020)."""

    kind: Literal["ple"] = "ple"
    shared_experts: Annotated[int, Field(ge=1, le=16)] = 2
    task_experts: Annotated[int, Field(ge=1, le=16)] = 1
    levels: Annotated[int, Field(ge=1, le=4)] = 1


class HistoryAttention(Record):
    """How histories are read: `mean`, `target` attention, or `local` self-attention then target."""

    kind: Literal["mean", "target", "local"] = "target"
    window: Annotated[int, Field(ge=4, le=1024)] = 64
    hidden: tuple[Positive, ...] = (32,)


class Variant(Record):
    """Networks of another kind beside the model's own; what is left out is as in `model`."""

    members: Annotated[int, Field(ge=1, le=16)] | None = None
    shared: tuple[Positive, ...] | None = None
    towers: tuple[Positive, ...] | None = None
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None
    embedding_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] | None = None


class Trees(Record):
    """Gradient-boosted trees beside the networks, for tables where numbers say most.

    Each task has its own, at most `count` of them: fitting stops when the validation loss no
    longer falls. They read numbers and single ids (by frequency; neither the keys' own nor
    hashes), and are fitted, when the networks are trained, by one process on no more than
    `rows` rows. The mean of the networks and the trees each have a weight by task, fitted on
    validation rows.
    """

    count: Annotated[int, Field(ge=1, le=2000)] = 1000
    leaves: Annotated[int, Field(ge=2, le=64)] = 16
    leaf_rows: Positive = 50
    learning_rate: Annotated[float, Field(gt=0.0, le=1.0)] = 0.1
    rows: Positive = 500_000


class Model(Record):
    """The network.

    `interactions` are any of: `fm`, `dot` and `cross`, which the towers read, and `match`, which
    is added to the logits: the sum of the user's embeddings against that of the item's, by a
    matrix of each task. Numbers count in it as their value times a vector. Ids of `data.keys`
    are left out of it where their side has other embeddings. It is worth most where one task
    has many labels and another few, which then borrows the factors of the first.
    """

    dim: Annotated[int, Field(ge=1, le=512)] = 16
    interactions: tuple[Literal["fm", "cross", "dot", "match"], ...] = ("fm", "dot")
    cross_layers: Annotated[int, Field(ge=1, le=8)] = 2
    cross_projection: Positive | None = None
    first_order: bool = True
    sharing: Annotated[SharedBottom | Mmoe | Ple, Field(discriminator="kind")] = SharedBottom()
    gated: bool = True
    shared: tuple[Positive, ...] = (256, 128)
    towers: tuple[Positive, ...] = (64,)
    dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    embedding_dropout: Annotated[float, Field(ge=0.0, lt=1.0)] = 0.0
    history: HistoryAttention = HistoryAttention()
    position: str | None = None
    members: Annotated[int, Field(ge=1, le=16)] = 1
    variants: Annotated[tuple[Variant, ...], Field(max_length=4)] = ()
    trees: Trees | None = None
    recompute: bool = False
    xla: bool = False

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
    alpha: NonNegative = 1.5
    temperature: Annotated[float, Field(gt=0.0)] = 2.0


class EarlyStopping(Record):
    """Stop after `patience` epochs without a better validation `metric`, and keep the best."""

    metric: Literal["auc", "log_loss"] = "auc"
    patience: Positive = 1


class Train(Record):
    """The training run.

    `table_initial_accumulator` is where the Adagrad of each table row starts, in squared
    gradients of a single example. It holds back rows that were seen seldom, as a prior does:
    at 0 the first example already moves a row by a whole learning rate. Learning rates rise
    over `warmup_steps` (at most a tenth of the run) and then follow `schedule` down to a
    fiftieth at the last epoch's end. `weight_decay` shrinks the layers' matrices, by unit of
    learning rate; tables, biases, the weights of numbers and those of `match` are left alone.
    With `refit`, once validation has settled the epochs, the weights of kinds, the number of trees
    and the calibration, training begins anew on training and validation rows together, for as many
    epochs as were best: what is served then knows the newest days too, for twice the time.
    """

    batch_size: Positive = 256
    epochs: Positive = 2
    table_learning_rate: Annotated[float, Field(gt=0.0)] = 0.1
    table_initial_accumulator: NonNegative = 1.0
    dense_learning_rate: Annotated[float, Field(gt=0.0)] = 0.001
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    warmup_steps: Annotated[int, Field(ge=0)] = 50
    weight_decay: NonNegative = 0.0
    balancing: Balancing = Balancing()
    calibration: Literal["none", "temperature", "platt", "isotonic"] = "platt"
    early_stopping: EarlyStopping = EarlyStopping()
    precision: Literal["float32", "mixed_bfloat16", "mixed_float16"] = "float32"
    negative_sampling: Annotated[float, Field(gt=0.0, le=1.0)] = 1.0
    checkpoint_every: Positive | None = None
    max_steps: Positive | None = None
    refit: bool = False
    seed: int = 0


class Evaluate(Record):
    """Metrics are also cut by these features' raw values; `largest` values each."""

    slices: tuple[str, ...] = ()
    largest: Annotated[int, Field(ge=1, le=100)] = 10


class Serve(Record):
    """The ranking endpoint. `blend` weighs the tasks' probabilities into one score."""

    blend: dict[str, float] = {}
    max_candidates: Positive = 2000
    max_body_bytes: Positive = 4_000_000
    deadline_ms: Positive = 1000


class Spec(Record):
    """The whole spec; see `recsys.spec.load`."""

    name: Name
    data: Data
    features: tuple[Feature, ...] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)
    model: Model = Model()
    train: Train = Train()
    evaluate: Evaluate = Evaluate()
    serve: Serve = Serve()

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
        """Weights of the tasks in the score; by default equal over tasks with probabilities."""
        if self.serve.blend:
            return dict(self.serve.blend)
        names = [task.name for task in self.tasks if not task.is_regression]
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
