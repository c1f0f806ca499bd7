"""The wheel alone, outside the clone, in environments with just what it declares."""

import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import Distribution, distribution, distributions
from pathlib import Path, PurePosixPath

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]


def run(*command: str | Path, cwd: Path) -> str:
    """What a command prints, without this process's PYTHONPATH; a failure shows all of it."""
    done = subprocess.run(
        ["env", "-u", "PYTHONPATH", *map(str, command)],
        cwd=cwd,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def required(wheel: Distribution, extra: str) -> dict[str, Distribution]:
    """All distributions that pip would install for `rlhf-helpers[extra]`, by name."""
    found: dict[str, Distribution] = {}
    waiting = [(wheel, {extra})]
    while waiting:
        parent, extras = waiting.pop()
        for requirement in map(Requirement, parent.requires or []):
            marker = requirement.marker
            if marker and not any(marker.evaluate({"extra": one}) for one in {*extras, ""}):
                continue
            name = canonicalize_name(requirement.name)
            if name not in found or requirement.extras:
                found[name] = distribution(name)
                waiting.append((found[name], requirement.extras))
    return found


def files(distribution: Distribution) -> Iterator[PurePosixPath]:
    """Its files below `site-packages`."""
    for line in (distribution.read_text("RECORD") or "").splitlines():
        path = PurePosixPath(line.split(",")[0])
        if ".." not in path.parts and not path.is_absolute():
            yield path


def link(wanted: dict[str, Distribution], site: Path) -> None:
    """Put links to these distributions, and to no others, into `site`.

    This takes a second where installing torch again takes minutes and a gigabyte.
    """
    shared = {
        folder
        for one in distributions()
        if canonicalize_name(one.name) not in wanted
        for file in files(one)
        for folder in file.parents
    }
    for one in wanted.values():
        for file in files(one):
            path = next((p for p in reversed(file.parents) if p not in shared), file)
            target = site / path
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(one.locate_file(str(path)))


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    run(
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--no-index",
        "--no-build-isolation",
        "--wheel-dir",
        folder,
        ROOT,
        cwd=folder,
    )
    (path,) = folder.glob("*.whl")
    return path


def install(wheel: Path, folder: Path, extra: str = "") -> Path:
    """The programs of an environment with the wheel and what it declares."""
    programs = folder / "venv" / "bin"
    run(sys.executable, "-m", "venv", "--without-pip", folder / "venv", cwd=folder)
    pip = [sys.executable, "-m", "pip", "--python", programs / "python"]
    run(*pip, "install", "--no-deps", "--no-index", wheel, cwd=folder)
    (site,) = (folder / "venv").glob("lib/python*/site-packages")
    (ours,) = distributions(path=[str(site)])
    link(required(ours, extra), site)
    run(*pip, "check", cwd=folder)
    return programs


@pytest.fixture(scope="module")
def programs(wheel, tmp_path_factory) -> Path:
    """The programs of an environment with the wheel and no extra."""
    return install(wheel, tmp_path_factory.mktemp("alone"))


def snippet() -> str:
    """The Python program of the README."""
    (program,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    return program


def test_the_wheel_alone_trains_by_ppo_and_answers_help(programs, tmp_path):
    (package,) = programs.parent.glob("lib/python*/site-packages/rlhf_helpers")
    assert (package / "py.typed").is_file()
    (tmp_path / "data").symlink_to(package / "data")  # the README's program is run in a clone
    printed = run(programs / "python", "-c", snippet(), cwd=tmp_path)
    rewards = [float(number) for number in re.findall(r"^reward (-\d+\.\d+)", printed, re.M)]
    assert len(rewards) == 6 and rewards[-1] > rewards[0], "shorter answers are rewarded"
    for command in ([programs / "rlhf-helpers"], [programs / "python", "-m", "rlhf_helpers"]):
        assert "train" in run(*command, "--help", cwd=tmp_path)
    script = "import rlhf_helpers, sys; assert 'torch' not in sys.modules; print(rlhf_helpers)"
    assert str(package) in run(programs / "python", "-c", script, cwd=tmp_path)


def test_the_wheel_alone_imports_every_stage_and_names_the_extra_of_the_rest(programs, tmp_path):
    script = """
import importlib
for name in "sft reward_model ppo dpo rest rlaif evaluation stages sources sources.streams".split():
    importlib.import_module(f"rlhf_helpers.{name}")
for name, extra in (("plots", "course"), ("commands.notebooks", "course"), ("pipelines", "cloud")):
    try:
        importlib.import_module(f"rlhf_helpers.{name}")
    except ModuleNotFoundError as error:
        assert f"rlhf-helpers[{extra}]" in str(error), error
    else:
        raise SystemExit(f"{name} was imported")
from rlhf_helpers.commands.main import main
assert main(["course"]) == 1
"""
    printed = run(programs / "python", "-c", script, cwd=tmp_path)
    assert printed == 'error: nbformat is not installed: pip install "rlhf-helpers[course]"\n'


def test_with_the_extra_course_the_wheel_runs_the_first_lesson(wheel, tmp_path):
    lesson = "notebooks/L1_how_rlhf_works.ipynb"
    programs = install(wheel, tmp_path, "course")
    printed = run(programs / "rlhf-helpers", "course", lesson, cwd=tmp_path)
    assert "L1_how_rlhf_works" in (tmp_path / "runs/tiny/results.json").read_text(), printed
    lessons = {path.name for path in ROOT.glob("notebooks/*.ipynb")}
    assert {path.name for path in tmp_path.glob("notebooks/*.ipynb")} == lessons
    assert (tmp_path / "img" / "whole_chain.svg").is_file()
    assert (tmp_path / "benchmarks" / "world.md").is_file()
