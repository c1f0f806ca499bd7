"""Versions live in one place: pyproject.toml has lower bounds, constraints.txt the tested pins."""

import re
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

tomllib = pytest.importorskip("tomllib")  # part of Python from 3.11 on

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
EXTRAS = PROJECT["optional-dependencies"]
PINS = [
    Requirement(line)
    for line in (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if not line.startswith("#")
]
PINNED = {canonicalize_name(pin.name): next(iter(pin.specifier)).version for pin in PINS}
DEPENDENCIES = [
    requirement
    for requirement in map(
        Requirement,
        [*PROJECT["dependencies"], *(line for lines in EXTRAS.values() for line in lines)],
    )
    if requirement.name != PROJECT["name"]
]


def conda_environment() -> tuple[list[str], list[str]]:
    """The conda packages and the lines for pip of environment.yml."""
    text = (ROOT / "environment.yml").read_text(encoding="utf-8")
    dependencies = yaml.safe_load(text)["dependencies"]
    pip_lines = next(entry["pip"] for entry in dependencies if isinstance(entry, dict))
    return [entry for entry in dependencies if isinstance(entry, str)], pip_lines


@pytest.mark.parametrize("dependency", DEPENDENCIES, ids=str)
def test_a_dependency_has_a_lower_bound_which_its_pin_satisfies(dependency):
    assert [clause.operator for clause in dependency.specifier] == [">="]
    assert dependency.specifier.contains(PINNED[canonicalize_name(dependency.name)])


def test_constraints_hold_exact_public_versions_with_torch_first():
    assert PINS[0].name == "torch"
    for pin in PINS:
        assert [clause.operator for clause in pin.specifier] == ["=="], pin
        assert not pin.url and Version(PINNED[canonicalize_name(pin.name)]).local is None, pin
    assert len(PINNED) == len(PINS)


def test_extra_all_is_every_other_extra():
    (everything,) = map(Requirement, EXTRAS["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == set(EXTRAS) - {"all"}


def test_conda_installs_the_project_under_the_constraints():
    packages, pip_lines = conda_environment()
    assert "pip" in packages
    assert pip_lines == ["-c constraints.txt", "-e .[all]"]


def test_conda_names_no_version_but_a_supported_python():
    packages, _ = conda_environment()
    (python,) = [entry for entry in packages if entry.startswith("python=")]
    version = re.fullmatch(r"python=(\d+\.\d+)", python)[1]
    assert version in Requirement(f"python{PROJECT['requires-python']}").specifier
    assert [entry for entry in packages if re.search(r"[=<>\d]", entry)] == [python]
