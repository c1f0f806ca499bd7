"""How prompts and answers become tokens, and how sampled tokens become texts again.

Tokens are what the text says, for every tokenizer. The prompt's tokens and then the answer's are
those of the whole text, with one BOS, no EOS inside, and no blank lost or put in between. A decoded
answer follows its prompt as it was written. So SFT, DPO, reward model and PPO read the same text.
The prompts of an instruct model go through its chat template (see `chat`), and nothing else is
added: the tokens are those that a deployed model reads.
"""

from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

from rlhf_helpers import chat
from rlhf_helpers.schemas import format_response, join
from rlhf_helpers.sources.conversations import Turn, read_dialogue, write_prompt

ANCHORS = ("a", "the", "0", ".")  # texts that a tokenizer may put in front of an answer's tokens


def prompt_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], room: int | None = None
) -> list[list[int]]:
    """Return the tokens of each prompt: BOS, if the tokenizer has one, and the text.

    A text that begins with BOS itself gets no second one. A chat template writes its own BOS. With
    `room`, a longer prompt loses its beginning.
    """
    if not chat.is_on(tokenizer):
        rows = _with_beginning(tokenizer, prompts)
        return rows if room is None else [cut_tokens(tokenizer, row, room) for row in rows]
    if room is not None:
        prompts = [cut_prompt(prompt, tokenizer, room) for prompt in prompts]
    texts = [chat.render_prompt(tokenizer, prompt) for prompt in prompts]
    rendered = [text == prompt for text, prompt in zip(texts, prompts, strict=True)]
    rows = _plain(tokenizer, texts)
    begun = _with_beginning(tokenizer, texts)  # a prompt that others have rendered may lack BOS
    return [own if done else row for row, own, done in zip(rows, begun, rendered, strict=True)]


def answer_tokens(
    tokenizer: PreTrainedTokenizerBase, prompt: str, answers: Sequence[str]
) -> list[list[int]]:
    """Return the tokens of each answer where it follows the prompt, without `answer_end`.

    Encoded alone, an answer would get a spurious blank from SentencePiece's tokenizers.
    """
    if chat.is_on(tokenizer):
        answers = [chat.render_answer(tokenizer, prompt, answer) for answer in answers]
        prompt = chat.render_prompt(tokenizer, prompt)
    else:
        answers = [join(prompt, answer)[len(prompt) :] for answer in answers]
    blank = all(answer.startswith(" ") for answer in answers)
    others = (_anchor(tokenizer), "\n") if blank else ("\n", _anchor(tokenizer))
    for before in (prompt, *others):  # another text where tokens reach over the prompt's border
        head, *wholes = _plain(tokenizer, [before, *(before + answer for answer in answers)])
        if all(whole[: len(head)] == head for whole in wholes):
            return [whole[len(head) :] for whole in wholes]
    return _plain(tokenizer, answers)


def answer_end(tokenizer: PreTrainedTokenizerBase) -> int:
    """Return the token that ends an answer: the turn's end of the chat template, else EOS."""
    return chat.turn_end(tokenizer)[1] if chat.is_on(tokenizer) else tokenizer.eos_token_id


def answer_texts(tokenizer: PreTrainedTokenizerBase, rows: Iterable[Sequence[int]]) -> list[str]:
    """Return the text of each answer as it follows its prompt; special tokens are left out.

    Decoded alone, an answer would lose the blank in front with SentencePiece's tokenizers. What an
    instruct model answers is written behind a plain prompt: with one blank in front.
    """
    anchor = _anchor(tokenizer)
    (head,) = _plain(tokenizer, [anchor])
    texts = tokenizer.batch_decode(
        [[*head, *row] for row in rows],
        skip_special_tokens=True,
        clean_up_tokenization_spaces=False,
    )
    texts = [text[len(anchor) :] for text in texts]
    return [format_response(text) for text in texts] if chat.is_on(tokenizer) else texts


def whole_tokens(
    tokenizer: PreTrainedTokenizerBase, prompts: Sequence[str], responses: Sequence[str]
) -> list[list[int]]:
    """Return the tokens of each prompt with its response, as a reward model reads them.

    They are those of one text, or of the tokenizer's own chat template. What is longer than
    `tokenizer.model_max_length` loses its beginning.
    """
    pairs = list(zip(prompts, responses, strict=True))
    if not chat.is_on(tokenizer):
        return tokenizer([join(*pair) for pair in pairs], truncation=True)["input_ids"]
    rows = _plain(tokenizer, [chat.render_whole(tokenizer, *pair) for pair in pairs])
    longest = tokenizer.model_max_length
    for i, (prompt, response) in enumerate(pairs):
        if len(rows[i]) > longest:
            (head,) = prompt_tokens(tokenizer, [prompt])
            cut = cut_prompt(prompt, tokenizer, len(head) - (len(rows[i]) - longest))
            (row,) = _plain(tokenizer, [chat.render_whole(tokenizer, cut, response)])
            rows[i] = row[-longest:]
    return rows


def cut_tokens(tokenizer: PreTrainedTokenizerBase, ids: list[int], room: int) -> list[int]:
    """Return BOS and the last tokens of a prompt, at most `room`: its end says what to do."""
    if len(ids) <= room:
        return ids
    before = _beginning(tokenizer)[:room]
    return before + ids[len(ids) - (room - len(before)) :]


def cut_prompt(prompt: str, tokenizer: PreTrainedTokenizerBase, max_length: int) -> str:
    """Return the end of a prompt's text that has at most `max_length` tokens, BOS included.

    A conversation loses its oldest turns, then the beginning of the last one, never its template.
    Raises ValueError where the template alone is longer.
    """
    if _fits(tokenizer, prompt, max_length):
        return prompt
    if not chat.is_on(tokenizer) or chat.is_rendered(tokenizer, prompt):
        return _cut_text(tokenizer, prompt, max_length) or ""
    turns = read_dialogue(prompt) or [Turn("user", prompt)]
    system = [turn for turn in turns[:1] if turn.role == "system"]
    turns = turns[len(system) :]
    while len(turns) > 1:
        turns = turns[1:]
        if turns[0].role == "user" and _fits(tokenizer, write_prompt(system + turns), max_length):
            return write_prompt(system + turns)
    cut = _cut_text(tokenizer, turns[-1].content, max_length, system)
    if cut is None:
        raise ValueError(
            f"{tokenizer.name_or_path}: its chat template and system prompt have more than "
            f"{max_length} tokens without any prompt: shorten the system prompt, or raise the "
            "prompt's length (--max-prompt-length, or --max-length)"
        )
    return cut


def _cut_text(
    tokenizer: PreTrainedTokenizerBase, text: str, max_length: int, system: Sequence[Turn] = ()
) -> str | None:
    """The prompt with the longest end of `text` that fits, or None if even an empty one does not.

    The end of a text alone may have other tokens than within the whole.
    """
    encoded = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    starts = [start for start, _ in encoded["offset_mapping"]]
    for start in [*starts[max(0, len(starts) - max_length) :], len(text)]:
        prompt = write_prompt([*system, Turn("user", text[start:])]) if system else text[start:]
        if _fits(tokenizer, prompt, max_length):
            return prompt
    return None


def _fits(tokenizer: PreTrainedTokenizerBase, prompt: str, max_length: int) -> bool:
    return len(prompt_tokens(tokenizer, [prompt])[0]) <= max_length


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


def _with_beginning(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """The tokens of texts behind the special tokens that the tokenizer puts in front of one."""
    before = _beginning(tokenizer)
    rows = _plain(tokenizer, texts)
    return [row if row[: len(before)] == before else before + row for row in rows]


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
