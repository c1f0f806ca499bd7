"""What `diagnose` says of recorded runs, and of healthy numbers with one thing made wrong.

The recorded ones are real. `healthy` and those of other learning rates: `data/base_model` under PPO
with gold for a reward, 32 responses a step, the course's settings but for the learning rate (2e-4;
high: 5e-3; low: 1e-7). `healthy_course`: five runs of the course's PPO, of
three seeds. `no_price_on_kl`: the course's reward hacking.
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


def test_a_healthy_run_has_no_finding():
    assert diagnose(recorded("healthy")) == []
    assert diagnose(healthy()) == []


def test_five_healthy_runs_of_the_course_have_no_finding():
    rows = recorded("healthy_course")
    for run in range(5):
        history = [row for row in rows if row["run"] == run]
        assert len(history) == 45
        assert diagnose(history) == []


def test_a_real_run_without_a_price_on_kl():
    kl, values = diagnose(recorded("no_price_on_kl"))
    assert "KL explodes" in kl.what and kl.figure == "48.67 nats a response, late"
    assert "value function explains nothing" in values.what


def test_a_real_run_with_too_high_a_learning_rate():
    kl, updates = diagnose(recorded("learning_rate_high"))
    assert "KL explodes" in kl.what and kl.figure == "49.37 nats a response, late"
    assert "the learning rate is too high" in updates.what
    assert updates.figure == "clip fraction 0.153, approx_kl 0.167 nats a token"


def test_a_real_run_with_too_low_a_learning_rate():
    finding = only(diagnose(recorded("learning_rate_low")))
    assert "does not move: the learning rate is too low" in finding.what


WRONG = {
    "KL is negative": ({"kl": lambda t: -2 * t}, "-1.73 nats"),
    "KL explodes": ({"kl": lambda t: 60 * t}, "51.75 nats"),
    "near chance": ({"accuracy": lambda t: 0.52}, "0.52"),
    "scores all answers alike": ({"reward_std": lambda t: 0.01}, "0.010"),
    "reward falls": ({"reward_mean": lambda t: 1 - t}, "from 0.89 to 0.14"),
    "updates are too large": ({"clip_fraction": lambda t: 0.4}, "clip fraction 0.400"),
    "does not move": (
        {"clip_fraction": lambda t: 0.0, "kl": lambda t: 0.0}, "clip fraction 0, KL 0.000",
    ),
    "value function explains nothing": ({"explained_variance": lambda t: 0.0}, "0.00"),
    "entropy collapses": ({"entropy": lambda t: 0.45 * (1 - t)}, "from 0.40 to 0.06"),
    "responses grow": ({"response_length": lambda t: 16 + 30 * t}, "from 19 to 42 tokens"),
    "do not end by themselves": ({"eos_rate": lambda t: 1 - t}, "14% end"),
}  # fmt: skip


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
