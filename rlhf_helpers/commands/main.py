"""The command line: python -m rlhf_helpers, with a command such as course or train.

Exit status: 0, 1 on failure, 2 on bad input. Heavy imports wait until a command needs them, so
that `--help` answers at once.
"""

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from rlhf_helpers import runs, scales, schemas
from rlhf_helpers.commands.doctor import add_doctor
from rlhf_helpers.commands.pipeline import add_pipeline
from rlhf_helpers.commands.plan.command import add_plan
from rlhf_helpers.commands.train import add_common, add_train, print_table


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    if getattr(options, "scale", "tiny") not in scales.POLICIES:
        # Models and data are local files; a name of the hub still works with HF_HUB_OFFLINE=0.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    # On CPUs with bfloat16, bitsandbytes looks for a faster kernel and warns that it finds none.
    logging.getLogger("bitsandbytes.backends.cpu.ops").setLevel(logging.ERROR)
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
    add_train(commands)
    _add_evaluate(commands)
    _add_generate(commands)
    add_pipeline(commands)
    add_plan(commands)
    add_doctor(commands)
    return parser


def _add_course(commands: argparse._SubParsersAction) -> None:
    course = commands.add_parser("course", help="run the notebooks in order, show the results")
    add_common(course, task=False)
    course.add_argument(
        "--in-place", action="store_true", help="also refresh the notebooks' outputs"
    )
    course.add_argument(
        "--jobs", type=int, help="notebooks side by side (default: one a core, on GPUs 1)"
    )
    course.add_argument("notebooks", nargs="*", type=Path, help="only these (default: all)")
    course.set_defaults(command=_course)


def _course(options: argparse.Namespace) -> int:
    from rlhf_helpers.commands.course import run_course

    notebooks = options.notebooks or None
    return run_course(options.scale, options.seed, notebooks, options.in_place, options.jobs)


def _add_data(commands: argparse._SubParsersAction) -> None:
    data = commands.add_parser(
        "data",
        help="write the data sets of the little world again",
        description="Without an option: the files that the grammar alone decides, bit for bit "
        "the same at every run (demonstrations, prompts, pretraining documents), and judgements.",
    )
    data.add_argument(
        "--output-dir",
        type=Path,
        help="where to write (default: data/<task>, data/base_model or data/labeller)",
    )
    data.add_argument(
        "--task",
        default="summarize",
        choices=scales.LITTLE_WORLD,
        help="whose data sets: to summarize a post, or to complete it (default: summarize)",
    )
    data.add_argument(
        "--sampled",
        type=Path,
        metavar="SFT_MODEL",
        help="write preferences and rankings instead, with samples of this SFT model (8 minutes)",
    )
    data.add_argument(
        "--base-model",
        action="store_true",
        help="pretrain the base model instead (15 minutes; continues if stopped)",
    )
    data.add_argument(
        "--labeller",
        action="store_true",
        help="teach the AI labeller its principles instead (10 minutes; continues if stopped)",
    )
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


def _add_generate(commands: argparse._SubParsersAction) -> None:
    generate = commands.add_parser(
        "generate",
        help="let a model answer four questions, before and after its tuning",
        description="Beam search with sampling, as in the course before: 4 beams, top_k 10, "
        "temperature 0.6, 128 tokens. At smoke and tiny the prompts are posts to summarize.",
    )
    add_common(generate)
    generate.add_argument(
        "--policy", default="sft", help="a stage (sft, ppo) or the folder of a model (default: sft)"
    )
    generate.set_defaults(command=_generate)


def _generate(options: argparse.Namespace) -> None:
    from rlhf_helpers.evaluation import QUESTIONS, before_and_after

    scale = scales.Scale(options.scale, options.task, options.seed)
    prompts = QUESTIONS
    if scale.task != "assistant":
        records = schemas.read_prompts(scale.data("prompts", "test"))
        prompts = [record["input_text"] for record in records[:4]]
    models = {"before": scale.base_model, "after": _folder(options.policy, scale)}
    for _, row in before_and_after(models, prompts, options.seed).iterrows():
        print(*(f"{name}: {text}\n" for name, text in row.items()), sep="")


def _folder(policy: str, scale: scales.Scale) -> Path:
    """A stage's folder, or the folder named."""
    return Path(policy) if "/" in policy else scale.dir(policy)


def _add_evaluate(commands: argparse._SubParsersAction) -> None:
    evaluate = commands.add_parser(
        "evaluate", help="measure a policy and the reward model on held-out data"
    )
    add_common(evaluate)
    evaluate.add_argument(
        "--policy", default="ppo", help="a stage (sft, ppo) or the folder of a model (default: ppo)"
    )
    evaluate.add_argument(
        "--split",
        default="test",
        choices=("validation", "test"),
        help="validation to choose settings, test to report (default: test)",
    )
    evaluate.add_argument("--prompts", type=Path, help="your own prompts, a JSONL file")
    evaluate.add_argument("--preferences", type=Path, help="your own preferences, a JSONL file")
    evaluate.add_argument("--output-dir", type=Path, help="also write evaluation.json there")
    evaluate.set_defaults(command=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
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
    path = _folder(options.policy, scale)
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
