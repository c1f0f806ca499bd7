"""Tiny deterministic models and a tiny tokenizer, made here: no file, no network."""

import copy
from collections.abc import Callable

import pytest
import torch
from ppo_helpers import SMALL
from tokenizers import Tokenizer, decoders, pre_tokenizers, processors
from tokenizers.models import BPE, WordLevel
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    DebertaV2Config,
    GPT2Config,
    LlamaConfig,
    OPTConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from rlhf_helpers.models import add_lora, without_dropout
from rlhf_helpers.ppo import PPOConfig, PPOTrainer

SPECIAL = ["<pad>", "</s>"]
PRINTABLE = ["Ċ", "Ġ", *map(chr, range(33, 127))]  # newline, blank, and the rest of ASCII
VOCABULARY = {token: i for i, token in enumerate([*SPECIAL, *PRINTABLE])}
SIZE = {"vocab_size": len(VOCABULARY), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 1}

# The weights are larger than usual, so that attention and positions matter to the output, and
# OPT has dropout in each of the places where it can be.
CONFIGS: dict[str, PreTrainedConfig] = {
    "opt": OPTConfig(
        **SIZE,
        hidden_size=32,
        word_embed_proj_dim=32,
        ffn_dim=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=128,
        init_std=0.2,
        dropout=0.2,
        attention_dropout=0.2,
        layerdrop=0.1,
    ),
    "gpt2": GPT2Config(
        **SIZE,
        n_embd=32,
        n_layer=2,
        n_head=4,
        n_positions=128,
        initializer_range=0.2,
    ),
    "llama": LlamaConfig(
        **SIZE,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
    ),
}


@pytest.fixture(autouse=True)
def _exact_arithmetic() -> None:
    """Whatever a test before has chosen: plain float32, and one thread, which never reorders."""
    torch.set_float32_matmul_precision("highest")
    torch.set_num_threads(1)


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """One token a character; `</s>` ends a text, and nothing is put in front of it."""
    letters = Tokenizer(BPE(vocab=VOCABULARY, merges=[]))
    letters.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    letters.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=letters, pad_token="<pad>", eos_token="</s>", padding_side="left"
    )


@pytest.fixture
def make_model() -> Callable[..., PreTrainedModel]:
    """`make_model("opt")`: a causal LM of two layers, the same for the same seed.

    `eos_bias` is added to the logit of `</s>`, so that some short responses end and others do
    not; the other keyword arguments change the config.
    """

    def make(kind: str, seed: int = 0, eos_bias: float = 2.0, **changes) -> PreTrainedModel:
        config = copy.deepcopy(CONFIGS[kind])
        config.update(changes)
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = AutoModelForCausalLM.from_config(config)
        bias = torch.zeros(len(VOCABULARY))
        bias[VOCABULARY["</s>"]] = eos_bias
        model.lm_head.bias = torch.nn.Parameter(bias)
        return model

    return make


@pytest.fixture
def make_trainer(make_model, tokenizer) -> Callable[..., PPOTrainer]:
    """`make_trainer("opt", seed=1)`: a trainer of a tiny policy; keywords go to the config.

    Besides: `model` changes the policy's config, `critic_model` and `documents` go to the trainer.
    """

    def make(
        kind: str = "opt",
        lora: bool = False,
        model: dict | None = None,
        critic_model=None,
        documents=None,
        **changes,
    ) -> PPOTrainer:
        policy = without_dropout(make_model(kind, **model or {}))
        with torch.random.fork_rng():
            torch.manual_seed(0)
            policy = add_lora(policy, rank=4) if lora else policy
        config = PPOConfig(**SMALL | changes)
        return PPOTrainer(policy, tokenizer, config, critic=critic_model, documents=documents)

    return make


@pytest.fixture(params=CONFIGS)
def kind(request: pytest.FixtureRequest) -> str:
    """Each model type in turn."""
    return request.param


@pytest.fixture
def encoder(tmp_path):
    """A folder with a tiny DeBERTa-v2 without a head, and its tokenizer."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefghijklmnopqrstuvwxyz"]
    vocabulary = {word: i for i, word in enumerate(words)}
    letters = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    letters.pre_tokenizer = pre_tokenizers.Split("", "isolated")
    letters.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=letters,
        pad_token="[PAD]",
        cls_token="[CLS]",
        sep_token="[SEP]",
        unk_token="[UNK]",
    )
    config = DebertaV2Config(
        vocab_size=len(words),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        intermediate_size=64,
        max_position_embeddings=128,
        relative_attention=True,
        position_buckets=16,
        pos_att_type=["p2c", "c2p"],
        type_vocab_size=0,
        pooler_hidden_size=32,
        pad_token_id=0,
        num_labels=1,
        initializer_range=0.2,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        AutoModelForSequenceClassification.from_config(config).save_pretrained(tmp_path / "encoder")
    tokenizer.save_pretrained(tmp_path / "encoder")
    return tmp_path / "encoder"
