"""What bounds a training step: a few steps timed, a few traced, and a verdict in words.

The step as a whole is timed by the host's clock: waiting for the next batch, then the step
until its loss can be read. The inside of the step comes from TensorFlow's own trace, by rules
that all stand in this module:

- An op belongs to the first part of `RULES` that fits its type or its name; names carry the
  layers' (`network_0/tower_click/MatMul`) and the optimizers' (`Tables`, `Dense`).
- An instant in which ops run is split evenly over them, whatever thread they run on. So a part
  is charged with the time that a step really takes, not with the sum over threads.
- An instant in which nothing but a collective is under way is charged to the collectives: an
  exchange that computation hides costs nothing. Waiting for a slower worker is part of it.
- An instant in which nothing is under way is the host's: Python, launching the step, handing
  work to threads.
- Reading and decoding in the background is charged to nobody; the input is charged with the
  time that a step waits for its batch.

On a GPU the device's kernels count, and not the host's ops that launch them.
"""

from __future__ import annotations

import re
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from recsys.errors import UserError

FILE = "profile.json"
"""The record's name in the run folder."""

INPUT, EMBEDDING, DENSE = "input", "embedding", "dense"
LOSSES, COLLECTIVES, HOST = "losses", "collectives", "host"

PARTS = {
    INPUT: "waiting for input",
    EMBEDDING: "embedding work",
    DENSE: "dense work",
    LOSSES: "losses and balancing",
    COLLECTIVES: "collectives",
    HOST: "host overhead",
}
"""The parts of a step, and what they are called. Embedding work is looking rows up, pooling
them, their gradient and their optimizer; dense work is all other layers, likewise."""

RULES: tuple[tuple[str, str, str], ...] = (
    # part, pattern of the op's type, pattern of the op's name
    (COLLECTIVES, r"Collective|Nccl", r""),
    (INPUT, r"Iterator|\w*Dataset|(Eager)?PyFunc", r""),
    (LOSSES, r"", r"(.*/)?(losses|balancing)/"),
    (
        EMBEDDING,
        r"SparseTensorDenseMatMul|Resource(Gather|Scatter)|Unique|\w*UnsortedSegment",
        r"(.*/)?(embedding_\d+|first_order|embedding_gradient|embedding_exchange)/|(FirstOrder)?Tables/",
    ),
    (DENSE, r"(_?Fused|Batch)?MatMul|_?Xla", r"(.*/)?network_\d+/[^/]+/|Dense/"),
    # What stands in no layer of a network joins what was looked up: pooling, slicing.
    (EMBEDDING, r"", r"(.*/)?network_\d+/"),
    (LOSSES, r".", r""),
)
"""An op is of the first part of which a pattern fits the start of its type or of its name."""

ADVICE = {
    INPUT: "Batches come too slowly. Raise train.batch_size, shorten lists and histories "
    "(max_length), keep the features on a faster disk, or leave the machine more cores and "
    "memory: fewer --workers on it, nothing else beside.",
    EMBEDDING: "Rows are looked up and updated for too long. Lower model.dim or the features' "
    "own dim, raise the vocabularies' min_count, shorten lists and histories (max_length), or "
    "set model.first_order: false.",
    DENSE: "The layers are the work. Narrow model.shared and model.towers, set model.gated: "
    "false, use fewer experts, interactions or members, or set train.precision: mixed_bfloat16 "
    "on a GPU (--gpu) or a processor that multiplies bfloat16 (avx512_bf16 or amx_bf16 in "
    "/proc/cpuinfo). model.recompute costs time for memory.",
    LOSSES: "Losses and their balancing take longer than the network. Use train.balancing "
    "kind: fixed, leave ranking losses out, or raise train.batch_size.",
    COLLECTIVES: "Workers wait for one another. Raise train.batch_size, so that they exchange "
    "less often, use fewer --workers, or give them cores of their own: the slowest sets the "
    "pace.",
    HOST: "The step is too small for what starting it costs. Raise train.batch_size.",
}

BOUND = 0.4
"""The share from which one part is said to bound the step."""
WORTH = 0.2
"""The share from which changing a further part is worth advice."""

WARM_UP, WINDOW, LEAST = 10, 20, 8
_OP = re.compile(r"([^:\s]+):([A-Z_]\w*)")
_STEP = "train"
_XLA_RUN = "ThunkExecutor::Execute"


@dataclass(frozen=True)
class Op:
    """One run of an op (or of its kernel).

    Attributes:
        name: The op's name, with its scopes.
        kind: Its type.
        thread: What ran it; on one thread, ops nest or follow one another.
        start: When it began, in nanoseconds.
        end: When it ended.
    """

    name: str
    kind: str
    thread: int
    start: int
    end: int


Interval = tuple[int, int]


