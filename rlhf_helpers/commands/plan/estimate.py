"""The command `plan`: memory, time and money of a scale's stages, before any of it is spent.

Nothing is downloaded: the models' shapes are written down here. Hours are those of a measured
rate, or estimated from the GPU's peak and clearly called so.
"""

import argparse
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, NamedTuple

from rlhf_helpers import configs, scales
from rlhf_helpers.commands.plan.facts import (
    GPUS,
    LAPTOP,
    MEASURED,
    OWN_GPU,
    Data,
    data_of,
    shape_of,
    texts_of,
)
from rlhf_helpers.stages import STAGES

if TYPE_CHECKING:
    import pandas as pd
    from transformers import PreTrainedConfig

# A stage that runs others is planned as these.
PLANNED = [stage.name for stage in STAGES.values() if not stage.runs]
GIB = 2**30
SPARE = 0.1  # share of a GPU's memory left to CUDA itself, and to gaps between tensors
# Assumed until measured: the share of the peak that training reaches, and what it takes to start
# the operations of one layer for one sampled token.
SHARE_OF_PEAK, SECONDS_A_LAYER = 0.3, 1e-3


class StagePlan(NamedTuple):
    """What a stage needs: bytes of each part on one GPU, and what there is to do."""

    stage: str
    config: configs.StageConfig
    parts: dict[str, int]
    steps: int
    samples: float
    tokens: float
    hours: float
    how: str  # "measured" or "estimated"


def plan(
    scale: scales.Scale, gpu: str, gpus: int = 1, policy: str = "", reward: str = ""
) -> list[StagePlan]:
    """Plan all stages of a scale on so many GPUs; other models than the scale's can be named."""
    from rlhf_helpers.commands.plan.memory import batch_of, memory

    judge = reward or scales.REWARD_MODELS.get(scale.name) or policy or scale.base_model
    shapes = (shape_of(policy or scale.base_model), shape_of(judge))
    plans = []
    for stage in PLANNED:
        config, data = scale.config(stage), data_of(scale, stage)
        candidates = texts_of(scale, stage)
        batch = batch_of(config, data.longest_prompt, data.longest_response, candidates, gpus)
        parts = memory(config, *shapes, batch, gpus, half=gpu != LAPTOP)
        steps, samples, tokens = work(config, data, candidates)
        rate = MEASURED.get((_name(gpu, gpus), scale.name, scale.task, stage))
        seconds = samples / rate if rate else estimate(config, steps, tokens, *shapes, gpu, gpus)
        how = "measured" if rate else "estimated"
        plans.append(
            StagePlan(stage, config, parts, steps, samples, tokens, seconds / 3600, how)
        )  # fmt: skip
    return plans


def work(config: configs.StageConfig, data: Data, texts: int) -> tuple[int, float, float]:
    """Steps, samples and tokens of a stage. Samples are records, and responses in PPO."""
    if isinstance(config, configs.PPORunConfig):
        drawn = (config.min_new_tokens + config.max_new_tokens) / 2
        response = drawn if config.min_new_tokens else min(data.response, config.max_new_tokens)
        responses = config.steps * config.batch_size
        length = min(data.prompt, config.max_prompt_length) + response
        return config.steps, responses, responses * length
    assert isinstance(config, configs.TRLStageConfig)
    sft = isinstance(config, configs.SFTConfig)
    limit = getattr(config, "demonstrations" if sft else "pairs")
    samples = min(data.records, limit or data.records) * config.epochs
    length = min(data.prompt + data.response, config.max_length)
    packed = getattr(config, "packing", False)
    rows = samples * length / config.max_length if packed else samples
    return math.ceil(rows / config.batch_size), samples, samples * texts * length


def estimate(
    config: configs.StageConfig, steps: int, tokens: float, policy: "PreTrainedConfig",
    reward: "PreTrainedConfig", gpu: str, gpus: int,
) -> float:  # fmt: skip
    """Seconds at the assumed share of the GPU's peak: 2 FLOP for each weight and token of a pass.

    A backward pass costs two, or one where only an adapter is trained (Kaplan et al. 2020,
    arXiv:2001.08361, section 2.1). Sampling waits for every layer to start besides.
    """
    from rlhf_helpers.commands.plan.memory import matrix_parameters

    trains_reward = isinstance(config, configs.RewardConfig)
    weights = matrix_parameters(reward if trains_reward else policy, trains_reward)
    passes = 2.0 if config.lora_rank else 3.0
    waiting, others = 0.0, 0
    if isinstance(config, configs.PPORunConfig):  # sampling, reference, and where log-probs differ
        passes = config.ppo_epochs * passes + 2 + (config.bits != 32)
        others = matrix_parameters(reward, True)
        waiting = steps * config.max_new_tokens * policy.num_hidden_layers * SECONDS_A_LAYER
    elif isinstance(config, configs.TRLStageConfig):  # DPO asks the reference once
        passes += config.gradient_checkpointing + isinstance(config, configs.DPOConfig)
    machine = GPUS[gpu]
    half = isinstance(config, configs.TRLStageConfig) or config.bits < 16
    peak = 1e12 * gpus * (machine.half if half else machine.single)
    flop = 2 * tokens * (passes * weights + others)
    return flop / (SHARE_OF_PEAK * peak) + (waiting if gpu != LAPTOP else 0)


