"""LightGBM: one booster a task; rounds by early stopping on validation."""

from __future__ import annotations

import lightgbm as lgb
import numpy as np
from shared import Answer, Data, Options, Rows, join

MANY = 1000
CANDIDATES = (
    {"leaves": 31, "ids": True},
    {"leaves": 31, "ids": False},
    {"leaves": 15, "ids": False},
    {"leaves": 15, "ids": True},
)
"""Leaves a tree, and whether id columns of more than `MANY` rows take part."""


def train(model: str, data: Data, options: Options) -> Answer:
    """Train; see `run.py`."""
    chosen = CANDIDATES[options.candidate]
    kept = [i for i, size in enumerate(data.sizes) if chosen["ids"] or size <= MANY]
    matrices = {split: _matrix(rows, data, kept) for split, rows in data.splits.items()}
    categories = [at for at, i in enumerate(kept) if not data.ordered[i]]
    answers = []
    for task in range(len(data.tasks)):
        train_set = lgb.Dataset(
            matrices["train"],
            data.splits["train"].labels[:, task],
            categorical_feature=categories,
            free_raw_data=False,
        )
        valid_set = lgb.Dataset(
            matrices["validation"], data.splits["validation"].labels[:, task], reference=train_set
        )
        booster = lgb.train(
            {
                "objective": "binary",
                "metric": "auc",
                "learning_rate": 0.05,
                "num_leaves": chosen["leaves"],
                "min_child_samples": 50,
                "feature_fraction": 0.6,
                "bagging_fraction": 0.8,
                "bagging_freq": 1,
                "cat_smooth": 50.0,
                "cat_l2": 50.0,
                "min_data_per_group": 100,
                "num_threads": options.threads,
                "seed": options.seed,
                "verbose": -1,
            },
            train_set,
            2000,
            valid_sets=[valid_set],
            callbacks=[lgb.early_stopping(60, verbose=False)],
        )
        answers.append(
            Answer(
                np.asarray(booster.predict(matrices["validation"]))[:, None],
                np.asarray(booster.predict(matrices["test"]))[:, None],
                {"rounds": booster.best_iteration},
            )
        )
    answer = join(answers)
    answer.notes.update(chosen)
    return answer


def _matrix(rows: Rows, data: Data, kept: list[int]) -> np.ndarray:
    ids = rows.ids[:, kept].astype(np.float32)
    # Row 0 is a missing value, which trees have a way of their own for.
    ids[ids == 0] = np.nan
    return np.concatenate([ids, rows.numbers], axis=1)
