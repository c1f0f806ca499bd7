"""Packing to a constant length: no token lost or doubled, and the loss that is promised."""

import copy
from collections import Counter

import pytest
import torch
from datasets import Dataset, IterableDataset
from hypothesis import given, settings
from hypothesis import strategies as st
from trl import SFTConfig, pack_dataset
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from rlhf_helpers.models import without_dropout
from rlhf_helpers.sft import DemonstrationTrainer, packing_strategy

EOS = 1
STRATEGIES = {"opt": "wrapped", "gpt2": "bfd_split", "llama": "bfd_split"}


def example(number: int, length: int) -> dict[str, list[int]]:
    """Tokens that count up from a start of their own, then EOS; the first third carries no loss."""
    ids = [2 + (number + i) % 90 for i in range(length - 1)] + [EOS]
    prompt = length // 3
    return {"input_ids": ids, "labels": [-100] * prompt + ids[prompt:]}


def examples(lengths: list[int]) -> list[dict[str, list[int]]]:
    return [example(7 * number, length) for number, length in enumerate(lengths)]


def generate(lengths: list[int]):
    yield from examples(lengths)


def streamed(lengths: list[int]) -> IterableDataset:
    return IterableDataset.from_generator(generate, gen_kwargs={"lengths": tuple(lengths)})


# Which strategy


@pytest.mark.parametrize("attention", ["eager", "sdpa"])
def test_a_model_that_keeps_packed_examples_apart_gets_bfd(make_model, kind, attention):
    model = make_model(kind)
    model.set_attn_implementation(attention)
    random_state = torch.get_rng_state()
    assert packing_strategy(model.train()) == STRATEGIES[kind]
    assert model.training and torch.equal(torch.get_rng_state(), random_state)


def test_a_model_in_half_precision_is_judged_alike(make_model, kind):
    assert packing_strategy(make_model(kind).to(torch.bfloat16)) == STRATEGIES[kind]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_loss_of_a_row_packed_by_bfd_is_that_of_its_examples_one_by_one(make_model, kind):
    model = without_dropout(make_model(kind)).eval()
    rows = examples([9, 20, 5, 14, 11, 3])
    packed = pack_dataset(Dataset.from_list(rows), 32, packing_strategy(model))
    assert len(packed) < len(rows)
    batch = DataCollatorForLanguageModeling(pad_token_id=0, padding_free=True)(list(packed))
    with torch.no_grad():
        together = model(**batch, use_cache=False).loss  # as TRL calls it
        sums = [
            model(**{k: torch.tensor([v]) for k, v in row.items()}).loss * learnt(row)
            for row in rows
        ]
    torch.testing.assert_close(together, sum(sums) / sum(map(learnt, rows)), atol=1e-5, rtol=0)


def learnt(row: dict[str, list[int]]) -> int:
    """Tokens that are predicted: those with a label, but for a first one."""
    return sum(label != -100 for label in row["labels"][1:])


# No token lost or doubled


@settings(max_examples=25)
@given(
    lengths=st.lists(st.integers(1, 70), min_size=1, max_size=40),
    length=st.integers(8, 32),
    strategy=st.sampled_from(["bfd_split", "wrapped"]),
    is_streamed=st.booleans(),
)
def test_packing_loses_and_doubles_no_token(lengths, length, strategy, is_streamed):
    rows = examples(lengths)
    data = streamed(lengths) if is_streamed else Dataset.from_list(rows)
    packed = list(pack_dataset(data, length, strategy))
    for name in ("input_ids", "labels"):
        before = Counter(token for row in rows for token in row[name])
        assert Counter(token for row in packed for token in row[name]) == before
    assert all(len(row["input_ids"]) == len(row["labels"]) <= length for row in packed)
    if strategy == "wrapped":  # one text, cut
        text = [token for row in packed for token in row["input_ids"]]
        assert text == [token for row in rows for token in row["input_ids"]]
        assert all(len(row["input_ids"]) == length for row in packed[:-1])
    else:  # whole examples, or their pieces if they are longer than a row
        pieces = [
            tuple(row["input_ids"][start : start + length])
            for row in rows
            for start in range(0, len(row["input_ids"]), length)
        ]
        assert Counter(parts(packed)) == Counter(pieces)


def parts(packed: list[dict]) -> list[tuple[int, ...]]:
    """The examples that rows packed by `bfd_split` say they consist of."""
    found = []
    for row in packed:
        tokens = iter(row["input_ids"])
        found += [tuple(next(tokens) for _ in range(size)) for size in row["seq_lengths"]]
    return found


@pytest.mark.parametrize("strategy", ["bfd_split", "wrapped"])
@pytest.mark.parametrize("stop", [0, 1, 150, 300])
def test_a_packed_stream_is_resumed_at_a_row(strategy, stop):
    lengths = [3 + 5 * i % 29 for i in range(2100)]  # TRL packs 1,000 examples at a time

    def new():
        return pack_dataset(streamed(lengths), 64, strategy)

    whole = [row["input_ids"] for row in new()]
    first, second = new(), new()
    head = [row["input_ids"] for _, row in zip(range(stop), first, strict=False)]
    second.load_state_dict(first.state_dict())
    assert head + [row["input_ids"] for row in second] == whole


# Training


def trained(model, tokenizer, folder, steps: int, resume: bool = False) -> list[float]:
    """The losses of a run of TRL's on a packed stream."""
    options = SFTConfig(
        str(folder),
        packing=True,
        packing_strategy=packing_strategy(model),
        max_length=64,
        max_steps=steps,
        save_steps=10,
        per_device_train_batch_size=2,
        learning_rate=1e-2,
        lr_scheduler_type="constant",
        logging_steps=5,
        bf16=False,
        use_cpu=True,
        activation_checkpointing=False,
        disable_tqdm=True,
        report_to="none",
    )
    rows = streamed([3 + 7 * i % 29 for i in range(400)])
    trainer = DemonstrationTrainer(model, options, train_dataset=rows, processing_class=tokenizer)
    trainer.train(resume_from_checkpoint=resume)
    return [float(row["loss"]) for row in trainer.state.log_history if "loss" in row]


@pytest.mark.parametrize("kind", ["opt", "llama"])
def test_a_run_on_a_packed_stream_learns_and_is_resumed(make_model, tokenizer, tmp_path, kind):
    model = without_dropout(make_model(kind))
    again = copy.deepcopy(model)
    losses = trained(model, tokenizer, tmp_path / "whole", steps=20)
    assert losses[-1] < 0.8 * losses[0]
    trained(copy.deepcopy(again), tokenizer, tmp_path / "halves", steps=10)
    assert trained(again, tokenizer, tmp_path / "halves", steps=20, resume=True) == losses
    for one, other in zip(model.parameters(), again.parameters(), strict=True):
        assert torch.equal(one, other)
