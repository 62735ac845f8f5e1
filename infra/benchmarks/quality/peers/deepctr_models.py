"""DeepCTR: ESMM, MMOE and PLE, as the library builds them, trained by Keras."""

from __future__ import annotations

import os
from typing import Any

os.environ.setdefault("TF_USE_LEGACY_KERAS", "1")

import numpy as np
import tensorflow as tf
from deepctr.feature_column import DenseFeat, SparseFeat
from deepctr.models import ESMM, MMOE, PLE
from shared import BATCH, DROPOUT, LEARNING_RATES, Answer, Data, Options, Rows, best_epoch


def train(model: str, data: Data, options: Options) -> Answer:
    """Train; see `run.py`."""
    tf.keras.utils.set_random_seed(options.seed)
    network = _network(model, data, options.seed)
    rate = LEARNING_RATES[options.candidate]
    network.compile(tf.keras.optimizers.Adam(rate), ["binary_crossentropy"] * len(data.tasks))
    rows, columns = data.splits["train"], list(range(len(data.tasks)))
    inputs, labels = _inputs(rows), [rows.labels[:, [task]] for task in columns]

    def train_epoch(epoch: int) -> None:
        network.fit(inputs, labels, batch_size=BATCH, epochs=1, shuffle=True, verbose=0)

    def predict(part: Rows) -> np.ndarray:
        answers = network.predict(_inputs(part), batch_size=8192, verbose=0)
        return np.concatenate(answers, axis=1)

    answer = best_epoch(data, options, columns, train_epoch, predict)
    answer.notes["learning_rate"] = rate
    return answer


def _inputs(rows: Rows) -> dict[str, np.ndarray]:
    found = {f"s{i}": rows.ids[:, i] for i in range(rows.ids.shape[1])}
    return found | {f"d{i}": rows.numbers[:, i] for i in range(rows.numbers.shape[1])}


def _network(model: str, data: Data, seed: int) -> Any:
    widths, names = data.widths, [task.name for task in data.tasks]
    columns = [SparseFeat(f"s{i}", size, widths["dim"]) for i, size in enumerate(data.sizes)]
    columns += [DenseFeat(f"d{i}", 1) for i in range(data.splits["train"].numbers.shape[1])]
    common = {
        "dnn_dropout": DROPOUT,
        "seed": seed,
        "task_names": names,
        "task_types": ["binary"] * len(names),
    }
    shared, towers = tuple(widths["shared"]), tuple(widths["towers"])
    if model == "esmm":
        return ESMM(columns, tower_dnn_hidden_units=shared + towers, **common)
    if model == "mmoe":
        return MMOE(
            columns,
            num_experts=4,
            expert_dnn_hidden_units=shared,
            tower_dnn_hidden_units=towers,
            **common,
        )
    return PLE(
        columns,
        shared_expert_num=2,
        specific_expert_num=1,
        num_levels=1,
        expert_dnn_hidden_units=shared,
        tower_dnn_hidden_units=towers,
        **common,
    )
