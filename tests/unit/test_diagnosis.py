"""What `diagnose` says of recorded runs, and of healthy numbers with one thing made wrong.

The recorded ones are real, each made to go wrong by one thing: see `histories/record.py`.
`healthy_course`: five runs of the course's PPO, of three seeds, 64 responses a step.
"""

import json
import math
import random
from pathlib import Path

import pytest

from rlhf_helpers.evaluation import Finding, diagnose


def recorded(name: str) -> list[dict]:
    path = Path(__file__).parent / "histories" / f"{name}.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def healthy(steps: int = 40, **changes) -> list[dict]:
    """Numbers like those of L8, noise included; a change maps progress (0 to 1) to a value."""
    rng = random.Random(0)
    curves = {
        "reward_mean": lambda t: min(1.0, 4 * t) + rng.gauss(0, 0.06),
        "reward_std": lambda t: 1 - 0.5 * t,
        "gold": lambda t: 1.6 + min(1.3, 5 * t) + rng.gauss(0, 0.25),
        "kl": lambda t: min(1.4, 7 * t) + rng.gauss(0, 0.2),
        "entropy": lambda t: 0.45 - 0.2 * t,
        "clip_fraction": lambda t: 0.012 * (1 - t),
        "approx_kl": lambda t: 0.004,
        "explained_variance": lambda t: min(0.15, t) + rng.gauss(0, 0.3),
        "response_length": lambda t: 16 + rng.gauss(0, 0.7),
        "eos_rate": lambda t: 0.99,
        "grad_norm": lambda t: 0.5,
    } | changes
    return [{key: curve(i / steps) for key, curve in curves.items()} for i in range(steps)]


def only(findings: list[Finding]) -> Finding:
    assert len(findings) == 1, findings
    (finding,) = findings
    assert finding.remedy.endswith(".") and finding.figure and finding.what
    return finding


# Each finding's words, its figure, and words of its remedy.
PROVOKED = {
    "stale_sampler": [
        ("KL is negative", "-9.90 nats a response, late", "Sample from the current weights"),
    ],
    "reward_hacking": [
        ("KL explodes", "22.65 nats a response, late", "Raise kl_coef"),
        ("reward hacking", "reward +1.12, gold -3.88 since the best quarter", "label new pairs"),
    ],
    "learning_rate_high": [
        ("KL explodes", "27.52 nats a response, late", "lower the learning rate"),
        ("reward falls", "from 0.68 to -1.84", "Lower the learning rate"),
        (
            "the learning rate is too high",
            "clip fraction 0.159, approx_kl 0.208 nats a token",
            "Divide the learning rate by 3",
        ),
    ],
    "learning_rate_low": [
        (
            "the learning rate is too low",
            "clip fraction 0, KL 0.000 nats a response",
            "Multiply the learning rate by 3",
        ),
    ],
    "many_epochs": [
        ("KL explodes", "225.63 nats a response, late", "take fewer steps"),
        ("reward falls", "from 1.07 to -4.77", "Lower the learning rate"),
        (
            "updates are too large",
            "clip fraction 0.248, approx_kl 0.220 nats a token",
            "fewer ppo_epochs",
        ),
        ("responses grow", "from 17 to 32 tokens", "length_bias"),
        ("do not end by themselves", "50% end, late", "missing_eos_penalty"),
    ],
    "no_value_loss": [
        (
            "value function explains nothing",
            "explained variance 0.00, over the second half",
            "Raise value_learning_rate or vf_coef",
        ),
    ],
    "one_answer_rewarded": [  # it collapses, and then is driven into nonsense
        ("KL explodes", "108.69 nats a response, late", "Raise kl_coef"),
        ("entropy collapses", "from 0.43 to 0.06 nats a token", "Raise kl_coef"),
        ("responses grow", "from 15 to 27 tokens", "length_bias"),
    ],
    "words_rewarded": [
        ("reward hacking", "reward +1.69, gold -3.06 since the best quarter", "raise kl_coef"),
        ("responses grow", "from 22 to 41 tokens", "take something off the score for each token"),
        ("do not end by themselves", "73% end, late", "Raise missing_eos_penalty"),
    ],
    "drawn_by_lot": [
        ("reward model is near chance", "accuracy 0.49, late", "how often two people agree"),
    ],
    "half_precision": [
        (
            "policy_loss, value_loss, entropy, approx_kl, grad_norm is not a finite number",
            "from step 3 on",
            "leave half precision",
        ),
    ],
}


def test_healthy_numbers_have_no_finding():
    assert diagnose(healthy()) == []


@pytest.mark.parametrize("name", [*(f"healthy_{seed}" for seed in range(5)), "healthy_reward"])
def test_a_healthy_run_has_no_finding(name):
    assert diagnose(recorded(name)) == []


