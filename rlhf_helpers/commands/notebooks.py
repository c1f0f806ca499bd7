"""Run one notebook headless with papermill, and refresh its committed copy.

A notebook runs on the interpreter that runs this module, with `scale` and `seed` injected and
without its exercises (cells tagged `exercise`), which wait for the reader. The executed copy is
written to `runs/<scale>/notebooks/`.
"""

import copy
import re
import shutil
from pathlib import Path

from rlhf_helpers.commands.normalise import EXERCISE, normalise, tags, with_ids
from rlhf_helpers.extras import needs_extra
from rlhf_helpers.runs import PACKAGE, project_root, runs_dir

with needs_extra("course"):
    import nbformat
    import papermill
    from nbclient.exceptions import DeadKernelError
    from nbformat import NotebookNode
    from papermill.exceptions import PapermillExecutionError
    from traitlets.config import Config

LARGEST_NOTEBOOK = 500_000  # bytes; code hosts do not display larger files
ENCRYPTED = Config(KernelManager={"transport_encryption": "auto"})  # without it, each kernel warns


class NotebookFailed(Exception):
    """A notebook did not run to its end; the message names it, the cell and the error."""


def copy_lessons() -> None:
    """Copy the lessons that the wheel carries into the current directory, unless it has some.

    Nothing is copied in a clone, and no file is overwritten.
    """
    shipped, root = PACKAGE / "lessons", project_root()
    if (root / "notebooks").exists() or not shipped.is_dir():
        return
    for source in sorted(path for path in shipped.rglob("*") if path.is_file()):
        target = root / source.relative_to(shipped)
        target.parent.mkdir(parents=True, exist_ok=True)
        if not target.exists():
            shutil.copyfile(source, target)
    print(f"The lessons were copied to {root / 'notebooks'}.", flush=True)


def course_notebooks() -> list[Path]:
    """Return the course's notebooks in order, L2 before L10."""
    return sorted((project_root() / "notebooks").glob("L[0-9]*.ipynb"), key=order)


def order(notebook: str | Path) -> tuple[int, str]:
    """Return the sort key of a notebook: its lesson's number, then its name."""
    name = Path(notebook).stem
    digits = re.match(r"L(\d+)", name)
    return int(digits[1]) if digits else 0, name


def run_notebook(path: Path, scale: str, seed: int, in_place: bool) -> None:
    """Execute a notebook; with `in_place` also write it back, executed and normalised.

    The kernel inherits the environment of the calling process. Raises NotebookFailed.
    """
    original = with_ids(nbformat.read(path, as_version=4))
    output = runs_dir() / scale / "notebooks" / path.name
    output.parent.mkdir(parents=True, exist_ok=True)
    try:
        executed = papermill.execute_notebook(
            without_exercises(original),
            output,
            parameters={"scale": scale, "seed": seed},
            kernel_name="python3",  # jupyter_client starts it on this interpreter
            language="python",
            cwd=path.parent,
            config=ENCRYPTED,
            progress_bar=False,
        )
    except PapermillExecutionError as error:
        raise NotebookFailed(
            f"{path.stem} failed in cell [{error.exec_count}]:\n{_indented(error.source)}\n"
            f"{error.ename}: {error.evalue}\nThe whole traceback: {shown(output)}"
        ) from error
    except DeadKernelError as error:
        raise NotebookFailed(
            f"{path.stem} failed: its Python process died, often for lack of memory, in the cell\n"
            f"{_indented(_last_source(output))}\nThe outputs until then: {shown(output)}"
        ) from error
    if in_place:
        _write_back(path, original, executed)


def without_exercises(notebook: NotebookNode) -> NotebookNode:
    """Return a copy without the cells tagged `exercise`."""
    stripped = copy.deepcopy(notebook)
    stripped.cells = [cell for cell in stripped.cells if EXERCISE not in tags(cell)]
    return stripped


def shown(path: Path) -> str:
    """Return `path` relative to the current directory where it lies below it."""
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else str(path)


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
            f"written: show less, or smaller figures. The executed copy is in {shown(runs_dir())}."
        )
    path.write_text(text, encoding="utf-8")


def _last_source(output: Path) -> str:
    """Return the code of the last cell that was started, from papermill's copy."""
    cells = nbformat.read(output, as_version=4).cells
    return [cell.source for cell in cells if cell.metadata.papermill.get("start_time")][-1]


def _indented(source: str, lines: int = 12) -> str:
    return "\n".join(f"    {line}" for line in source.splitlines()[:lines])
