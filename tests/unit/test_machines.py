"""Colab and Lambda: the set-up cell and the script, with everything outside faked."""

import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from types import ModuleType

import nbformat
import pytest

from rlhf_helpers.runs import project_root

# ---- Colab ---------------------------------------------------------------------------------

LESSON = nbformat.read(project_root() / "notebooks" / "L5_google_cloud_setup.ipynb", as_version=4)
[CELL] = [c.source for c in LESSON.cells if "colab" in c.metadata.get("tags", [])]


@pytest.fixture
def calls(monkeypatch, tmp_path):
    """What the cell would have run; each with the constraints as they stood then."""
    calls = []

    def record(command, check=False, **options):
        assert check, "a failing pip must be seen"
        constraints = command[command.index("--constraint") + 1]
        calls.append((command, Path(constraints).read_text()))

    monkeypatch.setattr(subprocess, "run", record)
    monkeypatch.chdir(tmp_path)
    return calls


def test_the_cell_does_nothing_outside_colab(calls, tmp_path):
    assert "google.colab" not in sys.modules
    exec(CELL, {})
    assert calls == [] and list(tmp_path.iterdir()) == []


def test_on_colab_it_installs_the_package_and_keeps_the_torch_that_is_there(calls, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    exec(CELL.replace('repository = ""', 'repository = "https://example.org/course.git"'), {})
    [(command, constraints)] = calls
    assert command[:4] == [sys.executable, "-m", "pip", "install"]
    assert command[-1] == "rlhf-helpers[course] @ git+https://example.org/course.git"
    assert constraints.strip() == f"torch=={version('torch')}"
    assert "--upgrade" not in command and "constraints.txt" not in command


def test_on_colab_without_an_address_it_asks_for_one(calls, monkeypatch):
    monkeypatch.setitem(sys.modules, "google.colab", ModuleType("google.colab"))
    with pytest.raises(AssertionError, match="address"):
        exec(CELL, {})
    assert calls == []


# ---- Lambda --------------------------------------------------------------------------------

LOGGED = 'echo "$(basename "$0") $*" >>"$CALLS"\n'
FAKES = {
    "ssh": '[ "$1" = -t ] && shift\nshift\ncd "$REMOTE" && HOME="$REMOTE" exec bash -c "$1"\n',
    "rsync": "for last; do from=${to:-}; to=$last; done\n"
    'cp -r "${from/#me@gpu:/$REMOTE/}." "${to/#me@gpu:/$REMOTE/}"\n',
    "tmux": 'case $1 in has-session) [ -n "$BUSY" ];; new-session) bash -c "${@: -1}";; esac\n',
} | dict.fromkeys(
    ("python3", "python3.11", "python3.12", "python3.13"),
    """case "$*" in
  *version_info*) [ -z "$OLD" ];;
  *__version__\\)) [ -n "$TORCH" ] && echo "$TORCH";;
  '-m venv'*) mkdir -p .venv/bin && cp "$0" .venv/bin/python;;
esac
""",
)


class Rented:
    """A copy of the script in a small repository, and a machine that is a folder."""

    def __init__(self, folder: Path) -> None:
        self.here, self.remote, self.log = folder / "here", folder / "remote", folder / "calls"
        tools = folder / "bin"
        for new in (self.here / "scripts", self.remote / "rlhf-course", tools):
            new.mkdir(parents=True)
        shutil.copy(project_root() / "scripts" / "lambda.sh", self.here / "scripts")
        (self.here / "pyproject.toml").write_text("ours")
        for name, body in FAKES.items():
            (tools / name).write_text(f"#!/usr/bin/env bash\n{LOGGED}{body}")
            (tools / name).chmod(0o755)
        self.environment = os.environ | {
            "PATH": f"{tools}:{os.environ['PATH']}",
            "REMOTE": str(self.remote),
            "CALLS": str(self.log),
            "BUSY": "",
            "OLD": "",
            "TORCH": "",
        }

    def __call__(self, *arguments: str, **changes: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            ["bash", "scripts/lambda.sh", *arguments],
            cwd=self.here,
            capture_output=True,
            text=True,
            env=self.environment | changes,
            timeout=60,
        )

    def calls(self) -> str:
        return self.log.read_text()


@pytest.fixture
def rented(tmp_path):
    return Rented(tmp_path)


def test_the_script_is_valid_and_explains_itself(rented):
    script = project_root() / "scripts" / "lambda.sh"
    assert subprocess.run(["bash", "-n", script]).returncode == 0
    shown = rented("--help")
    assert shown.returncode == 0 and not rented.log.exists()
    for word in ("setup", "run", "status", "attach", "fetch", "TERMINATE", "billed"):
        assert word in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([], "unknown command"),
        (["fly", "me@gpu"], "'fly'"),
        (["run"], "needs a HOST"),
        (["fetch", "me@gpu", "more"], "nothing else"),
    ],
)
def test_what_it_cannot_do_gets_one_error_and_reaches_no_machine(rented, arguments, word):
    shown = rented(*arguments)
    assert shown.returncode == 2 and not rented.log.exists()
    assert shown.stderr.startswith("error: ") and word in shown.stderr
    assert len(shown.stderr.splitlines()) == 1


