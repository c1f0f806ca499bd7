"""Conversations as one prompt and one answer, both texts.

A conversation is a list of messages (`role` and `content`, or ShareGPT's `from` and `value`), that
list as JSON in a text, or a dialogue as hh-rlhf writes it (`\\n\\nHuman: …\\n\\nAssistant: …`). A
prompt that is one question of the user is that text alone; a longer one is written as a dialogue.
"""

import json
import os
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from rlhf_helpers.jsonl import DataError

SYSTEM, HUMAN, ASSISTANT = "\n\nSystem:", "\n\nHuman:", "\n\nAssistant:"
MARKERS = {"system": SYSTEM, "user": HUMAN, "assistant": ASSISTANT}
ROLES = {
    **{role: role for role in MARKERS},
    **{"developer": "system", "human": "user", "prompter": "user"},
    **{"gpt": "assistant", "model": "assistant", "bot": "assistant"},
}


class Turn(NamedTuple):
    """One message; `role` is system, user or assistant."""

    role: str
    content: str


def read_turns(value: Any) -> list[Turn] | None:
    """Return the turns of a list of messages, or None if the value is a plain text.

    Raises DataError, with the reason in short, if it is neither.
    """
    if isinstance(value, str):
        value = _decoded(value)
        if isinstance(value, str):
            return None
    return [_turn(message) for message in as_rows(value)]


def as_rows(value: Any) -> list[dict[str, Any]]:
    """Return a list of objects, also where `datasets` has turned it into one object of columns."""
    if value is None:
        raise DataError("a missing text")
    if isinstance(value, dict) and all(isinstance(column, list) for column in value.values()):
        columns = zip(*value.values(), strict=False)
        value = [dict(zip(value, row, strict=True)) for row in columns]
    if not isinstance(value, list) or not value or not all(isinstance(v, dict) for v in value):
        raise DataError("neither a text nor messages")
    return value


def _decoded(text: str) -> Any:
    """Return the messages that a text holds as JSON, or the text if it holds none."""
    if text.lstrip()[:1] == "[":
        try:
            value = json.loads(text)
        except (ValueError, RecursionError):
            return text
        if value and all(isinstance(m, dict) and ("role" in m or "from" in m) for m in value):
            return value
    return text


def _turn(message: dict[str, Any]) -> Turn:
    role = message.get("role") or message.get("from")
    content = message.get("content") if "content" in message else message.get("value")
    if isinstance(content, list):  # parts, of which only texts can be read
        content = "".join(part["text"] if _is_text(part) else "\0" for part in content)
        if "\0" in content:
            raise DataError("a message with more than text")
    if not isinstance(content, str):
        raise DataError("a message without text")
    if role not in ROLES:
        raise DataError("a message whose role is not system, user or assistant")
    return Turn(ROLES[role], content)


def _is_text(part: Any) -> bool:
    return isinstance(part, dict) and part.get("type") == "text" and isinstance(part["text"], str)


def write_prompt(turns: Sequence[Turn]) -> str:
    """Return the text of a prompt; raises DataError unless its last turn is the user's."""
    if not turns or turns[-1].role != "user":
        raise DataError("a prompt that does not end with the user's turn")
    if len(turns) == 1:
        return turns[0].content
    return _dialogue(turns) + ASSISTANT


def read_dialogue(text: str) -> list[Turn] | None:
    """Return the turns of a prompt that `write_prompt` has written as a dialogue, else None.

    A text in front of the dialogue, such as an instruction, joins the first turn of the user.
    """
    if not text.rstrip().endswith(ASSISTANT) or HUMAN not in text:
        return None
    markers = {marker: role for role, marker in MARKERS.items()}
    beginning, *parts = re.split(f"({'|'.join(map(re.escape, markers))})", text.rstrip())
    pairs = list(zip(parts[:-2:2], parts[1:-2:2], strict=True))
    turns = [Turn(markers[marker], content.removeprefix(" ")) for marker, content in pairs]
    if beginning.strip():
        first = next(i for i, turn in enumerate(turns) if turn.role == "user")
        turns[first] = Turn("user", f"{beginning.strip()} {turns[first].content}")
    return turns


def write_answer(turns: Sequence[Turn]) -> str:
    """Return the text of an answer, with what follows it; it must begin with the assistant."""
    if not turns or turns[0].role != "assistant":
        raise DataError("an answer that does not begin with the assistant's turn")
    return turns[0].content + _dialogue(turns[1:])


def _dialogue(turns: Sequence[Turn]) -> str:
    return "".join(f"{MARKERS[turn.role]} {turn.content}" for turn in turns)


def split_pair(chosen: Sequence[Turn], rejected: Sequence[Turn]) -> int:
    """Return how many turns of two conversations are the prompt that they share.

    Both go on with a turn of the assistant. Raises DataError if they share no such beginning.
    """
    pairs = list(zip(chosen, rejected, strict=False))
    shared = next((i for i, (one, other) in enumerate(pairs) if one != other), len(pairs))
    for length in range(min(shared, len(pairs) - 1), 0, -1):
        roles = chosen[length - 1].role, chosen[length].role, rejected[length].role
        if roles == ("user", "assistant", "assistant"):
            return length
    raise DataError("no common beginning")


def shared_prompt(chosen: str, rejected: str) -> str:
    """Return what two dialogues share, up to the last `Assistant:`, else the last `Human:`."""
    common = os.path.commonprefix([chosen, rejected])  # noqa: RUF071 - characters are meant
    for marker in (ASSISTANT, HUMAN):
        if marker in common:
            return common[: common.rindex(marker) + len(marker)]
    return ""
