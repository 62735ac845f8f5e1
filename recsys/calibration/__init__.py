"""Calibration: a monotone map from a task's logit to a probability that can be trusted."""

from recsys.calibration.fit import calibration_report, fit_calibration
from recsys.calibration.isotonic import isotonic_regression
from recsys.calibration.layer import CalibrationLayer
from recsys.calibration.record import IDENTITY, Calibration

__all__ = [
    "IDENTITY",
    "Calibration",
    "CalibrationLayer",
    "calibration_report",
    "fit_calibration",
    "isotonic_regression",
]
