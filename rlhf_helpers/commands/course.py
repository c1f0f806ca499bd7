"""Run the notebooks side by side, with one line of progress each, and print what they recorded."""

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Collection, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from pathlib import Path

from rlhf_helpers.commands.notebooks import (
    NotebookFailed,
    copy_lessons,
    course_notebooks,
    order,
    run_notebook,
    shown,
)
from rlhf_helpers.commands.options import add_common
from rlhf_helpers.runs import (
    HEADLESS,
    project_root,
    read_results,
    record_results,
    runs_dir,
)
from rlhf_helpers.scales import Scale

# The lesson in which the reader sees a stage being trained, into `live/<stage>`.
TRAINED_IN = {"sft": "L6", "reward": "L7", "ppo": "L8", "dpo": "L9"}
# What a lesson reads: trained stages, or all that another lesson writes. It starts when these are
# there. A lesson that is not listed starts when all lessons before it have ended.
READS: dict[str, tuple[str, ...]] = {
    "L1": (),
    "L2": (),
    "L3": (),
    "L4": ("L3",),
    "L5": (),
    "L6": (),
    "L7": ("sft",),
    "L8": ("sft", "reward"),
    "L9": ("sft", "ppo"),
    "L10": ("sft", "reward", "ppo"),
    "L11": ("sft", "reward", "ppo", "dpo", "L10"),
}
MOST_JOBS = 4  # more would seldom find a lesson that is ready, and each takes up to 2 GB
# Figures are drawn although no front end is attached, whatever backend the calling process uses.
# No lesson compiles a model: without dynamo, bitsandbytes is imported two seconds sooner.
KERNEL_VARIABLES = {
    HEADLESS: "1",
    "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    "TORCHDYNAMO_DISABLE": "1",
}
# On CPUs each notebook computes with one thread. Two notebooks with one thread each finish sooner
# than one after the other with two, since small matrices gain little from a second thread; and the
# rounding of sums, so every recorded number, does not depend on the number of cores.
ONE_THREAD = {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


def run_course(
    scale: str,
    seed: int = 0,
    notebooks: Sequence[str | Path] | None = None,
    in_place: bool = False,
    jobs: int | None = None,
) -> int:
    """Run notebooks and print their results; return the exit status.

    `notebooks` are paths, by default every `notebooks/L*.ipynb`. `in_place` also writes each back,
    executed and normalised for committing. `jobs` notebooks run side by side, see `default_jobs`.
    The status is 0, or 1 if a notebook failed (the others still run) or if there is none. Raises
    FileNotFoundError if a path is no file.
    """
    copy_lessons()
    paths = course_notebooks() if notebooks is None else [Path(path) for path in notebooks]
    if absent := [str(path) for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{absent[0]}: no such notebook. Check the path.")
    if not paths:
        print(f"No notebooks L*.ipynb in {project_root() / 'notebooks'}.", file=sys.stderr)
        return 1
    failures = run_notebooks(paths, scale, seed, in_place, jobs)
    if len(failures) < len(paths):
        _print_results(scale)
    return 1 if failures else 0


def default_jobs(scale: Scale) -> int:
    """Return how many notebooks run side by side: one per core on CPUs, one on a GPU."""
    return 1 if scale.needs_gpu else min(os.cpu_count() or 1, MOST_JOBS)


def run_notebooks(
    paths: Sequence[Path],
    scale: str,
    seed: int = 0,
    in_place: bool = False,
    jobs: int | None = None,
) -> dict[str, str]:
    """Run notebooks side by side, each as soon as what it reads has been written.

    Prints a line for each and records its `seconds`. If a notebook fails, the others still run: a
    later one trains what it lacks. Returns the error messages by the failed notebooks'
    names. Raises ValueError for an unknown scale, a bad seed, and less than one job.
    """
    live = Scale(scale, "summarize", seed, live=True)
    jobs = default_jobs(live) if jobs is None else jobs
    if jobs < 1:
        raise ValueError(f"jobs is {jobs}: at least one notebook must run at a time")
    waiting, running, failures = list(paths), dict[Future, Path](), dict[str, str]()
    progress, beginning = Progress(len(paths)), time.time()
    spawn = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(jobs, spawn, _set_environment, (_variables(live),)) as pool:
        try:
            while waiting or running:
                trained = _trained_since(beginning, live)
                for path in _ready(waiting, running.values(), trained)[: jobs - len(running)]:
                    waiting.remove(path)
                    progress.start(path.stem)
                    running[pool.submit(_attempt, path, scale, seed, in_place)] = path
                ended, _ = wait(running, timeout=1, return_when=FIRST_COMPLETED)
                for future in ended:
                    name, message = running.pop(future).stem, future.result()
                    seconds = progress.end(name, failed=bool(message))
                    if message:
                        failures[name] = message
                        print(f"\n{message}\n", file=sys.stderr, flush=True)
                    else:
                        record_results(scale, name, {"seconds": round(seconds, 1)})
                progress.show()
        except BaseException:
            for worker in multiprocessing.active_children():
                worker.terminate()
            raise
    return failures


def _variables(scale: Scale) -> dict[str, str]:
    """Return the environment variables of the kernels at a scale.

    The precision of matrix products is measured here, before the notebooks slow each other down:
    on a busy processor the notebooks might choose differently.
    """
    if scale.needs_gpu:
        return KERNEL_VARIABLES
    from rlhf_helpers.models.devices import matmul_precision

    return KERNEL_VARIABLES | ONE_THREAD | {"RLHF_MATMUL_PRECISION": matmul_precision()}


def _set_environment(variables: dict[str, str]) -> None:
    """Prepare a worker process, from which the kernels inherit."""
    os.environ.update(variables)


def _attempt(path: Path, scale: str, seed: int, in_place: bool) -> str:
    """Run one notebook in a worker process; return the error message if it has failed."""
    try:
        run_notebook(path, scale, seed, in_place)
    except NotebookFailed as failure:
        return str(failure)
    return ""


class Progress:
    """Prints a line for every notebook that has ended and, on a terminal, what is running."""

    def __init__(self, count: int):
        self.count, self.ended = count, 0
        self.beginning = time.monotonic()
        self.started: dict[str, float] = {}  # of the notebooks that are running
        self.width = 0  # of the line that the next one overwrites

    def start(self, name: str) -> None:
        """A notebook begins."""
        self.started[name] = time.monotonic()

    def end(self, name: str, failed: bool) -> float:
        """A notebook has ended: print its line and return its seconds."""
        self.ended += 1
        seconds = time.monotonic() - self.started.pop(name)
        since = minutes(time.monotonic() - self.beginning)
        took = f"failed after {minutes(seconds)}" if failed else minutes(seconds)
        self._overwrite(f"[{self.ended}/{self.count}] {name}: {took}, {since} since the start\n")
        return seconds

    def show(self) -> None:
        """Show on a terminal which notebooks are running, and for how long."""
        if sys.stdout.isatty():
            now = time.monotonic()
            running = (f"{name} {minutes(now - start)}" for name, start in self.started.items())
            self._overwrite("  ".join(running))

    def _overwrite(self, line: str) -> None:
        blank = f"\r{' ' * self.width}\r" if self.width else ""
        print(blank + line, end="", flush=True)
        self.width = 0 if line.endswith("\n") else len(line)


def _trained_since(beginning: float, live: Scale) -> set[str]:
    """Return the stages whose training has ended after a time in seconds since the epoch."""
    ends = {stage: live.dir(stage) / "metrics.json" for stage in TRAINED_IN}
    return {s for s, end in ends.items() if end.exists() and end.stat().st_mtime >= beginning}


def _ready(waiting: Collection[Path], running: Collection[Path], trained: set[str]) -> list[Path]:
    """Return the waiting notebooks that need not wait for a notebook that has not ended."""
    unfinished = {_lesson(path) for path in (*waiting, *running)}
    return [path for path in waiting if not _must_wait(_lesson(path), unfinished, trained)]


def _must_wait(lesson: str, unfinished: set[str], trained: set[str]) -> bool:
    """Tell whether an unfinished lesson has still to write something that `lesson` reads."""
    if lesson not in READS:
        return any(order(other) < order(lesson) for other in unfinished)
    return any(TRAINED_IN.get(r, r) in unfinished for r in READS[lesson] if r not in trained)


def _lesson(path: Path) -> str:
    """Return the first part of a notebook's name, such as L3."""
    return path.stem.split("_")[0]


def _print_results(scale: str) -> None:
    """Print the table of all recorded numbers, and where to look further."""
    results = read_results(scale)
    width = max(len(name) for name in results)
    print(f"\n{'notebook':<{width}}  {'result':<24}{'value':>12}")
    for notebook in sorted(results, key=order):
        for name, value in results[notebook].items():
            print(f"{notebook:<{width}}  {name:<24}{value:>12.6g}")
    folder = shown(runs_dir() / scale)
    python = shown(Path(sys.executable))
    print(f"\nThese numbers:       {folder}/results.json")
    print(f"Executed notebooks:  {folder}/notebooks/")
    print(f"Training curves:     {python} -m tensorboard.main --logdir {folder}")


def minutes(seconds: float) -> str:
    """Format a time as minutes and seconds."""
    return f"{int(seconds) // 60}:{int(seconds) % 60:02d} min"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: which notebooks, and how many side by side."""
    add_common(parser, task=False)
    parser.add_argument(
        "--in-place", action="store_true", help="also refresh the notebooks' outputs"
    )
    parser.add_argument(
        "--jobs", type=int, help="notebooks side by side (default: one a core, on GPUs 1)"
    )
    parser.add_argument("notebooks", nargs="*", type=Path, help="only these (default: all)")


def run(options: argparse.Namespace) -> int:
    """Run the notebooks; the exit status is 1 if one of them fails."""
    notebooks = options.notebooks or None
    return run_course(options.scale, options.seed, notebooks, options.in_place, options.jobs)
