"""The command `plan`: prints the memory, hours and cost of a scale's stages in advance."""

import argparse
import math
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from rlhf_helpers import configs, scales
from rlhf_helpers.commands.plan.data import READERS, Data, count, data_of
from rlhf_helpers.commands.plan.estimate import (
    StagePlan,
    answers_of,
    machine_name,
    models_of,
    plan,
)
from rlhf_helpers.commands.plan.facts import GPUS, LAPTOP, OWN_GPU, shape_of

if TYPE_CHECKING:
    import pandas as pd

GIB = 2**30
SLOW = (
    "{} samples from weights of {} bits: on an H200 a token took 97 ms with 8 bits and 11 with 16, "
    "which need 3 GB more for 1.3 billion weights (--bits 16)"
)
NOTE = """
measured: with these models, data and settings on this machine. estimated: from the shares of the
peak and the seconds a sampled token that one H200 reached (benchmarks/gpu.md); they may be off by a
factor of two or three. Sizes of the data sets of `assistant` are approximate."""
SPARE = 0.1  # share of a GPU's memory left to CUDA itself, and to gaps between tensors


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options: a scale, a machine, other models."""
    parser.description = (
        "Predict memory by part, hours and cost of a scale's stages. Nothing is downloaded or "
        "trained."
    )
    parser.add_argument("--scale", default="tiny", choices=scales.SCALES, help="default: tiny")
    parser.add_argument("--task", default="", choices=scales.TASKS, help="default: the scale's own")
    parser.add_argument("--gpus", type=int, default=1, help="processes, a GPU each (default: 1)")
    parser.add_argument(
        "--gpu", choices=GPUS, help="default: T4 at small, A100 40GB at full, else the laptop"
    )
    parser.add_argument(
        "--price", type=float, help="US dollars an hour for the whole machine (default: examples)"
    )
    parser.add_argument("--model", default="", help="another policy: a folder, a name of the hub")
    parser.add_argument("--reward-model", default="", help="another base of the reward model")
    for kind in READERS:
        parser.add_argument(f"--{kind}", type=Path, metavar="FILE", help=f"your {kind}, JSONL")


def run(options: argparse.Namespace) -> None:
    """Print the tables of memory, time and cost."""
    scale = scales.Scale(options.scale, options.task)
    gpu = options.gpu or OWN_GPU[options.scale]
    if options.gpus < 1 or (gpu == LAPTOP and options.gpus > 1):
        raise ValueError(f"--gpus {options.gpus} on {gpu}: choose 1, or more with a --gpu")
    if options.price is not None and not 0 <= options.price < math.inf:
        raise ValueError(f"--price is {options.price:g}: it must be a number of at least 0")
    machine, memory = machine_name(gpu, options.gpus), _memory(gpu)
    models = models_of(scale, options.model, options.reward_model)
    plans = plan(scale, gpu, options.gpus, *models, _own_data(options, scale, models[0]))
    parts = memory_of(plans, models, gpu, options.gpus)
    print(f"{scale.name}, {scale.task}, on {machine}\n\nPredicted memory of each GPU, GiB\n")
    print(memory_table(parts, memory).to_string())
    for line in warnings(plans, parts, memory, options.gpus):
        print(f"\n{line}")
    prices, source = _prices(machine, gpu, options.gpus, options.price)
    print(f"\nTime and cost, US dollars: {source}\n")
    print(time_table(plans, machine, prices).to_string(na_rep="", float_format="{:,.2f}".format))
    print(NOTE)


def _own_data(options: argparse.Namespace, scale: scales.Scale, model: str) -> dict[str, Data]:
    """The sizes of the data sets that the user has named."""
    response = data_of(scale, "ppo").response
    named = {kind: getattr(options, kind) for kind in READERS}
    return {kind: count(kind, path, model, response) for kind, path in named.items() if path}


def memory_of(
    plans: list[StagePlan], models: tuple[str, str], gpu: str, gpus: int
) -> dict[str, dict[str, int]]:
    """Map each stage to the bytes of its parts on one GPU."""
    from rlhf_helpers.commands.plan.memory import batch_of, memory

    policy, reward = map(shape_of, models)
    parts = {}
    for planned in plans:
        config, data = planned.config, planned.data
        answers = answers_of(config, data)
        batch = batch_of(config, data.longest_prompt, data.longest_response, answers, gpus)
        parts[planned.stage] = memory(config, policy, reward, batch, gpus, half=gpu != LAPTOP)
    return parts


def fits(parts: Mapping[str, int], memory: float) -> bool:
    """Whether a stage leaves the spare share of a GPU's `memory` (GiB) free."""
    from rlhf_helpers.commands.plan.memory import peak

    return peak(parts) <= (1 - SPARE) * memory * GIB


