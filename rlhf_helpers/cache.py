"""A key-value cache for sampling: appending a token copies no other."""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad
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
        if self.keys is self.front and end <= self.buffers[0].shape[-2]:
            for buffer, states in zip(self.buffers, new, strict=True):
                buffer[:, :, start:end] = states
        else:
            pairs = zip((self.keys, self.values), new, strict=True)
            self.buffers = tuple(pad(torch.cat(pair, -2), (0, 0, 0, self.room)) for pair in pairs)
        self.keys, self.values = (buffer[:, :, :end] for buffer in self.buffers)
        self.front = self.keys
        return self.keys, self.values


def roomy_cache(policy: PreTrainedModel) -> DynamicCache:
    """A cache for many steps; layers of other kinds, such as sliding windows, stay as they are."""
    cache = DynamicCache(config=policy.config)
    cache.layers = [RoomyLayer() if type(x) is DynamicLayer else x for x in cache.layers]
    return cache
