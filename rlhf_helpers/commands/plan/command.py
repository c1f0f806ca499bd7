"""The command `plan`: prints memory, hours and cost of a scale's stages before they are run."""

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING

from rlhf_helpers import configs, scales
from rlhf_helpers.commands.plan.estimate import (
    GIB,
    SECONDS_A_LAYER,
    SHARE_OF_PEAK,
    StagePlan,
    machine_name,
    plan,
)
from rlhf_helpers.commands.plan.facts import GPUS, LAPTOP, OWN_GPU

if TYPE_CHECKING:
    import pandas as pd

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


def run(options: argparse.Namespace) -> None:
    """Print the tables of memory, time and cost."""
    scale = scales.Scale(options.scale, options.task)
    gpu = options.gpu or OWN_GPU[options.scale]
    if options.gpus < 1 or (gpu == LAPTOP and options.gpus > 1):
        raise ValueError(f"--gpus {options.gpus} on {gpu}: choose 1, or more with a --gpu")
    machine, memory = machine_name(gpu, options.gpus), _memory(gpu)
    plans = plan(scale, gpu, options.gpus, options.model, options.reward_model)
    print(f"{scale.name}, {scale.task}, on {machine}\n\nPredicted memory of each GPU, GiB\n")
    print(memory_table(plans, memory).to_string())
    for line in warnings(plans, memory, options.gpus):
        print(f"\n{line}")
    prices, source = _prices(machine, gpu, options.gpus, options.price)
    print(f"\nTime and cost, US dollars: {source}\n")
    print(time_table(plans, machine, prices).to_string(na_rep="", float_format="{:,.2f}".format))
    print(
        f"\nestimated: not measured; {SHARE_OF_PEAK:.0%} of the peak is assumed, and for each "
        f"sampled token\n{1000 * SECONDS_A_LAYER:g} ms a layer on a GPU. Sizes of data that are "
        "not the course's own are approximate."
    )


def fits(planned: StagePlan, memory: float) -> bool:
    """Whether a stage leaves the spare share of a GPU's `memory` (GiB) free."""
    from rlhf_helpers.commands.plan.memory import peak

    return peak(planned.parts) <= (1 - SPARE) * memory * GIB


def memory_table(plans: list[StagePlan], memory: float) -> "pd.DataFrame":
    """GiB on each GPU with a column a stage: its parts, their peak, and whether that fits."""
    import pandas as pd

    from rlhf_helpers.commands.plan.memory import peak

    rows: dict[str, list[str]] = {
        part: [f"{planned.parts[part] / GIB:.2f}" for planned in plans] for part in plans[0].parts
    }
    rows["peak"] = [f"{peak(planned.parts) / GIB:.2f}" for planned in plans]
    rows[f"fits {memory:.0f} GiB"] = ["yes" if fits(planned, memory) else "NO" for planned in plans]
    return pd.DataFrame.from_dict(rows, orient="index", columns=[x.stage for x in plans])


def remedy(planned: StagePlan) -> str:
    """The change to try first when a stage does not fit: of the setting behind its largest part."""
    config, largest = planned.config, max(planned.parts, key=lambda part: planned.parts[part])
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


def warnings(plans: list[StagePlan], memory: float, gpus: int) -> list[str]:
    """One line for each stage that does not fit, or whose batch `gpus` processes cannot share."""
    from rlhf_helpers.commands.plan.memory import peak

    lines = []
    for planned in plans:
        config, size = planned.config, peak(planned.parts) / GIB
        if not fits(planned, memory):
            lines.append(
                f"{planned.stage} does not fit: {size:.1f} of {memory:.0f} GiB, of which "
                f"{SPARE:.0%} must stay free; try {remedy(planned)}"
            )
        ppo = isinstance(config, configs.PPORunConfig)
        pieces = gpus
        if isinstance(config, configs.PPORunConfig):
            pieces *= config.samples_per_prompt * config.gradient_accumulation_steps
        name = "mini_batch_size" if ppo else "batch_size"
        if getattr(config, name) % pieces:
            lines.append(
                f"{planned.stage} cannot be shared: {name} {getattr(config, name)} must be a "
                f"multiple of {pieces}"
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
