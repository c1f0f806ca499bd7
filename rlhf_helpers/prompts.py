"""How prompts and answers become tokens, and how sampled tokens become texts again.

Tokens are what the text says, for every tokenizer. The prompt's tokens and then the answer's are
those of the whole text, with one BOS, no EOS inside, and no blank lost or put in between. A decoded
answer follows its prompt as it was written. So SFT, DPO, reward model and PPO read the same text.
"""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

ANCHORS = ("a", "the", "0", ".")  # texts that a tokenizer may put in front of an answer's tokens


def prompt_tokens(tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str]) -> list[list[int]]:
    """Return the tokens of each prompt: BOS, if the tokenizer has one, and the text.

    A text that begins with BOS itself (as chat templates write it) gets no second one.
    """
    before = _beginning(tokenizer)
    rows = _plain(tokenizer, prompts)
    return [row if row[: len(before)] == before else before + row for row in rows]


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answers: Sequence[str]
) -> list[list[int]]:
    """Return the tokens of each answer where it follows the prompt, without EOS.

    Encoded alone, an answer would get a spurious blank from SentencePiece's tokenizers.
    """
    head, *wholes = _plain(tokenizer, [prompt, *(prompt + answer for answer in answers)])
    if any(whole[: len(head)] != head for whole in wholes):  # some tokens reach over the border
        prompt = _anchor(tokenizer)
        head, *wholes = _plain(tokenizer, [prompt, *(prompt + answer for answer in answers)])
    return [whole[len(head) :] for whole in wholes]


def answer_texts(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Sequence[int]]) -> list[str]:
    """Return the text of each answer as it follows its prompt; special tokens are left out.

    Decoded alone, an answer would lose the blank in front with SentencePiece's tokenizers.
    """
    anchor = _anchor(tokenizer)
    (head,) = _plain(tokenizer, [anchor])
    texts = tokenizer.batch_decode(
        [[*head, *row] for row in rows],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    return [text[len(anchor) :] for text in texts]


def cut_tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int], room: int) -> list[int]:
    """Return BOS and the last tokens of a prompt, at most `room`: its end says what to do."""
    if len(ids) <= room:
        return ids
    before = _beginning(tokenizer)[:room]
    return before + ids[len(ids) - (room - len(before)) :]


def cut_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """Return the end of a prompt's text that has at most `max_length` tokens, BOS included."""
    (ids,) = prompt_tokens(tokenizer, [prompt])
    if len(ids) <= max_length:
        return prompt
    encoded = tokenizer(prompt, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in encoded["offset_mapping"]]
    for start in starts[max(0, len(starts) - max_length) :]:
        # The end alone may have other tokens than within the whole.
        if len(prompt_tokens(tokenizer, [prompt[start:]])[0]) <= max_length:
            return prompt[start:]
    return ""


def prompt_room(
    tokenizer: PreTrainedTokenizerBase, max_new_tokens: int, max_prompt_length: int | None = None
) -> int:
    """Return how many tokens a prompt may have, so that the model can read prompt and answer.

    Raises ValueError if nothing is left beside the answer.
    """
    room = tokenizer.model_max_length - max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_new_tokens is {max_new_tokens}, but the model reads at most "
            f"{tokenizer.model_max_length} tokens of prompt and answer: lower --max-new-tokens"
        )
    return min(room, max_prompt_length or room)


def _plain(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    return tokenizer(list(texts), add_special_tokens=False)["input_ids"]


def _beginning(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """Return the special tokens that the tokenizer puts in front of a text."""
    text, (plain,) = tokenizer("a")["input_ids"], _plain(tokenizer, ["a"])
    starts = range(len(text) - len(plain) + 1)
    return text[: next(i for i in starts if text[i : i + len(plain)] == plain)]


def _anchor(tokenizer: PreTrainedTokenizerBase) -> str:
    """Return a short text that comes back unchanged when its tokens are decoded."""
    for text, ids in zip(ANCHORS, _plain(tokenizer, ANCHORS), strict=True):
        if tokenizer.decode(ids, skip_special_tokens=True) == text:
            return text
    return ""
