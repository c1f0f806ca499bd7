"""What all figures share: colours, empty axes, a running mean."""

from collections.abc import Sequence

import numpy as np
import pandas as pd

from rlhf_helpers.extras import needs_extra

with needs_extra("course"):
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes

# Okabe and Ito's colours, which colour-blind readers can tell apart.
BLUE, ORANGE, GREEN = "#0072B2", "#E69F00", "#009E73"
RED, PURPLE, GREY = "#D55E00", "#CC79A7", "#7F7F7F"
COLOURS = (BLUE, ORANGE, GREEN, RED, PURPLE, GREY)


def new_axes(axes: Axes | None, width: float = 6.0, height: float = 3.2) -> Axes:
    """The given axes, or those of a new figure of so many inches, in the style of the course."""
    axes = axes or plt.subplots(figsize=(width, height), layout="constrained")[1]
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(alpha=0.25)
    return axes


def small_multiples(titles: Sequence[str]) -> np.ndarray:
    """Panels with titles, three a row: an array of Axes, in which unused ones are hidden."""
    rows = -(-len(titles) // 3)
    _, panels = plt.subplots(rows, 3, figsize=(10, 2.5 * rows), layout="constrained")
    for axes, title in zip(panels.flat, titles, strict=False):
        axes.set_title(title)
    for axes in panels.flat[len(titles) :]:
        axes.set_visible(False)
    return panels


def smooth(values: Sequence[float], window: int = 5) -> np.ndarray:
    """Centred running mean; at the ends over as many values as there are."""
    return pd.Series(values).rolling(window, center=True, min_periods=1).mean().to_numpy()
