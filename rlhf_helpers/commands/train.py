"""The command `train sft | … | rlaif`: an option for every field of a stage's config."""

import argparse
import dataclasses
import os
import types
import typing

from rlhf_helpers import configs, scales

STAGES = {
    "sft": "fine-tune the base model on demonstrations",
    "reward": "train the reward model on preferences; needs sft",
    "ppo": "improve the SFT model by PPO against the reward model; needs sft and reward",
    "dpo": "improve the SFT model on preferences themselves, by DPO; needs sft",
    "rest": "improve the SFT model by imitating its own best samples (ReST); needs sft and reward",
    "rlaif": "let an AI label the preferences, then reward model and PPO; needs sft",
}
CONFIGS = {
    "sft": configs.SFTConfig,
    "reward": configs.RewardConfig,
    "ppo": configs.PPORunConfig,
    "dpo": configs.DPOConfig,
    "rest": configs.RestConfig,
    "rlaif": configs.RLAIFConfig,
}


def add_common(parser: argparse.ArgumentParser, task: bool = True) -> None:
    """Add the options that most commands share."""
    parser.add_argument(
        "--scale", default="tiny", choices=scales.SCALES,
        help="tiny learns in minutes on two cores, small and full on GPUs; smoke only runs every "
        "code path (default: tiny)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of all random numbers (default: 0)")
    if not task:
        return
    parser.add_argument(
        "--task", default="", choices=scales.TASKS,
        help="what is learnt: to summarize a post, to complete it, or to assist on the real data "
        "sets (default: summarize, at small and full assistant)",
    )  # fmt: skip


def add_train(commands: argparse._SubParsersAction) -> None:
    """Add the command, with a subcommand a stage, to the parser of `python -m rlhf_helpers`."""
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
        add_common(stage)
        stage.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
        for field in dataclasses.fields(CONFIGS[name]):
            if field.name not in NO_OPTION:
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


NO_OPTION = ("seed", "reward")  # one of the common options; another stage's settings

HELP = {
    "model": "what to start from: a folder, or a name of the hub",
    "data": "the training data: a JSONL file (reward, dpo: preferences, or rankings of K answers), "
    "a Parquet file, a Deep Lake folder, al://org/name or hf://org/name",
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
    "eval_data": "held-out data of the same kind, for the loss at every checkpoint",
    "lr_scheduler_type": "linear or cosine: how the learning rate falls",
    "lora_dropout": "share of the adapter's inputs that are dropped while training",
    "gradient_checkpointing": "compute activations twice, to keep few of them in memory",
    "report_to": "wandb also writes to Weights & Biases; without an account, offline",
    "demonstrations": "use only so many",
    "packing": "fill rows of max_length tokens with several demonstrations each",
    "max_prompt_length": "tokens of a prompt; a longer one loses its beginning",
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
    "reward_model": "the folder of a reward model (rlaif: where its own goes)",
    "steps": "rollouts to learn from",
    "samples_per_prompt": "answers to each prompt, which is encoded once for all of them",
    "mini_batch_size": "answers an optimiser step",
    "ppo_epochs": "passes over each rollout",
    "gradient_accumulation_steps": "parts that a mini-batch is computed in, to save memory",
    "value_learning_rate": "of the value head, or of the separate critic",
    "value_head_std": "standard deviation of the value head's first weights; 0: values start at 0",
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
    "grow_steps": "data sets to sample, each from the policy that the one before has made",
    "improve_steps": "fine-tunings on each: on the better half, the best quarter, and so on",
    "grow_prompts": "prompts to sample answers for, in each Grow step",
    "preferences": "pairs for the AI to judge anew; a file or source like --data of reward",
    "labels": "how many of these pairs",
    "labeller": "a causal language model, a folder or a name of the hub, that judges; at smoke and "
    "tiny the small labeller of data/labeller",
    "constitution": "a file of principles, one a line, by which it judges",
    "ptx_data": "pretraining documents for it, a JSONL file",
}


def _train(options: argparse.Namespace) -> None:
    names = {field.name for field in dataclasses.fields(CONFIGS[options.stage])} - {"seed"}
    changes = {name: value for name, value in vars(options).items() if name in names}
    config = scales.Scale(options.scale, options.task, options.seed).config(
        options.stage, **changes
    )
    from rlhf_helpers import models, processes
    from rlhf_helpers.training import train_stage

    if int(os.environ.get("RANK", "0")) == 0:
        print(models.describe_device())
    result = train_stage(options.stage, config, options.resume)
    if processes.rank() == 0:
        print_table(result.metrics)
        print(f"\nmodel, metrics.json and logs: {result.output_dir}")


def print_table(metrics: dict[str, float]) -> None:
    """Print names and numbers, one a line."""
    for name, value in metrics.items():
        print(f"  {name:<22}{value:>12.5g}")
