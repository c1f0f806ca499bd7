"""Find out what is wrong with a training run from the numbers that it logs, in plain words.

Early and late mean the first and the last quarter of a history, so that one odd step decides
nothing. Each threshold stands with its reason; all leave room for the runs of this course that
are known to be healthy. A run without findings may still be bad: nothing here reads the texts.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

MIN_STEPS = 4  # fewer points of a curve tell nothing about its course

# A mean of samples may dip below 0, but its deviation is about sqrt(2 KL / responses): over a
# quarter of a run a tenth of a nat below is out of reach.
KL_NEGATIVE = -0.1
# Nats a response. Best-of-n moves by log n - (n - 1) / n: 10 nats are the best of 60,000, far from
# all that a reward model was trained on. Healthy runs here end between 1 and 3.
KL_HIGH = 10.0
# Nats a token between rollout and update. Spinning Up stops at 0.015, the older TRL at 0.1; healthy
# runs here stay below 0.01, one with 25 times their learning rate is above 0.1.
APPROX_KL_HIGH = 0.05
# Beyond a fifth the clip, not the gradient, decides where the policy goes. Healthy here: 0.01.
CLIP_HIGH = 0.2
# Both at once: late in a run with a falling learning rate either may be small alone.
CLIP_LOW, KL_UNMOVED = 1e-4, 0.02
# Near 0 the baseline does no better than a constant. One step's value is noisy (from -1 to 0.5 in a
# healthy run of small batches), so half the run is averaged, and must lie below by more than noise.
EXPLAINED_LOW = 0.02
# Healthy runs halve their entropy. The lowest quarter counts: a policy that gives one answer learns
# from noise alone, and may leave it for nonsense.
ENTROPY_LEFT = 0.2
# Length is the cheapest way to please many reward models; healthy runs here keep to 10%.
LENGTH_GROWTH = 1.5
# An SFT model that ends nine answers of ten is no reason to worry, one in five cut off is.
EOS_LOW = 0.8
# Where two answers are compared, 0.5 is chance. Below 0.55 even honest noise is hardly the reason.
ACCURACY_LOW = 0.55
# By how much a reward model's accuracy should fall when each pair stands under another, random
# prompt. One that reads falls by 0.15 and more; one that judges form alone falls by about 0.01.
ACCURACY_FALL_LOW = 0.05
# Scores are in standard deviations of the SFT model's samples, so that healthy ones are near 1.
REWARD_STD_LOW = 0.05
# In standard errors: how far a curve must fall, or lie below a threshold, to be more than noise.
SIGNIFICANT = 3.0

BASELINES = {
    "logprob": "the log-prob of the answers, which needs no preferences",
    "form": "a linear probe on the form of the answers, which cannot read",
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong with a run."""

    what: str
    figure: str  # what was measured, with its unit
    remedy: str


def diagnose(history: Sequence[Mapping[str, float]]) -> list[Finding]:
    """Say what is wrong with a run, the most basic faults first; an empty list if nothing is.

    `history` holds a dict a step with the keys of `PPOTrainer.step`'s statistics, and may add
    `gold` or `judge` (what a judge who is not the reward model thinks of the answers), in some
    steps or in all. The history of a reward model, with its `accuracy`, is accepted too. Checks
    whose keys are missing are skipped. Raises ValueError for an empty history.
    """
    if not history:
        raise ValueError("the history is empty: pass at least one step")
    findings = []
    usable = len(history)
    for step, row in enumerate(history):
        if wrong := [key for key, value in row.items() if not math.isfinite(value)]:
            findings.append(
                Finding(
                    f"{', '.join(wrong)} is not a finite number",
                    f"from step {step} on",
                    "Look at the step before: lower the learning rate, clip the gradient "
                    "(max_grad_norm 1), leave half precision for bfloat16 or float32, and look for "
                    "empty responses and infinite scores.",
                )
            )
            usable = step
            break
    table = pd.DataFrame(history[:usable])
    return findings + [finding for check in CHECKS for finding in check(table)]


