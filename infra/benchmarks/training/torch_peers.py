"""PyTorch contestants: a loop written by hand, torch-rechub, deepctr-torch, FuxiCTR.

    PEER_PYTHON -m infra.benchmarks.training.torch_peers CONTESTANT ROWS FOLDER

Each library trains its own shared-bottom model of the same widths (FuxiCTR, which ships none
with its wheel, one made of its layers) by Adam, as it documents; regularizers are off.
"""

from __future__ import annotations

import itertools
import sys
from collections import OrderedDict
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from infra.benchmarks.training import worker

WIDTH = worker.FIELDS * worker.DIM + worker.NUMBERS


def by_hand(rows: int, data: list[dict[str, np.ndarray]]) -> Callable[[], Any]:
    """One table, row-wise Adagrad on the batch's distinct rows, fused Adam for the rest."""
    each = worker.per_table(rows)
    table = torch.randn(each * worker.FIELDS, worker.DIM) * 0.01
    accumulator = torch.zeros(len(table))
    offsets = torch.arange(worker.FIELDS) * each
    first, second = worker.UNITS
    dense = nn.Sequential(
        nn.Linear(WIDTH, first),
        nn.ReLU(),
        nn.Linear(first, second),
        nn.ReLU(),
        nn.Linear(second, len(worker.TASKS)),
    )
    adam = torch.optim.Adam(dense.parameters(), lr=0.001, fused=True)
    found = [
        (
            torch.from_numpy(b["ids"]).long(),
            torch.from_numpy(b["numbers"]),
            torch.from_numpy(b["labels"]),
        )
        for b in data
    ]
    turn = itertools.cycle(found)

    def step() -> Any:
        ids, numbers, labels = next(turn)
        flat = (ids + offsets).reshape(-1)
        distinct, positions = torch.unique(flat, return_inverse=True)
        rows_ = table[distinct]
        embedded = rows_[positions].view(len(ids), -1).requires_grad_()
        logits = dense(torch.cat([embedded, numbers], 1))
        log_p = functional.logsigmoid(logits).sum(1)
        rest = torch.log1p(-torch.exp(log_p).clamp(max=1 - 1e-7))
        loss = functional.binary_cross_entropy_with_logits(logits[:, 0], labels[:, 0])
        loss = loss - (labels[:, 1] * log_p + (1 - labels[:, 1]) * rest).mean()
        adam.zero_grad()
        loss.backward()
        adam.step()
        with torch.no_grad():
            grad = torch.zeros_like(rows_)
            grad.index_add_(0, positions, embedded.grad.view(-1, worker.DIM))
            total = accumulator[distinct] + grad.square().mean(1)
            accumulator[distinct] = total
            table[distinct] = rows_ - 0.05 * grad / (total.sqrt() + 1e-8)[:, None]
        return loss

    return step


def library(model: nn.Module, inputs: list[Any], labels: list[Any]) -> Callable[[], Any]:
    """A step of a library's model that gives probabilities [batch, tasks], by Adam."""
    adam = torch.optim.Adam(model.parameters(), lr=0.001)
    turn = itertools.cycle(zip(inputs, labels, strict=True))
    model.train()

    def step() -> Any:
        x, y = next(turn)
        answer = model(x)
        loss = sum(
            functional.binary_cross_entropy(answer[:, task], y[:, task])
            for task in range(len(worker.TASKS))
        )
        adam.zero_grad()
        loss.backward()
        adam.step()
        return loss

    return step


def torch_rechub(rows: int, data: list[dict[str, np.ndarray]]) -> Callable[[], Any]:
    """torch-rechub's SharedBottom."""
    from torch_rechub.basic.features import DenseFeature, SparseFeature
    from torch_rechub.models.multi_task import SharedBottom

    each = worker.per_table(rows)
    features = [SparseFeature(f"c{n}", each, worker.DIM) for n in range(worker.FIELDS)]
    features += [DenseFeature(f"n{n}") for n in range(worker.NUMBERS)]
    model = SharedBottom(
        features,
        ["classification"] * 2,
        {"dims": list(worker.UNITS), "activation": "relu", "dropout": 0.0},
        [{"dims": [], "activation": "relu"}] * 2,
    )
    return library(model, [_named(batch) for batch in data], _labels(data))


