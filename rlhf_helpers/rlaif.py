"""RLAIF: an AI labeller with a constitution says which answer is better, in place of people.

The labeller is any causal language model. It reads the principles, the post and two answers, and
its log-probs of "1" and "2" are its label (Lee et al. 2023, "RLAIF vs. RLHF"; the constitution is
from Bai et al. 2022, "Constitutional AI"). It is asked in both orders and the two are averaged
(`annotation.judges.judge_pairs`). The labels make a file of preferences like any other, so that
`reward_model.train` and `ppo.train` need not know who wrote it; `train` is all three.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pandas as pd
from peft import PeftModel
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import ppo, processes, reward_model
from rlhf_helpers.annotation.judges import (
    Judge,
    Question,
    default_question,
    judge_pairs,
    language_model_judge,
    plain_question,
)
from rlhf_helpers.configs import RLAIFConfig
from rlhf_helpers.jsonl import read_text
from rlhf_helpers.little_world.principles import little_question
from rlhf_helpers.models import existing, load_policy, load_tokenizer
from rlhf_helpers.models.compatibility import check_policy
from rlhf_helpers.runs import data_dir
from rlhf_helpers.schemas import DataError, write_jsonl
from rlhf_helpers.training import Result, read_some, resumable
from rlhf_helpers.training.checkpoints import newest_checkpoint, start_stage

ANNOTATOR = "ai"


def read_constitution(path: Path | None = None) -> list[str]:
    """The principles, one a line; blank lines and those that begin with # are left out.

    By default `data/constitution.txt`. Raises DataError if it cannot be read or no line is left.
    """
    path = path or data_dir() / "constitution.txt"
    lines = [line.strip() for line in read_text(path).splitlines()]
    principles = [line for line in lines if line and not line.startswith("#")]
    if not principles:
        raise DataError(f"{path}: no principle in this constitution. Write one a line.")
    return principles


def constitution_question(principles: Sequence[str], asked: Question = plain_question) -> Question:
    """The question for a model that follows instructions: the principles, then `asked`."""
    listed = "\n".join(f"- {principle}" for principle in principles)
    return lambda prompt, first, second: (
        f"A good answer follows these principles:\n{listed}\n\n" + asked(prompt, first, second)
    )


def load_labeller(
    model: str | Path | None = None, chat: str = "auto"
) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """A causal language model, by default the small labeller, and its tokenizer.

    The small one is the base model with the adapter that `principles.train_labeller` has made.
    """
    if model:
        return load_policy(model), load_tokenizer(model, chat)
    base, adapter = data_dir() / "base_model", existing(data_dir() / "labeller")
    policy = PeftModel.from_pretrained(load_policy(base), adapter).merge_and_unload()
    return policy, load_tokenizer(base)


def ai_labeller(
    principles: Sequence[str],
    model: str | Path | None = None,
    question: Callable[[Sequence[str]], Question] | None = None,
    chat: str = "auto",
) -> Judge:
    """A causal language model, a folder or a name of the hub, that judges by these principles.

    By default the small labeller of `data/labeller`, asked as it was taught; any other model is
    asked `constitution_question`, or your own; a chat model in its chat format.
    """
    policy, tokenizer = load_labeller(model, chat)
    if question is not None:
        asked = question(principles)
    elif model is None:
        asked = little_question(principles)
    else:
        asked = constitution_question(principles, default_question(tokenizer))
    return language_model_judge(policy, tokenizer, asked)


def label_file(
    labeller: Judge, source: str | Path, target: Path, count: int | None = None
) -> pd.DataFrame:
    """Write the first `count` pairs of a data set again, with the labeller's choices.

    A pair that comes out at a tie teaches nothing and is left out. Returns the labeller's verdicts,
    a row a pair (see `judge_pairs`). Raises DataError for a bad record, before any is judged.
    """
    pairs = read_some(source, "preferences", count)
    if "choice" not in pairs[0]:
        raise DataError(f"{source}: the labeller compares two answers, not rankings. Give pairs.")
    fields = ("input_text", "candidate_0", "candidate_1")
    table = judge_pairs(labeller, *([record[field] for record in pairs] for field in fields))
    labelled = [
        {name: value for name, value in pair.items() if name != "margin"}  # how sure another was
        | {"choice": int(probability > 0.5), "annotator": ANNOTATOR}
        for pair, probability in zip(pairs, table["probability"], strict=True)
        if probability != 0.5
    ]
    target.parent.mkdir(parents=True, exist_ok=True)
    write_jsonl(target, labelled)
    return table


@resumable
def train(config: RLAIFConfig, resume: bool = False) -> Result:
    """Label, train the reward model on the labels, then run PPO against it.

    Only PPO is resumed: before its first checkpoint a run starts anew. Raises DataError for bad
    data.
    """
    has_begun = resume and newest_checkpoint(config.output_dir) is not None
    if not has_begun:
        read_some(config.data, "prompts", 1)  # a file is checked whole, before hours of labelling
        check_policy(config.model, config.max_new_tokens)
        principles = read_constitution(config.constitution)
        existing(config.labeller or data_dir() / "labeller")
        start_stage(config, resume=False)  # no checkpoint of an earlier PPO is left to resume from
        labels = config.output_dir / "labels.jsonl"
        chat = "off" if config.chat == "off" else "auto"  # of the other models, each its own
        if processes.rank() == 0:
            labeller = ai_labeller(principles, config.labeller, chat=chat)
            label_file(labeller, config.preferences, labels, config.labels)
        processes.wait()
        output_dir = Path(config.reward_model)
        reward = replace(config.reward, data=labels, output_dir=output_dir, chat=chat)
        reward_model.train(reward)
    return ppo.train(config, has_begun)