@pytest.mark.parametrize("torch", ["2.6.0", "2.10.1+cu128"])
def test_setup_keeps_a_torch_that_fits(rented, torch):
    shown = rented("setup", "me@gpu", TORCH=torch)
    assert shown.returncode == 0, shown.stderr
    assert "python3 -m venv --system-site-packages .venv" in rented.calls()
    folder = rented.remote / "rlhf-course"
    assert (folder / ".venv" / "keep.txt").read_text() == f"torch=={torch}\n"
    assert (folder / "pyproject.toml").read_text() == "ours"
    assert "-m pip install --constraint .venv/keep.txt --editable .[course,cloud]" in rented.calls()
    assert "terminate" in shown.stdout
    for kept_here in ("--exclude=/.*", "--exclude=/runs"):
        assert kept_here in rented.calls()


@pytest.mark.parametrize("torch", ["", "2.5.1", "1.13.0"])
def test_setup_installs_torch_where_there_is_none_or_an_old_one(rented, torch):
    assert rented("setup", "me@gpu", TORCH=torch).returncode == 0
    assert "python3 -m venv .venv" in rented.calls()
    assert (rented.remote / "rlhf-course" / ".venv" / "keep.txt").read_text() == ""


def test_setup_on_a_machine_with_an_old_python_says_what_to_install(rented):
    shown = rented("setup", "me@gpu", OLD="1")
    assert shown.returncode == 1 and "sudo apt-get install" in shown.stderr
    assert "billed" in shown.stdout, "the bill runs on after a failure too"


def test_run_starts_tmux_keeps_words_together_and_logs_output_and_status(rented):
    shown = rented("run", "me@gpu", "bash", "-c", "echo 'two  words' $((6*7)); exit 3")
    assert shown.returncode == 0, shown.stderr
    assert "tmux new-session -d -s rlhf bash runs/lambda_run.sh" in rented.calls()
    log = rented.remote / "rlhf-course" / "runs" / "lambda.log"
    assert log.read_text() == "two  words 42\nexit status 3\n"
    assert "two  words" in rented("status", "me@gpu").stdout
    assert "still running" in rented("status", "me@gpu", BUSY="1").stdout


def test_run_without_a_command_runs_the_course(rented):
    rented("run", "me@gpu")
    script = rented.remote / "rlhf-course" / "runs" / "lambda_run.sh"
    assert ".venv/bin/python -m rlhf_helpers course --scale tiny" in script.read_text()


def test_a_second_run_is_refused_and_leaves_the_first_alone(rented):
    rented("run", "me@gpu", "echo", "first")
    script = rented.remote / "rlhf-course" / "runs" / "lambda_run.sh"
    before = script.read_text()
    shown = rented("run", "me@gpu", "echo", "second", BUSY="1")
    assert shown.returncode == 1 and "a run is going on" in shown.stderr
    assert script.read_text() == before


def test_fetch_copies_results_back_beside_our_own_and_reminds_of_the_bill(rented):
    (rented.here / "runs").mkdir()
    (rented.here / "runs" / "results.json").write_text("mine")
    (rented.remote / "rlhf-course" / "runs").mkdir()
    (rented.remote / "rlhf-course" / "runs" / "results.json").write_text("theirs")
    shown = rented("fetch", "me@gpu")
    assert shown.returncode == 0, shown.stderr
    assert (rented.here / "runs" / "results.json").read_text() == "mine"
    assert (rented.here / "runs" / "from_lambda" / "results.json").read_text() == "theirs"
    assert "me@gpu is billed until you terminate it" in shown.stdout
