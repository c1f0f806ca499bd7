"""The tiny base model: a byte-level BPE and an OPT of two million parameters, from scratch.

RLHF starts from a pretrained model. This one is pretrained on documents of the little world
(`writers.write_document`): posts with comments, titles, poor summaries and comparisons. Document i
is drawn with a seed and i, so the corpus takes no disk space. The combinations of facts in the
held-out documents never occur in training.
"""

import random
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    OPTConfig,
    OPTForCausalLM,
    PreTrainedTokenizerFast,
    Trainer,
    TrainingArguments,
)

from rlhf_helpers.little_world.writers import write_document
from rlhf_helpers.runs import write_json

VOCABULARY = 2048
CONTEXT = 512
DOCUMENTS = 130_000
TOKENIZER_DOCUMENTS = 10_000
SEED = 0


def document(index: int, split: str = "train") -> str:
    """Return the index-th document of a split, which is the same at every call."""
    return write_document(random.Random(f"{SEED}/{split}/{index}"), split)


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Train a byte-level BPE with OPT's special tokens; every text begins with </s>."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=["<s>", "<pad>", "</s>", "<unk>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(map(document, range(TOKENIZER_DOCUMENTS)), trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A", pair="</s> $A </s> $B", special_tokens=[("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="</s>",
        eos_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        model_max_length=CONTEXT,
        padding_side="left",
    )


def make_model(vocabulary: int) -> OPTForCausalLM:
    """Return an OPT with 2.1 million parameters, without dropout: it sees each document once."""
    config = OPTConfig(
        vocab_size=vocabulary,
        hidden_size=192,
        word_embed_proj_dim=192,
        num_hidden_layers=4,
        num_attention_heads=6,
        ffn_dim=640,
        max_position_embeddings=CONTEXT,
        dropout=0.0,
        attention_dropout=0.0,
        layerdrop=0.0,
        pad_token_id=1,
        bos_token_id=2,
        eos_token_id=2,
    )
    config._attn_implementation = "eager"
    return OPTForCausalLM(config)


class DocumentCollator:
    """Pads to the longest document of a batch, and shifts the positions of one batch in six.

    So all position embeddings are trained, although most documents are short.
    """

    def __init__(self, pad_token_id: int, shift_every: int = 6):
        self.pad_token_id = pad_token_id
        self.shift_every = shift_every
        self.rng = random.Random(SEED)

    def __call__(self, features: list[dict]) -> dict[str, torch.Tensor]:
        rows = [torch.tensor(feature["input_ids"]) for feature in features]
        pad = torch.nn.utils.rnn.pad_sequence
        input_ids = pad(rows, batch_first=True, padding_value=self.pad_token_id)
        mask = pad([torch.ones_like(row) for row in rows], batch_first=True)
        positions = torch.arange(input_ids.shape[1]).expand_as(input_ids)
        if self.rng.randrange(self.shift_every) == 0:
            positions = positions + self.rng.randint(0, CONTEXT - input_ids.shape[1])
        return {
            "input_ids": input_ids,
            "attention_mask": mask,
            "position_ids": positions,
            "labels": input_ids.masked_fill(mask == 0, -100),
        }


def corpus(tokenizer: PreTrainedTokenizerFast, documents: int, split: str = "train") -> Dataset:
    """Return tokenised documents with columns `input_ids` (</s> at both ends) and `length`."""

    def encode(batch: dict) -> dict:
        texts = [document(i, split) + tokenizer.eos_token for i in batch["index"]]
        ids = tokenizer(texts, truncation=True, max_length=CONTEXT)["input_ids"]
        return {"input_ids": ids, "length": [len(row) for row in ids]}

    rows = Dataset.from_dict({"index": range(documents)})
    return rows.map(encode, batched=True, remove_columns="index")


def training_arguments(work_dir: Path, **settings: Any) -> TrainingArguments:
    """Return `settings` and what the trainings of the base model and the labeller share."""
    return TrainingArguments(
        output_dir=str(work_dir),
        num_train_epochs=1,
        weight_decay=0.01,
        adam_beta2=0.98,
        train_sampling_strategy="group_by_length",
        save_total_limit=1,
        use_cpu=not torch.cuda.is_available(),
        seed=SEED,
        **settings,
    )


def pretrain(output_dir: Path, work_dir: Path, documents: int = DOCUMENTS) -> dict[str, float]:
    """Pretrain and save the base model (half precision) and its tokenizer to `output_dir`.

    Checkpoints and TensorBoard logs go to `work_dir`; a second call continues from the last
    checkpoint. Takes about a quarter of an hour on two cores. Returns the held-out loss in nats
    per token.
    """
    tokenizer = make_tokenizer()
    torch.set_float32_matmul_precision("medium")  # about twice as fast as "highest"
    torch.manual_seed(SEED)
    model = make_model(len(tokenizer))
    arguments = training_arguments(
        work_dir,
        per_device_train_batch_size=32,
        per_device_eval_batch_size=64,
        learning_rate=2e-3,
        warmup_steps=100,
        lr_scheduler_type="cosine",
        eval_strategy="steps",
        eval_steps=500,
        logging_steps=50,
        save_steps=500,
        report_to=["tensorboard"],
        bf16=True,
    )
    trainer = Trainer(
        model,
        arguments,
        DocumentCollator(tokenizer.pad_token_id),
        train_dataset=corpus(tokenizer, documents),
        eval_dataset=corpus(tokenizer, 500, "test"),
    )
    trainer.train(resume_from_checkpoint=any(work_dir.glob("checkpoint-*")))
    history = [row for row in trainer.state.log_history if "loss" in row or "eval_loss" in row]
    metrics = {"loss": trainer.evaluate()["eval_loss"], "documents": documents}
    model.half().save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    write_json(output_dir / "metrics.json", {"metrics": metrics, "history": history})
    _draw_curve(history, output_dir / "curve.png")
    return metrics


def _draw_curve(history: list[dict], path: Path) -> None:
    """Draw the training and the held-out loss into a picture."""
    from rlhf_helpers import plots  # not needed before, and needs the extra `course`

    axes = plots.training_curve(history, "loss")
    plots.training_curve(history, "eval_loss", axes, colour=plots.RED)
    axes.set(ylabel="loss (nats a token); red: held out", yscale="log")
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, dpi=110)
