"""Losses: on logits, per example, finite at extreme logits in every precision."""

from recsys.losses.focal import (
    FocalLoss,
    binary_cross_entropy,
    focal_from_log_probs,
    focal_loss,
)
from recsys.losses.funnel import funnel_log_probs
from recsys.losses.multi_task import MultiTaskLoss, TaskLoss
from recsys.losses.numeric import log_sigmoid
from recsys.losses.ranking import listwise_ratio, pairwise_ratio
from recsys.losses.sampling import correct_logit, sampled_logit

__all__ = [
    "FocalLoss",
    "MultiTaskLoss",
    "TaskLoss",
    "binary_cross_entropy",
    "correct_logit",
    "focal_from_log_probs",
    "focal_loss",
    "funnel_log_probs",
    "listwise_ratio",
    "log_sigmoid",
    "pairwise_ratio",
    "sampled_logit",
]
