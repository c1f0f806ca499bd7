"""Loading models the same way everywhere: precision, attention, quantisation, LoRA, merging."""

import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model, prepare_model_for_kbit_training
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from rlhf_helpers.chat import set_chat
from rlhf_helpers.models.adapters import is_adapter, merged_with_base
from rlhf_helpers.models.devices import attention, compute_dtype, default_device
from rlhf_helpers.models.quantisation import import_bitsandbytes, keep_4_bits_trainable

logger = logging.getLogger(__name__)

# What classifiers call the layers above the trunk: new, so they are trained whole and kept exact.
HEADS = ["score", "classifier", "pooler"]
HEAD_FILE = "reward_head.safetensors"  # a reward model's head beside a frozen language model


def existing(path: str | Path) -> str | Path:
    """Return the path; raises FileNotFoundError for a folder that is missing or unfinished."""
    is_folder = isinstance(path, Path) or path.startswith((".", "/", "~")) or path.count("/") > 1
    if is_folder and not Path(path).is_dir():
        raise FileNotFoundError(f"{path}: no such model. Train that stage first, or name another.")
    if (Path(path) / "run.json").exists() and not (Path(path) / "metrics.json").exists():
        raise FileNotFoundError(f"{path}: this run is not complete. Resume it, or train it again.")
    return path


@contextmanager
def loading(path: str | Path) -> Iterator[None]:
    """Turn an OSError while a model is loaded into a FileNotFoundError that names the model."""
    existing(path)
    try:
        yield
    except OSError as error:
        raise FileNotFoundError(
            f"{path}: this model cannot be loaded. Name a folder with its files, or a model of the "
            "hub; HF_HUB_OFFLINE=0 lets it be downloaded. " + str(error).split("\n")[0]
        ) from error


def load_tokenizer(
    path: str | Path, chat: str = "auto", system_prompt: str | None = None
) -> PreTrainedTokenizerBase:
    """Return a model's tokenizer: it pads (else with EOS), and knows how much the model reads.

    `chat` and `system_prompt` say how it writes prompts: see `chat.set_chat`.
    """
    with loading(path):
        tokenizer = AutoTokenizer.from_pretrained(path, padding_side="left")
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    tokenizer.model_max_length = min(tokenizer.model_max_length, _positions(path))
    return set_chat(tokenizer, chat, system_prompt)


def _positions(path: str | Path) -> float:
    """Return how many tokens a model reads at most; infinity where its config does not tell."""
    positions = 0
    with suppress(OSError, ValueError):  # a tokenizer alone, or a type unknown to transformers
        config = AutoConfig.from_pretrained(path).get_text_config()
        positions = getattr(config, "max_position_embeddings", None) or 0
    return positions if positions > 0 else math.inf


def loading_options(bits: int = 32) -> dict:
    """Keyword arguments for `from_pretrained`: precision, attention and quantisation."""
    options: dict = {"dtype": torch.float32}
    if attention() == "eager":  # else transformers takes the fastest that the model knows
        options["attn_implementation"] = "eager"
    if bits in (4, 8):
        import_bitsandbytes()
    if bits == 4:
        options["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True,
            bnb_4bit_quant_type="nf4",
            bnb_4bit_use_double_quant=True,
            bnb_4bit_compute_dtype=compute_dtype(),
        )
    elif bits == 8:
        options["quantization_config"] = BitsAndBytesConfig(load_in_8bit=True)
    elif bits == 16:
        options["dtype"] = torch.bfloat16
    elif bits != 32:
        raise ValueError(f"bits is {bits}; choose 32, 16, 8 or 4")
    return options


def without_dropout(model: PreTrainedModel) -> PreTrainedModel:
    """Switch off dropout, also where a model calls it as a function with a rate of its own.

    PPO compares log-probs of sampling and training: with dropout their ratio is not 1.
    """
    for module in model.modules():
        if isinstance(module, torch.nn.Dropout):
            module.p = 0.0
        for name in ("dropout", "attention_dropout", "activation_dropout", "layerdrop"):
            if isinstance(getattr(module, name, None), float):
                setattr(module, name, 0.0)
    return model


def _ready(model: PreTrainedModel, path: str | Path, bits: int) -> PreTrainedModel:
    """A loaded model, without dropout, on the default device, where quantised weights are already.

    Each ReLU overwrites its input, the widest tensor of a layer, which nothing else needs. Raises
    ValueError for a model whose training has diverged.
    """
    if name := first_not_finite(model):
        raise ValueError(
            f"{path}: the weight {name} holds NaN or infinite numbers: its training has diverged. "
            "Train it again with a lower learning rate, or name another model."
        )
    if bits in (16, 32):
        model = model.to(default_device())
    # cuDNN's attention gives NaN gradients in rows whose keys are all masked: the padding in front
    # of shorter prompts. The other backends give zeros there.
    torch.backends.cuda.enable_cudnn_sdp(False)
    for module in model.modules():
        if isinstance(module, torch.nn.ReLU):
            module.inplace = True
    keep_4_bits_trainable(model)
    return without_dropout(model)


