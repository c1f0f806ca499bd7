"""Keys and values of prompts, which sampling and training share among the responses to a prompt.

Two savings, neither of which changes a number: the pass over the prompts ends where the last layer
has its keys and values (letting it go on took 5% of a PPO step's time), and a cache for sampling
has room, so that a new token does not copy those before it.
"""

import logging
from contextlib import suppress
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

try:  # documented by transformers, but not among the names at its top
    from transformers.cache_utils import DynamicLayer
except ImportError:
    logger.warning("this transformers has no DynamicLayer: sampling copies its cache at each token")
    DynamicLayer = None


def positions(mask: Tensor) -> Tensor:
    """Position of every token (B, T) in its own text, whatever the padding in front."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def cache_bytes(config: PreTrainedConfig, tokens: int) -> int:
    """Bytes of the keys and values of a text, in float32; grouped heads share theirs."""
    config = config.get_text_config(decoder=True)
    heads = config.num_attention_heads
    size = getattr(config, "head_dim", None) or config.hidden_size // heads
    kept = getattr(config, "num_key_value_heads", None) or heads
    return 2 * 4 * config.num_hidden_layers * tokens * kept * size


def fitting(config: PreTrainedConfig, tokens: int) -> int:
    """How many texts of so many tokens, prompt and response, have keys and values within 8 GiB."""
    return max(1, 2**33 // cache_bytes(config, tokens))


def prompt_cache(
    policy: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    samples: int,
    *,
    roomy: bool = False,
) -> DynamicCache:
    """Keys and values (G * samples rows) of prompts (G, P), but for their last token.

    Each prompt is encoded once for all its samples; gradients flow through. A `roomy` cache is for
    many tokens one by one, without gradient.
    """
    cache = PromptCache(config=policy.config)
    if roomy and DynamicLayer is not None:  # special layers, such as sliding windows, stay
        cache.layers = [RoomyLayer() if type(x) is DynamicLayer else x for x in cache.layers]
    if prompt_ids.shape[1] > 1:
        cache.fill(policy, prompt_ids[:, :-1], prompt_mask[:, :-1])
        if samples > 1:
            cache.batch_repeat_interleave(samples)
    return cache


class _LastLayerFilled(Exception):
    """Ends the pass that fills a `PromptCache`: only an exception can leave a forward pass."""


class PromptCache(DynamicCache):
    """A cache that is filled without the rest of the last layer, whose output nobody reads."""

    filling = False

    def fill(self, policy: PreTrainedModel, ids: Tensor, mask: Tensor) -> None:
        """Put in the keys and values of the tokens `ids` (B, T), with their `mask`."""
        self.filling = True
        with suppress(_LastLayerFilled):
            policy(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions(mask),
                past_key_values=self,
                use_cache=True,
                logits_to_keep=1,
            )
        self.filling = False

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Append states (B, heads, T, size) to a layer, as a model's attention asks for."""
        found = super().update(key_states, value_states, layer_idx, *args, **options)
        if self.filling and layer_idx == len(self.layers) - 1:
            raise _LastLayerFilled
        return found


class RoomyLayer(DynamicLayer or object):  # type: ignore[misc]
    """Keys and values of a layer at the front of larger buffers, which new tokens fill up."""

    ROOM = 16  # tokens that new buffers have room for
    buffers: tuple[Tensor, Tensor]  # of keys and values, (B, heads, length + room, size)
    room = 0  # tokens that still fit; 0 where keys and values are not in the buffers

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append states (B, heads, T, size) of new tokens; returns those of all tokens."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, new = self.get_seq_length(), key_states.shape[-2]
        if new > self.room:
            self._make_buffers(key_states, value_states, start)
        key_buffer, value_buffer = self.buffers
        key_buffer[:, :, start : start + new] = key_states
        value_buffer[:, :, start : start + new] = value_states
        self.keys = key_buffer[:, :, : start + new]
        self.values = value_buffer[:, :, : start + new]
        self.room -= new
        return self.keys, self.values

    def _make_buffers(self, key_states: Tensor, value_states: Tensor, start: int) -> None:
        """Make buffers with room behind the new states, and copy the first `start` tokens."""
        batch, heads, new, _ = key_states.shape
        length = start + new + self.ROOM
        key_buffer = key_states.new_empty(batch, heads, length, key_states.shape[-1])
        value_buffer = value_states.new_empty(batch, heads, length, value_states.shape[-1])
        if start:
            key_buffer[:, :, :start] = self.keys
            value_buffer[:, :, :start] = self.values
        self.buffers = key_buffer, value_buffer
        self.room = new + self.ROOM

    def batch_select_indices(self, indices: Tensor) -> None:
        """Keep some rows. They are copied out of the buffers."""
        super().batch_select_indices(indices)
        self.room = 0

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Repeat each row. They are copied out of the buffers."""
        super().batch_repeat_interleave(repeats)
        self.room = 0
