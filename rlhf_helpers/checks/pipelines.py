"""The exercises of L3: steps, an adaptive kl_coeff, parameters, and what a pipeline runs again."""

import math
from typing import Any

from rlhf_helpers.checks.feedback import Feedback, try_function

STEPS = {
    "supervised-fine-tuning",
    "reward-model-training",
    "reinforcement-learning",
    "bulk-inference-untuned",
    "bulk-inference-tuned",
    "evaluation",
}


def training_steps(answer: Any) -> Feedback:
    """Check `answer(size, epochs)`: the steps of whole epochs in batches of 64."""
    return try_function(
        answer,
        lambda size, epochs: math.ceil(size / 64) * epochs,
        [(640, 2), (3000, 30), (2000, 10), (65, 3)],
        {
            "The last batch of an epoch may be smaller, but it is a step: round up.": (
                lambda size, epochs: size // 64 * epochs
            ),
            "Every epoch ends with a batch of its own: round up first, then multiply.": (
                lambda size, epochs: math.ceil(size * epochs / 64)
            ),
            "Steps are whole: round up.": lambda size, epochs: size / 64 * epochs,
        },
        "Right: 3,000 pairs and 30 epochs make 1,410 steps, 2,000 prompts and 10 make 320.",
        "Batches an epoch, rounded up (math.ceil), times the epochs.",
    )


def adapted_kl_coeff(answer: Any) -> Feedback:
    """Check `answer(kl_coeff, kl, target)`: the next, adapted kl_coeff."""

    def adapted(kl_coeff: float, kl: float, target: float, limit: float = 0.2) -> float:
        return kl_coeff * (1 + 0.1 * max(-limit, min(limit, kl / target - 1)))

    return try_function(
        answer,
        adapted,
        [(0.1, 6.0, 6.0), (0.1, 6.6, 6.0), (0.1, 5.4, 6.0), (0.1, 60.0, 6.0), (0.2, 0.0, 6.0)],
        {
            "KL above the target must become dearer: kl / target - 1, not the other way.": (
                lambda c, kl, target: adapted(c, 2 * target - kl, target)
            ),
            "Cut the error to -0.2 ... 0.2: one wild batch must not decide.": (
                lambda c, kl, target: adapted(c, kl, target, math.inf)
            ),
            "The error is relative: kl / target - 1.": (
                lambda c, kl, target: c * (1 + 0.1 * max(-0.2, min(0.2, kl - target)))
            ),
        },
        "Right. Above its target KL gets dearer step by step, below it cheaper (Ziegler et al.).",
        "error = kl / target - 1, cut to -0.2 ... 0.2; then kl_coeff * (1 + 0.1 * error).",
    )


def pipeline_parameters(answer: Any) -> Feedback:
    """Check that `answer` asks for 20 epochs of 3,000 pairs and 10 of 2,000 prompts."""
    from rlhf_helpers.pipelines.vertex_rlhf import RLHFParameters

    if not isinstance(answer, dict):
        return Feedback(False, f"This is {answer!r}, not a dict.", "Write {'kl_coeff': 0.1, …}.")
    try:
        given = RLHFParameters.from_dict(answer)
    except ValueError as error:
        return Feedback(False, f"It is refused: {error}.", "Mend that, and run the cell again.")
    wanted = {"reward_model_train_steps": 940, "reinforcement_learning_train_steps": 320}
    for name, steps in wanted.items():
        if getattr(given, name) != steps:
            hint = "It runs, but not for so many epochs: use training_steps(size, epochs)."
            return Feedback(False, f"{name} is {getattr(given, name)}.", hint)
    if given.deploy_model:
        hint = "Say deploy_model=False: what is not said is true, and an endpoint is billed."
        return Feedback(False, "This would leave an endpoint running.", hint)
    return Feedback(True, "Right. Google's pipeline would take it, and so does ours.")


def runs_again(answer: Any) -> Feedback:
    """Check that `answer` is the set of steps that a changed kl_coeff makes run again."""
    if not isinstance(answer, set | list | tuple) or not set(answer) <= STEPS:
        return Feedback(
            False,
            f"This is {answer!r}, not a set of steps.",
            f"Choose among {', '.join(sorted(STEPS))}.",
        )
    right = {"reinforcement-learning", "bulk-inference-tuned", "evaluation"}
    if missing := sorted(right - set(answer)):
        hint = "A step runs again, too, if what it reads has been made anew: follow the arrows."
        return Feedback(False, f"{missing[0]} is missing.", hint)
    if too_many := sorted(set(answer) - right):
        hint = "Does it read kl_coeff, or anything that PPO has made? If not: the cache."
        return Feedback(False, f"{too_many[0]} would come from the cache.", hint)
    return Feedback(True, "Right. The dear reward model is not trained again.")
