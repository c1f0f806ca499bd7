"""The columns of other makers' data sets, and how each maps to our records: the table `SHAPES`.

Texts may be conversations everywhere (see `conversations`). To add a shape, write a function that
maps one row to records and raises DataError with a short reason, and list it in the table.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NamedTuple

from rlhf_helpers.jsonl import DataError, Record, is_blank
from rlhf_helpers.schemas import check_ranking, ranking_to_pairs
from rlhf_helpers.sources.conversations import (
    Turn,
    as_rows,
    read_turns,
    shared_prompt,
    split_pair,
    write_answer,
    write_prompt,
)

HELPSTEER = ("prompt", "response", "helpfulness")  # one answer a row


class Shape(NamedTuple):
    """The columns by which a row is recognised, and the function that maps it to our records."""

    name: str
    columns: tuple[str, ...]
    convert: Callable[[Record], list[Record]]  # raises DataError with the reason
    optional: tuple[str, ...] = ()  # used where they are there


def find_shape(columns: Iterable[str], kind: str) -> Shape | None:
    """Return the first shape of this kind whose columns are all among `columns`."""
    found = set(columns)
    return next((shape for shape in SHAPES[kind] if found.issuperset(shape.columns)), None)


# ---- prompts and answers -------------------------------------------------------------------


def _prompt(value: Any) -> str:
    turns = read_turns(value)
    return _filled(value if turns is None else write_prompt(turns), "prompt")


def _answer(value: Any) -> str:
    turns = read_turns(value)
    return _filled(value if turns is None else write_answer(turns), "answer")


def _filled(text: str, name: str) -> str:
    if is_blank(text):
        raise DataError(f"an empty {name}")
    return text


def _question(question: Any, system: Any) -> str:
    """Return the prompt by the template `System: … Question: … Answer:`."""
    if not isinstance(question, str) or is_blank(question):
        raise DataError("an empty question")
    given = isinstance(system, str) and system.strip()
    beginning = f"System: {given}\n\n" if given else ""
    return f"{beginning}Question: {question.strip()}\n\nAnswer:"


def _alpaca_question(row: Record) -> str:
    """Alpaca-OrcaChat: with an `input`, the `instruction` is a system prompt, else the question."""
    if row.get("input"):
        return _question(row["input"], row["instruction"])
    return _question(row["instruction"], None)


def _prompt_turns(row: Record) -> list[Record]:
    """The prompt is everything up to the last turn of the user."""
    turns = _turns(row)
    while turns and turns[-1].role == "assistant":
        turns.pop()
    return [{"input_text": write_prompt(turns)}]


def _turns(row: Record) -> list[Turn]:
    turns = read_turns(row["messages"] if "messages" in row else row["conversations"])
    if turns is None:
        raise DataError("messages that are a text")
    return turns


# ---- demonstrations and thumbs -------------------------------------------------------------


def _ours(row: Record) -> list[Record]:
    return [row]


def _open_orca(row: Record) -> list[Record]:
    prompt = _question(row["question"], row.get("system_prompt"))
    return [{"input_text": prompt, "output_text": _answer(row["response"])}]


def _alpaca(row: Record) -> list[Record]:
    return [{"input_text": _alpaca_question(row), "output_text": _answer(row["output"])}]


def _completion(row: Record) -> list[Record]:
    answer = row["completion"] if "completion" in row else row["response"]
    return [{"input_text": _prompt(row["prompt"]), "output_text": _answer(answer)}]


def _messages(row: Record) -> list[Record]:
    """The last turn is the answer."""
    turns = _turns(row)
    answer = _answer(write_answer(turns[-1:]))
    return [{"input_text": write_prompt(turns[:-1]), "output_text": answer}]


def _thumb(row: Record) -> list[Record]:
    label = row["label"]
    if label not in (0, 1) or not isinstance(label, int):
        raise DataError("a label that is not true or false")
    return [record | {"label": bool(label)} for record in _completion(row)]


def _thumb_up(row: Record) -> list[Record]:
    """A demonstration, if the answer is marked good."""
    if not _thumb(row)[0]["label"]:
        raise DataError("an answer marked bad")
    return _completion(row)


# ---- preferences ---------------------------------------------------------------------------


def _our_preference(row: Record) -> list[Record]:
    answers = [row["candidate_0"], row["candidate_1"]]
    if all(isinstance(answer, str) for answer in answers):
        _compare(*answers)
    return [row]


def _compare(first: str, second: str) -> None:
    """Raise DataError, with its reason in short, for answers that cannot be compared."""
    if is_blank(first) or is_blank(second):
        raise DataError("an empty answer")
    if first.strip() == second.strip():
        raise DataError("equal answers")


def _our_ranking(row: Record) -> list[Record]:
    check_ranking(row)
    if pairs := ranking_to_pairs(row):  # type: ignore[arg-type]
        return pairs  # type: ignore[return-value]
    raise DataError("a ranking that prefers nothing")


def _pair(prompt: str, better: str, worse: str) -> list[Record]:
    """Return a preference; the better answer's length decides its place, so that both occur."""
    _compare(better, worse)
    choice = len(better) % 2
    first, second = (better, worse) if choice == 0 else (worse, better)
    return [{"input_text": prompt, "candidate_0": first, "candidate_1": second, "choice": choice}]


