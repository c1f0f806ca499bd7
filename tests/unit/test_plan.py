"""Predicted bytes against those that real models of a CPU's size take, and the printed plan."""

import gc
import importlib
import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from accelerate.utils import calculate_maximum_sizes
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
)
from trl.kernels import chunked_logprob
from trl.trainer import utils

from rlhf_helpers import generation, logprobs, scales
from rlhf_helpers.commands.main import parse
from rlhf_helpers.commands.plan import activations
from rlhf_helpers.commands.plan import command as plan_command
from rlhf_helpers.commands.plan import data as plan_data
from rlhf_helpers.commands.plan import estimate as plan
from rlhf_helpers.commands.plan import facts as plan_facts
from rlhf_helpers.commands.plan import memory as plan_memory
from rlhf_helpers.commands.plan import weights as plan_weights
from rlhf_helpers.commands.plan.activations import Batch, activation_bytes
from rlhf_helpers.configs import DPOConfig, PPORunConfig, RewardConfig, SFTConfig, StageConfig
from rlhf_helpers.models import add_lora, load_classifier, load_policy, load_tokenizer
from rlhf_helpers.runs import data_dir
from rlhf_helpers.schemas import DataError, format_prompt, format_response

WORDS = {"vocab_size": 500, "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}
SHAPES: dict[str, PreTrainedConfig] = {
    "opt": OPTConfig(
        **WORDS,
        hidden_size=96,
        ffn_dim=384,
        num_hidden_layers=3,
        num_attention_heads=4,
        word_embed_proj_dim=48,
        do_layer_norm_before=False,
    ),
    "gpt2": GPT2Config(**WORDS, n_embd=64, n_layer=2, n_head=4),
    "llama": LlamaConfig(
        **WORDS,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
    ),
    "deberta": DebertaV2Config(
        vocab_size=500,
        hidden_size=64,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=4,
        relative_attention=True,
        position_buckets=32,
        norm_rel_ebd="layer_norm",
        share_att_key=True,
        pos_att_type="p2c|c2p",
        position_biased_input=False,
        num_labels=1,
    ),
}
FOLDERS: dict[str, Any] = {"model": "", "data": "", "output_dir": Path()}
REWARD: dict[str, Any] = FOLDERS | {"sft_model": "", "prompts": ""}
WITHIN = 0.25


class Alive(TorchDispatchMode):
    """Counts the bytes of all tensors that operations have made and somebody still holds."""

    def __init__(self) -> None:
        super().__init__()
        self.made: dict[StorageWeakRef, int] = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        output = function(*args, **kwargs or {})
        for tensor in tree_leaves(output):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[StorageWeakRef(storage)] = storage.nbytes()
        return output

    def bytes(self, model: torch.nn.Module) -> int:
        gc.collect()
        own = {StorageWeakRef(t.untyped_storage()) for t in model.parameters()}
        return sum(n for ref, n in self.made.items() if not ref.expired() and ref not in own)


def saved(model: torch.nn.Module, run: Callable[[], Any]) -> int:
    """Bytes of the storages, each once and without weights, that autograd saves while `run`s."""
    own, found = {t.untyped_storage().data_ptr() for t in model.parameters()}, {}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if (start := tensor.untyped_storage().data_ptr()) not in own:
            found[start] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        output = run()
    del output
    return sum(found.values())


def real_model(config: StageConfig, shape: PreTrainedConfig, path: Path) -> Any:
    """The model as the stages load it."""
    kind, load = AutoModelForCausalLM, load_policy
    if isinstance(config, RewardConfig):
        kind, load = AutoModelForSequenceClassification, load_classifier
    kind.from_config(shape).save_pretrained(path)
    model = load(path, config.bits)
    if config.lora_rank:
        model = add_lora(model, config.lora_rank, getattr(config, "lora_dropout", 0.0))
    return model.train(not isinstance(config, PPORunConfig))


def ids(rows: int, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Token ids and a mask that has some padding, as most batches do."""
    mask = torch.ones(rows, length, dtype=torch.long)
    mask[0, :2] = 0
    return torch.randint(2, 500, (rows, length)), mask


def trunk(model: Any, batch: Batch) -> Any:
    """The forward pass without the head."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    tokens, mask = ids(batch.rows, batch.prompt + batch.response)
    cache = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
    return model.base_model(input_ids=tokens, attention_mask=mask, **cache)


def close(predicted: float, counted: float) -> None:
    assert counted > 0
    assert predicted == pytest.approx(counted, rel=WITHIN)


@pytest.mark.parametrize(
    ("name", "known"),
    [
        ("facebook/opt-350m", 331e6),
        ("facebook/opt-1.3b", 1316e6),
        ("microsoft/deberta-v3-small", 141e6),
        ("microsoft/deberta-v3-base", 184e6),
    ],
)
def test_the_shapes_have_as_many_parameters_as_the_models(name, known):
    config = RewardConfig(**REWARD) if "deberta" in name else SFTConfig(**FOLDERS)
    model = plan_weights.skeleton(plan_facts.shape_of(name), config)
    assert plan_weights.parameters(model) == pytest.approx(known, rel=0.01)


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
@pytest.mark.parametrize("kind", ["opt", "llama", "deberta"])
def test_weights_gradients_and_optimiser_take_the_predicted_bytes(kind, bits, tmp_path):
    make: Any = RewardConfig if kind == "deberta" else SFTConfig
    config = make(**REWARD if kind == "deberta" else FOLDERS, lora_rank=8, bits=bits)
    model = real_model(config, SHAPES[kind], tmp_path)
    trained = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained)
    for parameter in trained:
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    weights = sum(frozen(p) for p in model.parameters() if not p.requires_grad)
    states = [t for state in optimizer.state.values() for t in state.values() if t.dim()]

    predicted = plan_weights.skeleton(SHAPES[kind], config)
    count = plan_weights.parameters(predicted, trained=True)
    close(plan_weights.frozen_bytes(predicted, bits), weights)
    close(4 * count, sum(map(size, trained)))
    close(4 * count, sum(size(p.grad) for p in trained))
    close(8 * count, sum(map(size, states)))


def size(tensor: torch.Tensor) -> int:
    return tensor.numel() * tensor.element_size()


def frozen(parameter: Any) -> int:
    """Bytes of a weight with what its quantisation keeps besides."""
    total, state = size(parameter), getattr(parameter, "quant_state", None)
    if state is not None:
        nested = state.state2
        total += sum(map(size, (state.absmax, state.code, state.offset)))
        total += size(nested.absmax) + size(nested.code)
    scales_of_rows = getattr(parameter, "SCB", None)
    return total + (size(scales_of_rows) if scales_of_rows is not None else 0)


@pytest.mark.parametrize("checkpointing", [False, True])
@pytest.mark.parametrize(
    ("settings", "batch"),
    [({}, Batch(2, 10, 20)), ({"lora_rank": 8, "lora_dropout": 0.1}, Batch(8, 40, 56))],
)
@pytest.mark.parametrize("kind", SHAPES)
def test_training_saves_the_predicted_bytes(kind, settings, batch, checkpointing, tmp_path):
    make, base = (RewardConfig, REWARD) if kind == "deberta" else (SFTConfig, FOLDERS)
    config = make(**base, **settings, gradient_checkpointing=checkpointing)
    model = real_model(config, SHAPES[kind], tmp_path)
    counted = plain = saved(model, lambda: trunk(model, batch))
    if checkpointing:  # the layers' inputs, and what one of them saves when it computes again
        model.activation_checkpointing_enable({"use_reentrant": False})
        counted = saved(model, lambda: trunk(model, batch))
        assert counted < plain / 2
        counted += plain // SHAPES[kind].num_hidden_layers
    close(activation_bytes(config, SHAPES[kind], batch), counted)


@pytest.mark.parametrize(
    ("bits", "half"), [(4, False), (4, True), (8, False), (8, True), (32, True)]
)
def test_quantised_models_hold_the_predicted_bytes_after_a_forward_pass(bits, half, tmp_path):
    batch, shape = Batch(1, 10, 14), SHAPES["llama"]  # so small that copies of weights would show
    config = SFTConfig(**FOLDERS, lora_rank=8, bits=bits)
    model = real_model(config, shape, tmp_path)
    with Alive() as alive, torch.autocast("cpu", torch.bfloat16, enabled=half):
        output = trunk(model, batch)
        counted = alive.bytes(model)
    del output
    close(activation_bytes(config, shape, batch, half), counted)


def test_without_fake_tensors_activations_follow_a_formula_and_one_line_says_so(
    monkeypatch, caplog
):
    config, shape, batch = SFTConfig(**FOLDERS), SHAPES["opt"], Batch(2, 10, 20)
    counted = activation_bytes(config, shape, batch)
    with monkeypatch.context() as patch:
        patch.delattr("torch._subclasses.fake_tensor.FakeTensorMode")
        importlib.reload(activations)
    try:
        assert counted / 2 < activation_bytes(config, shape, batch) < 2 * counted
        assert activation_bytes(config, shape, batch, half=True) < counted
    finally:
        importlib.reload(activations)
    assert "torch has no FakeTensorMode" in caplog.records[0].getMessage()


@pytest.mark.parametrize(
    ("kind", "bits"), [("opt", 32), ("gpt2", 32), ("llama", 32), ("opt", 16), ("llama", 16)]
)
def test_ppo_holds_the_predicted_activations_and_logits(kind, bits, tmp_path):
    config = PPORunConfig(
        **FOLDERS, reward_model="", lora_rank=4, bits=bits, mini_batch_size=4, samples_per_prompt=2
    )
    batch = Batch(4, 25, 40)
    model = real_model(config, SHAPES[kind], tmp_path)
    prompts, prompt_mask = ids(2, 25)
    answers, mask = ids(4, 40)
    tokens = logprobs.Tokens(prompts, prompt_mask, answers, mask)
    with Alive() as alive:
        logits, hidden = logprobs.forward_responses(model, tokens)
        activations = alive.bytes(model) - size(logits)
    with Alive() as alive:
        kept = [hidden, *logprobs.logprobs_and_entropy(logprobs.scaled(logits, 1.0), answers)]
        overwritten = alive.bytes(model)  # the logits' own memory, and little else
    del kept
    close(activation_bytes(config, SHAPES[kind], batch), activations)
    close(plan_memory.logit_bytes(config, SHAPES[kind], batch), overwritten)


@pytest.mark.parametrize("kind", ["opt", "gpt2", "llama"])
@pytest.mark.parametrize(("rows", "length", "new"), [(2, 40, 30), (6, 10, 50)])
def test_sampling_keeps_the_predicted_keys_and_values(
    kind, rows, length, new, tmp_path, tokenizer, monkeypatch
):
    model = real_model(SFTConfig(**FOLDERS), SHAPES[kind], tmp_path)
    caches, make = [], generation.prompt_cache
    keep = lambda *args, **how: caches.append(make(*args, **how)) or caches[-1]  # noqa: E731
    monkeypatch.setattr(generation, "prompt_cache", keep)
    lengths = torch.full((rows,), new)
    generation.sample(model, tokenizer, *ids(rows, length), max_new_tokens=new, lengths=lengths)
    counted = sum(size(buffer) for layer in caches[0].layers for buffer in layer.buffers)
    close(plan_memory.cache_bytes(SHAPES[kind], rows, length + new), counted)


def test_a_tile_of_logits_is_as_large_as_trl_makes_it():
    sizes = (chunked_logprob.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE)
    assert sizes == plan_memory.LOGIT_TILE
    config, shape = SFTConfig(**FOLDERS), plan_facts.shape_of("facebook/opt-1.3b")
    few, many = Batch(1, 10, 100), Batch(8, 0, 2048)
    assert plan_memory.logit_bytes(config, shape, few) == 4 * 100 * 32_768
    assert plan_memory.logit_bytes(config, shape, many, half=True) == 2 * 4096 * 32_768


def test_more_gpus_share_what_a_batch_takes_and_copy_the_rest():
    config = DPOConfig(**FOLDERS, batch_size=8, lora_rank=4, max_length=30)
    one, four = (
        plan_memory.memory(config, SHAPES["opt"], SHAPES["opt"], batch, gpus)
        for gpus in (1, 4)
        if (batch := plan_memory.batch_of(config, 20, 20, gpus=gpus))
    )
    close(one["activations"], 4 * four["activations"])
    assert one["optimiser"] == four["optimiser"] == 2 * one["weights, trained"]
    assert four["gradients"] == 2 * one["gradients"]  # with the buckets that are sent


def test_whole_weights_have_a_reference_and_adapters_have_none():
    whole = PPORunConfig(**FOLDERS, reward_model="")
    adapter = PPORunConfig(**FOLDERS, reward_model="", lora_rank=4, bits=4)
    shapes, batch = (SHAPES["opt"], SHAPES["opt"]), Batch(2, 5, 5)
    first, second = (plan_memory.memory(x, *shapes, batch) for x in (whole, adapter))
    assert first["other models"] - second["other models"] == first["weights, trained"]
    assert first["weights, frozen"] == first["loaded at the end"] == 0
    assert 0 < second["weights, frozen"] < second["loaded at the end"]
    assert plan_memory.peak(second) < sum(second.values())


@pytest.mark.parametrize("task", ["summarize", "autocomplete"])
def test_the_little_worlds_data_are_as_the_plan_says(task):
    tokenizer = load_tokenizer(data_dir() / "base_model")
    for kind, name in (("demonstrations", "demonstrations"), ("preferences", "rankings")):
        said = plan_data.DATA[task, kind]
        lines = (data_dir() / task / f"{name}_train.jsonl").read_text().splitlines()
        records = [json.loads(line) for line in lines]
        prompts = [format_prompt(record["input_text"]) for record in records]
        answers = [
            format_response(answer)
            for record in records
            for answer in record.get("candidates", [record.get("output_text")])
        ]
        lengths = [len(ids) for ids in tokenizer(prompts)["input_ids"]]
        ends = [len(ids) + 1 for ids in tokenizer(answers, add_special_tokens=False)["input_ids"]]
        assert said.records == len(lines)
        assert 0.8 * said.longest_prompt <= max(lengths) <= said.longest_prompt
        assert 0.8 * said.longest_response <= max(ends) <= said.longest_response
        assert said.prompt == pytest.approx(sum(lengths) / len(lengths), rel=0.05)
        assert said.response == pytest.approx(sum(ends) / len(ends), rel=0.05)


def test_the_work_of_a_stage_follows_from_data_and_settings():
    data = plan_data.Data(1000, 60, 40)
    folders = FOLDERS | {"batch_size": 8}
    packed = SFTConfig(**folders, epochs=2, packing=True, max_length=500)
    assert plan.work(packed, data) == (50, 2000, 200_000)
    pairs = DPOConfig(**folders, pairs=80, max_length=90)
    assert plan.work(pairs, data) == (10, 80, 80 * 2 * 90)
    ppo = PPORunConfig(
        **FOLDERS,
        reward_model="",
        steps=10,
        batch_size=64,
        min_new_tokens=10,
        max_new_tokens=30,
        draw_lengths=True,
    )
    assert plan.work(ppo, data) == (10, 640, 640 * (60 + 20))


def test_hours_fall_with_gpus_and_with_adapters():
    shapes = (SHAPES["opt"], SHAPES["opt"])
    whole, adapter = SFTConfig(**FOLDERS), SFTConfig(**FOLDERS, lora_rank=4)
    one, two = (plan.estimate(whole, 10, 1e9, *shapes, "L4", gpus) for gpus in (1, 2))
    assert one == pytest.approx(2 * two)
    assert plan.estimate(adapter, 10, 1e9, *shapes, "L4", 1) == pytest.approx(one * 2 / 3)
    ppo = PPORunConfig(**FOLDERS, reward_model="", max_new_tokens=100)
    waiting = 10 * 100 * 3 * plan_facts.SECONDS_A_LAYER[32]
    assert plan.estimate(ppo, 10, 0, *shapes, "L4", 1) == pytest.approx(waiting)


@pytest.fixture
def run(capsys) -> Callable[[str], str]:
    """Run the command with these arguments; returns what it has printed."""

    def call(arguments: str, **more: str) -> str:
        options = parse(["plan", *arguments.split()])
        options.__dict__ |= more
        options.command(options)
        return capsys.readouterr().out

    return call


def row(printed: str, name: str) -> list[str]:
    """The cells of a line of the printed tables."""
    line = next(line for line in printed.splitlines() if line.startswith(name + " "))
    return line.removeprefix(name).split()


def test_the_plan_of_full_names_parts_hours_and_cost(run):
    printed = run("--scale full --gpus 8")
    assert "8 x A100 40GB" in printed and "example price" in printed
    sft, reward, *_ = map(float, row(printed, "weights, frozen"))
    assert 0.7 < sft < 1.2 and reward == 0  # 1.3e9 weights of 4 bits, and embeddings of 32
    assert all(float(cell) > 0 for cell in row(printed, "activations"))
    hours, cost = map(float, row(printed, "together"))
    assert cost == pytest.approx(16 * hours, rel=0.01)
    assert "measured " not in printed.replace("not measured", "")


def test_the_price_of_sampling_from_few_bits_is_told(run):
    assert "97 ms with 8 bits and 11 with 16" in run("--scale small")
    assert "97 ms" not in run("--scale full")


def test_what_does_not_fit_is_named_with_a_remedy(run, monkeypatch):
    monkeypatch.setattr(plan_memory, "activation_bytes", lambda *_: 20 * plan_command.GIB)
    printed = run("--gpu T4 --price 0.7")
    assert row(printed, "fits 16 GiB") == ["NO"] * 4
    assert "sft does not fit: 20.0 of 16 GiB" in printed and "try gradient_check" in printed
    assert "ppo does not fit" in printed and "try more gradient_accumulation_steps" in printed
    assert "your price" in printed and "0.70" in row(printed.split("Time and cost")[1], "sft")


def test_the_laptops_rates_are_measured_ones(run):
    printed = run("--scale tiny")
    assert row(printed, "activations")[0] != "0.00"
    ppo, dpo = ([x for x in printed.splitlines() if x.startswith(name)] for name in ("ppo", "dpo"))
    assert "measured" in ppo[0] and f" {45 * 64 / 68:.1f} " in ppo[0]
    assert "estimated" in dpo[0]


def test_a_gpu_without_an_example_price_has_no_cost(run):
    printed = run("--gpu H200")
    assert "give yours with --price" in printed
    header = printed.split("Time and cost")[1].splitlines()[2]
    assert "hours" in header and "cost" not in header
    assert " measured" not in printed.replace("not measured", "")  # that was on a laptop


def test_another_model_is_read_from_its_folder(run, tmp_path):
    small = row(run(""), "weights, trained")[0]
    large = OPTConfig(vocab_size=50_000, hidden_size=240, num_hidden_layers=2, ffn_dim=480)
    large.save_pretrained(tmp_path)
    assert float(row(run(f"--model {tmp_path}"), "weights, trained")[0]) > 2 * float(small)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--model nobody/no-such-model", "nobody/no-such-model: no folder"),
        ("--gpus 0", "--gpus 0"),
        ("--gpus 2", "--gpus 2 on laptop"),
        ("--price -1", "must be a number of at least 0"),
    ],
)
def test_bad_input_gets_one_clear_error(run, arguments, message):
    with pytest.raises(ValueError, match=message):
        run(f"--scale smoke {arguments}")


