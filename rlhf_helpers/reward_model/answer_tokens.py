"""A reward model's head that scores every token of an answer; the answer's score is the mean.

A token's features are its *state*, the last hidden state of a frozen language model, and its
*surprise*: the log-probability that the model gave to the token, beside that of the likeliest one.
A small network turns them into the token's score. So the head is a probe (Alain and Bengio 2016,
arXiv:1610.01644): preferences teach it how to use what the language model knows already, and the
language model learns nothing. Training all weights at once can distort such knowledge (Kumar et
al. 2022, arXiv:2202.10054).

Whoever reads the answer along with its prompt is surprised by a fact that the prompt does not tell.
This is how such a head finds out whether an answer is true to its prompt.
"""

import itertools
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from rlhf_helpers.logprobs import Tokens, forward_responses
from rlhf_helpers.models import HEAD_FILE
from rlhf_helpers.prompt_cache import fitting
from rlhf_helpers.prompts import answer_end, answer_tokens, prompt_tokens

HIDDEN_UNITS = 128

Encoded = tuple[list[int], list[int]]  # token ids of a prompt, and of an answer with EOS


class AnswerTokenHead(nn.Module):
    """Scores for the tokens of answers, from standardised features: a network of two layers."""

    mean: Tensor  # (F,) of the features of the answers that it was trained on
    deviation: Tensor  # (F,)

    def __init__(self, features: int):
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("deviation", torch.ones(features))
        self.layers = nn.Sequential(
            nn.Linear(features, HIDDEN_UNITS), nn.ReLU(), nn.Linear(HIDDEN_UNITS, 1)
        )

    def standardise(self, answers: Iterable[Tensor]) -> None:
        """Take mean and standard deviation from the features (tokens, F) of the training answers.

        The sums are kept in float64, so that the features need not be copied into one tensor.
        """
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        for answer in answers:
            wide = answer.double()
            count, total = count + len(wide), total + wide.sum(0)
            squares = squares + (wide**2).sum(0)
        mean = total / count
        self.mean.copy_(mean)
        self.deviation.copy_((squares / count - mean**2).clamp(min=1e-6).sqrt())

    def forward(self, features: Tensor, lengths: Sequence[int]) -> Tensor:
        """Raw scores (B,) of B answers of `lengths` tokens, with their features (N, F) in a row."""
        tokens = self.layers((features - self.mean) / self.deviation)[:, 0]
        return torch.stack([answer.mean() for answer in tokens.split(list(lengths))])


def encode_answers(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], answers: Sequence[str]
) -> list[Encoded]:
    """Return the token ids of each prompt and of its answer, which ends with `answer_end`.

    A text that is longer than `tokenizer.model_max_length` loses the beginning of its prompt.
    """
    room, end = tokenizer.model_max_length, [answer_end(tokenizer)]
    known = {prompt: prompt_tokens(tokenizer, [prompt])[0] or end for prompt in set(prompts)}
    encoded = []
    for prompt, answer in zip(prompts, answers, strict=True):
        (ids,) = answer_tokens(tokenizer, prompt, [answer])
        ids = (ids + end)[1 - room :]  # one token of the prompt stays: it predicts the first
        head = known[prompt]
        if len(head) > room - len(ids):
            (head,) = prompt_tokens(tokenizer, [prompt], room - len(ids))
        encoded.append((head, ids))
    return encoded


def feature_batches(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    encoded: Sequence[Encoded],
    rows: int = 64,
) -> Iterator[tuple[list[int], Tensor, list[int]]]:
    """Yield features of about `rows` answers at a time: their numbers, features and lengths.

    The features (N, F) are those of all N tokens of these answers in a row, F = hidden size + 2, in
    float32 on the model's device. Answers to the same prompt may stand anywhere: the prompt is read
    once for all of them.
    """
    longest = max((len(prompt) + len(answer) for prompt, answer in encoded), default=1)
    for parts in _shared_batches(encoded, min(rows, fitting(model.config, longest))):
        numbers = [number for part in parts for number in part]
        prompts = [encoded[part[0]][0] for part in parts]
        answers = [encoded[number][1] for number in numbers]
        features = _features(model, _tokens(tokenizer, prompts, answers).to(model.device))
        yield numbers, features, [len(answer) for answer in answers]


def _shared_batches(encoded: Sequence[Encoded], rows: int) -> Iterator[list[list[int]]]:
    """Yield batches of groups of as many answers to one prompt each, by their numbers."""
    groups: dict[tuple[int, ...], list[int]] = defaultdict(list)
    for number, (prompt, _) in enumerate(encoded):
        groups[tuple(prompt)].append(number)
    parts = [group[i : i + rows] for group in groups.values() for i in range(0, len(group), rows)]
    parts.sort(key=lambda part: (len(part), len(encoded[part[0]][0])))
    for samples, same_size in itertools.groupby(parts, key=len):
        alike, at_once = list(same_size), max(1, rows // samples)
        yield from (alike[i : i + at_once] for i in range(0, len(alike), at_once))


def _tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: list[list[int]], answers: list[list[int]]
) -> Tokens:
    """The padded tokens of G prompts and of B = G * K answers, with an empty last column.

    `forward_responses` does not read the last column, and the features need the state at EOS.
    """
    padded = tokenizer.pad({"input_ids": prompts}, padding_side="left", return_tensors="pt")
    lengths = torch.tensor([len(answer) for answer in answers])
    mask = torch.arange(int(lengths.max()) + 1) < lengths[:, None]
    ids = torch.full(mask.shape, tokenizer.pad_token_id)
    ids[mask] = torch.tensor([token for answer in answers for token in answer])
    return Tokens(padded["input_ids"], padded["attention_mask"], ids, mask)


@torch.no_grad()
def _features(model: PreTrainedModel, tokens: Tokens) -> Tensor:
    """Features (N, F) of the N tokens of all answers: state, log p(token), log p(likeliest)."""
    logits, states = forward_responses(model, tokens)
    words = logits[:, :-1].float().log_softmax(-1)
    said = words.gather(-1, tokens.response_ids[:, :-1, None])
    surprise = torch.cat([said, words.amax(-1, keepdim=True)], -1)
    # Position t of the states precedes token t, so the state at token t is that of t + 1.
    return torch.cat([states[:, 1:].float(), surprise], -1)[tokens.response_mask[:, :-1]]


def feature_size(model: PreTrainedModel) -> int:
    """F, the number of features of a token: the size of its state, and two log-probs."""
    return model.get_output_embeddings().in_features + 2


def load_head(path: str | Path, features: int) -> AnswerTokenHead:
    """Load the head from a reward model's folder.

    Raises FileNotFoundError where its file is missing, and ValueError where it is damaged, does
    not take so many features, or holds numbers that are not finite.
    """
    file, head = Path(path) / HEAD_FILE, AnswerTokenHead(features)
    if not file.is_file():
        raise FileNotFoundError(f"{file}: missing. Train the reward model again.")
    try:
        weights = load_file(file)
        head.load_state_dict(weights)
    except (SafetensorError, RuntimeError) as error:
        raise ValueError(
            f"{file}: damaged, or the head of another language model. Train the reward model again."
        ) from error
    for name, weight in weights.items():
        if not torch.isfinite(weight).all():
            raise ValueError(
                f"{file}: the weight {name} holds NaN or infinite numbers: its training has "
                "diverged. Train the reward model again with a lower learning rate."
            )
    return head.eval()
