"""Runs the notebooks that the selected tests are about, and gives what each of them recorded."""

from collections.abc import Callable
from pathlib import Path

import pytest

from rlhf_helpers.commands.course import run_notebooks
from rlhf_helpers.commands.notebooks import course_notebooks
from rlhf_helpers.runs import read_results

LESSONS = {path.stem.split("_")[0]: path for path in course_notebooks()}  # L1, L2, …
Results = Callable[[Path], dict[str, float]]


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test that takes `lesson` once per notebook."""
    if "lesson" in metafunc.fixturenames:
        metafunc.parametrize("lesson", LESSONS.values(), ids=LESSONS)


@pytest.fixture(scope="session")
def results(request: pytest.FixtureRequest) -> Results:
    """`results(path)`: the numbers of a notebook; if it has failed, only its own tests fail."""
    selected = [path for name, path in LESSONS.items() if _is_needed(name, request.session.items)]
    failures = run_notebooks(selected, "tiny")

    def recorded(path: Path) -> dict[str, float]:
        if path.stem in failures:
            pytest.fail(failures[path.stem], pytrace=False)
        return read_results("tiny")[path.stem]

    return recorded


def _is_needed(lesson: str, tests: list[pytest.Item]) -> bool:
    """Whether a test takes the fixture of this lesson, or is run once per notebook."""
    return any(lesson.lower() in t.fixturenames or f"[{lesson}]" in t.name for t in tests)


def _fixture(lesson: str) -> Callable:
    @pytest.fixture(name=lesson.lower())
    def numbers(results: Results) -> dict[str, float]:
        return results(LESSONS[lesson])

    return numbers


l1, l2, l3, l4 = map(_fixture, ("L1", "L2", "L3", "L4"))
l5, l6, l7, l8 = map(_fixture, ("L5", "L6", "L7", "L8"))
l9, l10, l11 = map(_fixture, ("L9", "L10", "L11"))
