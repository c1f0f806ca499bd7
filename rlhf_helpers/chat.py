"""Chat templates: how an instruct model reads a conversation, and where its answers end.

A tokenizer that has a chat template uses it for every prompt, unless its folder or the setting
`chat` says otherwise. That choice and the system prompt are kept in the tokenizer's config, so that
a model is sampled, scored and trained further as it was trained.
"""

from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from rlhf_helpers.sources.conversations import Turn, read_dialogue

KEY = "rlhf_chat"  # in tokenizer_config.json
PROBE = "probe"  # a content that shows what a template writes around it

Messages = list[dict[str, str]]


def set_chat(
    tokenizer: PreTrainedTokenizerBase, chat: str = "auto", system_prompt: str | None = None
) -> PreTrainedTokenizerBase:
    """Choose whether a tokenizer uses its chat template, and its system prompt; returns it.

    `auto` and None leave what its folder says: by default on where there is a template, without a
    system prompt. Raises ValueError for `on` or a system prompt without a template.
    """
    chosen = dict(tokenizer.init_kwargs.get(KEY) or {})
    if chat == "on" and not tokenizer.chat_template:
        raise ValueError(
            f"{tokenizer.name_or_path}: its tokenizer has no chat template, so --chat cannot be "
            "on. Leave --chat out, or write a chat_template.jinja into the model's folder."
        )
    if chat != "auto":
        chosen["chat"] = chat
    if system_prompt is not None:
        chosen["system_prompt"] = system_prompt
    if chosen:
        tokenizer.init_kwargs[KEY] = chosen
    if system_prompt and not is_on(tokenizer):
        raise ValueError(
            f"{tokenizer.name_or_path}: a system prompt needs the chat format, which is off "
            f"({_reason(tokenizer)}). Use --instruction, which stands in front of every prompt."
        )
    return tokenizer


def is_on(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether prompts go through the tokenizer's chat template."""
    chosen = tokenizer.init_kwargs.get(KEY) or {}
    return bool(tokenizer.chat_template) and chosen.get("chat") != "off"


def system_prompt_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The system prompt that stands in front of every conversation; empty if there is none."""
    return (tokenizer.init_kwargs.get(KEY) or {}).get("system_prompt") or ""


def describe(tokenizer: PreTrainedTokenizerBase) -> str:
    """One line that says whether the chat format is on, and why."""
    if not is_on(tokenizer):
        return f"chat format: off ({_reason(tokenizer)})"
    system = system_prompt_of(tokenizer)
    told = f", system prompt {system!r}" if system else ", no system prompt"
    return f"chat format: on (the tokenizer's chat template{told})"


def _reason(tokenizer: PreTrainedTokenizerBase) -> str:
    return "as chosen" if tokenizer.chat_template else "the tokenizer has no chat template"


def messages_of(tokenizer: PreTrainedTokenizerBase, prompt: str) -> Messages:
    """The messages of a prompt: those of a dialogue, else the whole text as the user's turn."""
    turns = read_dialogue(prompt) or [Turn("user", prompt)]
    system = system_prompt_of(tokenizer)
    if system and turns[0].role != "system":
        turns = [Turn("system", system), *turns]
    return [turn._asdict() for turn in turns]


def is_rendered(tokenizer: PreTrainedTokenizerBase, prompt: str) -> bool:
    """Whether a prompt is written in the tokenizer's chat format already, up to the answer."""
    beginning = _after_probe(tokenizer, [], add_generation_prompt=True).strip()
    return bool(beginning) and prompt.rstrip().endswith(beginning)


def render_prompt(tokenizer: PreTrainedTokenizerBase, prompt: str) -> str:
    """The text that the model answers to; a prompt that `is_rendered` stays as it is."""
    if is_rendered(tokenizer, prompt):
        return prompt
    return _render(tokenizer, messages_of(tokenizer, prompt), add_generation_prompt=True)


def render_answer(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> str:
    """The text that follows `render_prompt`, up to the token that `turn_end` names.

    It is the answer as the template writes it: some put a blank around it.
    """
    answer, (closing, _) = answer.strip(), turn_end(tokenizer)
    before, whole = render_prompt(tokenizer, prompt), render_whole(tokenizer, prompt, answer)
    place = whole.rfind(answer)
    if not answer or not whole.startswith(before) or place < len(before):
        return answer + closing  # the template has written the answer in another way
    return whole[len(before) : place] + answer + closing


def render_whole(tokenizer: PreTrainedTokenizerBase, prompt: str, answer: str) -> str:
    """The whole conversation with its answer, as a reward model reads it."""
    said = {"role": "assistant", "content": answer.strip()}
    if is_rendered(tokenizer, prompt):
        return prompt + said["content"] + _after_probe(tokenizer, [said | {"content": PROBE}])
    return _render(tokenizer, [*messages_of(tokenizer, prompt), said])


def turn_end(tokenizer: PreTrainedTokenizerBase) -> tuple[str, int]:
    """What the template writes between an answer and the token that ends it, and that token's id.

    It is the first special token after the answer, or EOS where the template writes none.
    """
    tail = _after_probe(tokenizer, [{"role": "assistant", "content": PROBE}])
    special = set(tokenizer.all_special_ids)
    special |= {i for i, token in tokenizer.added_tokens_decoder.items() if token.special}
    ids = tokenizer(tail, add_special_tokens=False)["input_ids"]
    end = next((i for i in ids if i in special), None)
    if end is None:
        return "", tokenizer.eos_token_id
    return tail[: tail.index(tokenizer.convert_ids_to_tokens(end))], end


def _after_probe(tokenizer: PreTrainedTokenizerBase, said: Messages, **options: Any) -> str:
    """What the template writes behind the last message of a conversation."""
    text = _render(tokenizer, [{"role": "user", "content": PROBE}, *said], **options)
    return text[text.rindex(PROBE) + len(PROBE) :]


def _render(tokenizer: PreTrainedTokenizerBase, messages: Messages, **options: Any) -> str:
    """The text of messages; a system prompt that the template has no place for joins the user's.

    Raises ValueError for a conversation that the template refuses.
    """
    has_system = messages[0]["role"] == "system"
    try:
        text = str(tokenizer.apply_chat_template(messages, tokenize=False, **options))
        if not has_system or messages[0]["content"].strip() in text:
            return text
    except TemplateError as error:
        if not has_system:
            raise ValueError(
                f"{tokenizer.name_or_path}: its chat template refuses a conversation of "
                f"{', '.join(m['role'] for m in messages)} ({error}). Mend these messages, or "
                "use --chat off."
            ) from error
    system, user, *rest = messages
    user = user | {"content": f"{system['content']}\n\n{user['content']}"}
    return _render(tokenizer, [user, *rest], **options)
