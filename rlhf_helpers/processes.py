"""Several processes, each with the whole model and its share of every batch (data parallel).

`accelerate launch` or `torchrun` starts them. In a single process each function returns its
argument. All processes must call these functions in the same order, or they wait for ever.
"""

import os
from collections.abc import Iterable
from typing import Any

import torch
from accelerate import PartialState
from torch import Tensor, distributed


def start() -> None:
    """Join the other processes, if a launcher has started some: nccl on GPUs, gloo on CPUs."""
    if "LOCAL_RANK" in os.environ:
        PartialState(cpu=not torch.cuda.is_available())


def count() -> int:
    """How many processes there are."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """The number of this process; process 0 writes the files."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def wait() -> None:
    """Wait until every process has reached this call."""
    if count() > 1:
        distributed.barrier()


def total(part: Tensor) -> Tensor:
    """The sum of every process's tensor; all of the same shape."""
    if count() == 1:
        return part
    part = part.clone()
    distributed.all_reduce(part)
    return part


def gather(item: Any) -> list[Any]:
    """Every process's item, in the order of the ranks."""
    if count() == 1:
        return [item]
    items = [None] * count()
    distributed.all_gather_object(items, item)
    return items


def gather_rows(rows: Tensor) -> Tensor:
    """Every process's rows as one tensor, on the CPU."""
    return torch.cat(gather(rows.detach().cpu()))


def total_gradients(parameters: Iterable[Tensor]) -> None:
    """Replace each gradient by its sum over all processes."""
    if count() == 1:
        return
    for parameter in parameters:
        if parameter.grad is not None:
            distributed.all_reduce(parameter.grad)


def copy_from_first(parameters: Iterable[Tensor]) -> None:
    """Give every process the weights of process 0."""
    if count() == 1:
        return
    for parameter in parameters:
        distributed.broadcast(parameter.data, src=0)


def shares(mini_batch_size: int, parts: int, group: int) -> tuple[int, int]:
    """The responses of a mini-batch that are this process's, and how many it computes at a time.

    Raises ValueError unless every process can take its share in `parts` of whole groups.
    """
    pieces = count() * parts
    if mini_batch_size % (pieces * group):
        raise ValueError(
            f"mini_batch_size {mini_batch_size} must be a multiple of {count()} processes times "
            f"gradient_accumulation_steps {parts} times samples_per_prompt {group}"
        )
    return mini_batch_size // count(), mini_batch_size // pieces
