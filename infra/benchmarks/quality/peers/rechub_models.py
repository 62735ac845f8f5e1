"""torch-rechub: ESMM, MMOE, PLE and AITM, as the library builds them."""

from __future__ import annotations

from typing import Any

import torch
from shared import DROPOUT, Answer, Data, Options, with_buckets
from torch_loop import Forward, fit
from torch_rechub.basic.features import DenseFeature, SparseFeature
from torch_rechub.models.multi_task import AITM, ESMM, MMOE, PLE


def train(model: str, data: Data, options: Options) -> Answer:
    """Train; see `run.py`."""
    if model == "esmm":
        # The library's ESMM takes embedded columns only.
        data = with_buckets(data)

    def build() -> tuple[torch.nn.Module, Forward]:
        module = _module(model, data)

        def forward(ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            inputs = {f"s{i}": ids[:, i] for i in range(ids.shape[1])}
            inputs |= {f"d{i}": numbers[:, i] for i in range(numbers.shape[1])}
            probs = module(inputs)
            # ESMM answers p(conversion given click), p(click), p(both).
            return probs[:, 1:] if model == "esmm" else probs

        return module, forward

    return fit(build, data, options, list(range(len(data.tasks))))


def _module(model: str, data: Data) -> Any:
    widths, tasks = data.widths, len(data.tasks)
    ids = [SparseFeature(f"s{i}", size, widths["dim"]) for i, size in enumerate(data.sizes)]
    numbers = [DenseFeature(f"d{i}") for i in range(data.splits["train"].numbers.shape[1])]
    expert = {"dims": widths["shared"], "activation": "relu", "dropout": DROPOUT}
    tower = {"dims": widths["towers"], "activation": "relu", "dropout": DROPOUT}
    kinds = ["classification"] * tasks
    if model == "esmm":
        whole = {**expert, "dims": [*widths["shared"], *widths["towers"]]}
        user = [f for f, owner in zip(ids, data.owners, strict=True) if owner == "user"]
        other = [f for f, owner in zip(ids, data.owners, strict=True) if owner != "user"]
        if not user or not other:
            user, other = ids[:1], ids[1:]
        return ESMM(user, other, dict(whole), dict(whole))
    if model == "mmoe":
        return MMOE([*ids, *numbers], kinds, 4, expert, [tower] * tasks)
    if model == "ple":
        return PLE([*ids, *numbers], kinds, 1, 1, 2, expert, [tower] * tasks)
    return AITM([*ids, *numbers], tasks, expert, [tower] * tasks)
