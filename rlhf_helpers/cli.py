"""The command line: python -m rlhf_helpers course | data | train | evaluate | pipeline.

Exit status: 0, 1 on failure, 2 on bad input. Heavy imports wait until a command needs them, so
that `--help` answers at once.
"""

import argparse
import dataclasses
import os
import sys
import types
import typing
from collections.abc import Sequence
from pathlib import Path

from rlhf_helpers import runs, scales, schemas
from rlhf_helpers.pipeline_command import add_pipeline

STAGES = {
    "sft": "fine-tune the base model on demonstrations",
    "reward": "train the reward model on preferences; needs sft",
    "ppo": "improve the SFT model by PPO against the reward model; needs sft and reward",
    "dpo": "improve the SFT model on preferences themselves, by DPO; needs sft",
}
CONFIGS = {
    "sft": scales.SFTConfig,
    "reward": scales.RewardConfig,
    "ppo": scales.PPORunConfig,
    "dpo": scales.DPOConfig,
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    # Models and data are local files; a name of the hub still works with HF_HUB_OFFLINE=0.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    try:
        return options.command(options) or 0
    except (ValueError, FileNotFoundError) as error:  # DataError among them
        print(f"error: {error}", file=sys.stderr)
        return 2
    except (FloatingPointError, ModuleNotFoundError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m rlhf_helpers",
        description="RLHF step by step: data, SFT, reward model, PPO, evaluation.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    _add_course(commands)
    _add_data(commands)
    _add_train(commands)
    _add_evaluate(commands)
    add_pipeline(commands)
    return parser


def _add_common(parser: argparse.ArgumentParser, task: bool = True) -> None:
    parser.add_argument(
        "--scale", default="tiny", choices=scales.SCALES,
        help="tiny learns in minutes on two cores; smoke only runs every code path (default: tiny)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    if task:
        _add_task(parser)


def _add_task(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--task", default="summarize", choices=scales.TASKS,
        help="what is learnt: to summarize a post, or to complete it (default: summarize)",
    )  # fmt: skip


def _add_course(commands: argparse._SubParsersAction) -> None:
    course = commands.add_parser("course", help="run the notebooks in order, show the results")
    _add_common(course, task=False)
    course.add_argument(
        "--in-place", action="store_true", help="also refresh the notebooks' outputs"
    )
    course.add_argument("notebooks", nargs="*", type=Path, help="only these (default: all)")
    course.set_defaults(command=_course)


def _course(options: argparse.Namespace) -> int:
    from rlhf_helpers.course import run_course

    return run_course(options.scale, options.seed, options.notebooks or None, options.in_place)


def _add_data(commands: argparse._SubParsersAction) -> None:
    data = commands.add_parser(
        "data", help="write the data sets of the little world again",
        description="Without an option: the files that the grammar alone decides, bit for bit "
        "the same at every run (demonstrations, prompts, pretraining documents), and judgements.",
    )  # fmt: skip
    data.add_argument(
        "--output-dir",
        type=Path,
        help="where to write (default: data/<task>, data/base_model or data/labeller)",
    )
    _add_task(data)
    data.add_argument(
        "--sampled", type=Path, metavar="SFT_MODEL",
        help="write preferences and rankings instead, with samples of this SFT model (8 minutes)",
    )  # fmt: skip
    data.add_argument(
        "--base-model", action="store_true",
        help="pretrain the base model instead (15 minutes; continues if stopped)",
    )  # fmt: skip
    data.add_argument(
        "--labeller", action="store_true",
        help="teach the AI labeller its principles instead (10 minutes; continues if stopped)",
    )  # fmt: skip
    data.set_defaults(command=_data)


def _data(options: argparse.Namespace) -> None:
    from rlhf_helpers.little_world import autocomplete, base_model, build, principles

    files = autocomplete if options.task == "autocomplete" else build
    folder = "base_model" if options.base_model else options.task
    output_dir = options.output_dir or runs.data_dir() / folder
    if options.base_model:
        print(base_model.pretrain(output_dir, runs.runs_dir() / "pretraining"))
    elif options.labeller:
        output_dir = options.output_dir or runs.data_dir() / "labeller"
        print(principles.train_labeller(output_dir, runs.runs_dir() / "labeller"))
    elif options.sampled:
        files.write_sampled_files(output_dir, options.sampled)
    else:
        files.write_grammar_files(output_dir)
        test_pairs = runs.data_dir() / options.task / "preferences_test.jsonl"
        build.write_judgements(output_dir, schemas.read_preferences(test_pairs))
    print(f"written to {output_dir}")


def _add_train(commands: argparse._SubParsersAction) -> None:
    train = commands.add_parser(
        "train", help="train one stage",
        description="Train one stage. Every setting has a default for the scale; the stages find "
        "each other's models in runs/<scale>/<task>/seed<k>/.",
    )  # fmt: skip
    stages = train.add_subparsers(required=True, metavar="STAGE")
    for name, text in STAGES.items():
        stage = stages.add_parser(
            name, help=text, description=text.capitalize() + ".",
        )  # fmt: skip
        _add_common(stage)
        stage.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
        for field in dataclasses.fields(CONFIGS[name]):
            if field.name != "seed":  # among the common ones
                _add_field(stage, field, typing.get_type_hints(CONFIGS[name])[field.name])
        stage.set_defaults(command=_train, stage=name)


def _add_field(parser: argparse.ArgumentParser, field: dataclasses.Field, hint: object) -> None:
    """One option for one field of a config; what is not given keeps the scale's value."""
    kinds = typing.get_args(hint) if isinstance(hint, types.UnionType) else (hint,)
    default = field.default if field.default is not dataclasses.MISSING else "by scale"
    kind = next(kind for kind in kinds if isinstance(kind, type) and kind is not type(None))
    form = {"action": argparse.BooleanOptionalAction} if kind is bool else {"type": kind}
    parser.add_argument(
        "--" + field.name.replace("_", "-"),
        default=argparse.SUPPRESS,
        help=f"{HELP[field.name]} (default: {default})",
        **form,
    )


HELP = {
    "model": "what to start from: a folder, or a name of the hub",
    "data": "the training data, a JSONL file (reward: preferences, or rankings of K answers)",
    "output_dir": "where the model, metrics.json, logs and checkpoints go",
    "epochs": "passes over the data",
    "batch_size": "records (ppo: responses) a step",
    "learning_rate": "of all weights (ppo: of the policy), after the warm-up",
    "warmup_steps": "steps until the learning rate is reached",
    "max_length": "tokens of prompt and answer; what is longer loses the prompt's beginning",
    "instruction": "goes in front of every prompt, e.g. 'Summarize in less than 50 words.'",
    "lora_rank": "rank of a LoRA adapter, merged at the end; 0 trains all weights",
    "bits": "8 or 4 quantise the frozen weights under a LoRA adapter",
    "save_steps": "steps between checkpoints, from which --resume goes on",
    "sft_model": "whose samples are worth 0 on average, with standard deviation 1",
    "prompts": "prompts for those samples, a JSONL file",
    "pairs": "use only so many pairs, or rankings",
    "objective": "'order' learns who beats whom, 'scores' the ranks as numbers (rankings only)",
    "loss_type": "'sigmoid' is DPO's own, 'ipo' regresses the log ratios on a target",
    "beta": "price of a nat of KL from the SFT model (ipo: its tau)",
    "weight_decay": "of AdamW",
    "center_rewards_coefficient": "weight of the loss that keeps scores around 0",
    "min_new_tokens": "above 0: draw each answer's length from here to the longest; EOS stops none",
    "label_smoothing": "share of labels believed to be the wrong way round",
    "max_new_tokens": "longest answer, in tokens",
    "calibration_prompts": "prompts that the scores are standardised on",
    "reward_model": "the folder of a reward model",
    "steps": "rollouts to learn from",
    "samples_per_prompt": "answers to each prompt, which is encoded once for all of them",
    "mini_batch_size": "answers an optimiser step",
    "ppo_epochs": "passes over each rollout",
    "gradient_accumulation_steps": "parts that a mini-batch is computed in, to save memory",
    "value_learning_rate": "of the value head, or of the separate critic",
    "critic": "shared: values come from the policy's states; separate: from a network's own",
    "kl_coef": "price of a nat of KL from the SFT model",
    "adaptive_kl": "raise or lower kl_coef after every step to hold the KL at kl_target",
    "kl_target": "nats an answer that adaptive_kl holds",
    "kl_horizon": "answers that adaptive_kl takes to react",
    "target_kl": "stop updating on a rollout at 1.5 times so many nats a token from its policy",
    "gamma": "discount a token",
    "lam": "lambda of generalised advantage estimation",
    "cliprange": "how far a token's probability may move in one step, as a ratio",
    "cliprange_value": "how far a value may move in one step",
    "vf_coef": "weight of the value loss",
    "max_grad_norm": "gradients are clipped to this norm",
    "temperature": "of sampling",
    "missing_eos_penalty": "taken off the score of an answer that does not end",
    "score_clip": "cut scores to at most this, up and down",
    "ptx_coef": "weight of the pretraining loss (PPO-ptx)",
    "ptx_data": "pretraining documents for it, a JSONL file",
}


def _train(options: argparse.Namespace) -> None:
    names = {field.name for field in dataclasses.fields(CONFIGS[options.stage])} - {"seed"}
    changes = {name: value for name, value in vars(options).items() if name in names}
    config = scales.Scale(options.scale, options.task, options.seed).config(
        options.stage, **changes
    )
    from rlhf_helpers import processes
    from rlhf_helpers.training import train_stage

    result = train_stage(options.stage, config, options.resume)
    if processes.rank() == 0:
        _print_table(result.metrics)
        print(f"\nmodel, metrics.json and logs: {result.output_dir}")


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser(
        "evaluate", help="measure a policy and the reward model on held-out data"
    )
    _add_common(evaluate)
    evaluate.add_argument(
        "--policy", default="ppo", help="a stage (sft, ppo) or the folder of a model (default: ppo)"
    )
    evaluate.add_argument(
        "--split", default="test", choices=("validation", "test"),
        help="validation to choose settings, test to report (default: test)",
    )  # fmt: skip
    evaluate.add_argument("--prompts", type=Path, help="your own prompts, a JSONL file")
    evaluate.add_argument("--preferences", type=Path, help="your own preferences, a JSONL file")
    evaluate.add_argument("--output-dir", type=Path, help="also write evaluation.json there")
    evaluate.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    scale = scales.Scale(options.scale, options.task, options.seed)
    prompts = schemas.read_prompts(options.prompts or scale.data("prompts", options.split))
    preferences = schemas.read_preferences(
        options.preferences or scale.data("preferences", options.split)
    )
    if options.scale == "smoke":
        prompts, preferences = prompts[:16], preferences[:32]
    from rlhf_helpers.evaluation import evaluate_policy, evaluate_reward_model
    from rlhf_helpers.models import load_policy, load_tokenizer
    from rlhf_helpers.reward_model import RewardModel

    path = Path(options.policy) if "/" in options.policy else scale.dir(options.policy)
    policy, tokenizer = load_policy(path), load_tokenizer(path)
    reference = load_policy(scale.dir("sft"))
    reward_model = RewardModel.from_pretrained(scale.dir("reward"))
    report = {
        name: evaluate_policy(
            policy, tokenizer, prompts, reward_model=reward_model, reference=reference,
            temperature=temperature, seed=options.seed,
        )[0]
        for name, temperature in (("sampled", 1.0), ("greedy", 0.0))
    }  # fmt: skip
    report["reward_model"] = evaluate_reward_model(reward_model, preferences)[0]
    for name, metrics in report.items():
        print(f"\n{name}")
        _print_table(metrics)
    if options.output_dir:
        runs.write_json(options.output_dir / "evaluation.json", report)


def _print_table(metrics: dict[str, float]) -> None:
    for name, value in metrics.items():
        print(f"  {name:<22}{value:>12.5g}")