def classify(name: str, kind: str) -> str:
    """The part of the step that an op belongs to.

    >>> classify("network_0/tower_click/Relu", "_FusedMatMul")
    'dense'
    """
    name = name.removeprefix("gradient_tape/")
    for part, of_kind, of_name in RULES:
        if (of_kind and re.match(of_kind, kind)) or (of_name and re.match(of_name, name)):
            return part
    raise AssertionError("the last rule fits every op")


def scope_of(name: str) -> str:
    """The layer or optimizer that an op stands in: its first two scopes."""
    scopes = name.removeprefix("gradient_tape/").split("/")[:-1]
    return "/".join(dict.fromkeys(scopes[:2]))


def inside(
    ops: Sequence[Op], steps: Sequence[Interval]
) -> tuple[dict[str, float], dict[str, float]]:
    """Where the steps' time went, by the rules above.

    Args:
        ops: What ran, in any order.
        steps: When each step began and ended, in nanoseconds; they do not overlap.

    Returns:
        Nanoseconds by part, which sum to the length of the steps, and by scope.
    """
    parts = {(op.name, op.kind): classify(op.name, op.kind) for op in ops}
    marks: list[tuple[int, int, tuple[str, str] | None]] = []
    for op, (start, end) in _innermost(ops):
        key = (parts[op.name, op.kind], scope_of(op.name))
        if key[0] != INPUT:
            marks += [(start, 1, key), (end, -1, key)]
    for start, end in steps:
        marks += [(start, 1, None), (end, -1, None)]
    marks.sort(key=lambda mark: mark[0])
    by_part: dict[str, float] = defaultdict(float)
    by_scope: dict[str, float] = defaultdict(float)
    running: Counter[tuple[str, str]] = Counter()
    in_step, before = 0, 0
    for at, change, of in marks:
        if in_step and at > before:
            keys = {key: n for key, n in running.items() if n > 0}
            computing = {key: n for key, n in keys.items() if key[0] != COLLECTIVES}
            counted = computing or keys or {(HOST, ""): 1}
            total = sum(counted.values())
            for (part, scope), n in counted.items():
                by_part[part] += (at - before) * n / total
                if scope:
                    by_scope[scope] += (at - before) * n / total
        before = at
        if of is None:
            in_step += change
        else:
            running[of] += change
    return by_part, by_scope


def _innermost(ops: Sequence[Op]) -> Iterator[tuple[Op, Interval]]:
    """The pieces of time in which each op itself ran, and none that is nested in it."""
    stack: list[tuple[Op, int]] = []

    def close(until: int) -> Iterator[tuple[Op, Interval]]:
        while stack and stack[-1][0].end <= until:
            op, since = stack.pop()
            if op.end > since:
                yield op, (since, op.end)
            if stack:
                stack[-1] = (stack[-1][0], max(stack[-1][1], op.end))

    thread = None
    for op in sorted(ops, key=lambda op: (op.thread, op.start, -op.end)):
        yield from close(op.start if op.thread == thread else 1 << 62)
        thread = op.thread
        if stack and op.start > stack[-1][1]:
            yield stack[-1][0], (stack[-1][1], op.start)
        stack.append((op, op.start))
    yield from close(1 << 62)


def shares_of(
    waited: float, stepped: float, by_part: Mapping[str, float], steps: Sequence[Interval]
) -> dict[str, float]:
    """Each part's share of a step; they sum to 1.

    Args:
        waited: Seconds that the timed steps waited for their batches.
        stepped: Seconds that they took from there on.
        by_part: What `inside` says of the traced steps.
        steps: The traced steps.
    """
    length = sum(end - start for start, end in steps)
    within = stepped / (waited + stepped)
    shares = {part: within * by_part.get(part, 0.0) / length for part in PARTS}
    shares[INPUT] = 1.0 - within
    return shares


def verdict(shares: dict[str, float]) -> tuple[str | None, list[str]]:
    """The part that bounds the step (None where none does), and what to say and to change."""
    ranked = sorted(shares, key=lambda part: -shares[part])
    first = ranked[0]
    bound = first if shares[first] >= BOUND else None
    if bound:
        words = [f"The run is bound by {PARTS[first]}: {shares[first]:.0%} of a step."]
    else:
        named = " and ".join(f"{PARTS[part]} ({shares[part]:.0%})" for part in ranked[:2])
        words = [f"No part bounds the run alone; most of a step is {named}."]
    for part in ranked:
        if part == first or shares[part] >= WORTH:
            name = PARTS[part]
            words.append(f"{name[0].upper()}{name[1:]}, {shares[part]:.0%}: {ADVICE[part]}")
    return bound, words


