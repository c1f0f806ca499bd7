"""What `benchmarks/gpu.py` measures with: shapes, random weights, random words; no download."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    OPTConfig,
    PreTrainedTokenizerFast,
)

from rlhf_helpers.models.devices import default_device
from rlhf_helpers.scales import FULL
from rlhf_helpers.schemas import write_jsonl


class Size(NamedTuple):
    """Shapes of both models, words of a text (lowest, highest), and changes to `full`."""

    policy: dict[str, Any]
    reward: dict[str, Any]
    prompt: tuple[int, int]
    response: tuple[int, int]
    sft: dict[str, Any]
    reward_stage: dict[str, Any]
    ppo: dict[str, Any]


SIZES = {
    "full": Size(
        # facebook/opt-1.3b and microsoft/deberta-v3-base
        {
            "vocab_size": 50_272,
            "hidden_size": 2048,
            "word_embed_proj_dim": 2048,
            "ffn_dim": 8192,
            "num_hidden_layers": 24,
            "num_attention_heads": 32,
            "max_position_embeddings": 2048,
        },
        {
            "vocab_size": 128_100,
            "hidden_size": 768,
            "pooler_hidden_size": 768,
            "intermediate_size": 3072,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "max_position_embeddings": 512,
            "position_buckets": 256,
        },
        (100, 400),
        (50, 350),
        {},
        {},
        {},
    ),
    "tiny": Size(
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "word_embed_proj_dim": 64,
            "ffn_dim": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
        },
        {
            "vocab_size": 512,
            "hidden_size": 64,
            "pooler_hidden_size": 64,
            "intermediate_size": 256,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "max_position_embeddings": 128,
            "position_buckets": 16,
        },
        (5, 20),
        (5, 15),
        {"max_length": 64},
        {"max_length": 64, "max_new_tokens": 4},
        {
            "batch_size": 4,
            "mini_batch_size": 4,
            "gradient_accumulation_steps": 1,
            "min_new_tokens": 4,
            "max_new_tokens": 8,
            "draw_lengths": True,
            "max_prompt_length": 32,
        },
    ),
}


def policy_shape(size: Size) -> OPTConfig:
    """OPT without dropout, which ours switches off and plain TRL would not."""
    ids = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
    return OPTConfig(**size.policy, **ids, do_layer_norm_before=True, dropout=0.0)


def reward_shape(size: Size) -> DebertaV2Config:
    return DebertaV2Config(
        **size.reward,
        relative_attention=True,
        share_att_key=True,
        norm_rel_ebd="layer_norm",
        pos_att_type=["p2c", "c2p"],
        position_biased_input=False,
        max_relative_positions=-1,
        type_vocab_size=0,
        layer_norm_eps=1e-7,
        pad_token_id=1,
        num_labels=1,
    )


def write_models(folder: Path, size: Size) -> None:
    """Both models with random weights, and for each a tokenizer of words `w3`, `w4`, …"""
    torch.manual_seed(0)
    for name, shape, kind, dtype in (
        ("policy", policy_shape(size), AutoModelForCausalLM, torch.bfloat16),
        ("reward", reward_shape(size), AutoModelForSequenceClassification, torch.float32),
    ):
        with default_device():
            kind.from_config(shape, dtype=dtype).save_pretrained(folder / name)
        names = ["<unk>", "<pad>", "</s>", *(f"w{i}" for i in range(3, shape.vocab_size))]
        vocabulary = {word: i for i, word in enumerate(names)}
        words = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
        words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
        tokenizer = PreTrainedTokenizerFast(
            tokenizer_object=words,
            unk_token="<unk>",
            pad_token="<pad>",
            eos_token="</s>",
            model_max_length=shape.max_position_embeddings,
            truncation_side="left",
        )
        tokenizer.save_pretrained(folder / name)


def texts(size: Size, words: tuple[int, int], seed: int) -> Iterator[str]:
    """Random words without end, drawn evenly, as many to a text as `words` allows."""
    random = np.random.default_rng(seed)
    while True:
        ids = random.integers(3, size.policy["vocab_size"], random.integers(*words, endpoint=True))
        yield " ".join(f"w{i}" for i in ids)


def write_data(folder: Path, size: Size, steps: int) -> None:
    """Enough demonstrations to pack, and pairs, for every step."""
    settings = FULL["sft"] | size.sft
    mean = (sum(size.prompt) + sum(size.response)) / 2
    demonstrations = int(1.2 * steps * settings["batch_size"] * settings["max_length"] / mean)
    prompts, first, second = (
        texts(size, words, seed)
        for seed, words in enumerate((size.prompt, size.response, size.response))
    )
    rows = [
        {"input_text": next(prompts), "output_text": next(first)} for _ in range(demonstrations)
    ]
    write_jsonl(folder / "demonstrations.jsonl", rows)
    pairs = [
        {
            "input_text": next(prompts),
            "candidate_0": next(first),
            "candidate_1": next(second),
            "choice": 0,
        }
        for _ in range(steps * FULL["reward"]["batch_size"])
    ]
    write_jsonl(folder / "preferences.jsonl", pairs)
