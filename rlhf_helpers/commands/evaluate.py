"""The command `evaluate`: measures a policy and the reward model on held-out data."""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_helpers import runs, scales, schemas
from rlhf_helpers.commands.models import (
    Models,
    add_models,
    check_settings,
    describe,
    find_models,
)
from rlhf_helpers.commands.options import print_table

if TYPE_CHECKING:
    import pandas as pd

SHOWN = 3  # prompts whose answers are printed
IN_HTML = 100  # rows


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: which models, on which data."""
    parser.description = (
        "Reward, KL, length, EOS rate, diversity and win rate of a policy at several "
        "temperatures, gold where the prompts are posts of the little world, and samples."
    )
    add_models(parser, "ppo", max_new_tokens=48, temperatures=[1.0, 0.4, 0.0])
    parser.add_argument(
        "--reward-model", help="a stage, a folder, or a name of the hub (default: as --reference)"
    )
    parser.add_argument(
        "--reward-function",
        action="append",
        default=[],
        metavar="FILE.PY:FUNCTION",
        help="a reward of your own, reported without its weight; may be given several times",
    )
    parser.add_argument(
        "--split",
        default="test",
        choices=("validation", "test"),
        help="validation to choose settings, test to report (default: test)",
    )
    parser.add_argument("--preferences", type=Path, help="your own preferences, a JSONL file")


def run(options: argparse.Namespace) -> None:
    """Print the numbers of the policy and of the reward model, and some answers."""
    scale = scales.Scale(options.scale, options.task, options.seed)
    check_settings(options)
    models = find_models(options, scale)
    from rlhf_helpers.rewards import load_rewards
    from rlhf_helpers.training import read_some

    functions = load_rewards(options.reward_function)
    few, some = {"smoke": (16, 32), "tiny": (None, None)}.get(options.scale, (256, 1000))
    source = options.prompts or scale.source("prompts", options.split)
    prompts = read_some(source, "prompts", few)
    preferences = []
    if options.preferences or (models.of_run and not options.reward_model):
        pairs = options.preferences or scale.source("preferences", options.split)
        preferences = read_some(pairs, "preferences", some)
    if models.of_run and options.prompts and scale.task in scales.LITTLE_WORLD:
        _check_posts(options.prompts, prompts)
    if preferences and "choice" not in preferences[0]:
        raise schemas.DataError(f"{options.preferences}: rankings cannot be used here. Give pairs.")
    if preferences and not models.reward_model:
        raise ValueError("--preferences measure a reward model: name one with --reward-model")
    describe(models, source, len(prompts), options)
    report, samples = _measure(models, prompts, preferences, functions, options)
    for name, metrics in report.items():
        print(f"\n{name}")
        print_table(metrics)
    print_samples(samples[: SHOWN * len(options.temperatures)])
    if options.output_dir:
        from rlhf_helpers.evaluation.report import write_html

        runs.write_json(options.output_dir / "evaluation.json", report)
        write_html(options.output_dir / "samples.html", models.policy, samples[:IN_HTML])


def print_samples(samples: "pd.DataFrame") -> None:
    """Print each prompt, followed by all answers to it."""
    for prompt, answers in samples.groupby("prompt", sort=False):
        print(f"\nprompt: {prompt}")
        for _, row in answers.iterrows():
            for name in ("reference", "policy"):
                if name in row:
                    print(f"{name}, T = {row['temperature']:g}: {row[name]}")


def _check_posts(path: Path, prompts: list[schemas.Prompt]) -> None:
    """Raise DataError for a prompt that the little world's own models cannot understand."""
    from rlhf_helpers.little_world.grammar import read_post

    for number, record in enumerate(prompts, 1):
        try:
            read_post(record["input_text"])
        except ValueError as error:
            raise schemas.DataError(
                f"{path}, prompt {number}: {error}. The models of this run know nothing but such "
                "posts: name a model of your own with --policy."
            ) from None


def _measure(
    models: Models,
    prompts: list,
    preferences: list,
    functions: list,
    options: argparse.Namespace,
) -> tuple[dict[str, dict[str, float]], "pd.DataFrame"]:
    """Load and measure the models. Return the metrics (of the policy at each temperature, and of
    the reward model), and samples.
    """
    from rlhf_helpers.evaluation import evaluate_reward_model, report_policy
    from rlhf_helpers.models import load_policy, load_tokenizer
    from rlhf_helpers.reward_model import RewardModel

    tokenizer = load_tokenizer(models.policy, options.chat, options.system_prompt)
    policy = load_policy(models.policy)
    reference = reward_model = None
    if models.reference:
        reference = load_policy(models.reference)
        _check_same_tokens(models, tokenizer, load_tokenizer(models.reference), prompts)
    if models.reward_model:
        reward_model = RewardModel.from_pretrained(models.reward_model)
    report, samples = report_policy(
        policy,
        tokenizer,
        prompts,
        options.temperatures,
        reference=reference,
        reward_model=reward_model,
        reward_functions=functions,
        instruction=options.instruction,
        max_new_tokens=options.max_new_tokens,
        seed=options.seed,
    )
    if reward_model is not None and preferences:
        found, _ = evaluate_reward_model(reward_model, preferences, options.instruction)
        report["reward_model"] = found
    return report, samples


def _check_same_tokens(
    models: Models, tokenizer: Callable, other: Callable, prompts: list[schemas.Prompt]
) -> None:
    """Raise ValueError if policy and reference read the same text as different tokens."""
    texts = [record["input_text"] for record in prompts[:16]]
    if tokenizer(texts)["input_ids"] != other(texts)["input_ids"]:
        raise ValueError(
            f"{models.reference} reads texts as other tokens than {models.policy}, so that no KL "
            "is defined between them. Name with --reference the model that it was trained from."
        )