def test_an_unknown_gpu_gets_the_known_ones(run, capsys):
    with pytest.raises(SystemExit):
        run("--gpu K80")
    assert "A100 40GB" in capsys.readouterr().err


def test_a_mini_batch_that_processes_cannot_share_is_named():
    config = PPORunConfig(**FOLDERS, reward_model="", mini_batch_size=8, samples_per_prompt=1)
    memory = plan_memory.memory(config, SHAPES["opt"], SHAPES["opt"], Batch(1, 5, 5))
    parts = {"ppo": dict.fromkeys(memory, 0)}
    planned = plan.StagePlan("ppo", config, plan_data.Data(1, 1, 1), 1, 1, 1, 1, "estimated")
    assert plan_command.warnings([planned], parts, 16, gpus=8) == []
    assert "multiple of 16" in plan_command.warnings([planned], parts, 16, gpus=16)[0]


def test_full_fits_one_gpu_of_40_gib_and_can_be_shared_by_eight(run):
    for gpus in (1, 8):
        printed = run(f"--scale full --gpus {gpus}")
        assert row(printed, "fits 40 GiB") == ["yes"] * 4
        assert "cannot be shared" not in printed


def test_measured_is_said_of_the_models_that_were_measured_alone(tmp_path):
    scale, base = scales.Scale("tiny"), data_dir() / "base_model"
    OPTConfig(vocab_size=500, hidden_size=240, num_hidden_layers=2).save_pretrained(tmp_path)
    how = lambda **asked: [found.how for found in plan.plan(scale, "laptop", **asked)]  # noqa: E731
    assert how() == how(policy=str(base)) == ["measured"] * 3 + ["estimated"]
    assert set(how(policy=str(tmp_path))) == {"estimated"}
    own = {"demonstrations": plan_data.Data(8000, 89, 17)}
    assert how(data=own) == ["estimated", "measured", "measured", "estimated"]


