"""The command `doctor`: checks that this machine can run the course, and names remedies."""

import argparse
import importlib.metadata
import os
import platform
import shutil
from collections.abc import Iterator
from typing import NamedTuple

from rlhf_helpers import runs, scales

INSTALL = 'pip install "rlhf-helpers[course,cloud]", or in a clone make course'
EXTRAS = ("course", "cloud")  # what the lessons need
GIB = 2**30
SPACE = 2 * GIB  # a course at `tiny` keeps 0.6 GiB, and needs as much again while it runs


class Finding(NamedTuple):
    """The result of one check: what was found, and the remedy if that is not enough."""

    check: str
    found: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are no options."""
    parser.description = (
        "Check that this machine has what the course needs. Exit status 1 if something is missing. "
        "Nothing is written."
    )


def run(_: argparse.Namespace) -> int:
    """Print a line for every check, with the remedy where one fails."""
    status = 0
    for check, found, remedy in examine():
        print(f"{'MISSING' if remedy else 'ok':<9}{check:<10}{found}", flush=True)
        if remedy:
            print(f"{'':<19}remedy: {remedy}")
            status = 1
    return status


def examine() -> Iterator[Finding]:
    """Run the checks one by one, the quick ones first."""
    yield _packages()
    yield _data()
    yield _space()
    from rlhf_helpers.models.devices import describe_device

    yield Finding("device", f"{os.cpu_count()} cores, {describe_device()}")


def _packages() -> Finding:
    """Check that the packages of the lessons are installed, in the versions that they ask for."""
    from packaging.requirements import Requirement

    lacking = []
    for requirement in map(Requirement, importlib.metadata.requires("rlhf-helpers") or []):
        marker = requirement.marker
        if marker and not any(marker.evaluate({"extra": extra}) for extra in EXTRAS):
            continue
        wanted = f"{requirement.name}{requirement.specifier}"
        try:
            version = importlib.metadata.version(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            lacking.append(wanted)
            continue
        if not requirement.specifier.contains(version, prereleases=True):
            lacking.append(f"{wanted} (found: {version})")
    python = f"Python {platform.python_version()}"
    if lacking:
        return Finding("packages", f"{python}; missing or old: {', '.join(lacking)}", INSTALL)
    return Finding("packages", f"{python}, all packages")


def _data() -> Finding:
    """Check that the shipped data and models are there."""
    wanted = [runs.data_dir() / "base_model" / "model.safetensors"]
    wanted += [runs.data_dir() / "labeller" / "adapter_model.safetensors"]
    for task in scales.LITTLE_WORLD:
        for name in ("demonstrations", "preferences", "prompts", "rankings"):
            wanted.append(scales.Scale("tiny", task).data(name, "train"))
    absent = [path for path in wanted if not path.is_file()]
    if absent:
        found = f"{len(absent)} of {len(wanted)} files are missing, first {absent[0]}"
        return Finding("data", found, "git checkout -- data, or install the package again")
    return Finding("data", f"{runs.data_dir()}")


def _space() -> Finding:
    """Check that there is space for the runs, and permission to write them."""
    folder = runs.runs_dir()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(there).free
    found = f"{folder}, {free / GIB:.0f} GiB free"
    if not os.access(there, os.W_OK):
        found += ", not writable"
    elif free >= SPACE:
        return Finding("runs", found)
    return Finding("runs", found, f"set RLHF_RUNS to a folder with {SPACE // GIB} GiB of space")