def memory_table(parts: Mapping[str, Mapping[str, int]], memory: float) -> "pd.DataFrame":
    """GiB on each GPU with a column a stage: its parts, their peak, and whether that fits."""
    import pandas as pd

    from rlhf_helpers.commands.plan.memory import peak

    columns = {
        stage: {name: f"{size / GIB:.2f}" for name, size in sizes.items()}
        | {"peak": f"{peak(sizes) / GIB:.2f}"}
        | {f"fits {memory:.0f} GiB": "yes" if fits(sizes, memory) else "NO"}
        for stage, sizes in parts.items()
    }
    return pd.DataFrame(columns)


def remedy(config: configs.StageConfig, parts: Mapping[str, int]) -> str:
    """The change to try first when a stage does not fit: of the setting behind its largest part."""
    largest = max(parts, key=lambda part: parts[part])
    if largest in ("activations", "logits"):
        if isinstance(config, configs.PPORunConfig):
            return "more gradient_accumulation_steps"
        checkpointing = getattr(config, "gradient_checkpointing", False)
        return "a smaller batch_size" if checkpointing else "gradient_checkpointing"
    if largest == "KV cache":
        reward = isinstance(config, configs.RewardConfig)
        return "fewer calibration_prompts" if reward else "a smaller batch_size"
    if largest in ("other models", "loaded at the end") or config.bits == 4:
        return "a GPU with more memory, or a smaller model"
    return "lora_rank 16 with bits 4"


def warnings(
    plans: list[StagePlan], parts: Mapping[str, Mapping[str, int]], memory: float, gpus: int
) -> list[str]:
    """One line for each stage that does not fit, or whose batch `gpus` processes cannot share."""
    from rlhf_helpers.commands.plan.memory import peak

    lines = []
    for stage, config in ((planned.stage, planned.config) for planned in plans):
        if not fits(parts[stage], memory):
            lines.append(
                f"{stage} does not fit: {peak(parts[stage]) / GIB:.1f} of {memory:.0f} GiB, of "
                f"which {SPARE:.0%} must stay free; try {remedy(config, parts[stage])}"
            )
        if isinstance(config, configs.PPORunConfig) and config.bits in (4, 8):
            lines.append(SLOW.format(stage, config.bits))
        name, pieces = "batch_size", gpus
        if isinstance(config, configs.PPORunConfig):
            name = "mini_batch_size"
            pieces *= config.samples_per_prompt * config.gradient_accumulation_steps
        if getattr(config, name) % pieces:
            lines.append(
                f"{stage} cannot be shared: {name} {getattr(config, name)} must be a multiple of "
                f"{pieces}"
            )
    return lines


def time_table(plans: list[StagePlan], machine: str, prices: Mapping[str, float]) -> "pd.DataFrame":
    """Work, speed and hours of each stage, and at a known price what it costs."""
    from rlhf_helpers.cloud.cost import Job, cost_table

    jobs = [Job(planned.stage, machine, planned.hours, planned.how) for planned in plans]
    table = cost_table(jobs, prices or {machine: 0.0}).drop(columns="machine").set_index("job")
    for i, name in enumerate(("steps", "samples", "tokens")):
        table.insert(i, name, [f"{getattr(planned, name):,.0f}" for planned in plans])
    rates = [planned.samples / planned.hours / 3600 for planned in plans]
    table.insert(3, "samples/s", [f"{rate:,.1f}" for rate in rates])
    table.loc["together", ["hours", "cost"]] = table[["hours", "cost"]].sum()
    table = table if prices else table.drop(columns=["price/hour", "cost"])
    return table.rename_axis(None)


def _memory(gpu: str) -> float:
    """GiB of a GPU, or of this machine."""
    import psutil

    return psutil.virtual_memory().total / GIB if gpu == LAPTOP else GPUS[gpu].memory


def _prices(
    machine: str, gpu: str, gpus: int, price: float | None
) -> tuple[Mapping[str, float], str]:
    """The price an hour of a machine, if one is known, and a text that says where it is from."""
    from rlhf_helpers.cloud.cost import EXAMPLE_PRICES

    if price is not None:
        return {machine: price}, "your price"
    if machine in EXAMPLE_PRICES:
        return EXAMPLE_PRICES, "an example price, look up yours"
    if f"1 x {gpu}" in EXAMPLE_PRICES:
        example = gpus * EXAMPLE_PRICES[f"1 x {gpu}"]
        return {machine: example}, f"{gpus} times an example price, look up yours"
    return {}, "no example price, give yours with --price"
