"""Reinforced Self-Training (ReST): sample answers, fine-tune on those that score well, repeat.

Algorithm 1 of Gulcehre et al. 2023, "Reinforced Self-Training (ReST) for Language Modeling"
(arXiv:2308.08998). A Grow step samples a data set from the policy and scores it; several Improve
steps fine-tune on what of it scores above a threshold that rises from one to the next:

    samples = grow(policy, tokenizer, reward_model, prompts)
    for threshold in rising:
        model = improve(above(samples, threshold), config).output_dir

`train` runs the whole algorithm.

Simplified: an Improve step takes `config.epochs` passes, where the paper stops once the reward on
a validation set falls, and the data hold samples alone, without the first demonstrations.
"""

import time
from collections.abc import Iterator
from dataclasses import fields
from pathlib import Path

import pandas as pd
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers import generation, processes, sft
from rlhf_helpers.configs import RestConfig, SFTConfig, TRLStageConfig
from rlhf_helpers.models import load_policy, load_tokenizer
from rlhf_helpers.models.compatibility import check_policy
from rlhf_helpers.reward_model import RewardModel
from rlhf_helpers.schemas import (
    DataError,
    Prompt,
    Scorer,
    format_prompt,
    score_answers,
    write_jsonl,
)
from rlhf_helpers.training import Result, log_writer, read_some, resumable, save_stage
from rlhf_helpers.training.checkpoints import load_checkpoint, save_checkpoint, start_stage


def grow(
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    scorer: Scorer,
    prompts: list[Prompt],
    *,
    samples_per_prompt: int = 4,
    max_new_tokens: int = 48,
    instruction: str = "",
    seed: int = 0,
) -> pd.DataFrame:
    """Sample answers at temperature 1 and score them: one row for each, in the prompts' order.

    Columns: `input_text` and `output_text` as in a demonstration; `prompt`, its index; `ended`,
    whether the answer ends with EOS; `score`, by a reward model or a function of prompt and answer
    as one text; `advantage`, the score minus the mean score of all answers to the same prompt.
    """
    texts = [format_prompt(record["input_text"], instruction) for record in prompts]
    found = generation.respond(
        policy,
        tokenizer,
        texts,
        max_new_tokens=max_new_tokens,
        samples_per_prompt=samples_per_prompt,
        seed=seed,
    )
    numbers = [i for i in range(len(prompts)) for _ in range(samples_per_prompt)]
    columns = {
        "prompt": numbers,
        "input_text": [prompts[i]["input_text"] for i in numbers],
        "output_text": [answer.strip() for answer in found.texts],
        "ended": found.ended,
        "score": score_answers(scorer, [texts[i] for i in numbers], found.texts),
    }
    samples = pd.DataFrame(columns)
    mean = samples.groupby("prompt")["score"].transform("mean")
    return samples.assign(advantage=samples["score"] - mean)


def above(samples: pd.DataFrame, threshold: float, by: str = "score") -> pd.DataFrame:
    """Filter for an Improve step: return the rows whose column `by` is above the threshold.

    `by="score"` is the paper's filter. `by="advantage"` compares the answers to each prompt with
    one another, so that hard prompts are not filtered out with the bad answers. A quantile of the
    column makes a threshold that keeps a known share. Empty answers are never kept, nor those
    without EOS: imitating them teaches to stop anywhere. Raises ValueError where nothing is left.
    """
    usable = _usable(samples)
    kept = usable[usable[by] > threshold]
    if kept.empty:
        highest = f"{usable[by].max():.3g}" if len(usable) else "missing, for none came to its end"
        raise ValueError(
            f"threshold {threshold:.3g} keeps 0% of {len(samples)} answers: the highest {by} is "
            f"{highest}. Lower it, for instance to a quantile of `{by}`, or sample more."
        )
    return kept


def best_of(samples: pd.DataFrame, n: int) -> pd.DataFrame:
    """Return, for each prompt, the answer with the highest score among its first n.

    Fine-tuning on these is rejection sampling, as in Touvron et al. 2023, "Llama 2"
    (arXiv:2307.09288). A prompt whose answers are all empty or without EOS gives none.
    Raises ValueError where a prompt has fewer than n answers.
    """
    fewest = samples.groupby("prompt").size().min()
    if not 1 <= n <= fewest:
        raise ValueError(
            f"best of {n}, but a prompt has {fewest} answers: choose 1 to {fewest}, or grow with "
            "more samples_per_prompt."
        )
    usable = _usable(samples.groupby("prompt").head(n))
    return usable.loc[usable.groupby("prompt")["score"].idxmax()]


