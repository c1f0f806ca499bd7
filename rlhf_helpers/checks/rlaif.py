"""The exercises of L11: an AI labeller's answers, and what agreement to expect of it."""

from typing import Any

import numpy as np

from rlhf_helpers.checks.feedback import Feedback, try_function


def label_probability(answer: Any) -> Feedback:
    """Check `answer(as_given, swapped)`: P(candidate 1 is better), from the labeller's log-probs.

    Each argument holds the log-probs of "1" and "2"; in `swapped` candidate 1 was shown first.
    """

    def second(logprobs: np.ndarray) -> float:
        return float(1 / (1 + np.exp(logprobs[0] - logprobs[1])))

    given, turned = np.log([0.5, 0.3]), np.log([0.6, 0.2])
    return try_function(
        answer,
        lambda as_given, swapped: (second(as_given) + 1 - second(swapped)) / 2,
        [(given, turned), (turned, given), (np.log([0.9, 0.1]), np.log([0.9, 0.1]))],
        {
            'In the swapped order candidate 1 is the first: its label is "1" there.': (
                lambda as_given, swapped: (second(as_given) + second(swapped)) / 2
            ),
            "That is candidate 0; shown as given, candidate 1 is the second.": (
                lambda as_given, swapped: (1 - second(as_given) + second(swapped)) / 2
            ),
            "One order alone keeps the lean to a position: use both.": (
                lambda as_given, swapped: second(as_given)
            ),
            'The two labels need not sum to 1: divide by P("1") + P("2").': (
                lambda as_given, swapped: (np.exp(as_given[1]) + np.exp(swapped[0])) / 2
            ),
        },
        "Right: and a labeller that looks only at the position comes out at one half.",
        "A softmax over the two labels, once for each order, then the mean.",
    )


def expected_agreement(answer: Any) -> Feedback:
    """Check `answer(p, q)`: how often two labellers agree who are right with p and with q."""
    return try_function(
        answer,
        lambda p, q: p * q + (1 - p) * (1 - q),
        [(0.8, 0.9), (1.0, 0.7), (0.5, 0.9)],
        {
            "Of two answers there is only one that is wrong: two who both err agree, too.": (
                lambda p, q: p * q
            ),
            "Count the two cases in which they say the same: both right, both wrong.": (
                lambda p, q: 1 - abs(p - q)
            ),
        },
        "Right: so a labeller that is often right may agree little with people who err.",
        "They agree if both are right, and if both are wrong. Their errors are independent.",
    )
