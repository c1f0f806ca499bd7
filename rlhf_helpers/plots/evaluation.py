"""Figures of what a model is worth: distributions, shares, methods side by side."""

from collections.abc import Mapping, Sequence
from itertools import cycle

import numpy as np
import pandas as pd

from rlhf_helpers.extras import needs_extra
from rlhf_helpers.plots.axes import BLUE, COLOURS, GREY, new_axes

with needs_extra("course"):
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes


def histograms(groups: Mapping[str, Sequence[float]], label: str) -> Axes:
    """Overlaid histograms of a few groups, each as shares of its group."""
    axes = new_axes(None)
    together = np.concatenate(list(groups.values()))
    low, high = np.percentile(together, [0.5, 99.5])
    whole = np.issubdtype(together.dtype, np.integer)  # a bin between two numbers would be empty
    bins = np.arange(low // 1, high + 1.5) - 0.5 if whole else np.linspace(low, high, 30)
    for (name, values), colour in zip(groups.items(), COLOURS, strict=False):
        weights = np.full(len(values), 1 / len(values))
        axes.hist(values, bins.tolist(), weights=weights, color=colour, alpha=0.6, label=name)
    axes.set(xlabel=label, ylabel="share")
    axes.legend(frameon=False)
    return axes


def share_by_bins(
    values: Sequence[float], shares: Mapping[str, Sequence[bool]], bins: int = 6
) -> Axes:
    """Shares of what is true, in bins of `values` of about equal size, with 95% bars."""
    groups = pd.qcut(np.asarray(values), bins, duplicates="drop")
    centres = pd.Series(values).reset_index(drop=True).groupby(groups, observed=True).mean()
    axes = new_axes(None)
    for (label, share), colour in zip(shares.items(), COLOURS, strict=False):
        grouped = pd.Series(np.asarray(share, dtype=float)).groupby(groups, observed=True)
        means, counts = grouped.mean(), grouped.count()
        error = 1.96 * np.sqrt(means * (1 - means) / counts)
        axes.errorbar(centres, means, error, fmt="o-", color=colour, capsize=3, label=label)
    axes.axhline(0.5, color=GREY, linestyle=":", label="a coin")
    axes.legend(frameon=False)
    return axes


def bars(values: Mapping[str, float], label: str) -> Axes:
    """A bar for each name, with its number."""
    axes = new_axes(None, height=2.6)
    drawn = axes.bar(list(values), list(values.values()), color=BLUE)
    axes.bar_label(drawn, fmt="%.3g")
    axes.set(ylabel=label)
    return axes


def points(table: pd.DataFrame, x: str, y: str, label: str) -> Axes:
    """One column against another, joined in the order of the rows, each point with its label."""
    axes = new_axes(None)
    axes.plot(table[x], table[y], "o-", color=BLUE)
    for _, row in table.iterrows():
        axes.annotate(f"  {label} {row[label]:g}", (row[x], row[y]), va="top", fontsize=8)
    axes.set(xlabel=x, ylabel=y)
    return axes


def matrix(table: pd.DataFrame, title: str, low: float = 0.0) -> Axes:
    """A table of shares as a heat map, with its numbers; the share `low` is drawn white."""
    axes = plt.subplots(figsize=(4.2, 3.4), layout="constrained")[1]
    shares = table.to_numpy(dtype=float)
    middle = (low + shares.max()) / 2
    axes.imshow(shares, cmap="Blues", vmin=low)
    for (row, column), share in np.ndenumerate(shares):
        colour = "white" if share > middle else "black"
        axes.text(column, row, f"{share:.2f}", ha="center", va="center", color=colour)
    axes.set_xticks(range(len(table.columns)), list(table.columns))
    axes.set_yticks(range(len(table.index)), list(table.index))
    axes.set(title=title)
    return axes


def calibration(table: pd.DataFrame) -> Axes:
    """Observed shares against predicted probabilities, from `calibration_table`.

    The size of a dot is the number of pairs in its bin.
    """
    axes = new_axes(None, width=4.2, height=3.8)
    axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", label="perfect")
    axes.plot(table["predicted"], table["observed"], color=BLUE)
    sizes = 200 * table["pairs"] / table["pairs"].max()
    axes.scatter(table["predicted"], table["observed"], sizes, color=BLUE, label="the model")
    axes.set(xlabel="predicted: P(candidate 1 is better)", ylabel="observed share")
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, loc="upper left")
    return axes


def overoptimisation(methods: Mapping[str, pd.DataFrame], free: pd.DataFrame | None = None) -> Axes:
    """Proxy (dashed) and gold (solid) against the KL from where each method started.

    `methods` maps a label to a table with `kl` (nats), `proxy` and `gold`, in the order of growing
    optimisation: `evaluation.best_of_n`'s, or that of a PPO history with its `reward_mean` renamed.
    `gold_se` gives a 95% band. In sqrt(KL) the curves of best-of-n are nearly parabolas (Gao et al.
    2022). `free` adds the grey line of what no training costs (see `methods`).
    """
    axes = new_axes(None)
    for (label, table), colour in zip(methods.items(), cycle(COLOURS), strict=False):
        distance = np.sqrt(table["kl"].clip(lower=0))  # an estimate may lie below 0
        axes.plot(distance, table["proxy"], "--", color=colour, label=f"{label}: proxy")
        axes.plot(distance, table["gold"], color=colour, label=f"{label}: gold")
        if "gold_se" in table:
            margin = 1.96 * table["gold_se"]
            band = (table["gold"] - margin, table["gold"] + margin)
            axes.fill_between(distance, *band, color=colour, alpha=0.15)
    if free is not None:
        _draw_free(axes, free)
    axes.set(xlabel="sqrt(KL), nats", ylabel="score")
    axes.legend(frameon=False)
    return axes


def _draw_free(axes: Axes, curve: pd.DataFrame) -> None:
    """Gold against the KL of sampling at a lower temperature, from `temperature_curve`."""
    distance = np.sqrt(curve["kl"].clip(lower=0))
    axes.plot(distance, curve["gold"], ".-", color=GREY, label="for free: temperature", zorder=0)


def methods(table: pd.DataFrame, free: pd.DataFrame | None = None) -> np.ndarray:
    """Gold and win rate of `evaluation.compare_methods` against the distance, with 95% bars.

    `free` is the `evaluation.temperature_curve` of the SFT model, with that model as its reference.
    It adds a grey line to the panel of gold: what a lower temperature gives without training, so
    that only what lies above the line is due to a method. Returns the two Axes.
    """
    panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")[1]
    for axes, column in zip(panels, ("gold", "win_rate"), strict=True):
        axes = new_axes(axes)
        for (name, row), colour, marker in zip(table.iterrows(), cycle(COLOURS), cycle("os^vDPX")):
            margin = 1.96 * row["gold_se"]
            low, high = row["gold"] - margin, row["gold"] + margin
            if column == "win_rate":
                low, high = row["win_rate_low"], row["win_rate_high"]
            distance = np.sqrt(max(row["kl"], 0))  # an estimate may lie below 0
            axes.plot(distance, row[column], marker, color=colour, label=name, linestyle="")
            axes.vlines(distance, low, high, color=colour, alpha=0.5)
        axes.set(xlabel="sqrt(KL from SFT), nats", ylabel=column.replace("_", " "))
    if free is not None:
        _draw_free(panels[0], free)
    drawn = panels[0].get_legend_handles_labels()
    panels[1].legend(*drawn, frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return panels
