"""What a GPU makes of the course's `full` settings: speed, utilisation and memory of each stage.

    python benchmarks/gpu.py [--size full|tiny] [--minutes 8] [--output FOLDER]

OPT-1.3B and DeBERTa-v3-base by their shapes, with random weights and random words, so nothing is
downloaded: QLoRA SFT on packed rows of 2,048 tokens, at 4 bits and in bf16, and by plain TRL; the
reward model; PPO with 32 to 400 new tokens, with a shared and a separate critic. `tiny`, the
default without a GPU, has the same cases on models of two layers, in under a minute.
Prints the tables that `benchmarks/gpu.md` keeps.
"""

import argparse
import os
import platform
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any
from unittest import mock

import pandas as pd
import torch
from datasets import Dataset
from peft import LoraConfig
from transformers import AutoModelForCausalLM
from trl import SFTConfig as TRLConfig
from trl import SFTTrainer
from workers.gpu_inputs import SIZES, Size, texts, write_data, write_models
from workers.gpu_measures import (
    STEPS,
    WARMUP,
    Clock,
    Row,
    dtype_of,
    matmul_rate,
    model_flops,
    now,
    on_gpu,
    peak,
    reset_peak,
)

from rlhf_helpers import reward_model, sft
from rlhf_helpers.configs import PPORunConfig, RewardConfig, SFTConfig
from rlhf_helpers.models import add_lora, load_policy, load_tokenizer, loading_options
from rlhf_helpers.ppo import PPOTrainer
from rlhf_helpers.scales import FULL
from rlhf_helpers.schemas import read_demonstrations

PPO_STEPS = 3
MACHINE = """{}, Python {}, {}. Measured rates of a matrix product: {}.

Seconds: the median step after warm-ups. MFU: model operations over what that rate allows. They are
counted in the linear layers alone: 2 a weight and token forward, 2 more for the gradient of the
inputs, 2 more for that of a trained weight, so 6 N a token, and 4 N below a LoRA adapter; rollouts
have two passes (sampling and reference, and one of a separate critic), updates one an epoch.
Attention's products, and what is computed twice (gradient checkpointing, log-probs of quantised
policies), do not count. Weights of 8 bits are held against the rate of the other quantised ones.
Peak: of tensors on a GPU; on a CPU, that of the whole process."""


def sft_config(folder: Path, size: Size, bits: int) -> SFTConfig:
    settings = FULL["sft"] | size.sft | {"bits": bits, "output_dir": folder / f"sft{bits}"}
    return SFTConfig(model=folder / "policy", data=folder / "demonstrations.jsonl", **settings)


def run_sft(case: str, folder: Path, size: Size, allowance: float, bits: int) -> list[Row]:
    clock = Clock(allowance)
    trainer = partial(sft.DemonstrationTrainer, callbacks=[clock])
    with mock.patch.object(sft, "DemonstrationTrainer", trainer):
        sft.train(sft_config(folder, size, bits))
    return [clock.row(case, dtype_of(bits))]


def run_trl(case: str, folder: Path, size: Size, allowance: float) -> list[Row]:
    """TRL as its documentation uses it: the same rows, model, adapter and precision."""
    config, clock = sft_config(folder, size, 4), Clock(allowance)
    tokenizer, dtype = load_tokenizer(config.model), dtype_of(4)
    records = read_demonstrations(config.data)
    rows = [sft.encode_demonstration(record, tokenizer, config) for record in records]
    arguments = TRLConfig(
        output_dir=str(folder / "trl"),
        num_train_epochs=config.epochs,
        packing=True,
        per_device_train_batch_size=config.batch_size,
        max_length=config.max_length,
        bf16=on_gpu() and dtype == torch.bfloat16,
        fp16=on_gpu() and dtype == torch.float16,
        use_cpu=not on_gpu(),
        report_to="none",
        disable_tqdm=True,
    )
    adapter = LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        lora_dropout=config.lora_dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    model = AutoModelForCausalLM.from_pretrained(config.model, **loading_options(4))
    SFTTrainer(
        model,
        arguments,
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=adapter,
        callbacks=[clock],
    ).train()
    return [clock.row(case, dtype)]