def improve(kept: pd.DataFrame, config: SFTConfig) -> Result:
    """Fine-tune `config.model` on the kept answers, which are written to `config.data` first.

    The same stage as on people's demonstrations, `sft.train`. In the paper the model is what the
    last Improve step has left, and the learning rate is lower at each.
    """
    if processes.rank() == 0:
        Path(config.data).parent.mkdir(parents=True, exist_ok=True)
        write_jsonl(config.data, kept.to_dict("records"))
    processes.wait()
    return sft.train(config)


@resumable
def train(config: RestConfig, resume: bool = False) -> Result:
    """Run all Grow steps with their Improve steps, each of which has a folder below `output_dir`.

    Answers are filtered by advantage, and the last model is the result. A resumed run repeats the
    Grow step in which it was stopped. Raises DataError for a bad data set, or too few prompts.
    """
    wanted = config.grow_steps * config.grow_prompts
    prompts = read_some(config.data, "prompts", wanted)
    if len(prompts) < wanted:
        raise DataError(
            f"{config.data}: {len(prompts)} prompts, but {config.grow_steps} Grow steps of "
            f"{config.grow_prompts} ask for {wanted}. Lower grow_prompts or grow_steps."
        )
    check_policy(config.model, config.max_new_tokens)
    scorer = RewardModel.from_pretrained(config.reward_model)
    checkpoint = start_stage(config, resume)
    history: list[dict[str, float]] = []
    if checkpoint:
        history = load_checkpoint(checkpoint, torch.device("cpu"))["history"]
    with log_writer(config, len(history) if checkpoint else None) as writer:
        for g in range(len(history) // config.improve_steps, config.grow_steps):
            asked = prompts[g * config.grow_prompts :][: config.grow_prompts]
            for row in _grow_and_improve(config, g, asked, scorer):
                if writer is not None:
                    for name, value in row.items():
                        writer.add_scalar(f"rest/{name}", value, len(history))
                history.append(row)
            if processes.rank() == 0:
                save_checkpoint(config.output_dir, g + 1, {"history": history})
    model = _model_after(config, len(history))
    metrics = {name: history[-1][name] for name in ("score", "kept", "loss")}
    metrics["seconds"] = sum(row["seconds"] for row in history)
    return save_stage(config, load_policy(model), _tokenizer(config, model), metrics, history)


def _grow_and_improve(
    config: RestConfig, g: int, prompts: list[Prompt], scorer: Scorer
) -> Iterator[dict[str, float]]:
    """The g-th Grow step (from 0) and its Improve steps: yields a row of the history for each."""
    started, done = time.perf_counter(), g * config.improve_steps
    model = _model_after(config, done)
    samples = grow(
        load_policy(model),
        _tokenizer(config, model),
        scorer,
        prompts,
        samples_per_prompt=config.samples_per_prompt,
        max_new_tokens=config.max_new_tokens,
        instruction=config.instruction,
        seed=config.seed + g + 1,
    )
    common = {field.name: getattr(config, field.name) for field in fields(TRLStageConfig)}
    for i in range(config.improve_steps):
        kept = above(samples, samples["advantage"].quantile(1 - 0.5 ** (i + 1)), by="advantage")
        folder = _model_after(config, done + i + 1)
        changes = {
            "model": _model_after(config, done + i),
            "data": Path(folder) / "kept.jsonl",
            "output_dir": folder,
            "learning_rate": config.learning_rate / 1.5 ** (done + i),
            "report_to": "none",
        }
        loss = improve(kept, SFTConfig(**common | changes)).metrics["loss"]
        now = time.perf_counter()
        yield {
            "score": float(samples["score"].mean()),
            "kept": len(kept) / len(samples),
            "loss": loss,
            "seconds": now - started,
        }
        started = now


def _model_after(config: RestConfig, improved: int) -> str | Path:
    """The folder of the model after so many Improve steps; `config.model` after none."""
    if not improved:
        return config.model
    g, i = divmod(improved - 1, config.improve_steps)
    return config.output_dir / f"grow_{g + 1}_best_{0.5 ** (i + 1)}"


def _tokenizer(config: RestConfig, model: str | Path) -> PreTrainedTokenizerBase:
    return load_tokenizer(model, config.chat, config.system_prompt)


def _usable(samples: pd.DataFrame) -> pd.DataFrame:
    return samples[samples["ended"] & (samples["output_text"] != "")]
