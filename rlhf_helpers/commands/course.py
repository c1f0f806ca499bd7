"""Run the notebooks in order, headless: progress, a table of results, and clean committed copies.

Every notebook runs on the interpreter that runs this module, with `scale` and `seed` injected and
without its exercises (cells tagged `exercise`), which wait for the reader. Executed copies are kept
in `runs/<scale>/notebooks/`; `in_place` also refreshes the notebooks themselves for committing.
"""

import base64
import copy
import io
import os
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from unittest import mock

import nbformat
import papermill
from nbclient.exceptions import DeadKernelError
from nbformat import NotebookNode
from papermill.exceptions import PapermillExecutionError
from PIL import Image
from traitlets.config import Config

from rlhf_helpers.runs import HEADLESS, project_root, read_results, record_results, runs_dir

EXERCISE = "exercise"
LARGEST_NOTEBOOK = 500_000  # bytes; larger files are not shown by code hosts
RUN_METADATA = ("papermill", "execution", "widgets", "ExecuteTime", "collapsed", "scrolled")
KERNEL = {"display_name": "Python 3", "language": "python", "name": "python3"}
# Nobody is looking, yet figures are shown, whatever backend this process draws with. No lesson
# compiles a model: without dynamo, bitsandbytes is imported two seconds sooner.
KERNEL_VARIABLES = {
    HEADLESS: "1", "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "TORCHDYNAMO_DISABLE": "1",
}  # fmt: skip
ENCRYPTED = Config(KernelManager={"transport_encryption": "auto"})  # without, each kernel warns
PNG = "image/png"
WIDGET = "application/vnd.jupyter.widget-view+json"
PROGRESS_BAR = re.compile(r"\s*<div>(?:(?!</div>).)*<progress.*?</div>\s*", re.DOTALL)


class NotebookFailed(Exception):
    """A notebook did not run to its end; the message names it, the cell and the error."""


def run_course(
    scale: str,
    seed: int = 0,
    notebooks: Sequence[str | Path] | None = None,
    in_place: bool = False,
) -> int:
    """Execute notebooks one after the other, then print their results and where to look.

    `notebooks` are paths, by default every `notebooks/L*.ipynb` in order. `in_place` also writes
    each back, executed and normalised for committing. Returns the exit status: 0, or 1 where a
    notebook failed (the later ones are not run) or none was found.
    """
    paths = course_notebooks() if notebooks is None else [Path(path) for path in notebooks]
    if not paths:
        print(f"No notebooks L*.ipynb in {project_root() / 'notebooks'}.", file=sys.stderr)
        return 1
    course_start = time.monotonic()
    for position, path in enumerate(paths, start=1):
        print(f"[{position}/{len(paths)}] {path.stem}", flush=True)
        start = time.monotonic()
        try:
            run_notebook(path, scale, seed, in_place)
        except NotebookFailed as failure:
            print(f"\n{failure}", file=sys.stderr)
            return 1
        seconds = time.monotonic() - start
        record_results(scale, path.stem, {"seconds": round(seconds, 1)})
        elapsed = _minutes(time.monotonic() - course_start)
        print(f"{path.stem}: {_minutes(seconds)}, {elapsed} since the start", flush=True)
    _print_results(scale)
    return 0


def course_notebooks() -> list[Path]:
    """The course's notebooks in order, L2 before L10."""
    return sorted((project_root() / "notebooks").glob("L[0-9]*.ipynb"), key=_order)


def run_notebook(path: Path, scale: str, seed: int, in_place: bool) -> None:
    """Execute one notebook into `runs/<scale>/notebooks/`; raises NotebookFailed."""
    original = _with_ids(nbformat.read(path, as_version=4))
    output = runs_dir() / scale / "notebooks" / path.name
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        with mock.patch.dict(os.environ, KERNEL_VARIABLES):
            executed = papermill.execute_notebook(
                without_exercises(original),
                output,
                parameters={"scale": scale, "seed": seed},
                kernel_name="python3",  # jupyter_client starts it on this interpreter
                language="python",
                cwd=path.parent,
                config=ENCRYPTED,
            )
    except PapermillExecutionError as error:
        raise NotebookFailed(
            f"{path.stem} failed in cell [{error.exec_count}]:\n{_indented(error.source)}\n"
            f"{error.ename}: {error.evalue}\nThe whole traceback: {_shown(output)}"
        ) from error
    except DeadKernelError as error:
        raise NotebookFailed(
            f"{path.stem} failed: its Python process died, often for want of memory, in the cell\n"
            f"{_indented(_last_source(output))}\nWhat it had done: {_shown(output)}"
        ) from error
    if in_place:
        _write_back(path, original, executed)


def without_exercises(notebook: NotebookNode) -> NotebookNode:
    """A copy without the cells tagged `exercise`."""
    stripped = copy.deepcopy(notebook)
    stripped.cells = [cell for cell in stripped.cells if EXERCISE not in _tags(cell)]
    return stripped