def deepctr_torch(rows: int, data: list[dict[str, np.ndarray]]) -> Callable[[], Any]:
    """deepctr-torch's SharedBottom."""
    from deepctr_torch.inputs import DenseFeat, SparseFeat
    from deepctr_torch.models import SharedBottom

    each = worker.per_table(rows)
    columns = [SparseFeat(f"c{n}", each, worker.DIM) for n in range(worker.FIELDS)]
    columns += [DenseFeat(f"n{n}", 1) for n in range(worker.NUMBERS)]
    model = SharedBottom(
        columns,
        bottom_dnn_hidden_units=worker.UNITS,
        tower_dnn_hidden_units=(),
        l2_reg_embedding=0,
        l2_reg_linear=0,
    )
    inputs = [
        torch.from_numpy(np.concatenate([b["ids"].astype(np.float32), b["numbers"]], 1))
        for b in data
    ]
    return library(model, inputs, _labels(data))


def fuxictr(rows: int, data: list[dict[str, np.ndarray]]) -> Callable[[], Any]:
    """FuxiCTR's embedding and MLP under its own multi-task step."""
    from fuxictr.features import FeatureMap
    from fuxictr.pytorch.layers import FeatureEmbedding, MLP_Block
    from fuxictr.pytorch.models import MultiTaskModel

    each = worker.per_table(rows)
    features = FeatureMap("criteo-like", ".")
    features.labels = list(worker.TASKS)
    features.features = OrderedDict(
        [
            (f"c{n}", {"type": "categorical", "source": "", "vocab_size": each})
            for n in range(worker.FIELDS)
        ]
        + [
            (f"n{n}", {"type": "numeric", "source": "", "embedding_dim": 1})
            for n in range(worker.NUMBERS)
        ]
    )

    class Shared(MultiTaskModel):
        def __init__(self) -> None:
            super().__init__(
                features,
                task=["binary_classification"] * 2,
                num_tasks=2,
                verbose=0,
                model_root=".",
                metrics=["AUC"],
            )
            self.embedding_layer = FeatureEmbedding(features, worker.DIM)
            self.bottom = MLP_Block(
                input_dim=WIDTH, hidden_units=list(worker.UNITS), hidden_activations="relu"
            )
            self.heads = nn.ModuleList(nn.Linear(worker.UNITS[-1], 1) for _ in worker.TASKS)
            self.compile("adam", ["binary_crossentropy"] * 2, 0.001)

        def forward(self, inputs: Any) -> Any:
            x = self.embedding_layer(self.get_inputs(inputs), flatten_emb=True)
            shared = self.bottom(x)
            return {
                f"{task}_pred": self.output_activation[n](self.heads[n](shared))
                for n, task in enumerate(worker.TASKS)
            }

    model = Shared()
    model._max_gradient_norm = 10.0  # what its `fit` sets by default
    model.train()
    turn = itertools.cycle(
        {
            **_named(batch),
            **{
                t: torch.from_numpy(batch["labels"][:, n].copy())
                for n, t in enumerate(worker.TASKS)
            },
        }
        for batch in data
    )
    return lambda: model.train_step(next(turn))


def _named(batch: dict[str, np.ndarray]) -> dict[str, Any]:
    ids, numbers = batch["ids"], batch["numbers"]
    named = {f"c{n}": torch.from_numpy(ids[:, n].astype(np.int64)) for n in range(worker.FIELDS)}
    for n in range(worker.NUMBERS):
        named[f"n{n}"] = torch.from_numpy(numbers[:, n].copy())
    return named


def _labels(data: list[dict[str, np.ndarray]]) -> list[Any]:
    return [torch.from_numpy(batch["labels"]) for batch in data]


CONTESTANTS = {
    "PyTorch by hand": by_hand,
    "torch-rechub": torch_rechub,
    "deepctr-torch": deepctr_torch,
    "FuxiCTR": fuxictr,
}


def main() -> None:
    """Serve one contestant."""
    channel = worker.take_channel()
    torch.set_num_threads(worker.THREADS)
    torch.manual_seed(0)
    data = worker.batches(sys.argv[3])
    step = CONTESTANTS[sys.argv[1]](int(sys.argv[2]), data)
    worker.serve(step, lambda loss: float(loss.detach()), channel)


if __name__ == "__main__":
    main()
