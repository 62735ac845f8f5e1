"""The Keras layers of the ranking model, one concept a file."""

from recsys.layers.fused_embedding import PADDING_ROW, TABLE_VARIABLE, FusedEmbedding, pool_list
from recsys.layers.gated_dense import GatedDense
from recsys.layers.gated_tower import GatedTower
from recsys.layers.hashing import hash_rows
from recsys.layers.interactions import (
    CrossNetwork,
    DotProducts,
    Interactions,
    make_interaction,
)
from recsys.layers.local_attention import LocalSelfAttention
from recsys.layers.pairwise_interaction import PairwiseInteraction
from recsys.layers.piecewise_linear import PiecewiseLinearEmbedding
from recsys.layers.position_tower import PositionTower
from recsys.layers.sharing import PLE, MMoE, SharedBottom
from recsys.layers.side_match import SideMatch
from recsys.layers.target_attention import TargetAttention
from recsys.layers.tree_ensemble import Forest, TreeEnsemble

__all__ = [
    "PADDING_ROW",
    "PLE",
    "TABLE_VARIABLE",
    "CrossNetwork",
    "DotProducts",
    "Forest",
    "FusedEmbedding",
    "GatedDense",
    "GatedTower",
    "Interactions",
    "LocalSelfAttention",
    "MMoE",
    "PairwiseInteraction",
    "PiecewiseLinearEmbedding",
    "PositionTower",
    "SharedBottom",
    "SideMatch",
    "TargetAttention",
    "TreeEnsemble",
    "hash_rows",
    "make_interaction",
    "pool_list",
]
