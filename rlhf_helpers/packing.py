"""Constant-length packing: short examples share a row, so that no step is spent on padding.

TRL packs (`SFTConfig(packing=True, packing_strategy=…, max_length=…)`). Which strategy is right
depends on the model: only where its attention keeps the examples of a row apart is a packed row's
loss that of its examples one by one.
"""

import torch
from transformers import PreTrainedModel

from rlhf_helpers.models import is_exact

LENGTH = 16  # tokens of the two texts that the strategy is chosen with


@torch.no_grad()
def packing_strategy(model: PreTrainedModel) -> str:
    """TRL's `packing_strategy` for this model, with its attention, on this machine.

    `bfd_split` packs whole examples, and tells them apart by positions that start anew; it splits
    only those longer than a row, while `bfd` drops their ends. Where the model reads on across
    the border it is `wrapped`: one text, cut into rows, in which EOS alone parts the examples.

    The model is asked: a text's logits behind another one in a row, against those on its own.
    """
    size, seeded = model.config.get_text_config().vocab_size, torch.Generator().manual_seed(0)
    row = torch.randint(size, (1, 2 * LENGTH), generator=seeded).to(model.device)
    positions = torch.arange(2 * LENGTH, device=model.device)[None] % LENGTH
    was_training = model.training
    model.eval()
    try:
        alone = model(input_ids=row[:, LENGTH:], use_cache=False).logits[0]
        packed = model(input_ids=row, position_ids=positions, use_cache=False).logits[0, LENGTH:]
        mixed = model(input_ids=row, use_cache=False).logits[0, LENGTH:]
    finally:
        model.train(was_training)
    leak = (packed - alone).abs().mean() / (mixed - alone).abs().mean()
    return "bfd_split" if leak < (1e-3 if is_exact(model) else 0.1) else "wrapped"
