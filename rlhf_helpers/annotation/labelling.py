"""Blind A/B judging in the notebook, by mouse or keyboard.

Plain ipywidgets, which JupyterLab, Colab and VS Code all show without an extension of their own.
They know no key events, so keys go to a text field: each of these front ends leaves alone what is
typed there, while elsewhere a single key may be its own shortcut (in JupyterLab, 1 is a heading).
"""

import html
import random
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from rlhf_helpers.annotation.judgements import (
    Judgement,
    append_judgement,
    check_judgement,
    pair_of,
    read_judgements,
    resume_judgements,
)
from rlhf_helpers.extras import needs_extra
from rlhf_helpers.runs import is_headless
from rlhf_helpers.schemas import DataError, StrPath, write_jsonl

with needs_extra("course"):
    import ipywidgets as widgets

# action -> key, and what its button says
ACTIONS = {
    "first": ("1", "Answer 1 is better"),
    "second": ("2", "Answer 2 is better"),
    "tie": ("t", "Tie"),
    "skip": ("s", "Skip"),
    "undo": ("u", "Undo"),
}
TOO_SOON = 0.3  # seconds after another one, an event is a double click or a key held down


class PreferenceLabeler(widgets.VBox):
    """A widget that shows pairs of answers one by one and appends each judgement to a file at once.

    Which answer is shown first is drawn at random from `seed`, for each annotator and pair. Pairs
    that the annotator has already judged in this file are not shown again. Where nobody can answer
    (`runs.is_headless`), the judgements in the file `replay`, all by one annotator, are repeated
    under that annotator's name, so that your own are not touched.

    Raises DataError for a pair that cannot be judged, for a file that cannot be written, and for a
    pair that `replay` does not judge.
    """

    def __init__(
        self,
        pairs: Sequence[Mapping[str, Any]],
        path: StrPath,
        annotator: str = "anonymous",
        seed: int = 0,
        replay: StrPath | None = None,
    ) -> None:
        super().__init__()
        replayed = read_judgements(replay) if replay and is_headless() else []
        self.path = path
        self.annotator = replayed[0]["annotator"] if replayed else annotator
        unjudged = [self._unjudged(number, pair, seed) for number, pair in enumerate(pairs)]
        self._pairs = {pair_of(judgement): judgement for judgement in unjudged}
        self._standing = {
            pair_of(judgement): judgement
            for judgement in resume_judgements(path)
            if judgement["annotator"] == self.annotator and pair_of(judgement) in self._pairs
        }
        self._last_event = -TOO_SOON
        self._build()
        self._show()
        if replayed:
            self._replay(replayed, replay)

    @property
    def judgements(self) -> list[Judgement]:
        """This annotator's judgements of these pairs, ties and skips included."""
        return list(self._standing.values())

    def judge(self, action: str) -> None:
        """Act as if a button was pressed: "first", "second", "tie", "skip" or "undo"."""
        if action not in ACTIONS:
            raise ValueError(f"no action {action!r}: choose one of {', '.join(ACTIONS)}.")
        if action == "undo":
            self._undo()
        elif self._current is not None:
            places = {"first": 0, "second": 1}
            judgement = self._current.copy()
            if action in places:
                judgement["choice"] = self._current["shown_first"] ^ places[action]
            elif action == "skip":
                judgement["action"] = "skip"
            append_judgement(self.path, judgement)  # first to the disk, then on
            self._standing[pair_of(judgement)] = judgement
            self._show()

    def export(self, path: StrPath) -> Counter[str]:
        """Write `judgements` as preferences; returns how many were "exported", "tie" and "skip".

        Ties and skips are left out. Raises ValueError if no pair is decided.
        """
        counts: Counter[str] = Counter(exported=0, tie=0, skip=0)
        preferences = []
        for judgement in self.judgements:
            if judgement["choice"] is None:
                counts[judgement.get("action", "tie")] += 1
            else:
                counts["exported"] += 1
                fields = ("input_text", "candidate_0", "candidate_1", "choice", "annotator")
                preferences.append({field: judgement[field] for field in fields})  # type: ignore[literal-required]
        if not preferences:
            raise ValueError(f"Nothing to export to {path}: no pair is decided yet ({counts}).")
        write_jsonl(path, preferences)
        return counts

    def _unjudged(self, number: int, pair: Mapping[str, Any], seed: int) -> Judgement:
        """The pair as a judgement without a choice; labels that it came with are dropped."""
        input_text, candidate_0, candidate_1 = pair_of(pair)
        lot = random.Random(f"{seed}/{self.annotator}/{pair_of(pair)}")
        judgement = Judgement(
            input_text=input_text,
            candidate_0=candidate_0,
            candidate_1=candidate_1,
            shown_first=lot.randrange(2),
            annotator=self.annotator,
            choice=None,
        )
        try:
            check_judgement(dict(judgement))
        except DataError as error:
            raise DataError(f"pairs[{number}]: {error}") from None
        return judgement

    def _undo(self) -> None:
        """Retract the last judgement in force, even one of an earlier session."""
        if not self._standing:
            self._say("Nothing to undo.")
            return
        pair = next(reversed(self._standing))
        append_judgement(self.path, {**self._pairs[pair], "action": "undo"})
        del self._standing[pair]
        self._show()

    def _replay(self, replayed: list[Judgement], replay: StrPath | None) -> None:
        """Judge the remaining pairs as the file does."""
        said = {pair_of(judgement): judgement for judgement in replayed}
        while self._current is not None:
            judgement = said.get(pair_of(self._current))
            if judgement is None:
                raise DataError(
                    f"{replay}: no judgement of this pair: {self._current}. Show only pairs that "
                    "the file judges."
                )
            choice = judgement["choice"]
            if choice is None:
                self.judge(judgement.get("action", "tie"))
            else:
                self.judge("first" if choice == self._current["shown_first"] else "second")

    # ---- what is seen --------------------------------------------------------------------------

    def _build(self) -> None:
        """Build the widget from top to bottom: progress, prompt, two cards, other buttons, keys."""
        self._progress = widgets.IntProgress(max=len(self._pairs), layout={"width": "100%"})
        self._count, self._prompt, self._message = widgets.HTML(), widgets.HTML(), widgets.HTML()
        self._answers = (widgets.HTML(), widgets.HTML())
        self._buttons = {}
        for action, (key, text) in ACTIONS.items():
            button = widgets.Button(description=f"{text} ({key})", layout={"width": "auto"})
            button.on_click(lambda _, action=action: self._hear(action))
            self._buttons[action] = button
        self._typed = widgets.Text(
            placeholder="click here, then press 1, 2, t, s or u", layout={"width": "20em"}
        )
        self._typed.observe(self._hear_key, "value")
        cards = [
            widgets.VBox([answer, button], layout=CARD)
            for answer, button in zip(self._answers, self._buttons.values(), strict=False)
        ]
        others = [self._buttons[action] for action in ("tie", "skip", "undo")]
        self.children = [
            self._count,
            self._progress,
            self._prompt,
            widgets.HBox(cards, layout=WRAPPED),
            widgets.HBox([*others, self._typed], layout=WRAPPED),
            self._message,
        ]
        self.layout = {"max_width": "60em"}

    def _show(self) -> None:
        """Show the first pair that is not judged yet, and the progress."""
        left = [pair for pair in self._pairs if pair not in self._standing]
        self._current = self._pairs[left[0]] if left else None
        done = len(self._standing)
        self._progress.value = done
        self._count.value = _text(f"{done} of {len(self._pairs)} judged by {self.annotator}")
        self._say("" if left else "All pairs are judged. Thank you!")
        for action, button in self._buttons.items():
            button.disabled = not (self._standing if action == "undo" else left)
        texts = ["", "", ""]
        if self._current is not None:
            answers = [self._current["candidate_0"], self._current["candidate_1"]]
            first = self._current["shown_first"]
            texts = [self._current["input_text"], answers[first], answers[1 - first]]
        for part, text in zip((self._prompt, *self._answers), texts, strict=True):
            part.value = _text(text)

    def _say(self, message: object) -> None:
        self._message.value = _text(str(message))

    def _hear_key(self, change: dict) -> None:
        """Act on a typed key, which arrives as a new value of the field, and clear the field."""
        if typed := change["new"]:
            self._typed.value = ""
            keys = {key: action for action, (key, _) in ACTIONS.items()}
            self._hear(keys.get(typed[-1].lower()))

    def _hear(self, action: str | None) -> None:
        """Act on an event of the front end, where an exception would not be seen."""
        now = time.monotonic()
        too_soon, self._last_event = now - self._last_event < TOO_SOON, now
        if too_soon:
            self._say("That was too quick after the last one, and is not counted.")
        elif action is None:
            self._say("Keys: 1, 2, t (tie), s (skip), u (undo).")
        else:
            try:
                self.judge(action)
            except DataError as error:
                self._say(error)
        # A key that is pressed while a button has the focus would be the front end's shortcut.
        self._typed.focus()


# Colours are the front end's own, so that a dark theme stays dark.
CARD = {"flex": "1 1 18em", "border": "1px solid rgba(128, 128, 128, 0.6)", "padding": "8px"}
CARD |= {"margin": "4px", "justify_content": "space-between"}
WRAPPED = {"flex_flow": "row wrap"}


def _text(text: str) -> str:
    """Any text as HTML, with its line breaks and without any effect of its own."""
    style = "white-space: pre-wrap; overflow-wrap: anywhere; line-height: 1.5"
    return f'<div style="{style}">{html.escape(text)}</div>'
