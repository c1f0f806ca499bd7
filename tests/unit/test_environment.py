"""Versions live in one place: pyproject.toml has bounds, constraints.txt the tested pins.

And whatever is imported is declared, in the dependencies or in the extra that the import names.
"""

import ast
import json
import re
import tomllib
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import distributions
from pathlib import Path
from sys import stdlib_module_names

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

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
def test_a_dependency_has_both_bounds_and_its_pin_lies_between(dependency):
    assert sorted(clause.operator for clause in dependency.specifier) == ["<", ">="]
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


# ---- What is imported is declared ------------------------------------------------------------


def distributions_by_path() -> dict[str, set[str]]:
    """`google/cloud/storage` -> the names of the distributions that have files there."""
    owners = defaultdict(set)
    for distribution in distributions():
        name = canonicalize_name(distribution.name)
        for line in (distribution.read_text("RECORD") or "").splitlines():
            module = re.match(r"((?:\w+/)*\w+)(\.[\w-]+)*\.(py|pyi|so),", line)
            path = module[1] if module else ""
            while path:
                owners[path].add(name)
                path = path.rpartition("/")[0]
    return owners


def imports(tree: ast.AST, extra: str = "") -> Iterator[tuple[str, str]]:
    """The modules of others that a file imports, with the extra that the import names, if any."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            found = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            found = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            call = node.items[0].context_expr if isinstance(node, ast.With) else None
            named = re.fullmatch(r"needs_extra\('(\w+)'\)", ast.unparse(call)) if call else None
            yield from imports(node, named[1] if named else extra)
            continue
        for name in found:
            if name.partition(".")[0] not in stdlib_module_names:
                yield name, extra


def is_own(name: str, path: Path) -> bool:
    """Whether it is the project's: the package, or a file beside the importing one or a parent."""
    top = name.partition(".")[0]
    near = [folder / top for folder in path.parents if folder.is_relative_to(ROOT)]
    own = [ROOT / "benchmarks" / top, ROOT / "benchmarks" / "workers" / top, *near]
    return any(place.with_suffix(".py").exists() or place.is_dir() for place in own)


def undeclared(path: Path, tree: ast.AST, extras: set[str]) -> list[str]:
    """What a file imports without a declaration; `extras` are installed where it runs."""
    missing = []
    for name, extra in imports(tree):
        if is_own(name, path):
            continue
        place = name.replace(".", "/")
        while place not in OWNERS and "/" in place:
            place = place.rpartition("/")[0]
        lines = [*PROJECT["dependencies"]]
        for given in extras | ({extra} - {""}):
            lines += EXTRAS[given]
        if not OWNERS.get(place, set()) & {canonicalize_name(Requirement(x).name) for x in lines}:
            missing.append(name)
    return missing


OWNERS = distributions_by_path()
EVERYTHING = set(EXTRAS) - {"all"}
MODULES = sorted((ROOT / "rlhf_helpers").rglob("*.py"))
SCRIPTS = [
    path for folder in ("benchmarks", "img", "tests") for path in ROOT.glob(f"{folder}/**/*.py")
]
LESSONS = sorted((ROOT / "notebooks").glob("L*.ipynb"))
NEED_THE_CLOUD = {"L3_tune_llm", "L5_google_cloud_setup"}


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_module_imports_only_what_is_declared(path):
    # `rlhf_helpers.pipelines` checks for its extra before any of its modules is imported.
    extras = {"cloud"} if path.parent.name == "pipelines" else set()
    assert undeclared(path, ast.parse(path.read_text(encoding="utf-8")), extras) == []


def test_scripts_and_tests_import_only_what_is_declared():
    for path in SCRIPTS:
        tree = ast.parse(path.read_text(encoding="utf-8"))
        assert undeclared(path, tree, EVERYTHING) == [], path


@pytest.mark.parametrize("path", LESSONS, ids=lambda path: path.stem)
def test_a_lesson_imports_what_the_extra_course_brings(path):
    extras = {"course", "cloud"} if path.stem in NEED_THE_CLOUD else {"course"}
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "code" and not re.search(r"^\s*[%!]", source, re.M):
            assert undeclared(path, ast.parse(source), extras) == []


def test_an_undeclared_import_is_found():
    tree = ast.parse(
        "import numpy\nimport os\nimport scipy\nfrom google.cloud import storage\n"
        "with needs_extra('course'):\n    import matplotlib.pyplot\n    import wandb\n"
    )
    found = undeclared(ROOT / "rlhf_helpers" / "new.py", tree, set())
    assert found == ["scipy", "google.cloud.storage", "wandb"]


# ---- The pages -------------------------------------------------------------------------------

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").glob("*.md")]
PAGES += [ROOT / folder / "README.md" for folder in ("benchmarks", "data", "notebooks")]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_and_targets_of_a_page_exist(page):
    text = page.read_text(encoding="utf-8")
    for link in re.findall(r"\]\(([^)#]+)", text):
        assert link.startswith("https://") or (page.parent / link).exists(), link
    targets = set(re.findall(r"\bmake ([a-z][a-z-]+)\b", "\n".join(re.findall(r"`[^`]+`", text))))
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    assert targets <= set(re.findall(r"^([a-z-]+):", makefile, re.M))


def test_the_readme_stays_short():
    assert len((ROOT / "README.md").read_text(encoding="utf-8").split()) <= 1500


def is_in_the_package(name: str) -> bool:
    """Whether it is a module, or a function or class of the module before the last dot."""
    place = ROOT / "rlhf_helpers" / name.replace(".", "/")
    if place.is_dir() or place.with_suffix(".py").is_file():
        return True
    paths = [place.parent.with_suffix(".py"), *place.parent.glob("**/*.py")]
    defined = re.compile(rf"^(def|class) {place.name}\b", re.M)
    return any(defined.search(path.read_text(encoding="utf-8")) for path in paths if path.exists())


def test_the_new_names_in_the_changelog_exist():
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\|.*\|(.*)\|$", text.partition("| before | now |")[2], re.M)[1:]
    for name in re.findall(r"`([a-z][\w.]+)`", "\n".join(rows)):
        assert is_in_the_package(name), name
    assert not is_in_the_package("sources.to_preferences") and not is_in_the_package("cli")
