"""FuxiCTR: DeepFM and DCNv2, one model a task.

The library's wheel holds its layers but not these two of its model zoo: they are put together
here from those layers, as the zoo does it (DCNv2 with cross network and tower in parallel).
"""

from __future__ import annotations

from typing import Any

import torch
from fuxictr.features import FeatureMap
from fuxictr.pytorch.layers import CrossNetV2, FactorizationMachine, FeatureEmbedding, MLP_Block
from shared import DROPOUT, Answer, Data, Options, join
from torch_loop import Forward, fit


class DeepFM(torch.nn.Module):
    """Factorization machine beside a tower (Guo et al., 2017)."""

    def __init__(self, features: Any, dim: int, widths: list[int]) -> None:
        super().__init__()
        self.embedding = FeatureEmbedding(features, dim)
        self.fm = FactorizationMachine(features)
        self.tower = MLP_Block(
            features.sum_emb_out_dim(), widths, output_dim=1, dropout_rates=DROPOUT
        )

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits [batch, 1]."""
        embedded = self.embedding(inputs)
        return self.fm(inputs, embedded) + self.tower(embedded.flatten(start_dim=1))


class DCNv2(torch.nn.Module):
    """Cross network beside a tower (Wang et al., 2021)."""

    def __init__(self, features: Any, dim: int, widths: list[int]) -> None:
        super().__init__()
        self.embedding = FeatureEmbedding(features, dim)
        width = features.sum_emb_out_dim()
        self.cross = CrossNetV2(width, 2)
        self.tower = MLP_Block(width, widths, dropout_rates=DROPOUT)
        self.out = torch.nn.Linear(width + widths[-1], 1)

    def forward(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Logits [batch, 1]."""
        flat = self.embedding(inputs, flatten_emb=True)
        return self.out(torch.cat([self.cross(flat), self.tower(flat)], dim=-1))


def train(model: str, data: Data, options: Options) -> Answer:
    """Train; see `run.py`."""
    widths = [*data.widths["shared"], *data.widths["towers"]]

    def build() -> tuple[torch.nn.Module, Forward]:
        module = (DeepFM if model == "deepfm" else DCNv2)(_map(data), data.widths["dim"], widths)
        for name, layer in module.named_modules():
            if isinstance(layer, torch.nn.Linear):
                # The library's base model does this to all its layers. Numbers' embeddings are
                # layers too; started as large, thirty of them drown the FM term (test AUC 0.62),
                # so they start as small as those of ids.
                small = "embedding_layer" in name
                torch.nn.init.normal_(layer.weight, std=1e-4) if small else (
                    torch.nn.init.xavier_normal_(layer.weight)
                )
                if layer.bias is not None:
                    torch.nn.init.zeros_(layer.bias)

        def forward(ids: torch.Tensor, numbers: torch.Tensor) -> torch.Tensor:
            inputs = {f"s{i}": ids[:, i] for i in range(ids.shape[1])}
            inputs |= {f"d{i}": numbers[:, i] for i in range(numbers.shape[1])}
            return torch.sigmoid(module(inputs))

        return module, forward

    return join([fit(build, data, options, [task]) for task in range(len(data.tasks))])


def _map(data: Data) -> Any:
    features = FeatureMap("shared", ".")
    for i, size in enumerate(data.sizes):
        features.features[f"s{i}"] = {"type": "categorical", "source": "", "vocab_size": size}
    for i in range(data.splits["train"].numbers.shape[1]):
        features.features[f"d{i}"] = {"type": "numeric", "source": ""}
    features.num_fields = features.get_num_fields()
    features.default_emb_dim = data.widths["dim"]
    features.labels = ["label"]
    return features
