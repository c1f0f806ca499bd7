"""Whether a model and its tokenizer go together: every stage asks before it loads a model."""

from pathlib import Path

from peft import PeftConfig
from transformers import AutoConfig, PreTrainedConfig, PreTrainedTokenizerBase

from rlhf_helpers.models import load_tokenizer, loading
from rlhf_helpers.models.adapters import is_adapter
from rlhf_helpers.prompts import prompt_room

# Parts of the names of architectures that generate text; the last are those that see images too.
LANGUAGE_MODELS = ("CausalLM", "LMHead", "ConditionalGeneration")


def check_policy(path: str | Path, max_new_tokens: int = 0) -> None:
    """Raise ValueError where this model cannot be a policy that answers in so many tokens.

    A policy has a language-model head, and a tokenizer with an EOS whose tokens it all embeds.
    Longer prompts are cut to what the model reads beside the answer.
    """
    tokenizer = load_tokenizer(path)
    heads = _config(path).architectures or []
    if heads and not any(kind in head for kind in LANGUAGE_MODELS for head in heads):
        raise ValueError(
            f"{path}: {', '.join(heads)} has no trained language-model head. Name a causal "
            "language model as policy."
        )
    if tokenizer.eos_token is None:
        raise ValueError(
            f"{path}: its tokenizer has no EOS token, so no answer could end. Set `eos_token` in "
            "the model's tokenizer_config.json."
        )
    check_vocabulary(path, tokenizer)
    prompt_room(tokenizer, max_new_tokens)


def check_vocabulary(path: str | Path, tokenizer: PreTrainedTokenizerBase) -> None:
    """Raise ValueError where the tokenizer has tokens that the model does not embed."""
    largest, embedded = max(tokenizer.get_vocab().values()), _config(path).vocab_size
    if largest >= embedded:
        raise ValueError(
            f"{path}: its tokenizer has a token {largest}, but the model embeds {embedded} tokens "
            "only. Use the tokenizer that the model was trained with."
        )


def _config(path: str | Path) -> PreTrainedConfig:
    """The config of a model, or of the base model of an adapter."""
    with loading(path):
        if is_adapter(path):
            path = PeftConfig.from_pretrained(path).base_model_name_or_path or path
        return AutoConfig.from_pretrained(path).get_text_config()