def normalise(notebook: NotebookNode) -> NotebookNode:
    """A copy fit for committing: the same code and results always give the same file.

    Timestamps, papermill's traces, stderr, progress bars and widgets go; machine paths become
    relative; cells are counted 1..n. Cells tagged `exercise` keep no outputs.
    """
    clean = _with_ids(copy.deepcopy(notebook))
    clean.metadata.kernelspec = dict(KERNEL)
    clean.metadata.language_info = {"name": "python"}
    clean.cells = [cell for cell in clean.cells if "injected-parameters" not in _tags(cell)]
    for node in [clean, *clean.cells]:
        for key in RUN_METADATA:
            node.metadata.pop(key, None)
    count = 0
    for cell in clean.cells:
        if cell.cell_type != "code":
            continue
        ran = EXERCISE not in _tags(cell) and cell.execution_count is not None
        count += ran
        cell.execution_count = count if ran else None
        cell.outputs = _clean_outputs(cell.outputs, count) if ran else []
    return clean


def _write_back(path: Path, original: NotebookNode, executed: NotebookNode) -> None:
    """Give the original's cells the outputs of the executed copy and write it, normalised."""
    ran = {cell.id: cell for cell in executed.cells if cell.cell_type == "code"}
    for cell in original.cells:
        if cell.cell_type == "code":
            cell.outputs = ran[cell.id].outputs if cell.id in ran else []
            cell.execution_count = ran[cell.id].execution_count if cell.id in ran else None
    text = nbformat.writes(normalise(original)) + "\n"
    size = len(text.encode())
    if size > LARGEST_NOTEBOOK:
        raise NotebookFailed(
            f"{path.stem} would be {size:,} bytes, more than {LARGEST_NOTEBOOK:,}, and was not "
            f"written: show less, or smaller figures. The executed copy is in {_shown(runs_dir())}."
        )
    path.write_text(text, encoding="utf-8")


def _clean_outputs(outputs: list[NotebookNode], count: int) -> list[NotebookNode]:
    """Those outputs of cell `count` that say something, without what changes from run to run."""
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
            kept[-1].text += output.text  # where a stream is cut into pieces is chance
        else:
            kept.append(output)
    kept = [_with_a_palette(_stable(output)) for output in kept]
    return [output for output in kept if output.output_type != "stream" or output.text.strip()]


def _with_a_palette(output: NotebookNode) -> NotebookNode:
    """Give a figure 256 colours of its own: it looks the same, in a third of the bytes."""
    if PNG in output.get("data", {}):
        image = Image.open(io.BytesIO(base64.b64decode(output.data[PNG])))
        if image.mode != "P":
            small = io.BytesIO()
            image.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(small, "PNG")
            output.data[PNG] = base64.b64encode(small.getvalue()).decode()
    return output


def _stable(node: Any) -> Any:
    """A tree of dicts and lists with the last state of every line and without machine paths."""
    if isinstance(node, str):
        return _without_machine_paths(_last_states(node))
    if isinstance(node, list):
        return [_stable(item) for item in node]
    if isinstance(node, dict):
        images = {key for key in node if key.startswith("image/")}
        return NotebookNode({k: v if k in images else _stable(v) for k, v in node.items()})
    return node


def _last_states(text: str) -> str:
    """What stays on a terminal of lines that were overwritten with carriage returns."""
    lines = text.replace("\r\n", "\n").split("\n")
    return "\n".join(line.rstrip("\r").rsplit("\r", 1)[-1] for line in lines)


def _without_machine_paths(text: str) -> str:
    """Write the project's root as `.` and the home directory as `~`."""
    for place, short in ((project_root(), "."), (Path.home(), "~")):
        if place != Path(place.anchor):
            text = re.sub(rf"(?<![\w.~-]){re.escape(str(place))}(?![\w-])", short, text)
    return text


def _with_ids(notebook: NotebookNode) -> NotebookNode:
    """Name cells without an id after their place, instead of by chance as nbformat would."""
    for place, cell in enumerate(notebook.cells):
        cell.setdefault("id", f"cell-{place}")
    notebook.nbformat_minor = max(notebook.nbformat_minor, 5)  # the first version that has ids
    return notebook


def _last_source(output: Path) -> str:
    """The code of the last cell that was started, from papermill's copy."""
    cells = nbformat.read(output, as_version=4).cells
    return [cell.source for cell in cells if cell.metadata.papermill.get("start_time")][-1]


def _print_results(scale: str) -> None:
    """The table of all recorded numbers, and where to look further."""
    results = read_results(scale)
    width = max(len(name) for name in results)
    print(f"\n{'notebook':<{width}}  {'result':<24}{'value':>12}")
    for notebook in sorted(results, key=_order):
        for name, value in results[notebook].items():
            print(f"{notebook:<{width}}  {name:<24}{value:>12.6g}")
    folder = _shown(runs_dir() / scale)
    python = _shown(Path(sys.executable))
    print(f"\nThese numbers:       {folder}/results.json")
    print(f"Executed notebooks:  {folder}/notebooks/")
    print(f"Training curves:     {python} -m tensorboard.main --logdir {folder}")


def _order(notebook: str | Path) -> tuple[int, str]:
    name = Path(notebook).stem
    digits = re.match(r"L(\d+)", name)
    return int(digits[1]) if digits else 0, name


def _tags(cell: NotebookNode) -> list[str]:
    return cell.metadata.get("tags", [])


def _indented(source: str, lines: int = 12) -> str:
    return "\n".join(f"    {line}" for line in source.splitlines()[:lines])


def _minutes(seconds: float) -> str:
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def _shown(path: Path) -> str:
    """`path` as short as it can be given from the current directory."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)