def read_trace(path: Path) -> tuple[list[Op], list[Interval]]:
    """Ops and steps of a trace of TensorFlow's profiler (`*.xplane.pb`)."""
    from tensorflow.tsl.profiler.protobuf import xplane_pb2

    space = xplane_pb2.XSpace()
    space.ParseFromString(path.read_bytes())
    host: list[Op] = []
    device: list[Op] = []
    steps: list[Interval] = []
    thread = 0
    for plane in space.planes:
        on_device = plane.name.startswith("/device:GPU")
        for line in plane.lines:
            thread += 1
            for event in line.events:
                label = _label(plane, event, on_device)
                start = line.timestamp_ns + event.offset_ps // 1000
                end = start + event.duration_ps // 1000
                if label == _STEP:
                    steps.append((start, end))
                elif found := _OP.fullmatch(label):
                    op = Op(found[1], found[2], thread, start, end)
                    (device if on_device else host).append(op)
    if device:
        # A collective between hosts runs on none of the devices.
        device += [op for op in host if classify(op.name, op.kind) == COLLECTIVES]
    return device or host, sorted(steps)


def _label(plane: Any, event: Any, on_device: bool) -> str:
    """What an event ran, `name:Type` where that is an op, or '' where it is not known."""
    stats = {plane.stat_metadata[stat.metadata_id].name: stat for stat in event.stats}
    if on_device and "tf_op" in stats:
        stat = stats["tf_op"]
        return stat.str_value or plane.stat_metadata[stat.ref_value].name
    name = plane.event_metadata[event.metadata_id].name
    # What XLA compiled has no ops any more; it is the network's dense part (`model.xla`).
    if "hlo_op" in stats or name == _XLA_RUN:
        return "xla/run:XlaRun"
    return "" if on_device else name


class Profiler:
    """Takes a run's steps, and times and traces some of them.

    Args:
        available: Steps of the epoch that is profiled.
        rows: Rows of a step, over all workers.
        run: The run folder. The trace goes to `logs/profile`, where TensorBoard finds it.

    Raises:
        UserError: There are too few steps.
    """

    def __init__(self, available: int, rows: int, run: Path) -> None:
        require_steps(available)
        warm = min(WARM_UP, available // 4)
        window = min(WINDOW, (available - warm) // 2)
        self._timed = range(warm, warm + window)
        self._traced = range(warm + window, warm + 2 * window)
        self._rows, self._run = rows, run
        self._taken = 0
        self._tracing = False
        self._waited = self._stepped = 0.0

    @property
    def done(self) -> bool:
        """Whether the last traced step has been taken."""
        return self._taken == self._traced.stop

    def take(self, step: Callable[[Any], dict[str, Any]], batches: Iterator[Any]) -> dict[str, Any]:
        """Take one step on the next batch; returns what the step does."""
        import tensorflow as tf

        if self._taken == self._traced.start:
            tf.profiler.experimental.start(str(self._run / "logs" / "profile"))
            self._tracing = True
        began = time.perf_counter()
        batch = next(batches)
        ready = time.perf_counter()
        with tf.profiler.experimental.Trace(_STEP, step_num=self._taken, _r=1):
            logs = step(batch)
            # A device may still be at work when the call returns.
            float(logs["loss"])
        if self._taken in self._timed:
            self._waited += ready - began
            self._stepped += time.perf_counter() - ready
        self._taken += 1
        if self.done:
            self.close()
        return logs

    def close(self) -> None:
        """End the trace, where one is being taken: also of a run that failed in it."""
        import tensorflow as tf

        if self._tracing:
            self._tracing = False
            tf.profiler.experimental.stop()

    def record(self) -> dict[str, Any]:
        """What was found, ready for `profile.json`.

        Returns:
            `bound_by` (a part or None), `words`, `shares` by part, `rows_per_s`, `step_ms`,
            `rows` of a step, `steps` timed, the `costliest` scopes with their shares, and the
            `trace`, a path in the run folder.
        """
        path = max((self._run / "logs" / "profile").rglob("*.xplane.pb"))
        ops, steps = read_trace(path)
        by_part, by_scope = inside(ops, steps)
        shares = shares_of(self._waited, self._stepped, by_part, steps)
        bound, words = verdict(shares)
        seconds = (self._waited + self._stepped) / len(self._timed)
        costliest = sorted(by_scope.items(), key=lambda item: -item[1])
        unit = (1.0 - shares[INPUT]) / sum(end - start for start, end in steps)
        return {
            "bound_by": bound,
            "words": words,
            "shares": shares,
            "rows_per_s": self._rows / seconds,
            "step_ms": 1000 * seconds,
            "rows": self._rows,
            "steps": len(self._timed),
            "costliest": {scope: took * unit for scope, took in costliest[:5]},
            "trace": str(path.relative_to(self._run)),
        }


def require_steps(available: int) -> None:
    """Every worker asks this, so that all stop where there are too few steps to profile.

    Raises:
        UserError: There are.
    """
    if available < LEAST:
        raise UserError(
            "There are too few steps to profile.",
            expected=f"at least {LEAST} steps in the epoch (better {WARM_UP + 2 * WINDOW})",
            found=str(available),
            fix="Lower train.batch_size, or train on more rows, or leave --profile out.",
        )
