"""The exercises of L1, L2 and L4: formats, labels, win rates."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from rlhf_helpers.checks.feedback import Feedback, try_function, try_number
from rlhf_helpers.schemas import DataError, check_preference

# ---- L1: how RLHF works --------------------------------------------------------------------


def optimal_policy(answer: Any) -> Feedback:
    """Check `answer(reference, rewards, beta)`: the probabilities of the best policy (A,)."""
    reference, rewards = np.array([0.5, 0.3, 0.2]), np.array([0.0, 1.0, 2.0])

    def normal(weights: np.ndarray) -> np.ndarray:
        return weights / weights.sum()

    return try_function(
        answer,
        lambda p, r, beta: normal(p * np.exp(r / beta)),
        [(reference, rewards, 0.5), (reference, rewards, 100.0), (reference, 3 - rewards, 2.0)],
        {
            "Divide the weights by their sum.": lambda p, r, beta: p * np.exp(r / beta),
            "Where is the reference? Weigh each answer by its probability there.": (
                lambda p, r, beta: normal(np.exp(r / beta))
            ),
            "Divide the rewards by beta: a high beta keeps the policy at home.": (
                lambda p, r, beta: normal(p * np.exp(r * beta))
            ),
        },
        "Right. A high beta gives back the reference, a low one nearly all to the best answer.",
        "Multiply the reference by exp(rewards / beta), then divide by the sum.",
    )


def beta_for_share(answer: Any, reference: Sequence[float], rewards: Sequence[float]) -> Feedback:
    """Check that `answer` is a beta with which the best answer gets 88% to 92%."""
    if isinstance(answer, bool) or not isinstance(answer, int | float) or answer <= 0:
        return Feedback(False, f"beta is {answer!r}.", "Write a number above 0.")
    gains = np.asarray(rewards) - np.max(np.asarray(rewards))
    weights = np.asarray(reference) * np.exp(gains / answer)
    share = weights[gains.argmax()] / weights.sum()
    praise = f"Right: the best answer gets {share:.0%}."
    too_low = "That is the best answer's share in percent. Lower beta: the reward decides more."
    too_high = (
        "That is the best answer's share in percent. Raise beta: the reference holds it back."
    )
    return try_number(100 * float(share), 88, 92, praise, too_low, too_high)


def preference_record(answer: Any) -> Feedback:
    """Check that `answer` is the record of a pair that prefers the answer about the cat."""
    if not isinstance(answer, dict):
        return Feedback(False, f"This is {answer!r}, not a dict.", "Write {'input_text': …}.")
    try:
        check_preference({key: value for key, value in answer.items() if value is not ...})
    except DataError as error:
        fields = "The fields are input_text, candidate_0, candidate_1 and choice."
        return Feedback(False, str(error), fields)
    if "cat" not in answer[f"candidate_{answer['choice']}"]:
        hint = "`choice` is the number of the better candidate: 0 or 1."
        return Feedback(False, "By this record the answer about the weather is better.", hint)
    return Feedback(True, "Right. A reward model can learn from this line.")


# ---- L2: the data --------------------------------------------------------------------------


def longer_wins(answer: Any) -> Feedback:
    """Check `answer(preferences)`: the share of pairs in which the longer candidate was chosen."""
    pairs = [("a a a", "a", 0), ("a", "a a", 1), ("a a", "a", 1), ("a b", "c d", 1)]
    records = [
        {"candidate_0": first, "candidate_1": second, "choice": choice}
        for first, second, choice in pairs
    ]

    def won(records: list[dict]) -> list[int]:
        """1 where the longer one was chosen, -1 for the shorter one, 0 for equal lengths."""
        lengths = [[len(r[f"candidate_{i}"].split()) for i in (0, 1)] for r in records]
        return [
            int(np.sign(n[r["choice"]] - n[1 - r["choice"]]))
            for n, r in zip(lengths, records, strict=True)
        ]

    return try_function(
        answer,
        lambda records: won(records).count(1) / (len(records) - won(records).count(0)),
        [(records,), (records[:3],), (records[1:],)],
        {
            "Pairs of equal length have no longer candidate: leave them out of the count.": (
                lambda records: won(records).count(1) / len(records)
            ),
            "That is how often the *shorter* one wins.": (
                lambda records: won(records).count(-1) / (len(records) - won(records).count(0))
            ),
            "That is how often candidate 1 was chosen, whatever its length.": (
                lambda records: sum(r["choice"] for r in records) / len(records)
            ),
        },
        "Right. Whether it is a bias, only the truth can say: is the longer one better as often?",
        "Count words with len(text.split()); compare the chosen candidate with the other one.",
    )


def ranking_scores(answer: Any) -> Feedback:
    """Check `answer(ranking)`: the candidates' scores, K - 1 for the best to 0."""

    def scores(ranking: list, tie: float) -> list[float]:
        """A tied group of n gets its lowest place plus `tie` (n - 1)."""
        groups = [group if isinstance(group, list) else [group] for group in ranking]
        place: dict[int, float] = {}
        for group in reversed(groups):
            share = len(place) + tie * (len(group) - 1)
            place |= dict.fromkeys(group, share)
        return [place[candidate] for candidate in sorted(place)]

    return try_function(
        answer,
        lambda ranking: scores(ranking, tie=0.5),
        [([1, 2, 0],), ([1, [0, 2]],), ([2, [0, 3], 1],)],
        {
            "These are in the order of the ranking. Give them in the order of the candidates.": (
                lambda ranking: [len(ranking) - 1 - place for place in range(len(ranking))]
            ),
            "The best one gets the highest score.": (
                lambda ranking: scores(ranking[::-1], tie=0.5)
            ),
            "Tied candidates share the *mean* of the places that they fill.": (
                lambda ranking: scores(ranking, tie=0)
            ),
        },
        "Right: ranks have become numbers that a regression could learn.",
        "Go from the worst to the best, counting up from 0; a list inside is a tie.",
    )


