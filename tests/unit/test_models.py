"""Loading models: precision, quantisation, dropout, LoRA and merging."""

import copy
import math
import re

import bitsandbytes
import pytest
import torch
from transformers import OPTForCausalLM

from rlhf_helpers import models
from rlhf_helpers.models import (
    add_lora,
    devices,
    load_classifier,
    load_policy,
    load_tokenizer,
    loading_options,
    merge_adapter,
    quantisation,
    trainable,
    trained_weights,
    without_dropout,
)
from rlhf_helpers.models.devices import attention, matmul_precision
from rlhf_helpers.scales import Scale

BASE = Scale().base_model
IDS = torch.tensor([[2, 70, 300, 41, 1500, 260, 33, 2]])


@pytest.fixture(autouse=True)
def _fresh_precision(monkeypatch):
    """Each test measures anew; afterwards nothing of it is left."""
    monkeypatch.delenv("RLHF_MATMUL_PRECISION", raising=False)
    before = torch.get_float32_matmul_precision()
    matmul_precision.cache_clear()
    yield
    matmul_precision.cache_clear()
    torch.set_float32_matmul_precision(before)


# Precision and attention


@pytest.mark.parametrize("choice", ["highest", "high", "medium"])
def test_the_environment_overrides_the_precision(monkeypatch, choice):
    monkeypatch.setenv("RLHF_MATMUL_PRECISION", choice)
    monkeypatch.setattr(devices, "measure_matmul", None)  # nothing needs to be measured
    assert matmul_precision() == choice == torch.get_float32_matmul_precision()


def test_without_the_environment_one_of_two_is_chosen_and_set():
    assert matmul_precision() in ("highest", "medium")
    assert torch.get_float32_matmul_precision() == matmul_precision()


@pytest.mark.parametrize(
    ("gain", "error", "choice"),
    [(2, 1e-7, "medium"), (2, 1e-3, "highest"), (1.3, 1e-7, "highest"), (0.5, 1e-7, "highest")],
)
def test_medium_is_chosen_where_it_is_clearly_faster_at_the_same_error(
    monkeypatch, gain, error, choice
):
    monkeypatch.setattr(devices, "measure_matmul", lambda: (gain, error))
    assert matmul_precision() == choice == torch.get_float32_matmul_precision()


def test_the_gain_of_a_faster_product_is_its_ratio(monkeypatch):
    def clock():
        now[0] += {"highest": 3.0, "medium": 1.5}[torch.get_float32_matmul_precision()] / 2
        return now[0]

    now = [0.0]
    monkeypatch.setattr(devices.time, "perf_counter", clock)
    gain, error = devices.measure_matmul(size=64)
    assert gain == pytest.approx(2.0)
    assert 0 < error < 1e-5


@pytest.mark.parametrize(
    ("device", "precision", "expected"),
    [("cpu", "medium", "eager"), ("cpu", "highest", "sdpa"), ("cuda", "medium", "sdpa")],
)
def test_plain_attention_goes_with_fast_matmuls_on_cpus(monkeypatch, device, precision, expected):
    monkeypatch.setenv("RLHF_MATMUL_PRECISION", precision)
    monkeypatch.setattr(devices, "default_device", lambda: torch.device(device))
    assert attention() == expected


# Loading


def test_options_of_each_number_of_bits():
    assert loading_options()["dtype"] == loading_options(32)["dtype"] == torch.float32
    assert loading_options(16)["dtype"] == torch.bfloat16
    assert all("quantization_config" not in loading_options(bits) for bits in (32, 16))
    assert loading_options(8)["quantization_config"].load_in_8bit
    four = loading_options(4)["quantization_config"]
    assert four.load_in_4bit and four.bnb_4bit_use_double_quant
    assert four.bnb_4bit_quant_type == "nf4"


