"""How sampling chooses the next token, and which tokens end a response."""

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers.logprobs import scaled
from rlhf_helpers.prompts import answer_end


def end_ids(policy: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids that end a response: EOS, `answer_end`, and all of the model's generation config.

    Chat models list several there, such as the end of a turn. Raises ValueError for a tokenizer
    without EOS.
    """
    config = getattr(policy, "generation_config", None)
    listed = getattr(config, "eos_token_id", None)
    listed = listed if isinstance(listed, list) else [listed]
    if tokenizer.eos_token_id is None:
        known = tokenizer.convert_ids_to_tokens([i for i in listed if i is not None])
        raise ValueError(
            "the tokenizer has no EOS token, so no response could end: set tokenizer.eos_token, or "
            f'"eos_token" in its tokenizer_config.json (the model ends at {known or "no token"})'
        )
    own = tokenizer.eos_token_id, answer_end(tokenizer)
    return sorted({*own, *(i for i in listed if i is not None)})


class Chooser:
    """Chooses next tokens among those that the tokenizer knows, and no EOS before min_new_tokens.

    Embeddings may have more rows than the tokenizer has tokens; such ids would decode to nothing.
    The log-probs are those of the whole softmax, which the training pass computes again.
    """

    def __init__(
        self,
        policy: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        min_new_tokens: int,
        temperature: float,
        generator: torch.Generator | None,
    ):
        self.tokenizer, self.temperature, self.generator = tokenizer, temperature, generator
        self.min_new_tokens = min_new_tokens
        self.ends = torch.tensor(end_ids(policy, tokenizer), device=policy.device)
        self.unknown: Tensor | None = None  # (V,) bool, True on ids that are no token

    def choose(self, logits: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """Token number `step` of each row, from logits (B, V), and its log-prob; both (B, 1)."""
        scores = torch.log_softmax(scaled(logits, self.temperature or 1.0), dim=-1)
        choices = scores
        if scores.shape[-1] > len(self.tokenizer):
            choices = choices.masked_fill(self._unknown(scores.shape[-1]), -torch.inf)
        if step < self.min_new_tokens:
            choices = choices.index_fill(-1, self.ends, -torch.inf)
        if self.temperature:
            token = _draw(choices.exp(), self.generator)
        else:
            token = choices.argmax(-1, keepdim=True)
        logprobs = scores.gather(1, token)
        if not logprobs.isfinite().all():  # a NaN or +inf anywhere in a row reaches all of it
            raise FloatingPointError(
                "the policy's logits are NaN or infinite: its weights have diverged, or overflow "
                "16 bits; load an earlier checkpoint, lower the learning rate, or use float32"
            )
        return token, logprobs

    def _unknown(self, words: int) -> Tensor:
        if self.unknown is None:
            self.unknown = torch.ones(words, dtype=torch.bool, device=self.ends.device)
            self.unknown[list(self.tokenizer.get_vocab().values())] = False
        return self.unknown


def _draw(probabilities: Tensor, generator: torch.Generator | None) -> Tensor:
    """One token a row (B, 1), by inverting the distribution function.

    It takes one random number a row, where torch.multinomial draws one a word: ten times faster.
    """
    cumulated = probabilities.cumsum(-1)
    uniform = torch.rand(len(probabilities), 1, generator=generator, device=probabilities.device)
    token = torch.searchsorted(cumulated, uniform * cumulated[:, -1:], right=True)
    return token.clamp(max=probabilities.shape[1] - 1)  # where rounding has made uniform 1
