"""One side of `benchmarks/critic_free.py`: makes a step whenever its standard input says so.

A step samples K responses to each prompt of a batch, scores them, and learns from them in one pass
of mini-batches. Runs in the virtual environment of its side, so it imports nothing but what it
measures.
"""

import json
import os
import sys
from pathlib import Path
from typing import Any

import torch
from ppo_step import MINI_BATCH, notes, prompt_ids, rule, text, turns

SAMPLES = 4  # responses to a prompt
BETAS = (0.9, 0.99)  # of Adam, on both sides


def prompts_of(options: dict) -> list[list[str]]:
    """Batches of prompts as texts, the same for every side."""
    return [[text(ids) for ids in batch[::SAMPLES]] for batch in prompt_ids(options)]


def ours(options: dict) -> None:
    from rlhf_helpers.models import load_policy, load_tokenizer
    from rlhf_helpers.ppo import PPOConfig, PPOTrainer
    from rlhf_helpers.reward_model import RewardModel

    folder, length = options["folder"], options["length"]
    config = PPOConfig(
        steps=10**6,
        warmup_steps=0,
        advantages=options["advantages"],
        batch_size=options["batch"],
        mini_batch_size=MINI_BATCH,
        samples_per_prompt=SAMPLES,
        ppo_epochs=1,
        learning_rate=options["lr"],
        value_learning_rate=options["lr"],
        kl_coef=options["kl_coef"],
        seed=options["seed"],
        min_new_tokens=length,
        max_new_tokens=length,
        missing_eos_penalty=0.0,
    )
    scorer = RewardModel.from_pretrained(folder / "reward")
    trainer = PPOTrainer(load_policy(folder / "policy"), load_tokenizer(folder / "policy"), config)
    for prompts in turns(prompts_of(options)):
        if prompts is None:
            trainer.policy.save_pretrained(folder / "policy")
            continue
        rollout = trainer.rollout(prompts)
        scores = scorer(rollout.texts)
        if options["rule"]:
            scores = [rule(text[options["prompt"] :]) for text in rollout.texts]
        stats = trainer.step(rollout, scores)
        notes.update(score=stats["reward_mean"], length=stats["response_length"])


def trl(options: dict) -> None:
    """TRL's RLOOTrainer and GRPOTrainer, with the same settings and a step of as many responses."""
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
        TrainerCallback,
    )
    from trl import GRPOConfig, GRPOTrainer, RLOOConfig, RLOOTrainer

    folder, length, updates = options["folder"], options["length"], options["batch"] // MINI_BATCH
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    policy = AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
    scorer = AutoModelForSequenceClassification.from_pretrained(
        folder / "reward", dtype=torch.float32
    )
    settings: dict[str, Any] = {
        "output_dir": str(folder / "trl"),
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "save_strategy": "no",
        "logging_strategy": "no",
        "disable_tqdm": True,
        "gradient_checkpointing": False,
        "shuffle_dataset": False,
        "per_device_train_batch_size": MINI_BATCH,
        "gradient_accumulation_steps": 1,
        "steps_per_generation": updates,
        "num_iterations": 1,
        "num_generations": SAMPLES,
        "max_completion_length": length,
        "generation_kwargs": {"min_new_tokens": length},
        "temperature": 1.0,
        "learning_rate": options["lr"],
        "lr_scheduler_type": "constant",
        "adam_beta1": BETAS[0],
        "adam_beta2": BETAS[1],
        "max_grad_norm": 1.0,
        "beta": options["kl_coef"],
        "epsilon": 0.2,
        "max_steps": 10**6,
        "seed": options["seed"],
    }
    if options["advantages"] == "grpo":  # as in Shao et al. 2024, which ours follows
        settings |= {"loss_type": "grpo", "scale_rewards": "group", "use_bias_correction_kl": False}
        config, trainer_class = GRPOConfig(**settings), GRPOTrainer
    else:
        config, trainer_class = RLOOConfig(**settings), RLOOTrainer
    batches = prompts_of(options)
    waiting = turns(batches)

    def by_rule(completions: list[str], **_: Any) -> list[float]:
        scores = [rule(completion) for completion in completions]
        notes.update(
            score=sum(scores) / len(scores), length=sum(map(len, completions)) / len(scores)
        )
        return scores

    class Gate(TrainerCallback):
        """Waits for the next line before each rollout."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step % updates == 0:
                while next(waiting) is None:
                    policy.save_pretrained(folder / "policy")

    trainer = trainer_class(
        model=policy,
        reward_funcs=by_rule if options["rule"] else scorer,
        args=config,
        train_dataset=Dataset.from_list([{"prompt": p} for batch in batches for p in batch]),
        processing_class=tokenizer,
        reward_processing_classes=None if options["rule"] else tokenizer,
        callbacks=[Gate()],
    )
    trainer.log = lambda *_, **__: None
    trainer.train()


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    chosen["folder"] = Path(chosen["folder"])
    os.sched_setaffinity(0, chosen["cores"])
    torch.set_num_threads(len(chosen["cores"]))
    torch.set_float32_matmul_precision(chosen["precision"])
    torch.manual_seed(chosen["seed"])
    {"ours": ours, "trl": trl}[chosen["side"]](chosen)