def diagnose_reward_model(metrics: Mapping[str, float]) -> list[Finding]:
    """Say what is wrong with a reward model; an empty list if nothing is.

    `metrics` are those of `reading.prompt_sensitivity` on held-out pairs. They may add
    `accuracy_logprob` and `accuracy_form`, the accuracies of those baselines on the same pairs and
    against the same truth: gold where it is known, else the labels. Raises ValueError if an
    accuracy is missing.
    """
    truth = "accuracy_gold" if "accuracy_gold" in metrics else "accuracy_noisy"
    if missing := {truth, f"{truth}_other_post", "order_kept"} - set(metrics):
        raise ValueError(f"no {', '.join(sorted(missing))}: pass the metrics of prompt_sensitivity")
    accuracy, other = metrics[truth], metrics[f"{truth}_other_post"]
    findings = []
    if accuracy < ACCURACY_LOW:
        findings.append(_near_chance(f"accuracy {accuracy:.2f}"))
    elif accuracy - other < ACCURACY_FALL_LOW:
        findings.append(
            Finding(
                "the reward model does not read the prompt: its order hardly changes under another",
                f"accuracy {accuracy:.2f} under the own and {other:.2f} under a random other "
                f"prompt, {metrics['order_kept']:.0%} of the pairs in the same order",
                "Train it on pairs that only the prompt decides, such as two answers that differ "
                "in one fact; a few thousand may be needed before it begins to compare.",
            )
        )
    for name in ("logprob", "form"):
        baseline = metrics.get(f"accuracy_{name}", 0.0)
        if baseline >= accuracy:
            findings.append(
                Finding(
                    f"the reward model is no better than {BASELINES[name]}",
                    f"accuracy {accuracy:.2f} against {baseline:.2f}",
                    "Use more pairs, above all such as the baseline gets wrong.",
                )
            )
    return findings


def _near_chance(figure: str) -> Finding:
    return Finding(
        "the reward model is near chance",
        figure,
        "Check that `choice` means what you think and how often two people agree; use more "
        "pairs, a larger learning rate, more epochs or a larger model.",
    )


def _ends(table: pd.DataFrame, key: str) -> tuple[float, float] | None:
    """The early and the late mean of a curve; None if it has too few points."""
    quarters = _quarters(table, key)
    return (quarters[0].mean(), quarters[-1].mean()) if quarters else None


def _quarters(table: pd.DataFrame, key: str) -> list[np.ndarray]:
    values = table[key].dropna().to_numpy() if key in table else np.array([])
    return np.array_split(values, 4) if len(values) >= MIN_STEPS else []


def _kl(table: pd.DataFrame) -> Iterator[Finding]:
    if not (ends := _ends(table, "kl")):
        return
    figure = f"{ends[1]:.2f} nats a response, late"
    if ends[1] < KL_NEGATIVE:
        yield Finding(
            "the KL is negative, which a true one never is: the responses are not samples of the "
            "policy whose log-probs are compared",
            figure,
            "Sample from the current weights, at the temperature of the log-probs, without top-k, "
            "top-p, beams or a ban on EOS, in eval mode, and mask padding by length.",
        )
    if ends[1] > KL_HIGH:
        yield Finding(
            "the KL explodes: the policy has left the texts that the reward model knows",
            figure,
            "Raise kl_coef or set adaptive_kl; lower the learning rate or take fewer steps.",
        )


def _overoptimised(table: pd.DataFrame) -> Iterator[Finding]:
    for judge in ("gold", "judge"):
        quarters = _quarters(table, judge)
        scores = _quarters(table.dropna(subset=judge), "reward_mean") if quarters else []
        if not scores:
            continue
        means = [quarter.mean() for quarter in quarters]
        best = int(np.argmax(means))
        fall = means[best] - means[-1]
        rise = scores[-1].mean() - scores[best].mean()
        if rise > 0 and fall > SIGNIFICANT * _noise(table[judge].dropna(), len(quarters[-1])):
            yield Finding(
                "the reward rises while the answers get worse: reward hacking",
                f"reward +{rise:.2f}, {judge} -{fall:.2f} since the best quarter",
                "Stop at the best step, or raise kl_coef; then label new pairs sampled from this "
                "policy and train the reward model on them too.",
            )


def _noise(values: pd.Series, count: int) -> float:
    """Standard error of the gap between two means of `count` points each.

    It is estimated from the differences of neighbouring steps, to which the trend of the curve adds
    little.
    """
    deviation = float(values.diff().std()) / math.sqrt(2)
    return deviation * math.sqrt(2 / count)


