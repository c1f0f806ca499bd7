"""`benchmarks/gpu.py` where there is no GPU: its cases at `tiny`, its formula and its shapes."""

import re
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from rlhf_helpers.commands.plan.weights import parameters
from rlhf_helpers.models import add_lora

sys.path.append(str(Path(__file__).parents[2] / "benchmarks"))

import gpu
from workers import gpu_inputs, gpu_measures


def numbers(line: str) -> list[float]:
    """Those in the cells of a line behind the first one; units and names of types have none."""
    cells = line.split("|")[2:-1]
    found = [re.match(r"[\d.,]+(e-?\d+)?", cell.strip()) for cell in cells]
    return [float(match[0].replace(",", "")) for match in found if match]


@pytest.mark.slow
def test_all_cases_run_to_the_end_on_a_cpu(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(gpu, "PPO_STEPS", 1)
    monkeypatch.setattr(gpu, "STEPS", 2)
    monkeypatch.setattr(gpu_measures, "STEPS", 2)
    gpu.main(["--size", "tiny", "--output", str(tmp_path)])
    report = (tmp_path / "gpu.md").read_text()
    assert report in capsys.readouterr().out and "Left out" not in report
    lines = {
        line.split("|")[1].strip(): numbers(line) for line in report.splitlines() if "|" in line
    }
    phases = ("rollout", "scores", "update")
    for case in gpu.CASES:
        names = [f"{case}: {phase}" for phase in phases] if case.startswith("PPO") else [case]
        for name in names:
            assert len(lines[name]) == 4 and min(lines[name]) > 0, name
    for name in gpu.RATIOS:
        assert len(lines[name]) == 2 and min(lines[name]) > 0, name


def test_what_does_not_fit_is_left_out_and_named(tmp_path, monkeypatch):
    def too_large(*_):
        raise torch.OutOfMemoryError("no memory left\nfor this")

    clock = iter(range(0, 10_000, 100))  # each look at it is 100 seconds after the last
    row = gpu.Row("first", 1.0, 2, "tokens", 3e9, torch.float32, 4e6)
    cases = {"first": lambda *_: [row], "large": too_large, "third": lambda *_: [row]}
    monkeypatch.setattr(gpu, "CASES", cases)
    monkeypatch.setattr(gpu, "now", lambda: next(clock))
    monkeypatch.setattr(gpu, "peak", lambda: 0)
    rows, left_out = gpu.measure(tmp_path, gpu_inputs.SIZES["tiny"], minutes=7)
    assert rows == [row]
    assert left_out == {"large": "no memory left", "third": "no time left"}
    assert gpu.ratios(rows).empty
    table = gpu.summarise(rows, {torch.float32: 6e9})
    assert table.loc[0].tolist() == ["first", "1", "2 tokens", "0.5", "float32", "4"]


def test_ratios_take_the_phases_of_a_case_together():
    def rows(case: str, seconds: float, tokens: int) -> list[gpu.Row]:
        return [
            gpu.Row(f"{case}: {phase}", n * seconds, tokens, "", 1, torch.float32, n * seconds)
            for n, phase in enumerate(("rollout", "update"), 1)
        ]

    separate, shared = gpu.RATIOS["separate / shared critic, PPO"]
    table = gpu.ratios([*rows(separate, 6, 20), *rows(shared, 2, 10)])
    assert table.values.tolist() == [["separate / shared critic, PPO", 1.5, 3.0]]


@pytest.mark.parametrize("lora", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_operations_are_those_that_torch_counts(lora, training):
    """Within a tenth: attention's products are left out, a few of the first layer's are not."""
    model = AutoModelForCausalLM.from_config(gpu_inputs.policy_shape(gpu_inputs.SIZES["tiny"]))
    model = add_lora(model, rank=4) if lora else model
    ids = torch.randint(3, 512, (4, 16))
    with FlopCounterMode(display=False) as counter:
        loss = model(input_ids=ids, labels=ids).loss
        if training:
            loss.backward()
    expected = gpu_measures.model_flops(model, ids.numel(), ids.numel(), training)
    assert expected == pytest.approx(counter.get_total_flops(), rel=0.1)
    per_weight = expected / gpu_measures.model_flops(model, ids.numel(), ids.numel(), False)
    assert per_weight == pytest.approx(1 if not training else 2 if lora else 3, rel=0.05)


def test_full_has_the_shapes_of_the_real_models():
    size = gpu_inputs.SIZES["full"]
    with torch.device("meta"):
        policy = AutoModelForCausalLM.from_config(gpu_inputs.policy_shape(size))
        reward = AutoModelForSequenceClassification.from_config(gpu_inputs.reward_shape(size))
    assert parameters(policy) == 1_315_758_080
    assert parameters(reward) == pytest.approx(184e6, rel=0.005)


def test_help_names_the_sizes(capsys):
    with pytest.raises(SystemExit) as stopped:
        gpu.main(["--help"])
    assert stopped.value.code == 0
    assert "{full,tiny}" in capsys.readouterr().out
