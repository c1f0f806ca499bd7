"""One side of `benchmarks/ppo_step.py`: makes a PPO step whenever its standard input says so.

Runs in the virtual environment of its side, so it imports nothing but what it measures.
"""

import json
import os
import sys
import time
from collections.abc import Iterator
from contextlib import nullcontext
from itertools import accumulate, cycle
from pathlib import Path
from statistics import median
from typing import Any

import torch

FIRST = 0x4E00  # the character of token 0: a text of n characters has n tokens
MINI_BATCH = 16
EPOCHS = 4
notes: dict[str, float] = {}  # what a side wants to say about its step


def peak_memory(recorded: torch.profiler.profile) -> float:
    """The most bytes of tensors that were alive at once above what was there before, in MB."""
    events = recorded.profiler.kineto_results.events()
    changes = sorted((e.start_ns(), e.nbytes()) for e in events if e.name() == "[memory]")
    return max(accumulate(size for _, size in changes)) / 2**20


def turns(batches: list) -> Iterator[Any]:
    """Hand out a batch at every line of standard input; report what was done with it.

    Where the line asks for memory, the step is recorded, which takes longer. Where it says save,
    None stands for the batch.
    """
    print(json.dumps({"ready": True}), flush=True)
    for batch, line in zip(cycle(batches), sys.stdin, strict=False):
        recording = torch.profiler.profile(profile_memory=True) if "memory" in line else None
        with recording or nullcontext():
            started = time.perf_counter()
            yield None if "save" in line else batch
            report = {"seconds": time.perf_counter() - started, **notes}
        if recording:
            report["peak"] = peak_memory(recording)
        print(json.dumps(report), flush=True)
    os._exit(0)  # some trainers would go on without a batch


def prompt_ids(options: dict) -> list[torch.Tensor]:
    """Batches (B, P) of random prompts, the same for every side."""
    generator = torch.Generator().manual_seed(0)
    size = (options["batch"], options["prompt"])
    return [torch.randint(2, 2000, size, generator=generator) for _ in range(4)]


def text(ids: torch.Tensor) -> str:
    return "".join(chr(FIRST + i) for i in ids.tolist())


def rule(response: str) -> float:
    """Ten times the share of tokens whose id is divisible by 10: 1 for an untrained policy."""
    return 10 * sum((ord(c) - FIRST) % 10 == 0 for c in response) / max(1, len(response))


def ours(options: dict) -> None:
    from rlhf_helpers.models import load_policy, load_tokenizer
    from rlhf_helpers.models.devices import attention
    from rlhf_helpers.ppo import PPOConfig, PPOTrainer
    from rlhf_helpers.reward_model import RewardModel

    folder, length, samples = options["folder"], options["length"], options["samples"]
    config = PPOConfig(
        steps=10**6,
        warmup_steps=0,
        batch_size=options["batch"],
        mini_batch_size=MINI_BATCH,
        ppo_epochs=EPOCHS,
        learning_rate=options["lr"],
        value_learning_rate=options["lr"],
        samples_per_prompt=samples,
        kl_coef=options["kl_coef"],
        seed=options["seed"],
        min_new_tokens=0 if options["variable"] else length,
        draw_lengths=not options["variable"],
        max_new_tokens=length,
        missing_eos_penalty=0.0,
        value_head_std=options["value_head_std"],
        vf_coef=options["vf_coef"],
    )
    assert attention() == ("eager" if options["precision"] == "medium" else "sdpa")
    scorer = RewardModel.from_pretrained(folder / "reward")
    trainer = PPOTrainer(load_policy(folder / "policy"), load_tokenizer(folder / "policy"), config)
    batches = [[text(ids) for ids in batch[::samples]] for batch in prompt_ids(options)]
    count_operations(trainer, scorer, batches[0], options)
    for prompts in turns(batches):
        rollout = trainer.rollout(prompts)
        scores = scorer(rollout.texts)
        if options["rule"]:
            scores = [rule(text[options["prompt"] :]) for text in rollout.texts]
        stats = trainer.step(rollout, scores)
        notes.update(
            score=stats["reward_mean"],
            kl=stats["kl"],
            length=stats["response_length"],
            rollout=stats["seconds_rollout"],
            update=stats["seconds_update"],
        )


def count_operations(trainer: Any, scorer: Any, prompts: list[str], options: dict) -> None:
    """Note the floating-point operations of a step, and how fast this process multiplies."""
    if not options["floor"]:
        return
    from torch.utils.flop_counter import FlopCounterMode

    from rlhf_helpers.models.devices import attention

    sides = (trainer.policy, trainer.reference, scorer.model)
    for model in sides:
        model.set_attn_implementation("eager")  # the counter does not know the CPU's other kernel
    with FlopCounterMode(display=False) as counter:
        rollout = trainer.rollout(prompts)
        trainer.step(rollout, scorer(rollout.texts))
    for model in sides:
        model.set_attn_implementation(attention())
    hidden = trainer.policy.config.hidden_size
    rows = MINI_BATCH * (options["prompt"] + options["length"])
    left, right = torch.randn(rows, hidden), torch.randn(hidden, 4 * hidden)
    seconds = []
    for _ in range(50):
        started = time.perf_counter()
        left @ right
        seconds.append(time.perf_counter() - started)
    rate = 2 * rows * hidden * 4 * hidden / median(seconds)
    notes.update(operations=counter.get_total_flops(), rate=rate)


