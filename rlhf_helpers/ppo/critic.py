"""Where the values come from: a head on hidden states, the policy's own or a separate network's.

The shared trunk (Ziegler et al. 2019) costs no pass of its own, but the value loss then moves the
policy's features too. A separate critic (Ouyang et al. 2022, appendix C) starts from the reward
model and costs a second network.
"""

import copy

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers.logprobs import Tokens, whole_sequences


def trunk(model: PreTrainedModel) -> PreTrainedModel:
    """The transformer below a model's head (and below its adapter's wrapper)."""
    model = model.get_base_model() if hasattr(model, "get_base_model") else model
    return model.base_model


def fits(
    candidate: PreTrainedModel,
    candidate_tokenizer: PreTrainedTokenizerBase,
    policy: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
) -> bool:
    """Whether a model can be the policy's critic: the same tokens, and no look into the future.

    An encoder such as DeBERTa sees the whole response at every token, so the kind of trunk has to
    be the policy's own.
    """
    same_tokens = candidate_tokenizer.get_vocab() == tokenizer.get_vocab()
    return same_tokens and type(trunk(candidate)) is type(trunk(policy))


def separate_critic(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of a model's trunk, to be trained on values; what was frozen there stays frozen."""
    return copy.deepcopy(trunk(model)).eval()


def value_head(model: PreTrainedModel, std: float = 0.0, seed: int = 0) -> torch.nn.Linear:
    """A linear layer on a model's last hidden states, in float32 whatever the model.

    Its weights start with a standard deviation of `std`. With 0 every value starts at 0, but the
    trunk learns nothing from the value loss until they have grown. Random ones, as TRL's head has,
    let it learn from the first step on.
    """
    head = torch.nn.utils.skip_init(torch.nn.Linear, _state_width(model), 1, device=model.device)
    own = torch.Generator(model.device).manual_seed(seed)
    torch.nn.init.normal_(head.weight, std=std, generator=own)
    torch.nn.init.zeros_(head.bias)
    return head


@torch.no_grad()
def _state_width(model: PreTrainedModel) -> int:
    """The size of the last hidden states: some models project them after the last layer."""
    if (language_head := model.get_output_embeddings()) is not None:
        return language_head.in_features
    ids = torch.zeros(1, 1, dtype=torch.long, device=model.device)
    return model(input_ids=ids).last_hidden_state.shape[-1]


def response_states(critic: PreTrainedModel, tokens: Tokens) -> Tensor:
    """Hidden states (B, R, H) of a trunk before each response token, of whole sequences."""
    output = critic(**whole_sequences(tokens), use_cache=False)
    return output.last_hidden_state[:, tokens.prompt_ids.shape[1] - 1 :]


def token_values(
    head: torch.nn.Linear | None,
    critic: PreTrainedModel | None,
    hidden: Tensor | None,
    tokens: Tokens,
) -> Tensor:
    """Values (B, R): the head on a separate critic's states, or on `hidden` (B, R, H), the
    policy's, where there is none.
    """
    states = hidden if critic is None else response_states(critic, tokens)
    assert states is not None and head is not None  # sampling keeps states for a shared trunk
    return head(states.float()).squeeze(-1)
