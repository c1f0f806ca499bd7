"""Make executed notebooks fit for committing: equal code and results give an equal file."""

import base64
import copy
import io
import re
from pathlib import Path
from typing import Any

from rlhf_helpers.extras import needs_extra
from rlhf_helpers.runs import project_root

with needs_extra("course"):
    from nbformat import NotebookNode
    from PIL import Image

EXERCISE = "exercise"
RUN_METADATA = ("papermill", "execution", "widgets", "ExecuteTime", "collapsed", "scrolled")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
PNG = "image/png"
WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRESS_BAR = re.compile(r"\s*<div>(?:(?!</div>).)*<progress.*?</div>\s*", re.DOTALL)


def normalise(notebook: NotebookNode) -> NotebookNode:
    """Return a copy that is fit for committing.

    Timestamps, papermill's metadata, stderr, progress bars and widgets are removed; machine paths
    become relative; cells are counted 1..n. Cells tagged `exercise` keep no outputs.
    """
    clean = with_ids(copy.deepcopy(notebook))
    clean.metadata.kernelspec = dict(KERNEL)
    clean.metadata.language_info = {"name": "python"}
    clean.cells = [cell for cell in clean.cells if "injected-parameters" not in tags(cell)]
    for node in [clean, *clean.cells]:
        for key in RUN_METADATA:
            node.metadata.pop(key, None)
    count = 0
    for cell in clean.cells:
        if cell.cell_type != "code":
            continue
        ran = EXERCISE not in tags(cell) and cell.execution_count is not None
        count += ran
        cell.execution_count = count if ran else None
        cell.outputs = _clean_outputs(cell.outputs, count) if ran else []
    return clean


def _clean_outputs(outputs: list[NotebookNode], count: int) -> list[NotebookNode]:
    """Drop outputs that differ from run to run, and number the others as those of cell `count`."""
    kept: list[NotebookNode] = []
    for output in outputs:
        data = output.get("data", {})
        if output.get("name") == "stderr" or WIDGET in data:
            continue
        if "<progress" in data.get("text/html", ""):
            data["text/html"] = PROGRESS_BAR.sub("", data["text/html"])
            if not data["text/html"].strip():
                continue
        if "execution_count" in output:
            output.execution_count = count
        if kept and output.output_type == kept[-1].output_type == "stream":
            kept[-1].text += output.text  # the kernel splits a stream at random places
        else:
            kept.append(output)
    kept = [_with_a_palette(_stable(output)) for output in kept]
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def _with_a_palette(output: NotebookNode) -> NotebookNode:
    """Reduce a PNG figure to 256 colours: it looks the same and needs a third of the bytes."""
    if PNG in output.get("data", {}):
        image = Image.open(io.BytesIO(base64.b64decode(output.data[PNG])))
        if image.mode != "P":
            small = io.BytesIO()
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG")
            output.data[PNG] = base64.b64encode(small.getvalue()).decode()
    return output


def _stable(node: Any) -> Any:
    """Return nested outputs with the last state of every line and without machine paths."""
    if isinstance(node, str):
        return _without_machine_paths(_last_states(node))
    if isinstance(node, list):
        return [_stable(item) for item in node]
    if isinstance(node, dict):
        images = {key for key in node if key.startswith("image/")}
        return NotebookNode({k: v if k in images else _stable(v) for k, v in node.items()})
    return node


def _last_states(text: str) -> str:
    """Keep what a terminal would show of lines that carriage returns have overwritten."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)


def _without_machine_paths(text: str) -> str:
    """Write the project's root as `.` and the home directory as `~`."""
    for place, short in ((project_root(), "."), (Path.home(), "~")):
        if place != Path(place.anchor):
            text = re.sub(rf"(?<![\w.~-]){re.escape(str(place))}(?![\w-])", short, text)
    return text


def with_ids(notebook: NotebookNode) -> NotebookNode:
    """Name cells without an id after their position; nbformat would draw a random name."""
    for position, cell in enumerate(notebook.cells):
        cell.setdefault("id", f"cell-{position}")
    notebook.nbformat_minor = max(notebook.nbformat_minor, 5)  # the first version that has ids
    return notebook


def tags(cell: NotebookNode) -> list[str]:
    """The tags in a cell's metadata."""
    return cell.metadata.get("tags", [])
