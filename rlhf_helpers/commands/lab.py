"""The command `lab`: open the notebooks in JupyterLab."""

import argparse
import subprocess
import sys

from rlhf_helpers.commands.notebooks import copy_lessons
from rlhf_helpers.extras import require
from rlhf_helpers.runs import project_root


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """There are no options."""
    parser.description = (
        "Open the notebooks in JupyterLab. Outside a clone they are copied into the current "
        "directory first, unless it has a folder notebooks/."
    )


def run(_: argparse.Namespace) -> int:
    """Run JupyterLab until it is stopped, and return its exit status."""
    require("course", "jupyterlab")
    copy_lessons()
    settings = [f"--ServerApp.root_dir={project_root()}"]
    settings += ["--LabApp.default_url=/lab/tree/notebooks"]
    return subprocess.run([sys.executable, "-m", "jupyterlab", *settings]).returncode