def first_not_finite(model: torch.nn.Module) -> str | None:
    """The name of the first weight that holds NaN or an infinite number; None if all are finite."""
    weights = ((n, w) for n, w in model.named_parameters() if w.is_floating_point())
    return next((name for name, weight in weights if not torch.isfinite(weight).all()), None)


def load_policy(path: str | Path, bits: int = 32) -> PreTrainedModel:
    """A causal language model, without dropout, on the default device.

    Of a folder with a PEFT adapter, the adapter's base model with the adapter merged.
    """
    load = merged_with_base if is_adapter(path) else AutoModelForCausalLM.from_pretrained
    with loading(path):
        model = load(path, **loading_options(bits))
    return _ready(model, path, bits)


def is_exact(model: PreTrainedModel) -> bool:
    """Whether log-probs are the same token by token and in one pass: in float32, not quantised."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return model.dtype == torch.float32 and not getattr(model, "is_quantized", False)


def trainable(model: torch.nn.Module | None) -> list[torch.nn.Parameter]:
    """The weights that training changes; with LoRA, only the adapter's."""
    return [p for p in model.parameters() if p.requires_grad] if model is not None else []


def trained_weights(model: PreTrainedModel) -> dict[str, torch.Tensor]:
    """The weights that training changes, by name, for a checkpoint."""
    return {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}


@torch.no_grad()
def load_trained_weights(model: PreTrainedModel, weights: dict[str, torch.Tensor]) -> None:
    """Load what `trained_weights` returned. Raises ValueError if the names differ."""
    own = trained_weights(model)
    if own.keys() != weights.keys():
        raise ValueError("the checkpoint holds other weights: resume with the same settings")
    for name, weight in weights.items():
        own[name].copy_(weight)


def load_classifier(path: str | Path, bits: int = 32, trained: bool = False) -> PreTrainedModel:
    """A classifier with one label, without dropout, on the default device.

    The head is new if the folder holds none, and is never quantised. Raises ValueError where it
    must be `trained` and is not, or has more labels than one.
    """
    options = loading_options(bits) | {"num_labels": 1, "ignore_mismatched_sizes": True}
    if "quantization_config" in options:
        options["quantization_config"].llm_int8_skip_modules = HEADS
    with loading(path):
        model, report = AutoModelForSequenceClassification.from_pretrained(
            path, output_loading_info=True, **options
        )
    if trained and (report["missing_keys"] or report["mismatched_keys"]):
        raise ValueError(
            f"{path}: no reward model: it has no trained head with one label. Name another folder."
        )
    return _ready(model, path, bits)


def add_lora(model: PreTrainedModel, rank: int, dropout: float = 0.0) -> PeftModel:
    """Freeze the model and put a LoRA adapter (Hu et al. 2021) on every linear layer.

    A classifier's head has no adapter: it is trained whole. Of quantised weights (QLoRA, Dettmers
    et al. 2023) those that are not quantised, such as norms and head, are kept in float32.
    """
    if getattr(model, "is_quantized", False):
        model = prepare_model_for_kbit_training(model, use_gradient_checkpointing=False)
    classifier = "SequenceClassification" in type(model).__name__
    config = LoraConfig(
        r=rank,
        lora_alpha=2 * rank,
        lora_dropout=dropout,
        target_modules="all-linear",
        task_type="SEQ_CLS" if classifier else "CAUSAL_LM",
        modules_to_save=HEADS if classifier else None,
    )
    return get_peft_model(model, config)


def merge_adapter(
    model: PeftModel,
    base: str | Path,
    load: Callable[[str | Path], PreTrainedModel] = load_policy,
) -> PreTrainedModel:
    """A standalone model: the adapter added to the unquantised weights of `base`.

    `load` loads `base`: `load_policy`, or `load_classifier`, whose trained head is kept. The sum is
    computed in float32, so that it is rounded only once, where it is saved in 16 bits.
    """
    if not getattr(model.get_base_model(), "is_quantized", False):
        return model.merge_and_unload().to(merged_dtype())
    fresh = add_lora(load(base), model.peft_config["default"].r)
    trained = ("lora_", "modules_to_save")
    adapter = {k: v.float() for k, v in model.state_dict().items() if any(t in k for t in trained)}
    missing = fresh.load_state_dict(adapter, strict=False).unexpected_keys
    if missing:
        raise RuntimeError(f"the adapter does not fit {base}: {missing[:3]}")
    return fresh.merge_and_unload().to(merged_dtype())


def merged_dtype() -> torch.dtype:
    """What merged weights are kept in: bfloat16 on GPUs, where models are large."""
    return torch.bfloat16 if default_device().type == "cuda" else torch.float32