def run_reward(case: str, folder: Path, size: Size, allowance: float) -> list[Row]:
    """Training on pairs; the calibration after it, on two samples, is not timed."""
    settings = FULL["reward"] | size.reward_stage | {"calibration_prompts": 2}
    config = RewardConfig(
        model=folder / "reward",
        sft_model=folder / "policy",
        data=folder / "preferences.jsonl",
        prompts=folder / "demonstrations.jsonl",
        output_dir=folder / "reward_run",
        **settings,
    )
    clock = Clock(allowance)
    trainer = partial(reward_model.PairTrainer, callbacks=[clock])
    with mock.patch.object(reward_model.run, "PairTrainer", trainer):
        reward_model.train(config)
    return [clock.row(case, dtype_of(32))]


def run_ppo(
    case: str, folder: Path, size: Size, allowance: float, bits: int, critic: str
) -> list[Row]:
    """The median step of PPO, in its three phases; the first one, on short responses, warms up."""
    started = now()
    config = PPORunConfig(
        model=folder / "policy",
        reward_model=folder / "reward",
        output_dir=folder,
        data=folder,
        **FULL["ppo"] | size.ppo | {"bits": bits, "critic": critic},
    )
    policy = add_lora(load_policy(config.model, bits), config.lora_rank)
    judge = reward_model.RewardModel.from_pretrained(config.reward_model)
    trainer = PPOTrainer(policy, load_tokenizer(config.model), config)
    prompts = texts(size, size.prompt, seed=9)
    trainer.config = replace(config, min_new_tokens=1, max_new_tokens=4, draw_lengths=True)
    ppo_step(case, trainer, judge, prompts)
    trainer.config, steps = config, []
    while len(steps) < PPO_STEPS and (not steps or now() - started < allowance):
        steps.append(ppo_step(case, trainer, judge, prompts))
    return sorted(steps, key=lambda step: sum(row.seconds for row in step))[len(steps) // 2]


def ppo_step(
    case: str, trainer: PPOTrainer, judge: reward_model.RewardModel, prompts: Iterator[str]
) -> list[Row]:
    """One step: a row for each phase. Work that is done twice counts once, as everywhere."""
    config, rows = trainer.config, []

    def phase(name: str, dtype: torch.dtype, work: Callable[[], Any]) -> Any:
        reset_peak()
        started = now()
        result = work()
        rows.append(Row(f"{case}: {name}", now() - started, 0, "", 0, dtype, peak()))
        return result

    batch = [next(prompts) for _ in range(config.batch_size)]
    rollout = phase("rollout", dtype_of(config.bits), lambda: trainer.rollout(batch))
    scores = phase("scores", torch.float32, lambda: judge(rollout.texts))
    phase("update", dtype_of(config.bits), lambda: trainer.step(rollout, scores))

    new = rollout.response_mask.sum().item()
    read = rollout.prompt_mask.sum().item() + new
    forward, update = (
        sum(model_flops(m, read, new, training) for m in (trainer.policy, trainer.critic) if m)
        for training in (False, True)
    )
    forward += model_flops(trainer.policy, read, new, False)  # the reference's
    judged = model_flops(judge.model, read, len(batch), False)
    found = (
        (new, "new tokens", forward),
        (len(batch), "texts", judged),
        (len(batch), "responses", config.ppo_epochs * update),
    )
    return [
        row._replace(count=count, unit=unit, flops=flops)
        for row, (count, unit, flops) in zip(rows, found, strict=True)
    ]


CASES: dict[str, Callable[..., list[Row]]] = {
    "SFT, 4 bits": partial(run_sft, bits=4),
    "SFT, bf16": partial(run_sft, bits=16),
    "SFT, 4 bits, plain TRL": run_trl,
    "reward model": run_reward,
    "PPO, 8 bits, shared critic": partial(run_ppo, bits=8, critic="shared"),
    "PPO, 8 bits, separate critic": partial(run_ppo, bits=8, critic="separate"),
    "PPO, bf16, shared critic": partial(run_ppo, bits=16, critic="shared"),
}
RATIOS = {
    "4 bits / bf16, SFT": ("SFT, 4 bits", "SFT, bf16"),
    "ours / plain TRL, SFT": ("SFT, 4 bits", "SFT, 4 bits, plain TRL"),
    "separate / shared critic, PPO": ("PPO, 8 bits, separate critic", "PPO, 8 bits, shared critic"),
    "8 bits / bf16, PPO": ("PPO, 8 bits, shared critic", "PPO, bf16, shared critic"),
}


def measure(folder: Path, size: Size, minutes: float) -> tuple[list[Row], dict[str, str]]:
    """The rows of all cases that fit into the time, and why the others were left out."""
    started, longest, rows, left_out = now(), 0.0, [], {}
    deadline = started + 60 * minutes
    write_models(folder, size)
    write_data(folder, size, WARMUP + STEPS + 1)
    for number, (case, run) in enumerate(CASES.items()):
        begun = now()
        if begun + longest > deadline:
            left_out[case] = "no time left"
            continue
        print(f"{begun - started:4.0f} s: {case} …", flush=True)
        try:
            reset_peak()
            torch.cuda.empty_cache()  # does nothing without a GPU
            rows += run(case, folder, size, (deadline - begun) / (len(CASES) - number))
        except RuntimeError as error:  # out of memory, or an operation that this GPU lacks
            left_out[case] = str(error).partition("\n")[0]
        longest = max(longest, now() - begun)
    return rows, left_out


def summarise(rows: list[Row], rates: dict[torch.dtype, float]) -> pd.DataFrame:
    """One line a row; utilisation is of the rate at which this machine multiplies matrices."""
    return pd.DataFrame(
        {
            "case": row.case,
            "seconds a step": f"{row.seconds:.3g}",
            "a second": f"{row.count / row.seconds:,.4g} {row.unit}",
            "MFU": f"{row.flops / row.seconds / rates[row.dtype]:.2g}",
            "of": str(row.dtype).removeprefix("torch."),
            "peak, MB": f"{row.memory / 1e6:,.0f}",
        }
        for row in rows
    )


def ratios(rows: list[Row]) -> pd.DataFrame:
    """Seconds a token and peak memory of a case over another's, its phases together."""
    lines = []
    for name, pair in RATIOS.items():
        found = [[row for row in rows if row.case.partition(":")[0] == case] for case in pair]
        if all(found):
            seconds = [sum(row.seconds for row in case) / case[0].count for case in found]
            memory = [max(row.memory for row in case) for case in found]
            line = {"": name, "seconds a token": seconds[0] / seconds[1]}
            lines.append(line | {"peak": memory[0] / memory[1]})
    return pd.DataFrame(lines)


def machine(rates: dict[torch.dtype, float]) -> str:
    """The processor and versions, measured rates, and what the columns mean."""
    name = torch.cuda.get_device_name() if on_gpu() else f"CPU, {os.cpu_count()} cores"
    packages = ("torch", "transformers", "trl", "peft", "bitsandbytes")
    versions = ", ".join(f"{package} {version(package)}" for package in packages)
    measured = ", ".join(
        f"{rate / 1e12:.3g} TFLOP/s in {str(dtype).removeprefix('torch.')}"
        for dtype, rate in rates.items()
    )
    return MACHINE.format(name, platform.python_version(), versions, measured)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--size", choices=SIZES, default="full" if on_gpu() else "tiny")
    parser.add_argument("--minutes", type=float, default=8, help="begin no case that goes beyond")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent, help="for gpu.md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as folder:
        rows, left_out = measure(Path(folder), SIZES[options.size], options.minutes)
    rates = {dtype: matmul_rate(dtype) for dtype in {row.dtype: None for row in rows}}
    tables = (summarise(rows, rates), ratios(rows).round(2))
    parts = [f"Size {options.size}. {machine(rates)}"]
    parts += [table.to_markdown(index=False, disable_numparse=True) for table in tables]
    parts += [f"Left out: {case} ({reason})." for case, reason in left_out.items()]
    text = "\n\n".join(parts) + "\n"
    print(text)
    (options.output / "gpu.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