def _name(gpu: str, gpus: int) -> str:
    """A machine's name in the prices and among the measured rates."""
    return LAPTOP if gpu == LAPTOP else f"{gpus} x {gpu}"


def fits(planned: StagePlan, memory: float) -> bool:
    """Whether a stage leaves the spare memory of a GPU of so many GiB free."""
    from rlhf_helpers.commands.plan.memory import peak

    return peak(planned.parts) <= (1 - SPARE) * memory * GIB


def memory_table(plans: list[StagePlan], memory: float) -> "pd.DataFrame":
    """GiB on each GPU, a column a stage: its parts, what is there at once, and whether it fits."""
    import pandas as pd

    from rlhf_helpers.commands.plan.memory import peak

    rows: dict[str, list[str]] = {
        part: [f"{planned.parts[part] / GIB:.2f}" for planned in plans] for part in plans[0].parts
    }
    rows["at once"] = [f"{peak(planned.parts) / GIB:.2f}" for planned in plans]
    rows[f"fits {memory:.0f} GiB"] = ["yes" if fits(planned, memory) else "NO" for planned in plans]
    return pd.DataFrame.from_dict(rows, orient="index", columns=[x.stage for x in plans])


def remedy(planned: StagePlan) -> str:
    """What to change first where a stage does not fit: the setting behind its largest part."""
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
    """One line for each stage that does not fit, or that so many processes cannot share."""
    from rlhf_helpers.commands.plan.memory import peak

    lines = []
    for planned in plans:
        config, size = planned.config, peak(planned.parts) / GIB
        if not fits(planned, memory):
            lines.append(
                f"{planned.stage} does not fit: {size:.1f} of {memory:.0f} GiB, of which "
                f"{SPARE:.0%} stay free; try {remedy(planned)}"
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
    """What each stage has to do, samples a second, hours, and (at a known price) what they cost."""
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


def add_plan(commands: argparse._SubParsersAction) -> None:
    """Add the command to the parser of `python -m rlhf_helpers`."""
    parser = commands.add_parser(
        "plan", help="memory, hours and cost of a scale's stages, before they are run",
        description="Predict memory by part, hours and cost of a scale's stages. Nothing is "
        "downloaded or trained.",
    )  # fmt: skip
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
    parser.set_defaults(command=_plan)


def _plan(options: argparse.Namespace) -> None:
    scale = scales.Scale(options.scale, options.task)
    gpu = options.gpu or OWN_GPU[options.scale]
    if options.gpus < 1 or (gpu == LAPTOP and options.gpus > 1):
        raise ValueError(f"--gpus {options.gpus} on {gpu}: choose 1, or more with a --gpu")
    machine, memory = _name(gpu, options.gpus), _memory(gpu)
    plans = plan(scale, gpu, options.gpus, options.model, options.reward_model)
    print(f"{scale.name}, {scale.task}, on {machine}\n\nPredicted memory of each GPU, GiB\n")
    print(memory_table(plans, memory).to_string())
    for line in warnings(plans, memory, options.gpus):
        print(f"\n{line}")
    prices, what = _prices(machine, gpu, options.gpus, options.price)
    print(f"\nTime and cost, US dollars: {what}\n")
    print(time_table(plans, machine, prices).to_string(na_rep="", float_format="{:,.2f}".format))
    print(
        f"\nestimated: not measured; {SHARE_OF_PEAK:.0%} of the peak is assumed, and for each "
        f"sampled token\n{1000 * SECONDS_A_LAYER:g} ms a layer on a GPU. Sizes of data that are "
        "not the course's own are approximate."
    )


def _memory(gpu: str) -> float:
    """GiB of a GPU, or of this machine."""
    import psutil

    return psutil.virtual_memory().total / GIB if gpu == LAPTOP else GPUS[gpu].memory


def _prices(
    machine: str, gpu: str, gpus: int, price: float | None
) -> tuple[Mapping[str, float], str]:
    """The price an hour of a machine, or none, and where it is from."""
    from rlhf_helpers.cloud.cost import EXAMPLE_PRICES

    if price is not None:
        return {machine: price}, "your price"
    if machine in EXAMPLE_PRICES:
        return EXAMPLE_PRICES, "an example price, look up yours"
    if f"1 x {gpu}" in EXAMPLE_PRICES:
        example = gpus * EXAMPLE_PRICES[f"1 x {gpu}"]
        return {machine: example}, f"{gpus} times an example price, look up yours"
    return {}, "no example price, give yours with --price"
