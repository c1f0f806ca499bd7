"""The command `evaluate`: measures a policy and the reward model on held-out data."""

import argparse
from pathlib import Path

from rlhf_helpers import runs, scales, schemas
from rlhf_helpers.commands.options import add_common, policy_folder, print_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: which policy, on which data."""
    add_common(parser)
    parser.add_argument(
        "--policy", default="ppo", help="a stage (sft, ppo) or the folder of a model (default: ppo)"
    )
    parser.add_argument(
        "--split",
        default="test",
        choices=("validation", "test"),
        help="validation to choose settings, test to report (default: test)",
    )
    parser.add_argument("--prompts", type=Path, help="your own prompts, a JSONL file")
    parser.add_argument("--preferences", type=Path, help="your own preferences, a JSONL file")
    parser.add_argument("--output-dir", type=Path, help="also write evaluation.json there")


def run(options: argparse.Namespace) -> None:
    """Print the numbers of the policy and of the reward model."""
    scale = scales.Scale(options.scale, options.task, options.seed)
    from rlhf_helpers.evaluation import evaluate_policy, evaluate_reward_model
    from rlhf_helpers.models import load_policy, load_tokenizer
    from rlhf_helpers.reward_model import RewardModel
    from rlhf_helpers.training import read_some

    counts = {"smoke": (16, 32), "tiny": (None, None)}.get(options.scale, (256, 1000))
    prompts, preferences = (
        read_some(given or scale.source(kind, options.split), kind, count)
        for kind, given, count in zip(
            ("prompts", "preferences"), (options.prompts, options.preferences), counts, strict=True
        )
    )
    if "choice" not in preferences[0]:
        raise schemas.DataError(f"{options.preferences}: rankings cannot be used here. Give pairs.")
    path = policy_folder(options.policy, scale)
    policy, tokenizer = load_policy(path), load_tokenizer(path)
    reference = load_policy(scale.dir("sft"))
    reward_model = RewardModel.from_pretrained(scale.dir("reward"))
    report = {
        name: evaluate_policy(
            policy,
            tokenizer,
            prompts,
            reward_model=reward_model,
            reference=reference,
            temperature=temperature,
            seed=options.seed,
        )[0]
        for name, temperature in (("sampled", 1.0), ("greedy", 0.0))
    }
    report["reward_model"] = evaluate_reward_model(reward_model, preferences)[0]
    for name, metrics in report.items():
        print(f"\n{name}")
        print_table(metrics)
    if options.output_dir:
        runs.write_json(options.output_dir / "evaluation.json", report)
