"""A picture of a compiled pipeline: its steps, and the steps that each waits for."""

from kfp.dsl.graph_component import GraphComponent

from rlhf_helpers.extras import needs_extra
from rlhf_helpers.plots import BLUE, GREY

with needs_extra("course"):
    import matplotlib.pyplot as plt
    from matplotlib.axes import Axes


def dependencies(pipeline: GraphComponent) -> dict[str, set[str]]:
    """Map each step of the compiled pipeline to the steps whose results it waits for."""
    tasks = pipeline.pipeline_spec.root.dag.tasks
    return {name: set(task.dependent_tasks) for name, task in tasks.items()}


def levels(waits: dict[str, set[str]]) -> dict[str, int]:
    """Map each step to the length of the longest chain of steps before it."""
    found: dict[str, int] = {}
    while len(found) < len(waits):
        for name, before in waits.items():
            if before <= found.keys():
                found[name] = 1 + max((found[step] for step in before), default=-1)
    return found


def draw(pipeline: GraphComponent) -> Axes:
    """Draw the steps from left to right, without arrows that a longer path implies."""
    waits = dependencies(pipeline)
    level = levels(waits)
    names: dict[str, str] = {
        name: task.task_info.name for name, task in pipeline.pipeline_spec.root.dag.tasks.items()
    }
    columns = [[name for name in waits if level[name] == n] for n in range(max(level.values()) + 1)]
    place = {
        name: (column, (len(rows) - 1) / 2 - row)
        for column, rows in enumerate(columns)
        for row, name in enumerate(sorted(rows))
    }
    axes = plt.subplots(figsize=(2.1 * len(columns), 2.4), layout="constrained")[1]
    box = {"boxstyle": "round,pad=0.5", "facecolor": "white", "edgecolor": BLUE}
    labels = {name: names[name].replace("-", " ").replace(" ", "\n") for name in waits}
    boxes = {
        name: axes.text(*place[name], label, ha="center", va="center", fontsize=9, bbox=box)
        for name, label in labels.items()
    }
    for name, (x, y) in place.items():
        for before in waits[name] - _implied(waits, name):
            far = level[name] - level[before] > 1  # then the arrow would cross other boxes
            arrow = {"arrowstyle": "->", "color": GREY, "shrinkA": 0, "shrinkB": 0}
            arrow |= {"patchA": boxes[before].get_bbox_patch()}
            arrow |= {"patchB": boxes[name].get_bbox_patch()}
            arrow |= {"connectionstyle": "arc3,rad=-0.2"} if far else {}
            axes.annotate("", (x, y), place[before], arrowprops=arrow)
    axes.set(xlim=(-0.6, len(columns) - 0.4), ylim=(-1.1, 1.1))
    axes.axis("off")
    return axes


def _implied(waits: dict[str, set[str]], name: str) -> set[str]:
    """The steps that `name` waits for only through another step that it waits for."""
    behind: set[str] = set()
    for step in waits[name]:
        behind |= waits[step] | _implied(waits, step)
    return behind
