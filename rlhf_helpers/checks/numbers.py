"""The exercises whose answer is one number, in the order of the lessons."""

from typing import Any

from rlhf_helpers.checks.feedback import Feedback, try_number
from rlhf_helpers.cloud.cost import ENDPOINT, EXAMPLE_PRICES


def bad_line(answer: Any) -> Feedback:
    """Check that `answer` is 3, the number of the line that the reader refuses."""
    hint = "Call schemas.read_preferences(path): its error names the line, counted from 1."
    return try_number(answer, 3, 3, 'Right: "1" is a text, 1 is a number.', hint, hint)


def prompts_needed(answer: Any) -> Feedback:
    """Check that `answer` is about 1,067, the prompts for a 95% interval of 0.5 ± 0.03."""
    praise = "Right: about (1.96 / 0.03)² / 4. Half the interval costs four times."
    too_low = "The half-width is 1.96 · sqrt(0.25 / n). Solve for n where it is 0.03."
    too_high = "Fewer will do: solve 1.96 · sqrt(0.25 / n) = 0.03 for n."
    return try_number(answer, 1000, 1150, praise, too_low, too_high)


def weekend_cost(answer: Any) -> Feedback:
    """Check that `answer` is the price of 63 hours of the example endpoint, to the cent."""
    cost = 63 * EXAMPLE_PRICES[ENDPOINT]
    praise = "Right: 63 hours, asked or not. Undeploy first, then go home."
    too_low = (
        "Count from Friday 18:00: 6 hours, two whole days, and 9 hours of Monday, times the price."
    )
    too_high = (
        "It was deployed on Friday at 18:00 and is undeployed on Monday at 9:00: 6 + 48 + 9 hours."
    )
    return try_number(answer, cost - 0.01, cost + 0.01, praise, too_low, too_high)


def weights_in_gigabytes(answer: Any) -> Feedback:
    """Check that `answer` is about 0.65, the gigabytes of 1.3 billion weights at 4 bits."""
    praise = "Right: half a byte a weight. At 32 bits it would be 5.2."
    too_low = "4 bits are half a byte. How many bytes are 1.3 billion halves?"
    too_high = "4 bits are half a byte, not 4 bytes; a gigabyte is a billion bytes."
    return try_number(answer, 0.6, 0.75, praise, too_low, too_high)


def score_gap(answer: Any) -> Feedback:
    """Check that `answer` is about 2.2, the gap in score at which 9 of 10 prefer the better one."""
    praise = "Right: log(0.9 / 0.1). And at the same score it is one in two."
    too_low = "sigmoid(d) = 0.9 means d = log(0.9 / 0.1): the log of the odds."
    too_high = "sigmoid(d) = 0.9 means d = log(0.9 / 0.1), with the natural logarithm."
    return try_number(answer, 2.1, 2.3, praise, too_low, too_high)


def log_ratio_gap(answer: Any) -> Feedback:
    """Check that `answer` is about 4.4: the gap of log ratios (nats) for 90% at beta 0.5."""
    praise = "Right: log(9) / 0.5. With beta 0.05 it is 44 nats: a low beta lets the policy go far."
    too_low = (
        "sigmoid(beta * gap) = 0.9. L7 solved it without beta; here beta makes the gap *longer*."
    )
    too_high = "sigmoid(beta * gap) = 0.9: log(0.9 / 0.1) divided by beta."
    return try_number(answer, 4.2, 4.6, praise, too_low, too_high)


def kept_share_ratio(answer: Any) -> Feedback:
    """Check that `answer` is P(N(1, 1) > 1) / P(N(0, 1) > 1) = 0.5 / 0.159 = 3.15."""
    praise = (
        "Right: from 16% to half. A threshold that stands still soon keeps almost everything, and "
        "that is why it has to rise."
    )
    too_low = "Half of a normal distribution is above its mean; above one deviation more are 16%."
    too_high = "Above the mean is one half, above one deviation more 16%: divide the two."
    return try_number(answer, 2.9, 3.4, praise, too_low, too_high)


def questions_asked(answer: Any) -> Feedback:
    """Check that `answer` is 30,000: 2,500 rankings of four, every pair asked in both orders."""
    praise = "Right: six pairs a ranking, two orders a pair."
    too_low = "Four answers make six pairs, and each is asked about twice."
    too_high = "Four answers make six pairs, not twelve or sixteen; each is asked about twice."
    return try_number(answer, 30_000, 30_000, praise, too_low, too_high)
