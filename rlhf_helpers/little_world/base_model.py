"""The tiny base model: a byte-level BPE and an OPT of two million parameters, from scratch.

RLHF starts from a pretrained model. This one is pretrained on the documents of the little world
(`documents.write_document`). Document i is drawn with a seed and i, so the corpus takes no disk
space. The first part of the corpus is mostly comments, from which the model learns to copy facts
out of a post; the second part is mostly poor summaries. The combinations of facts in the held-out
documents never occur in training.
"""

import random
from collections.abc import Iterator
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm
from transformers import OPTConfig, OPTForCausalLM, PreTrainedTokenizerFast

from rlhf_helpers.little_world.documents import COPYING_SUMMARIES, SUMMARIES, write_document
from rlhf_helpers.little_world.grammar import capitalise
from rlhf_helpers.runs import write_json

VOCABULARY = 2048
CONTEXT = 512
DOCUMENTS = 153_600
COPYING = 92_160  # of these, the first ones, are mostly comments
TOKENIZER_DOCUMENTS = 10_000
BATCH = 32  # documents
WINDOW = 2048  # documents that are sorted by length together
LEARNING_RATE = 2e-3
WARMUP = 100  # steps
DECAY = 0.4  # the last part of the steps, over which the learning rate falls to 0
VERDICTS = ("right", "wrong", "exactly")  # see `documents.verdict`
POST_WEIGHT, VERDICT_WEIGHT = 0.3, 4.0  # weights of tokens in the loss; others weigh 1
SEED = 0