def _reward(table: pd.DataFrame) -> Iterator[Finding]:
    if (ends := _ends(table, "accuracy")) and ends[1] < ACCURACY_LOW:
        yield _near_chance(f"accuracy {ends[1]:.2f}, late")
    if (ends := _ends(table, "reward_std")) and ends[1] < REWARD_STD_LOW:
        yield Finding(
            "the reward model scores all answers alike, so that there is nothing to learn from",
            f"standard deviation {ends[1]:.3f}, late",
            "Measure its accuracy on held-out pairs; check that it reads prompt and response, "
            "and that the policy's answers still differ.",
        )
    if ends := _ends(table, "reward_mean"):
        count = len(_quarters(table, "reward_mean")[-1])
        if ends[0] - ends[1] > SIGNIFICANT * _noise(table["reward_mean"].dropna(), count):
            yield Finding(
                "the reward falls",
                f"from {ends[0]:.2f} to {ends[1]:.2f}",
                "Lower the learning rate; if that is no help, check the reward's sign, and that "
                "scores and responses are in the same order.",
            )


def _updates(table: pd.DataFrame) -> Iterator[Finding]:
    clip, approx_kl, kl = (_ends(table, key) for key in ("clip_fraction", "approx_kl", "kl"))
    figures = [f"clip fraction {np.mean(clip):.3f}"] if clip else []
    figures += [f"approx_kl {np.mean(approx_kl):.3f} nats a token"] if approx_kl else []
    if (clip and np.mean(clip) > CLIP_HIGH) or (approx_kl and np.mean(approx_kl) > APPROX_KL_HIGH):
        yield Finding(
            "the updates are too large: the learning rate is too high",
            ", ".join(figures),
            "Divide the learning rate by 3 or more, take fewer ppo_epochs, or set target_kl.",
        )
    if clip and kl and max(clip) < CLIP_LOW and abs(kl[1]) < KL_UNMOVED:
        yield Finding(
            "the policy does not move: the learning rate is too low, or nothing is trained",
            f"clip fraction {max(clip):.1g}, KL {abs(kl[1]):.3f} nats a response",
            "Multiply the learning rate by 3 or more; check that weights require gradients (the "
            "adapter's, with LoRA) and that kl_coef is not very high.",
        )


def _values(table: pd.DataFrame) -> Iterator[Finding]:
    quarters = _quarters(table, "explained_variance")
    if sum(map(len, quarters)) < 2 * MIN_STEPS:  # a new value head must learn first
        return
    late = np.concatenate(quarters[2:])
    if late.mean() + SIGNIFICANT * late.std(ddof=1) / math.sqrt(len(late)) < EXPLAINED_LOW:
        yield Finding(
            "the value function explains nothing, so that advantages are as noisy as the scores",
            f"explained variance {late.mean():.2f}, over the second half",
            "Raise value_learning_rate or vf_coef, take a separate critic, or larger batches.",
        )


def _texts(table: pd.DataFrame) -> Iterator[Finding]:
    entropy = [quarter.mean() for quarter in _quarters(table, "entropy")]
    if entropy and min(entropy) < ENTROPY_LEFT * entropy[0]:
        yield Finding(
            "the entropy collapses: the policy gives nearly the same answer every time",
            f"from {entropy[0]:.2f} to {min(entropy):.2f} nats a token",
            "Raise kl_coef, lower the learning rate, or stop earlier.",
        )
    if (ends := _ends(table, "response_length")) and ends[1] > LENGTH_GROWTH * ends[0]:
        yield Finding(
            "the responses grow",
            f"from {ends[0]:.0f} to {ends[1]:.0f} tokens",
            "See whether the reward model likes length for its own sake (`length_bias`); balance "
            "the lengths of its pairs, or take something off the score for each token.",
        )
    if (ends := _ends(table, "eos_rate")) and ends[1] < EOS_LOW:
        yield Finding(
            "many responses do not end by themselves",
            f"{ends[1]:.0%} end, late",
            "Raise missing_eos_penalty or max_new_tokens, and check that demonstrations end with "
            "EOS. Where lengths are drawn (draw_lengths), this is meant.",
        )


CHECKS: tuple[Callable[[pd.DataFrame], Iterator[Finding]], ...] = (
    _kl,
    _overoptimised,
    _reward,
    _updates,
    _values,
    _texts,
)
