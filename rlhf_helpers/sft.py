"""Stage 1: supervised fine-tuning on demonstrations, with TRL's SFTTrainer."""

import torch
from datasets import Dataset
from transformers import PreTrainedTokenizerBase
from trl import SFTConfig as TRLConfig
from trl import SFTTrainer

from rlhf_helpers.models import add_lora, load_policy, load_tokenizer, merge_adapter
from rlhf_helpers.scales import SFTConfig
from rlhf_helpers.schemas import (
    Demonstration,
    format_prompt,
    format_response,
    read_demonstrations,
)
from rlhf_helpers.training import Result, run_trainer, save_stage, trl_arguments


def encode_demonstration(
    record: Demonstration, tokenizer: PreTrainedTokenizerBase, config: SFTConfig
) -> dict[str, list[int]]:
    """`input_ids` of prompt, response and EOS; `labels` are -100 on the prompt.

    Where both are too long, the prompt loses its beginning: its end says what to do.
    """
    prompt = tokenizer(format_prompt(record["input_text"], config.instruction))["input_ids"]
    text = format_response(record["output_text"]) + tokenizer.eos_token
    response = tokenizer(text, add_special_tokens=False)["input_ids"][: config.max_length]
    prompt = prompt[max(0, len(prompt) + len(response) - config.max_length) :]
    return {"input_ids": prompt + response, "labels": [-100] * len(prompt) + response}


def train(config: SFTConfig, resume: bool = False) -> Result:
    """Fine-tune on the responses of the demonstrations (the prompts carry no loss).

    With `lora_rank` only a LoRA adapter is trained, on weights of `bits` bits; it is merged into
    the full-precision model at the end. Raises DataError for a bad data set.
    """
    records = read_demonstrations(config.data)
    tokenizer = load_tokenizer(config.model)
    model = load_policy(config.model, config.bits)
    torch.manual_seed(config.seed)  # the adapter
    if config.lora_rank:
        model = add_lora(model, config.lora_rank)
    elif config.bits != 32:
        raise ValueError(f"weights of {config.bits} bits cannot be trained: set lora_rank too")
    rows = [encode_demonstration(record, tokenizer, config) for record in records]
    trainer = SFTTrainer(
        model,
        TRLConfig(**trl_arguments(config)),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
    )
    seconds = run_trainer(trainer, config, resume)
    history = [row for row in trainer.state.log_history if "loss" in row]
    model = merge_adapter(trainer.model, config.model) if config.lora_rank else trainer.model
    metrics = {
        "loss": history[-1]["loss"] if history else trainer.state.log_history[-1]["train_loss"],
        "demonstrations": len(records),
        "seconds": seconds,
    }
    return save_stage(config, model, tokenizer, metrics, history)
