"""Figures of what happens during training."""

from collections.abc import Callable, Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from rlhf_helpers.extras import needs_extra
from rlhf_helpers.plots.axes import BLUE, COLOURS, GREY, new_axes, small_multiples, smooth

with needs_extra("course"):
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes


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
    axes = new_axes(axes)
    axes.plot(steps, values, ".", color=colour, alpha=0.3, markersize=4)
    axes.plot(steps, smooth(values, window), color=colour)
    axes.set(xlabel="step", ylabel=key.replace("_", " "))
    return axes


def ppo_curves(history: Sequence[Mapping], keys: Sequence[str]) -> np.ndarray:
    """Small multiples of a PPO history, one panel a key; returns the array of Axes."""
    panels = small_multiples([key.replace("_", " ") for key in keys])
    for axes, key in zip(panels.flat, keys, strict=False):
        training_curve(history, key, axes).set(ylabel="")
    return panels


def training_curves(
    table: pd.DataFrame, tags: Sequence[str] | None = None, window: int = 5
) -> np.ndarray:
    """Small multiples of `evaluation.read_tensorboard`'s table: a panel a tag, a colour a run.

    `tags` chooses the panels, else there is one for each tag. Raises ValueError for a tag that the
    table lacks.
    """
    known = list(table["tag"].unique())
    tags = known if tags is None else list(tags)
    if unknown := sorted(set(tags) - set(known)):
        raise ValueError(f"no such tag: {', '.join(unknown)}; choose among {', '.join(known)}")
    panels, runs = small_multiples(tags), list(table["run"].unique())
    for axes, tag in zip(panels.flat, tags, strict=False):
        for run, colour in zip(runs, cycle(COLOURS), strict=False):
            rows = table[(table["run"] == run) & (table["tag"] == tag)]
            if len(rows):
                history = rows.rename(columns={"value": tag}).to_dict("records")
                training_curve(history, tag, axes, window, colour).lines[-1].set_label(run)
        axes.set(ylabel="")
        if len(runs) > 1:
            axes.legend(frameon=False, fontsize=8)
    return panels


def gold_against_proxy(runs: Mapping[str, Sequence[Mapping]], sft_gold: float) -> np.ndarray:
    """The reward model's score and gold of each run over its steps, in two panels.

    `runs` maps a label to a history with `reward_mean` and `gold`. Returns the two Axes.
    """
    _, panels = plt.subplots(1, 2, figsize=(10, 3.6), layout="constrained")
    titles = ("proxy: the reward model's score", "gold: what the annotators think")
    for axes, key, title in zip(panels, ("reward_mean", "gold"), titles, strict=True):
        new_axes(axes)
        for (label, history), colour in zip(runs.items(), COLOURS, strict=False):
            axes.plot(smooth([row[key] for row in history], 7), color=colour, label=label)
        axes.set(xlabel="step", title=title)
    panels[1].axhline(sft_gold, color=GREY, linestyle=":", label="SFT")
    panels[1].legend(frameon=False)
    return panels


def policy_path(path: Tensor, optimum: Tensor, names: Sequence[str]) -> Axes:
    """Probabilities (steps, A) of a few answers while a policy learns; dotted, the optimum (A,)."""
    axes = new_axes(None)
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        axes.plot(path[:, i], color=colour, label=name)
        axes.axhline(float(optimum[i]), color=colour, linestyle=":")
    axes.set(xlabel="step", ylabel="probability", ylim=(0, 1))
    axes.legend(frameon=False)
    return axes


def policies_by_beta(
    betas: Sequence[float],
    learned: Tensor,
    optimum: Callable[[float], Tensor],
    names: Sequence[str],
) -> Axes:
    """Learned policies (betas, A) as dots, and the optimal policy for every beta as lines."""
    axes = new_axes(None)
    grid = np.geomspace(min(betas), max(betas), 100).tolist()
    best = torch.stack([optimum(beta) for beta in grid])
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        axes.plot(grid, best[:, i], color=colour, label=name)
        axes.plot(betas, learned[:, i], "o", color=colour)
    axes.set(xlabel="beta", ylabel="probability", xscale="log", ylim=(0, 1))
    axes.legend(frameon=False)
    return axes


def learning_curve(table: pd.DataFrame, key: str = "accuracy_gold") -> Axes:
    """An accuracy with its 95% interval, by the number of training pairs (a log axis)."""
    axes = new_axes(None)
    error = [table[key] - table[f"{key}_low"], table[f"{key}_high"] - table[key]]
    axes.errorbar(table["pairs"], table[key], error, fmt="o-", color=BLUE, capsize=3)
    axes.axhline(0.5, color=GREY, linestyle=":", label="a coin")
    axes.set(xscale="log", xlabel="pairs to learn from", ylabel=key.replace("_", " "))
    axes.set(ylim=(0.45, 1.0))
    axes.legend(frameon=False)
    return axes