@pytest.mark.parametrize(
    ("device", "has", "expected"),
    [
        ("cpu", False, torch.float32),
        ("cpu", True, torch.bfloat16),
        ("cuda", False, torch.float16),
        ("cuda", True, torch.bfloat16),
    ],
)
def test_four_bits_are_multiplied_in_what_the_hardware_is_made_for(
    monkeypatch, device, has, expected
):
    monkeypatch.setattr(devices, "default_device", lambda: torch.device(device))
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: has)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "amx_bf16": has})
    assert loading_options(4)["quantization_config"].bnb_4bit_compute_dtype == expected


@pytest.mark.parametrize("bits", [0, 2, 5, 64, -4])
def test_other_numbers_of_bits_are_refused(bits):
    with pytest.raises(ValueError, match=f"bits is {bits}; choose 32, 16, 8 or 4"):
        loading_options(bits)


def test_a_policy_is_loaded_in_full_precision_and_ready_to_sample():
    policy = load_policy(BASE)
    assert {parameter.dtype for parameter in policy.parameters()} == {torch.float32}
    assert not policy.training


def test_the_attention_that_gives_nan_on_padded_rows_is_off_once_a_model_is_loaded():
    torch.backends.cuda.enable_cudnn_sdp(True)
    load_policy(BASE)
    assert not torch.backends.cuda.cudnn_sdp_enabled()


def test_a_tokenizer_without_a_pad_token_gets_one(tokenizer, tmp_path):
    tokenizer.pad_token = None
    tokenizer.save_pretrained(tmp_path)
    loaded = load_tokenizer(tmp_path)
    assert (loaded.pad_token, loaded.padding_side) == ("</s>", "left")
    assert load_tokenizer(BASE).pad_token == "<pad>"


@pytest.mark.parametrize("load", [load_policy, load_tokenizer])
def test_a_folder_that_is_not_there_is_named(load, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in (tmp_path / "none", str(tmp_path / "none"), "./none", "runs/tiny/none"):
        with pytest.raises(FileNotFoundError, match=f"{path}: no such model. Train that stage"):
            load(path)


@pytest.mark.parametrize("load", [load_policy, load_tokenizer, load_classifier])
def test_a_model_that_neither_folder_nor_hub_has_is_named_in_one_line(load):
    for path in ("nowhere", "nobody/nowhere"):
        with pytest.raises(FileNotFoundError, match=f"{path}: this model cannot be lo") as raised:
            load(path)
        assert "HF_HUB_OFFLINE=0" in str(raised.value) and "\n" not in str(raised.value)


# Dropout


def test_without_dropout_two_passes_in_training_are_the_same(make_model, kind):
    model = make_model(kind, layerdrop=0.5).train()  # OPT alone knows layerdrop
    ids = torch.arange(2, 42)[None]
    logits = model(input_ids=ids).logits
    if kind != "llama":  # which has none
        again = [model(input_ids=ids).logits for _ in range(20)]  # two passes may drop the same
        assert not all(torch.equal(other, logits) for other in again)
    assert without_dropout(model) is model
    logits = model(input_ids=ids).logits
    for _ in range(5):
        assert torch.equal(model(input_ids=ids).logits, logits)
    torch.testing.assert_close(model.eval()(input_ids=ids).logits, logits)


# LoRA


def lora(bits: int = 32):
    """The base model with an adapter that does something."""
    model = add_lora(load_policy(BASE, bits), 4)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.02, generator=generator)
    return model.eval()


def test_a_new_adapter_changes_nothing_and_is_all_that_trains():
    model = add_lora(load_policy(BASE), 4)
    torch.testing.assert_close(model(IDS).logits, load_policy(BASE)(IDS).logits)
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    assert all("lora_" in name for name in trained)
    layers = load_policy(BASE).config.num_hidden_layers
    assert len(trained) == 2 * 6 * layers  # A and B of q, k, v, out, fc1, fc2


@torch.no_grad()
def test_merging_adds_the_adapter_to_the_weights():
    model = lora()
    expected = model(IDS).logits
    base = load_policy(BASE)(IDS).logits
    assert (expected - base).abs().max() > 0.1
    merged = merge_adapter(model, BASE)
    assert type(merged) is OPTForCausalLM
    assert not [name for name, _ in merged.named_parameters() if "lora" in name]
    torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-4, rtol=0)