def test_five_healthy_runs_of_the_course_have_no_finding():
    rows = recorded("healthy_course")
    for run in range(5):
        history = [row for row in rows if row["run"] == run]
        assert len(history) == 45
        assert diagnose(history) == []


@pytest.mark.parametrize("name", PROVOKED)
def test_a_run_made_to_go_wrong_is_diagnosed(name):
    findings = diagnose(recorded(name))
    assert [finding.figure for finding in findings] == [figure for _, figure, _ in PROVOKED[name]]
    for finding, (what, _, remedy) in zip(findings, PROVOKED[name], strict=True):
        assert what in finding.what
        assert remedy in finding.remedy


def test_every_recorded_run_is_tested():
    files = {path.stem for path in (Path(__file__).parent / "histories").glob("*.jsonl")}
    assert {name for name in files if not name.startswith("healthy")} == set(PROVOKED)


WRONG = {
    "KL is negative": ({"kl": lambda t: -2 * t}, "-1.73 nats"),
    "KL explodes": ({"kl": lambda t: 60 * t}, "51.75 nats"),
    "near chance": ({"accuracy": lambda t: 0.52}, "0.52"),
    "scores all answers alike": ({"reward_std": lambda t: 0.01}, "0.010"),
    "reward falls": ({"reward_mean": lambda t: 1 - t}, "from 0.89 to 0.14"),
    "updates are too large": ({"clip_fraction": lambda t: 0.4}, "clip fraction 0.400"),
    "does not move": (
        {"clip_fraction": lambda t: 0.0, "kl": lambda t: 0.0},
        "clip fraction 0, KL 0.000",
    ),
    "value function explains nothing": ({"explained_variance": lambda t: 0.0}, "0.00"),
    "entropy collapses": ({"entropy": lambda t: 0.45 * (1 - t)}, "from 0.40 to 0.06"),
    "responses grow": ({"response_length": lambda t: 16 + 30 * t}, "from 19 to 42 tokens"),
    "do not end by themselves": ({"eos_rate": lambda t: 1 - t}, "14% end"),
}


@pytest.mark.parametrize("what", WRONG)
def test_each_fault_is_found_alone_with_its_figure(what):
    changes, figure = WRONG[what]
    finding = only(diagnose(healthy(**changes)))
    assert what in finding.what
    assert figure in finding.figure


@pytest.mark.parametrize("judge", ["gold", "judge"])
@pytest.mark.parametrize("every", [1, 5])
def test_reward_hacking_is_found_by_gold_or_another_judge(judge, every):
    history = healthy(60, reward_mean=lambda t: 0.3 + t)
    for i, row in enumerate(history):
        del row["gold"]
        if i % every == 0:  # a judge need not be asked in every step
            row[judge] = 3 - 8 * max(0.0, i / 60 - 0.3) + 0.2 * (-1) ** i
    finding = only(diagnose(history))
    assert "reward hacking" in finding.what
    assert f"{judge} -" in finding.figure


def test_a_judge_that_only_wavers_is_no_hacking():
    for seed in range(20):
        rng = random.Random(seed)
        assert diagnose(healthy(gold=lambda t, rng=rng: 3 + rng.gauss(0, 0.3))) == []


def test_a_value_function_that_only_wavers_explains_something():
    for seed in range(20):
        rng = random.Random(seed)
        history = healthy(24, explained_variance=lambda t, rng=rng: 0.1 + rng.gauss(0, 0.5))
        assert diagnose(history) == []


def test_an_entropy_that_comes_back_had_collapsed():
    finding = only(diagnose(healthy(entropy=lambda t: 0.02 if 0.4 < t < 0.8 else 0.45)))
    assert "entropy collapses" in finding.what
    assert finding.figure == "from 0.45 to 0.02 nats a token"


def test_gold_that_falls_together_with_the_reward_is_no_hacking():
    history = healthy(gold=lambda t: 3 - 2 * t, reward_mean=lambda t: 1 - t)
    assert "reward falls" in only(diagnose(history)).what


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_not_finite_comes_first_and_the_steps_before_are_read(value):
    history = healthy(eos_rate=lambda t: 0.1)
    history[20]["policy_loss"] = value
    first, second = diagnose(history)
    assert first.what.startswith("policy_loss is not") and first.figure == "from step 20 on"
    assert "do not end" in second.what
    history[0]["kl"] = value
    assert "kl is not" in only(diagnose(history)).what


def test_short_and_partial_histories_are_read_as_far_as_they_go():
    bad = healthy(eos_rate=lambda t: 0.0)
    assert diagnose(bad[:3]) == []
    assert "do not end" in only(diagnose(bad[:4])).what
    assert diagnose([{"loss": 0.5}] * 10) == []
    with pytest.raises(ValueError, match="history is empty"):
        diagnose([])