def _chosen_rejected(row: Record) -> list[Record]:
    """Two whole conversations, or the two ends of the conversation in `prompt`, if there is one."""
    chosen, rejected = read_turns(row["chosen"]), read_turns(row["rejected"])
    if chosen is None and rejected is None:
        return _texts(row) if "prompt" in row else _dialogues(row["chosen"], row["rejected"])
    if chosen is None or rejected is None:
        raise DataError("messages compared with a text")
    if chosen == rejected:
        raise DataError("equal answers")
    if chosen[0].role == rejected[0].role == "assistant":
        prompt = _prompt(row.get("prompt"))
        return _pair(prompt, write_answer(chosen), write_answer(rejected))
    shared = split_pair(chosen, rejected)
    answers = write_answer(chosen[shared:]), write_answer(rejected[shared:])
    return _pair(write_prompt(chosen[:shared]), *answers)


def _texts(row: Record) -> list[Record]:
    """A prompt and two answers, which may repeat the prompt."""
    prompt = _prompt(row["prompt"])
    answers = [row["chosen"], row["rejected"]]
    if all(answer.startswith(prompt) for answer in answers):
        answers = [answer[len(prompt) :] for answer in answers]
    return _pair(prompt, *answers)


def _dialogues(chosen: str, rejected: str) -> list[Record]:
    """hh-rlhf: two whole dialogues; the prompt is what they share, up to `Assistant:`.

    A few pairs share no turn of the assistant. Their prompt ends at the last `Human:` that they
    share, so that they are not lost.
    """
    if chosen.strip() == rejected.strip():
        raise DataError("equal answers")
    prompt = shared_prompt(chosen, rejected)
    if not prompt.strip():
        raise DataError("no common beginning")
    better, worse = (text[len(prompt) :].strip() for text in (chosen, rejected))
    return _pair(prompt, better, worse)


def _question_pair(row: Record) -> list[Record]:
    prompt = _question(row["question"], row.get("system"))
    return _pair(prompt, _answer(row["chosen"]), _answer(row["rejected"]))


def _ultra_feedback(row: Record) -> list[Record]:
    completions = as_rows(row["completions"])
    answers = [(answer.get("response"), answer.get("overall_score")) for answer in completions]
    return _scored(_prompt(row["instruction"]), answers)


def _help_steer(row: Record) -> list[Record]:
    """Answers to one prompt, joined from rows that follow each other (see `sources`)."""
    answers = [(answer["response"], answer["helpfulness"]) for answer in row["answers"]]
    return _scored(_prompt(row["prompt"]), answers)


def _scored(prompt: str, answers: Sequence[tuple[Any, Any]]) -> list[Record]:
    """Return all pairs of answers with different scores; those without a score are left out."""
    known = [(_answer(answer), score) for answer, score in answers if _is_number(score)]
    if len(known) < 2:
        raise DataError("fewer than two answers with a score")
    scores = sorted({score for _, score in known}, reverse=True)
    ranking = [[i for i, (_, own) in enumerate(known) if own == score] for score in scores]
    candidates = [answer for answer, _ in known]
    return _our_ranking({"input_text": prompt, "candidates": candidates, "ranking": ranking})


def _is_number(value: Any) -> bool:
    return type(value) in (int, float) and math.isfinite(value)


def _strength(row: Record) -> list[Record]:
    """HelpSteer's preferences: negative where the first answer is better, 0 for a tie."""
    second = "preference_strength" in row
    strength = row["preference_strength" if second else "overall_preference"]
    if not _is_number(strength) or not strength:
        raise DataError("a tie, or no preference")
    names = ("response_1", "response_2") if second else ("response1", "response2")
    answers = [_answer(row[name]) for name in names]
    better, worse = reversed(answers) if strength > 0 else answers
    return _pair(_prompt(row["prompt" if second else "context"]), better, worse)


SHAPES = {
    "demonstrations": (
        Shape("ours", ("input_text", "output_text"), _ours),
        Shape("OpenOrca", ("question", "response"), _open_orca, ("system_prompt",)),
        Shape("Alpaca", ("instruction", "output"), _alpaca, ("input",)),
        Shape("thumbs", ("prompt", "completion", "label"), _thumb_up),
        Shape("TRL", ("prompt", "completion"), _completion),
        Shape("HelpSteer", ("prompt", "response"), _completion),
        Shape("chats", ("messages",), _messages),
        Shape("ShareGPT", ("conversations",), _messages),
    ),
    "prompts": (
        Shape("ours", ("input_text",), _ours),
        Shape(
            "OpenOrca",
            ("question",),
            lambda row: [{"input_text": _question(row["question"], row.get("system_prompt"))}],
            ("system_prompt",),
        ),
        Shape(
            "Alpaca",
            ("instruction",),
            lambda row: [{"input_text": _alpaca_question(row)}],
            ("input",),
        ),
        Shape("TRL", ("prompt",), lambda row: [{"input_text": _prompt(row["prompt"])}]),
        Shape("chats", ("messages",), _prompt_turns),
        Shape("ShareGPT", ("conversations",), _prompt_turns),
    ),
    "preferences": (
        Shape("ours", ("input_text", "candidate_0", "candidate_1", "choice"), _our_preference),
        Shape("our rankings", ("input_text", "candidates", "ranking"), _our_ranking),
        Shape("Orca pairs", ("question", "chosen", "rejected"), _question_pair, ("system",)),
        Shape("TRL, UltraFeedback", ("prompt", "chosen", "rejected"), _chosen_rejected),
        Shape("hh-rlhf", ("chosen", "rejected"), _chosen_rejected),
        Shape("UltraFeedback", ("instruction", "completions"), _ultra_feedback),
        Shape("HelpSteer", HELPSTEER, _help_steer),
        Shape(
            "HelpSteer2", ("prompt", "response_1", "response_2", "preference_strength"), _strength
        ),
        Shape("HelpSteer3", ("context", "response1", "response2", "overall_preference"), _strength),
    ),
    "thumbs": (
        Shape("ours", ("input_text", "output_text", "label"), _ours),
        Shape("TRL", ("prompt", "completion", "label"), _thumb),
    ),
}