@torch.no_grad()
@pytest.mark.parametrize("bits", [8, 4])
def test_merging_an_adapter_of_a_quantised_model_uses_the_full_weights(tmp_path, bits):
    quantised = lora(bits)
    full = lora(32)
    adapter = {k: v.float() for k, v in quantised.state_dict().items() if "lora_" in k}
    assert not full.load_state_dict(adapter, strict=False).unexpected_keys
    expected = full(IDS).logits

    merged = merge_adapter(quantised, BASE)
    assert type(merged) is OPTForCausalLM
    assert {parameter.dtype for parameter in merged.parameters()} == {torch.float32}
    assert not hasattr(merged.config, "quantization_config")
    torch.testing.assert_close(merged(IDS).logits, expected, atol=1e-4, rtol=0)
    merged.save_pretrained(tmp_path)
    alone = OPTForCausalLM.from_pretrained(tmp_path, dtype=torch.float32)
    torch.testing.assert_close(alone(IDS).logits, expected, atol=1e-4, rtol=0)


def test_an_adapter_of_another_model_is_refused(make_model, tmp_path):
    smaller = make_model("opt", num_hidden_layers=1)
    smaller.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError):
        merge_adapter(lora(4), tmp_path)


def test_a_quantised_base_with_an_adapter_has_gradients_on_the_adapter_alone():
    model = lora(4).train()
    model(input_ids=IDS, labels=copy.copy(IDS)).loss.backward()
    norms = {n: p.grad.norm().item() for n, p in model.named_parameters() if p.grad is not None}
    assert norms and all("lora_" in name for name in norms)
    assert all(math.isfinite(norm) and norm > 0 for norm in norms.values())


@torch.no_grad()
def test_a_folder_with_an_adapter_is_its_base_with_the_adapter_merged(tmp_path, caplog):
    model = lora()
    model.save_pretrained(tmp_path)
    found = load_policy(tmp_path)
    assert type(found) is OPTForCausalLM
    torch.testing.assert_close(found(IDS).logits, model(IDS).logits, atol=1e-4, rtol=0)
    assert len(trainable(found)) == len(list(found.parameters()))
    assert [r.message for r in caplog.records if "adapter" in r.message] == [
        f"{tmp_path} is an adapter: it is merged into its base model, {BASE}"
    ]
    with pytest.raises(ValueError, match=r"is an adapter on .* cannot be merged .* 4 bits"):
        load_policy(tmp_path, 4)


# QLoRA on every kind of model


@pytest.fixture(params=["opt", "gpt2", "llama", "deberta"])
def saved(request, make_model, tokenizer, tmp_path):
    """A folder with a model of random weights, and what loads it."""
    if request.param == "deberta":
        return request.getfixturevalue("encoder"), load_classifier
    make_model(request.param).save_pretrained(tmp_path / "base")
    return tmp_path / "base", load_policy


@pytest.mark.parametrize("bits", [32, 8, 4])
def test_an_adapter_is_trained_merged_and_loaded_again(saved, bits, tmp_path):
    """The merged model, from its folder, is the unquantised base with the adapter."""
    base, load = saved
    ids = torch.randint(4, 30, (4, 12), generator=torch.Generator().manual_seed(0))
    torch.manual_seed(0)
    model = add_lora(load(base, bits), 4, dropout=0.05).train()
    optimizer = torch.optim.Adam(trainable(model), lr=0.02)
    losses = []
    for _ in range(6):
        labels = ids if load is load_policy else torch.ones(len(ids))
        loss = model(input_ids=ids, labels=labels).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    full = add_lora(load(base), 4).eval()
    learnt = {k: v.float() for k, v in model.state_dict().items() if k in trained_weights(model)}
    assert not full.load_state_dict(learnt, strict=False).unexpected_keys
    merge_adapter(model, base, load).save_pretrained(tmp_path / "merged")
    with torch.no_grad():
        expected, plain = full(input_ids=ids).logits, load(base)(input_ids=ids).logits
        merged = load(tmp_path / "merged")(input_ids=ids).logits
    assert (expected - plain).abs().max() > 0.05
    torch.testing.assert_close(merged, expected, atol=1e-4, rtol=0)


