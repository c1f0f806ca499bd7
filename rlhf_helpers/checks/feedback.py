"""Try a learner's answer, and tell its author what is wrong.

A learner's function is run on small cases beside the right one. Where the two differ and the
result is the one that a typical mistake gives, the hint is about that mistake.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import Tensor


@dataclass(frozen=True)
class Feedback:
    """What a check has found; `hint` is empty if the answer is right."""

    passed: bool
    message: str
    hint: str = ""

    def __repr__(self) -> str:
        return f"✓ {self.message}" if self.passed else f"✗ {self.message}\n  Hint: {self.hint}"


def try_function(
    answer: Any,
    right: Callable,
    cases: Sequence[tuple],
    mistakes: Mapping[str, Callable],
    praise: str,
    hint: str,
) -> Feedback:
    """Compare `answer` with `right` on each case, up to the first difference.

    `mistakes` maps a hint to the function of someone who needs it; `hint` is for all others.
    """
    if not callable(answer):
        return Feedback(
            False, f"This is {answer!r}, not a function.", "Pass its name, no brackets."
        )
    for case in cases:
        try:
            got = answer(*case)
        except Exception as error:  # whatever a learner's code may raise
            return Feedback(False, f"Your function raised {type(error).__name__}: {error}.", hint)
        if got is None or got is ...:
            return Feedback(False, "Your function returns nothing yet.", hint)
        wanted = right(*case)
        if not same(got, wanted):
            known = [text for text, mistake in mistakes.items() if same(got, mistake(*case))]
            arguments = ", ".join(map(shown, case))
            message = f"For ({arguments}) you give {shown(got)}; right is {shown(wanted)}."
            return Feedback(False, message, [*known, hint][0])
    return Feedback(True, praise)


def try_number(
    answer: Any, low: float, high: float, praise: str, too_low: str, too_high: str
) -> Feedback:
    """Check that `answer` is from `low` to `high`; `too_low` and `too_high` are the hints."""
    if isinstance(answer, bool) or not isinstance(answer, int | float):
        return Feedback(False, f"The answer is {answer!r}.", "Write a number in place of the dots.")
    if low <= answer <= high:
        return Feedback(True, praise)
    if answer < low:
        return Feedback(False, f"{answer:g} is too low.", too_low)
    return Feedback(False, f"{answer:g} is too high.", too_high)


def same(got: Any, wanted: Any) -> bool:
    """Equal up to rounding: numbers, arrays, tensors, lists, and tuples of them."""
    if isinstance(wanted, tuple):
        return isinstance(got, tuple) and len(got) == len(wanted) and all(map(same, got, wanted))
    try:
        got, wanted = np.asarray(got, dtype=float), np.asarray(wanted, dtype=float)
    except (TypeError, ValueError, RuntimeError):
        return False
    return got.shape == wanted.shape and np.allclose(got, wanted, atol=1e-5)


def shown(value: Any) -> str:
    """A value as a learner would write it, numbers with four digits."""
    if isinstance(value, Tensor | np.ndarray):
        value = value.tolist()
    if isinstance(value, list | tuple):
        inner = ", ".join(map(shown, value))
        return f"[{inner}]" if isinstance(value, list) else f"({inner})"
    return f"{value:.4g}" if isinstance(value, float) else repr(value)