def two_ceilings(exact: Any, promised: Any) -> Feedback:
    """Check the exact ceiling, .75, and the bound, .854, where half of the pairs are coins."""
    found = try_number(
        exact,
        0.745,
        0.755,
        "",
        "For each pair take the share of labels that the likelier choice gets; then the mean.",
        "In a pair of equals nobody can be right in more than half of the labels.",
    )
    if not found.passed:
        return Feedback(False, f"The exact ceiling: {found.message}", found.hint)
    found = try_number(
        promised,
        0.849,
        0.859,
        "Right. Three labels of four can be got right, and the formula promises 85%.",
        "Two labels agree in half of the one half and in all of the other: put 0.75 into the "
        "formula.",
        "How often do two labels agree? Put that into (1 + sqrt(2 agreement - 1)) / 2.",
    )
    if not found.passed:
        return Feedback(False, f"The formula: {found.message}", found.hint)
    return found


# ---- L4: evaluation ------------------------------------------------------------------------


def win_rate(answer: Any) -> Feedback:
    """Check `answer(tuned, untuned)`: the tuned model's win rate; a tie counts half."""
    tuned, untuned = np.array([3.0, 2.0, 1.0, 4.0]), np.array([1.0, 2.0, 2.0, 3.0])

    def rate(tie: float, a: np.ndarray, b: np.ndarray) -> float:
        return float(((a > b) + tie * (a == b)).mean())

    return try_function(
        answer,
        lambda a, b: rate(0.5, a, b),
        [(tuned, untuned), (untuned, tuned), (tuned[:2], untuned[:2])],
        {
            "A tie is half a win; you count it as a loss.": lambda a, b: rate(0, a, b),
            "A tie is half a win; you count it as a whole one.": lambda a, b: rate(1, a, b),
            "A tie is half a win, not left out.": lambda a, b: (a > b).sum() / (a != b).sum(),
            "That is the *untuned* model's win rate.": lambda a, b: rate(0.5, b, a),
        },
        "Right. Two equal models now come out at a half.",
        "Take the mean of 1 where tuned > untuned, 0.5 where they are equal, else 0.",
    )


def precision_recall(answer: Any) -> Feedback:
    """Check `answer(said, true)`: precision and recall, from two bool arrays (N,)."""
    said = np.array([True, True, True, False, False])
    true = np.array([True, False, False, True, False])

    def right(said: np.ndarray, true: np.ndarray) -> tuple[float, float]:
        return (said & true).sum() / said.sum(), (said & true).sum() / true.sum()

    return try_function(
        answer,
        right,
        [(said, true), (true, said)],
        {
            "You found a bug, or did you? These two are still the wrong way round.": (
                lambda said, true: right(said, true)[::-1]
            ),
            "Both count the hits, said *and* true; `said == true` counts the quiet ones too.": (
                lambda said, true: (
                    (said == true).sum() / said.sum(),
                    (said == true).sum() / true.sum(),
                )
            ),
        },
        "Right. Precision: how much of what it says is true. Recall: how much of what is true "
        "it says.",
        "Precision divides the hits by all that was *said*, recall by all that is *true*.",
    )
