"""Every figure of the course, drawn with matplotlib, and two tables of texts.

A function that draws returns its Axes.
"""

from rlhf_helpers.plots.axes import BLUE, COLOURS, GREEN, GREY, ORANGE, PURPLE, RED, smooth
from rlhf_helpers.plots.evaluation import (
    bars,
    calibration,
    histograms,
    matrix,
    methods,
    overoptimisation,
    points,
    share_by_bins,
)
from rlhf_helpers.plots.tables import differences, texts
from rlhf_helpers.plots.training import (
    gold_against_proxy,
    learning_curve,
    policies_by_beta,
    policy_path,
    ppo_curves,
    training_curve,
    training_curves,
)

__all__ = [
    "BLUE",
    "COLOURS",
    "GREEN",
    "GREY",
    "ORANGE",
    "PURPLE",
    "RED",
    "bars",
    "calibration",
    "differences",
    "gold_against_proxy",
    "histograms",
    "learning_curve",
    "matrix",
    "methods",
    "overoptimisation",
    "points",
    "policies_by_beta",
    "policy_path",
    "ppo_curves",
    "share_by_bins",
    "smooth",
    "texts",
    "training_curve",
    "training_curves",
]
