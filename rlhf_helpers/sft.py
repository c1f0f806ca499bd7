"""Stage 1: supervised fine-tuning on demonstrations, with TRL's SFTTrainer.

With `packing`, short demonstrations share a row, so that no step is spent on padding. Which of
TRL's strategies is right depends on the model: only where its attention keeps the examples of a
row apart is a packed row's loss that of its examples one by one (see `packing_strategy`).
"""

from typing import Any

import torch
from datasets import Dataset, IterableDataset
from transformers import PreTrainedModel, PreTrainedTokenizerBase
from trl import SFTConfig as TRLConfig
from trl import SFTTrainer

from rlhf_helpers.configs import SFTConfig
from rlhf_helpers.models import add_lora, is_exact, load_policy, load_tokenizer, merge_adapter
from rlhf_helpers.models.compatibility import check_policy
from rlhf_helpers.prompts import answer_end, answer_tokens, prompt_tokens
from rlhf_helpers.schemas import Demonstration, format_prompt, format_response
from rlhf_helpers.sources import read_file, streams
from rlhf_helpers.training import Result, read_some, resumable, save_stage
from rlhf_helpers.training.trl_stages import (
    Encode,
    held_out_rows,
    last_logged,
    run_trainer,
    scored_responses,
    stream_steps,
    streamed_rows,
    trl_arguments,
    whole_weights,
)

KIND = "demonstrations"
PROBE = 16  # tokens of each of the two texts that the packing strategy is chosen with


class DemonstrationTrainer(SFTTrainer):
    """TRL's SFTTrainer, with the prompts left out of the language-model head on CPUs too."""

    def compute_loss(self, model: PreTrainedModel, *arguments: Any, **keywords: Any) -> Any:
        """TRL's loss: the mean over all tokens that have a label."""
        return super().compute_loss(scored_responses(model), *arguments, **keywords)


def encode_demonstration(
    record: Demonstration, tokenizer: PreTrainedTokenizerBase, config: SFTConfig
) -> dict[str, list[int]]:
    """`input_ids` of prompt, response and its end; `labels` are -100 on the prompt.

    Where both are too long, the prompt loses its beginning: its end says what to do.
    """
    text = format_prompt(record["input_text"], config.instruction)
    length = min(config.max_length, tokenizer.model_max_length)
    (answer,) = answer_tokens(tokenizer, text, [format_response(record["output_text"])])
    answer = [*answer, answer_end(tokenizer)][:length]
    (prompt,) = prompt_tokens(tokenizer, [text], length - len(answer))
    return {"input_ids": prompt + answer, "labels": [-100] * len(prompt) + answer}


@resumable
def train(config: SFTConfig, resume: bool = False) -> Result:
    """Fine-tune on the responses of the demonstrations (the prompts carry no loss).

    With `lora_rank` only a LoRA adapter is trained, on weights of `bits` bits; it is merged into
    the full-precision model at the end. Raises DataError for a bad data set.
    """
    streamed = streams.is_stream(config.data)
    records = [] if streamed else read_file(config.data, KIND)[: config.demonstrations]
    tokenizer = load_tokenizer(config.model, config.chat, config.system_prompt)

    def encode(records: list[Demonstration]) -> list[dict]:
        return [encode_demonstration(record, tokenizer, config) for record in records]

    rows: list[dict] | IterableDataset = encode(records)
    if streamed:
        rows = streamed_rows(config, KIND, encode, config.demonstrations)
    check_policy(config.model)
    model = load_policy(config.model, config.bits)
    arguments = _row_arguments(config, rows, encode, model)
    torch.manual_seed(config.seed)  # the adapter
    if config.lora_rank:
        model = add_lora(model, config.lora_rank, config.lora_dropout)
    trainer = DemonstrationTrainer(
        model,
        TRLConfig(**trl_arguments(config, **arguments)),
        train_dataset=Dataset.from_list(rows) if isinstance(rows, list) else rows,
        eval_dataset=held_out_rows(config, KIND, encode),
        processing_class=tokenizer,
    )
    seconds = run_trainer(trainer, config, resume)
    history = [row for row in trainer.state.log_history if "loss" in row]
    model = merge_adapter(trainer.model, config.model) if config.lora_rank else trainer.model
    mean = last_logged(trainer, "train_loss")["train_loss"]  # a resumed run may log no other
    metrics = {"loss": mean, "seconds": seconds} | last_logged(trainer, "loss", "eval_loss")
    if not streamed:
        metrics["demonstrations"] = len(records)
    return save_stage(config, model, tokenizer, metrics, history, whole_weights(trainer))


def _row_arguments(
    config: SFTConfig, rows: list[dict] | IterableDataset, encode: Encode, model: PreTrainedModel
) -> dict[str, Any]:
    """TRL's arguments about the rows: how to pack them, and how many steps a stream takes."""
    arguments: dict[str, Any] = {}
    if config.packing:
        positions = getattr(model.config, "max_position_embeddings", None) or config.max_length
        if config.max_length > positions:
            raise ValueError(
                f"max_length is {config.max_length}, but {config.model} has {positions} positions: "
                "lower --max-length"
            )
        arguments |= {"packing": True, "packing_strategy": packing_strategy(model)}
        arguments |= {"max_length": config.max_length, "eval_packing": False}
    if not isinstance(rows, list):
        rows_a_record = 1.0
        if config.packing:  # the first records tell how many fit into a row
            sizes = [len(row["input_ids"]) for row in encode(read_some(config.data, KIND, 200))]
            rows_a_record = sum(sizes) / len(sizes) / config.max_length
        arguments["max_steps"] = stream_steps(config, config.demonstrations, rows_a_record)
    return arguments


@torch.no_grad()
def packing_strategy(model: PreTrainedModel) -> str:
    """TRL's `packing_strategy` for this model, with its attention, on this machine.

    `bfd_split` packs whole examples, and tells them apart by positions that start anew; it splits
    only those longer than a row, while `bfd` drops their ends. A model that attends across the
    border gets `wrapped`: one long text, cut into rows, in which EOS alone parts the examples.

    To find out, the model reads one text behind another in a row, and on its own.
    """
    size, seeded = model.config.get_text_config().vocab_size, torch.Generator().manual_seed(0)
    row = torch.randint(size, (1, 2 * PROBE), generator=seeded).to(model.device)
    positions = torch.arange(2 * PROBE, device=model.device)[None] % PROBE
    was_training = model.training
    model.eval()
    try:
        alone = model(input_ids=row[:, PROBE:], use_cache=False).logits[0]
        packed = model(input_ids=row, position_ids=positions, use_cache=False).logits[0, PROBE:]
        mixed = model(input_ids=row, use_cache=False).logits[0, PROBE:]
    finally:
        model.train(was_training)
    leak = (packed - alone).abs().mean() / (mixed - alone).abs().mean()
    return "bfd_split" if leak < (1e-3 if is_exact(model) else 0.1) else "wrapped"