def test_own_data_are_counted(run, tmp_path):
    pairs = tmp_path / "pairs.jsonl"
    record = {"input_text": "My dog sings [summary]:", "candidates": ["Dog.", "It sings.", "My"]}
    pairs.write_text((json.dumps(record | {"ranking": [1, 0, 2]}) + "\n") * 50)
    found = plan_data.count("preferences", pairs, data_dir() / "base_model", response=9)
    tokenizer = load_tokenizer(data_dir() / "base_model")
    assert (found.records, found.answers) == (50, 3)
    assert found.prompt == len(tokenizer(format_prompt(record["input_text"]))["input_ids"])
    printed = run(f"--preferences {pairs}")
    cells = row(printed.split("Time and cost")[1], "reward")
    assert cells[1] == "50" and "estimated" in cells
    broken = tmp_path / "broken.jsonl"
    broken.write_text("{}\n")
    with pytest.raises(DataError, match=r"broken\.jsonl, line 1"):
        run(f"--prompts {broken}")


@pytest.mark.parametrize("name", ["opt", "llama"])
def test_weights_are_those_that_accelerate_counts(name):
    config = PPORunConfig(**FOLDERS, reward_model="", lora_rank=4, bits=16)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(SHAPES[name])
    total, _ = calculate_maximum_sizes(model)
    skeleton = plan_weights.skeleton(SHAPES[name], config)
    close(2 * plan_weights.frozen_bytes(skeleton, 16), total)


def test_every_scale_has_facts_for_its_models_and_data():
    for name in scales.SCALES:
        scale = scales.Scale(name)
        assert plan_facts.OWN_GPU[name] in plan_facts.GPUS
        assert all(plan_data.data_of(scale, stage).records for stage in plan.PLANNED)
    for known in (scales.POLICIES, scales.REWARD_MODELS):
        assert set(known.values()) <= plan_facts.SHAPES.keys()


def test_a_head_of_answer_tokens_reads_the_data_once_and_trains_no_language_model():
    config = scales.Scale().config("reward", head="answer_tokens")
    data = plan_data.Data(1000, 60, 20, answers=4)
    assert plan.work(config, data) == (math.ceil(6 * 1000 / 32), 1000, 1000 * 4 * 80)
    shape = plan_facts.shape_of(str(data_dir() / "base_model"))
    parts = plan_memory.memory(config, shape, shape, Batch(128, 60, 20))
    assert parts["gradients"] == parts["optimiser"] == parts["activations"] == 0
    assert parts["weights, frozen"] > 4 * 2_000_000
