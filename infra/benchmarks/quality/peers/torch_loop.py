"""One training loop for the models of the PyTorch libraries: Adam, batches from memory."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from shared import BATCH, LEARNING_RATES, PREDICT_ROWS, Answer, Data, Options, Rows, best_epoch

Forward = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""ids int64 [batch, fields] and numbers float32 [batch, n] to probabilities [batch, tasks]."""


def fit(
    build: Callable[[], tuple[torch.nn.Module, Forward]],
    data: Data,
    options: Options,
    columns: list[int],
) -> Answer:
    """Train a model on the sum of its tasks' binary cross-entropy.

    Args:
        build: Makes the module and its forward pass; called after the seed is set.
        data: The rows.
        options: The training.
        columns: The tasks that the forward pass predicts.
    """
    torch.set_num_threads(options.threads)
    torch.manual_seed(options.seed)
    rng = np.random.default_rng(options.seed)
    module, forward = build()
    rate = LEARNING_RATES[options.candidate]
    optimizer = torch.optim.Adam(module.parameters(), lr=rate)
    rows = data.splits["train"]
    labels = torch.from_numpy(np.ascontiguousarray(rows.labels[:, columns]))
    ids, numbers = torch.from_numpy(rows.ids), torch.from_numpy(rows.numbers)

    def train_epoch(epoch: int) -> None:
        module.train()
        order = torch.from_numpy(rng.permutation(len(labels)))
        for chosen in order.split(BATCH)[: max(1, len(labels) // BATCH)]:
            probs = forward(ids[chosen].long(), numbers[chosen]).clamp(1e-6, 1.0 - 1e-6)
            loss = (
                torch.nn.functional.binary_cross_entropy(probs, labels[chosen], reduction="none")
                .mean(0)
                .sum()
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()

    def predict(part: Rows) -> np.ndarray:
        module.eval()
        with torch.no_grad():
            return np.concatenate(
                [
                    forward(
                        torch.from_numpy(part.ids[at : at + PREDICT_ROWS]).long(),
                        torch.from_numpy(part.numbers[at : at + PREDICT_ROWS]),
                    ).numpy()
                    for at in range(0, len(part.labels), PREDICT_ROWS)
                ]
            )

    answer = best_epoch(data, options, columns, train_epoch, predict)
    answer.notes["learning_rate"] = rate
    return answer
