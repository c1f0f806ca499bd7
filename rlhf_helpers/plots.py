"""Every figure of the course, by matplotlib: each function returns its Axes. And two tables."""

import html
from collections.abc import Callable, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import cycle

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from matplotlib.axes import Axes
from pandas.io.formats.style import Styler
from torch import Tensor

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


def _small_multiples(titles: Sequence[str]) -> np.ndarray:
    """Panels, three a row, each with its title; returns the array of Axes, unused ones hidden."""
    rows = -(-len(titles) // 3)
    _, panels = plt.subplots(rows, 3, figsize=(10, 2.5 * rows), layout="constrained")
    for axes, title in zip(panels.flat, titles, strict=False):
        axes.set_title(title)
    for axes in panels.flat[len(titles) :]:
        axes.set_visible(False)
    return panels


def ppo_curves(history: Sequence[Mapping], keys: Sequence[str]) -> np.ndarray:
    """Small multiples of a PPO history, one panel a key; returns the array of Axes."""
    panels = _small_multiples([key.replace("_", " ") for key in keys])
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
    panels, runs = _small_multiples(tags), list(table["run"].unique())
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


def histograms(groups: Mapping[str, Sequence[float]], label: str) -> Axes:
    """Histograms of a few groups over each other, each as shares of its group."""
    axes = _axes(None)
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
    """How often something is true, by `values` in bins of about equal size, with 95% bars."""
    groups = pd.qcut(np.asarray(values), bins, duplicates="drop")
    centres = pd.Series(values).reset_index(drop=True).groupby(groups, observed=True).mean()
    axes = _axes(None)
    for (label, share), colour in zip(shares.items(), COLOURS, strict=False):
        grouped = pd.Series(np.asarray(share, dtype=float)).groupby(groups, observed=True)
        means, counts = grouped.mean(), grouped.count()
        error = 1.96 * np.sqrt(means * (1 - means) / counts)
        axes.errorbar(centres, means, error, fmt="o-", color=colour, capsize=3, label=label)
    axes.axhline(0.5, color=GREY, linestyle=":", label="a coin")
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


def overoptimisation(methods: Mapping[str, pd.DataFrame]) -> Axes:
    """Proxy (dashed) and gold (solid) against the distance from where each method started.

    `methods` maps a label to a table with `kl` (nats), `proxy` and `gold`, in the order of growing
    optimisation: `evaluation.best_of_n`'s, or that of a PPO history with its `reward_mean` renamed.
    `gold_se` gives a 95% band. In sqrt(KL) the curves of best-of-n are nearly parabolas (Gao et al.
    2022).
    """
    axes = _axes(None)
    for (label, table), colour in zip(methods.items(), cycle(COLOURS), strict=False):
        distance = np.sqrt(table["kl"].clip(lower=0))  # an estimate may lie below 0
        axes.plot(distance, table["proxy"], "--", color=colour, label=f"{label}: proxy")
        axes.plot(distance, table["gold"], color=colour, label=f"{label}: gold")
        if "gold_se" in table:
            margin = 1.96 * table["gold_se"]
            band = (table["gold"] - margin, table["gold"] + margin)
            axes.fill_between(distance, *band, color=colour, alpha=0.15)
    axes.set(xlabel="sqrt(KL), nats", ylabel="score")
    axes.legend(frameon=False)
    return axes


def bars(values: Mapping[str, float], label: str) -> Axes:
    """One bar a name, with its number."""
    axes = _axes(None, height=2.6)
    drawn = axes.bar(list(values), list(values.values()), color=BLUE)
    axes.bar_label(drawn, fmt="%.3g")
    axes.set(ylabel=label)
    return axes


def policy_path(path: Tensor, optimum: Tensor, names: Sequence[str]) -> Axes:
    """Probabilities of a few answers while a policy learns (steps, A), and the best ones (A,)."""
    axes = _axes(None)
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
    """The learned policies (betas, A) as dots, on the lines of the best one for every beta."""
    axes = _axes(None)
    grid = np.geomspace(min(betas), max(betas), 100).tolist()
    best = torch.stack([optimum(beta) for beta in grid])
    for i, (name, colour) in enumerate(zip(names, COLOURS, strict=False)):
        axes.plot(grid, best[:, i], color=colour, label=name)
        axes.plot(betas, learned[:, i], "o", color=colour)
    axes.set(xlabel="beta", ylabel="probability", xscale="log", ylim=(0, 1))
    axes.legend(frameon=False)
    return axes


def points(table: pd.DataFrame, x: str, y: str, label: str) -> Axes:
    """One column against another, joined in the order of the rows, each point with its label."""
    axes = _axes(None)
    axes.plot(table[x], table[y], "o-", color=BLUE)
    for _, row in table.iterrows():
        axes.annotate(f"  {label} {row[label]:g}", (row[x], row[y]), va="top", fontsize=8)
    axes.set(xlabel=x, ylabel=y)
    return axes


def texts(table: pd.DataFrame) -> Styler:
    """A table to be read: texts to the left, and shown as they are, whatever HTML they hold."""
    left = [{"selector": "th, td", "props": "text-align: left; vertical-align: top"}]
    shown = table.style.hide(axis="index").format(precision=2, escape="html").set_table_styles(left)
    return shown.set_table_attributes('class="tex2jax_ignore mathjax_ignore"')  # "$5 or $6"


def differences(table: pd.DataFrame) -> Styler:
    """`evaluation.side_by_side`'s table to be read: words that only one answer has are marked."""
    pairs = [_marked(*pair) for pair in table[["untuned", "tuned"]].to_numpy()]
    marked = pd.DataFrame(pairs, table.index, ["untuned", "tuned"])
    shown = texts(table.assign(**marked))
    return shown.format(subset=["untuned", "tuned"], escape=None)  # `_marked` has escaped them


def _marked(first: str, second: str) -> tuple[str, str]:
    """Both texts as HTML that shows them as they are, with the words that differ in <mark>."""
    words = [text.split() for text in (first, second)]
    shown: tuple[list[str], list[str]] = ([], [])
    for what, *spans in SequenceMatcher(a=words[0], b=words[1], autojunk=False).get_opcodes():
        for side, own, (start, end) in zip(shown, words, (spans[:2], spans[2:]), strict=True):
            run = html.escape(" ".join(own[start:end]))
            if run:
                side.append(run if what == "equal" else f"<mark>{run}</mark>")
    return " ".join(shown[0]), " ".join(shown[1])


def matrix(table: pd.DataFrame, title: str, low: float = 0.0) -> Axes:
    """A table of shares as a picture, with its numbers; `low` is the share that is drawn white."""
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


def methods(table: pd.DataFrame) -> np.ndarray:
    """Gold and win rate of `evaluation.compare_methods` against the distance, with 95% bars."""
    panels = plt.subplots(1, 2, figsize=(10, 3.8), layout="constrained")[1]
    for axes, column in zip(panels, ("gold", "win_rate"), strict=True):
        axes = _axes(axes)
        for (name, row), colour, marker in zip(table.iterrows(), cycle(COLOURS), cycle("os^vDPX")):
            margin = 1.96 * row["gold_se"]
            low, high = row["gold"] - margin, row["gold"] + margin
            if column == "win_rate":
                low, high = row["win_rate_low"], row["win_rate_high"]
            distance = np.sqrt(max(row["kl"], 0))  # an estimate may lie below 0
            axes.plot(distance, row[column], marker, color=colour, label=name, linestyle="")
            axes.vlines(distance, low, high, color=colour, alpha=0.5)
        axes.set(xlabel="sqrt(KL from SFT), nats", ylabel=column.replace("_", " "))
    panels[1].legend(frameon=False, loc="center left", bbox_to_anchor=(1, 0.5))
    return panels