def document(index: int, split: str = "train") -> str:
    """Return the index-th document of a split, which is the same at every call."""
    summaries = COPYING_SUMMARIES if split == "train" and index < COPYING else SUMMARIES
    return write_document(random.Random(f"{SEED}/{split}/{index}"), split, summaries)


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
    size = {"hidden_size": 192, "word_embed_proj_dim": 192, "ffn_dim": 640}
    layers = {"num_hidden_layers": 4, "num_attention_heads": 6, "max_position_embeddings": CONTEXT}
    dropout = {"dropout": 0.0, "attention_dropout": 0.0, "layerdrop": 0.0}
    special = {"pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2}
    config = OPTConfig(vocab_size=vocabulary, **size, **layers, **dropout, **special)
    config._attn_implementation = "eager"
    return OPTForCausalLM(config)


def batches(
    tokenizer: PreTrainedTokenizerFast, documents: int, split: str = "train", first: int = 0
) -> Iterator[dict[str, Tensor]]:
    """Yield batches of documents of similar length, beginning with the `first` batch."""
    per_window = WINDOW // BATCH
    for window in range(first // per_window, documents // WINDOW):
        rng = random.Random(f"{SEED}/{split}/{window}")
        numbers = range(window * WINDOW, (window + 1) * WINDOW)
        texts = [document(i, split) + tokenizer.eos_token for i in numbers]
        rows = tokenizer(texts, truncation=True, max_length=CONTEXT)["input_ids"]
        rows.sort(key=len)
        groups = [rows[i : i + BATCH] for i in range(0, WINDOW, BATCH)]
        rng.shuffle(groups)
        for i, group in enumerate(groups):
            batch = collate(tokenizer, group, rng)  # also of a skipped group: it draws
            if window * per_window + i >= first:
                yield batch


def collate(
    tokenizer: PreTrainedTokenizerFast, rows: list[list[int]], rng: random.Random
) -> dict[str, Tensor]:
    """Pad to the longest document, and shift the positions of one batch in six.

    So all position embeddings are trained, although most documents are short.
    """
    tensors = [torch.tensor(row) for row in rows]
    pad = torch.nn.utils.rnn.pad_sequence
    ids = pad(tensors, batch_first=True, padding_value=tokenizer.pad_token_id)
    mask = pad([torch.ones_like(row) for row in tensors], batch_first=True)
    start = rng.randint(0, CONTEXT - ids.shape[1]) if rng.randrange(6) == 0 else 0
    positions = (torch.arange(ids.shape[1]) + start).expand_as(ids)
    return {"input_ids": ids, "attention_mask": mask, "position_ids": positions}


def verdict_tokens(tokenizer: PreTrainedTokenizerFast) -> Tensor:
    """Return for each token (V,) the index of the verdict that it is, or -1."""
    found = torch.full((len(tokenizer),), -1)
    for index, word in enumerate(VERDICTS):
        for text in (word, f"x {word}", f"x ({word}", f". {capitalise(word)}"):
            found[tokenizer.encode(text, add_special_tokens=False)[-1]] = index
    return found


class DocumentLoss:
    """Cross-entropy in which a post's words weigh little, because they are mostly chance.

    A verdict, which takes reading, weighs much.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerFast):
        self.verdicts = verdict_tokens(tokenizer)
        self.mark = tokenizer.encode(". [", add_special_tokens=False)[-1]

    def __call__(self, model: OPTForCausalLM, batch: dict[str, Tensor]) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            logits = model(**batch).logits[:, :-1]
        ids, mask = batch["input_ids"], batch["attention_mask"][:, 1:]
        nats = cross_entropy(logits.float().transpose(1, 2), ids[:, 1:], reduction="none")
        weight = self.weights(ids)[:, 1:] * mask
        return (nats * weight).sum() / weight.sum()

    def weights(self, ids: Tensor) -> Tensor:
        """Return the weight (B, T) of each token (B, T) in the loss."""
        after_post = (ids == self.mark).long().cumsum(1) > 0
        weight = torch.where(after_post, 1.0, POST_WEIGHT)
        return torch.where(self.verdicts[ids] >= 0, VERDICT_WEIGHT, weight)


@torch.no_grad()
def held_out(model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast) -> dict[str, float]:
    """Return the loss in nats per token on held-out documents, and the accuracy of verdicts."""
    verdicts = verdict_tokens(tokenizer)
    losses: list[float] = []
    right = asked = 0
    for batch in batches(tokenizer, WINDOW, "test"):
        if len(losses) == 16:
            break
        labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
        output = model(**batch, labels=labels)
        losses.append(output.loss.item())
        truth = verdicts[batch["input_ids"][:, 1:]]
        logits = output.logits[:, :-1][truth >= 0]
        guesses = [logits[:, verdicts == i].logsumexp(-1) for i in range(len(VERDICTS))]
        right += int((torch.stack(guesses, -1).argmax(-1) == truth[truth >= 0]).sum())
        asked += int((truth >= 0).sum())
    return {"eval_loss": sum(losses) / len(losses), "verdicts": right / asked}


def learning_rate(step: int, steps: int) -> float:
    """Return the rate of a step: a warm-up, a long plateau and a linear end."""
    return LEARNING_RATE * min(1.0, (step + 1) / WARMUP, (steps - step) / (DECAY * steps))


def pretrain(output_dir: Path, work_dir: Path, documents: int = DOCUMENTS) -> dict[str, float]:
    """Pretrain and save the base model (half precision) and its tokenizer to `output_dir`.

    A checkpoint in `work_dir` is written every few minutes; a second call continues from it. Takes
    about half an hour on two cores. Returns the held-out loss in nats per token, and the share of
    the verdicts in held-out documents that the model gets right.
    """
    tokenizer = make_tokenizer()
    torch.set_float32_matmul_precision("medium")  # about twice as fast as "highest"
    torch.manual_seed(SEED)
    model = make_model(len(tokenizer)).train()
    history = _train(model, tokenizer, documents, work_dir)
    last = history[-1]
    metrics = {"loss": last["eval_loss"], "verdicts": last["verdicts"], "documents": documents}
    model.half().save_pretrained(output_dir)
    tokenizer.save_pretrained(output_dir)
    write_json(output_dir / "metrics.json", {"metrics": metrics, "history": history})
    _draw_curve(history, output_dir / "curve.png")
    return metrics


def _train(
    model: OPTForCausalLM, tokenizer: PreTrainedTokenizerFast, documents: int, work_dir: Path
) -> list[dict[str, float]]:
    """Train on the documents, from the last checkpoint on; return the logged rows."""
    loss_of, checkpoint = DocumentLoss(tokenizer), work_dir / "checkpoint.pt"
    optimizer = torch.optim.AdamW(
        model.parameters(), betas=(0.9, 0.98), weight_decay=0.01, fused=True
    )
    step, steps, history = 0, documents // WINDOW * (WINDOW // BATCH), []
    work_dir.mkdir(parents=True, exist_ok=True)
    if checkpoint.exists():
        state = torch.load(checkpoint, weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, history = state["step"], state["history"]
    rest = batches(tokenizer, documents, first=step)
    for batch in tqdm(rest, "pretraining", steps, initial=step):
        optimizer.param_groups[0]["lr"] = learning_rate(step, steps)
        optimizer.zero_grad()
        loss = loss_of(model, batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        step += 1
        if step % 25 == 0 or step == steps:
            history.append({"step": step, "loss": loss.item()})
        if step % 250 == 0 or step == steps:
            history[-1] |= held_out(model, tokenizer)
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step, "history": history}, checkpoint)
    return history


def _draw_curve(history: list[dict], path: Path) -> None:
    """Draw the training and the held-out loss into a picture."""
    from rlhf_helpers import plots  # not needed before, and needs the extra `course`

    axes = plots.training_curve(history, "loss")
    plots.training_curve(history, "eval_loss", axes, colour=plots.RED)
    axes.set(ylabel="loss (nats a token); red: held out", yscale="log")
    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.savefig(path, dpi=110)
