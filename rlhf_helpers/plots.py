"""Every figure of the course: matplotlib only, each function returns its Axes."""

from collections.abc import Mapping, Sequence

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN, RED, PURPLE, GREY = (
    "#0072B2", "#E69F00", "#009E73", "#D55E00", "#CC79A7", "#7F7F7F",
)  # fmt: skip
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)


def _axes(axes: Axes | None, width: float = 6.0, height: float = 3.2) -> Axes:
    axes = axes or plt.subplots(figsize=(width, height), layout="constrained")[1]
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes


def smooth(values: Sequence[float], window: int = 5) -> np.ndarray:
    """Centred running mean; at the ends over what there is."""
    return pd.Series(values).rolling(window, center=True, min_periods=1).mean().to_numpy()


def training_curve(
    history: Sequence[Mapping],
    key: str,
    axes: Axes | None = None,
    window: int = 5,
    colour: str = BLUE,
) -> Axes:
    """One number over the steps of a stage's history: every point, and a running mean."""
    rows = [row for row in history if key in row]
    steps = [row.get("step", i) for i, row in enumerate(rows)]
    values = [row[key] for row in rows]
    axes = _axes(axes)
    axes.plot(steps, values, ".", color=colour, alpha=0.3, markersize=4)
    axes.plot(steps, smooth(values, window), color=colour)
    axes.set(xlabel="step", ylabel=key.replace("_", " "))
    return axes


def ppo_curves(history: Sequence[Mapping], keys: Sequence[str]) -> np.ndarray:
    """Small multiples of a PPO history, one panel a key; returns the array of Axes."""
    columns = 3
    rows = -(-len(keys) // columns)
    _, panels = plt.subplots(rows, columns, figsize=(10, 2.5 * rows), layout="constrained")
    for axes, key in zip(panels.flat, keys, strict=False):
        training_curve(history, key, axes)
        axes.set(ylabel="", title=key.replace("_", " "))
    for axes in panels.flat[len(keys) :]:
        axes.set_visible(False)
    return panels


def score_histogram(chosen: Sequence[float], rejected: Sequence[float]) -> Axes:
    """Scores of the better and of the worse candidates."""
    axes = _axes(None)
    low, high = np.percentile([*chosen, *rejected], [0.5, 99.5])
    bins = np.linspace(low, high, 40).tolist()
    axes.hist(rejected, bins, color=ORANGE, alpha=0.6, label="worse candidate")
    axes.hist(chosen, bins, color=BLUE, alpha=0.6, label="better candidate")
    axes.set(xlabel="score (standard deviations of SFT samples)", ylabel="candidates")
    axes.legend(frameon=False)
    return axes


def accuracy_by_gap(gaps: Sequence[float], correct: Sequence[bool], bins: int = 6) -> Axes:
    """Share of pairs in the right order, by how far apart they truly are, with 95% bars."""
    table = pd.DataFrame({"gap": np.abs(gaps), "correct": np.asarray(correct, dtype=float)})
    groups = table.groupby(pd.qcut(table["gap"], bins, duplicates="drop"), observed=True)
    means, counts = groups["correct"].mean(), groups["correct"].count()
    axes = _axes(None)
    error = 1.96 * np.sqrt(means * (1 - means) / counts)
    axes.errorbar(groups["gap"].mean(), means, error, fmt="o-", color=BLUE, capsize=3)
    axes.axhline(0.5, color=GREY, linestyle=":", label="a coin")
    axes.set(xlabel="gap in gold between the candidates", ylabel="accuracy", ylim=(0.4, 1.02))
    axes.legend(frameon=False)
    return axes


def gold_against_proxy(runs: Mapping[str, Sequence[Mapping]], sft_gold: float) -> np.ndarray:
    """For each run: what the reward model sees, and what is true, over the steps.

    `runs` maps a label to a history with `reward_mean` and `gold`. Returns the two Axes.
    """
    _, panels = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    titles = ("proxy: the reward model's score", "gold: what the annotators think")
    for axes, key, title in zip(panels, ("reward_mean", "gold"), titles, strict=True):
        _axes(axes)
        for (label, history), colour in zip(runs.items(), COLOURS, strict=False):
            axes.plot(smooth([row[key] for row in history], 7), color=colour, label=label)
        axes.set(xlabel="step", title=title)
    panels[1].axhline(sft_gold, color=GREY, linestyle=":", label="SFT")
    panels[1].legend(frameon=False)
    return panels


def bars(values: Mapping[str, float], label: str) -> Axes:
    """One bar a name, with its number."""
    axes = _axes(None, height=2.6)
    drawn = axes.bar(list(values), list(values.values()), color=BLUE)
    axes.bar_label(drawn, fmt="%.3g")
    axes.set(ylabel=label)
    return axes


def calibration(table: pd.DataFrame) -> Axes:
    """What came true of what was predicted (see `calibration_table`); dots as large as bins."""
    axes = _axes(None, width=4.2, height=3.8)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect")
    axes.plot(table["predicted"], table["observed"], color=BLUE)
    sizes = 200 * table["pairs"] / table["pairs"].max()
    axes.scatter(table["predicted"], table["observed"], sizes, color=BLUE, label="the model")
    axes.set(xlabel="predicted: P(candidate 1 is better)", ylabel="observed share")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, loc="upper left")
    return axes


def learning_curve(table: pd.DataFrame, key: str = "accuracy_gold") -> Axes:
    """An accuracy with its 95% interval, by the number of pairs learnt from (a log axis)."""
    axes = _axes(None)
    error = [table[key] - table[f"{key}_low"], table[f"{key}_high"] - table[key]]
    axes.errorbar(table["pairs"], table[key], error, fmt="o-", color=BLUE, capsize=3)
    axes.axhline(0.5, color=GREY, linestyle=":", label="a coin")
    axes.set(xscale="log", xlabel="pairs to learn from", ylabel=key.replace("_", " "))
    axes.set(ylim=(0.45, 1.0))
    axes.legend(frameon=False)
    return axes
