"""Keys and values of prompts: filled without needless work, appended to without copying."""

from contextlib import suppress
from typing import Any

from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer


class RoomyLayer(DynamicLayer):
    """Keys and values with room behind them, so that not every new token copies the others."""

    keys: Tensor
    values: Tensor
    room = 16  # tokens
    buffers: tuple[Tensor, ...] = ()  # `keys` and `values` are their front parts,
    front: Tensor | None = None  # as long as `keys` is this tensor: rows may leave the batch

    def update(
        self, key_states: Tensor, value_states: Tensor, *_: Any, **__: Any
    ) -> tuple[Tensor, Tensor]:
        """Append states (B, heads, T, size) of new tokens; returns all of them."""
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        start, new = self.get_seq_length(), (key_states, value_states)
        end = start + key_states.shape[-2]
        if self.keys is not self.front or end > self.buffers[0].shape[-2]:
            size = (*key_states.shape[:2], end + self.room)
            self.buffers = tuple(x.new_empty(*size, x.shape[-1]) for x in new)
            if start:
                for buffer, old in zip(self.buffers, (self.keys, self.values), strict=True):
                    buffer[:, :, :start] = old
        for buffer, states in zip(self.buffers, new, strict=True):
            buffer[:, :, start:end] = states
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        self.front = self.keys
        return self.keys, self.values


class _Filled(Exception):
    """The last layer has its keys and values."""


class _PromptCache(DynamicCache):
    """A cache that ends the pass which fills it, at the last layer."""

    filling = True

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **options: Any
    ) -> tuple[Tensor, Tensor]:
        """Append states (B, heads, T, size) to a layer; raises _Filled where the pass may end."""
        found = super().update(key_states, value_states, layer_idx, *args, **options)
        if self.filling and layer_idx == len(self.layers) - 1:
            raise _Filled
        return found


def positions(mask: Tensor) -> Tensor:
    """Position of every token (B, T) in its own text, whatever the padding in front."""
    return (mask.cumsum(1) - 1).clamp(min=0)


def prompt_cache(
    policy: PreTrainedModel,
    prompt_ids: Tensor,
    prompt_mask: Tensor,
    samples: int,
    *,
    roomy: bool = False,
) -> DynamicCache:
    """Keys and values (G * samples rows) of prompts (G, P), but for their last token.

    Each prompt is encoded once for all its samples; gradients flow through. What the last layer
    would make of these tokens is not needed, so the pass ends where it has its keys and values. A
    `roomy` cache is for many tokens one by one, without gradients; layers of special kinds, such
    as sliding windows, stay as they are.
    """
    cache, mask = _PromptCache(config=policy.config), prompt_mask[:, :-1]
    if roomy:
        cache.layers = [RoomyLayer() if type(x) is DynamicLayer else x for x in cache.layers]
    if mask.shape[1]:
        with suppress(_Filled):
            policy(
                input_ids=prompt_ids[:, :-1],
                attention_mask=mask,
                position_ids=positions(mask),
                past_key_values=cache,
                use_cache=True,
                logits_to_keep=1,
            )
        if samples > 1:
            cache.batch_repeat_interleave(samples)
    cache.filling = False
    return cache