def test_linear_layers_alone_are_quantised_and_the_rest_is_kept_in_float32(saved):
    base, load = saved
    model = add_lora(load(base, 4), 4)
    quantised = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert quantised and all(m.weight.quant_state.nested for m in quantised)
    assert {m.weight.quant_type for m in quantised} == {"nf4"}
    exact = {name for name, p in model.named_parameters() if p.dtype == torch.float32}
    others = {name for name, p in model.named_parameters() if p.dtype != torch.float32}
    assert len(others) == len(quantised)
    for part in ("norm", "ln_"), ("emb", "wte"), ("lm_head", "wte", "embed_tokens", "classifier"):
        assert any(word in name.lower() for name in exact for word in part), part


def test_4_bit_weights_can_train_after_an_inference(saved):
    """Where the processor has AVX512-BF16, bitsandbytes would have packed them by then."""
    base, load = saved
    model = load(base, 4)
    layers = [m for m in model.modules() if isinstance(m, bitsandbytes.nn.Linear4bit)]
    assert layers and not any(layer.support_avx512bf16_for_cpu for layer in layers)
    with torch.no_grad():
        model.eval()(input_ids=IDS % 30)
    model = add_lora(model, 4)
    model(input_ids=IDS % 30).logits.sum().backward()
    missing = [n for n, p in model.named_parameters() if "lora_B" in n and p.grad is None]
    assert not missing


def test_a_bitsandbytes_without_the_switch_is_told_of_in_one_line(make_model, tmp_path, caplog):
    make_model("opt").save_pretrained(tmp_path)
    make_layer = bitsandbytes.nn.Linear4bit.__init__

    def without(self, *arguments, **options):
        make_layer(self, *arguments, **options)
        del self.support_avx512bf16_for_cpu

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bitsandbytes.nn.Linear4bit, "__init__", without)
        load_policy(tmp_path, 4)
    told = [record.message for record in caplog.records if record.name == quantisation.__name__]
    assert len(told) == 1 and told[0].startswith("this bitsandbytes has no support_avx512bf16")
    caplog.clear()
    load_policy(tmp_path, 4)
    assert not [record for record in caplog.records if record.name == quantisation.__name__]


def test_merged_weights_are_bfloat16_on_gpus(saved, monkeypatch):
    base, load = saved
    expected = add_lora(load(base), 4).merge_and_unload().state_dict()
    model = add_lora(load(base, 4), 4)
    with monkeypatch.context() as patch:
        patch.setattr(models, "merged_dtype", lambda: torch.bfloat16)
        merged = merge_adapter(model, base, load).state_dict()
    assert {weight.dtype for weight in merged.values()} == {torch.bfloat16}
    for name, weight in expected.items():
        torch.testing.assert_close(merged[name].float(), weight, atol=0, rtol=2**-8)


@pytest.mark.parametrize(
    ("variable", "value", "found"),
    [("RLHF_DEVICE", "meta", "device meta"), ("RLHF_PRECISION", "float16", "weights in float16")],
)
def test_device_and_precision_can_be_overridden(monkeypatch, variable, value, found):
    assert re.match(
        r"device \w+, (eager|sdpa) attention, quantised weights in", devices.describe_device()
    )
    assert found not in devices.describe_device()
    monkeypatch.setenv(variable, value)
    assert found in devices.describe_device()


def test_an_unknown_precision_is_refused(monkeypatch):
    monkeypatch.setenv("RLHF_PRECISION", "fp8")
    with pytest.raises(ValueError, match="RLHF_PRECISION is fp8; choose one of bfloat16, float16"):
        devices.compute_dtype()