QUIET = {  # settings of the newer one: float32 on the CPU, and nothing logged or saved
    "bf16": False,
    "use_cpu": True,
    "report_to": "none",
    "save_strategy": "no",
    "logging_strategy": "no",
    "num_sample_generations": 0,
    "disable_tqdm": True,
}


def newer(options: dict) -> None:
    """TRL 1.12.0: PPO as a Trainer, with a value model of its own."""
    from datasets import Dataset
    from transformers import (
        AutoModelForCausalLM,
        AutoModelForSequenceClassification,
        AutoTokenizer,
    )
    from trl.experimental.ppo import PPOConfig, PPOTrainer

    folder, batch = options["folder"], options["batch"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    policy, reference = (
        AutoModelForCausalLM.from_pretrained(folder / "policy", dtype=torch.float32)
        for _ in range(2)
    )
    reward, value = (
        AutoModelForSequenceClassification.from_pretrained(folder / "reward", dtype=torch.float32)
        for _ in range(2)
    )
    config = PPOConfig(
        output_dir=str(folder / "newer"),
        **QUIET,
        per_device_train_batch_size=batch,
        gradient_accumulation_steps=1,
        num_mini_batches=batch // MINI_BATCH,
        num_ppo_epochs=EPOCHS,
        response_length=options["length"],
        temperature=1.0,
        stop_token="eos" if options["variable"] else None,
        total_episodes=10**6 * batch,
        learning_rate=options["lr"],
        kl_coef=options["kl_coef"],
        seed=options["seed"],
        local_rollout_forward_batch_size=batch,
    )
    batches = [{"input_ids": ids} for ids in prompt_ids(options)]
    rows = Dataset.from_list([{"input_ids": row} for row in batches[0]["input_ids"].tolist()])
    trainer = PPOTrainer(config, tokenizer, policy, reference, reward, rows, value)
    trainer.dataloader = turns(batches)
    trainer.log = lambda *_, **__: None
    trainer.train()


def older(options: dict) -> None:
    """TRL 0.11.4: PPO step by step, with a value head on the shared trunk."""
    from transformers import AutoModelForSequenceClassification, AutoTokenizer
    from trl import AutoModelForCausalLMWithValueHead, PPOConfig, PPOTrainer

    folder, batch = options["folder"], options["batch"]
    tokenizer = AutoTokenizer.from_pretrained(folder / "policy", padding_side="left")
    policy, reference = (
        AutoModelForCausalLMWithValueHead.from_pretrained(str(folder / "policy")) for _ in range(2)
    )
    scorer = AutoModelForSequenceClassification.from_pretrained(
        folder / "reward", dtype=torch.float32
    ).eval()
    config = PPOConfig(
        batch_size=batch,
        mini_batch_size=MINI_BATCH,
        ppo_epochs=EPOCHS,
        seed=options["seed"],
        learning_rate=options["lr"],
        init_kl_coef=options["kl_coef"],
        adap_kl_ctrl=False,
    )
    trainer = PPOTrainer(config, policy, reference, tokenizer)
    how = {
        "max_new_tokens": options["length"],
        "do_sample": True,
        "top_k": 0,
        "top_p": 1.0,
        "pad_token_id": tokenizer.pad_token_id,
        "eos_token_id": tokenizer.eos_token_id if options["variable"] else None,
    }
    for ids in turns(prompt_ids(options)):
        queries = list(ids)
        responses = trainer.generate(queries, return_prompt=False, batch_size=batch, **how)
        texts = [torch.cat(pair) for pair in zip(queries, responses, strict=True)]
        padded = tokenizer.pad({"input_ids": texts}, padding_side="right", return_tensors="pt")
        with torch.no_grad():
            scores = scorer(**padded).logits[:, 0]
        if options["rule"]:
            scores = torch.tensor([rule(text(response)) for response in responses])
        stats = trainer.step(queries, responses, list(scores))
        lengths = [len(response) for response in responses]
        kl, length = float(stats["objective/kl"]), sum(lengths) / batch
        notes.update(score=scores.mean().item(), kl=kl, length=length)


if __name__ == "__main__":
    chosen = json.loads(sys.argv[1])
    chosen["folder"] = Path(chosen["folder"])
    os.sched_setaffinity(0, chosen["cores"])
    torch.set_num_threads(len(chosen["cores"]))
    torch.set_float32_matmul_precision(chosen["precision"])
    torch.manual_seed(chosen["seed"])
    {"ours": ours, "newer": newer, "older": older}[chosen["side"]](chosen)
