"""Judging pairs: what the front end sends is on the disk at once, and survives whatever comes."""

import json
import math
import multiprocessing
import os
import random
import signal

import ipywidgets as widgets
import pytest

from rlhf_helpers import schemas
from rlhf_helpers.annotation import judgements, labelling
from rlhf_helpers.annotation.agreement import (
    agreement_between,
    agreement_with_scorer,
    annotator_agreement,
)
from rlhf_helpers.annotation.judgements import (
    append_judgement,
    pair_of,
    read_judgements,
)
from rlhf_helpers.annotation.labelling import PreferenceLabeler
from rlhf_helpers.evaluation import wilson_interval
from rlhf_helpers.little_world import annotators, build
from rlhf_helpers.runs import HEADLESS, data_dir
from rlhf_helpers.schemas import DataError

SHIPPED = data_dir() / "summarize" / "judgements.jsonl"
RARE = 'a\u2028b\u0085c\r\nd <b>&amp;</b> \U0001f600 漢字 \\ "'
JUDGEMENT = {
    "input_text": "a post [summary]: ",
    "candidate_0": "x",
    "candidate_1": "y",
    "shown_first": 1,
    "annotator": "ann",
    "choice": 0,
}


def make_pairs(count):
    """Preferences, whose choice and annotator must not leak into what is judged."""
    return [
        {
            "input_text": f"post {i}",
            "candidate_0": f"bad {i}",
            "candidate_1": f"good {i}",
            "choice": 1,
            "annotator": "somebody else",
        }
        for i in range(count)
    ]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "folder" / "judgements.jsonl"


@pytest.fixture(autouse=True)
def _quick_hands(monkeypatch):
    monkeypatch.setattr(labelling, "TOO_SOON", 0.0)
    monkeypatch.delenv(HEADLESS, raising=False)


def parts(labeler, kind):
    """The widgets of one kind, from top to bottom and from left to right."""
    below = [part for child in getattr(labeler, "children", ()) for part in parts(child, kind)]
    return ([labeler] if isinstance(labeler, kind) else []) + below


def buttons(labeler):
    """The buttons by what they do."""
    return dict(zip(labelling.ACTIONS, parts(labeler, widgets.Button), strict=True))


def click(labeler, action):
    buttons(labeler)[action].click()


def press(labeler, key):
    """Type a key into the text field."""
    (typed,) = parts(labeler, widgets.Text)
    typed.value += key


def seen(labeler):
    """The texts on the screen: prompt, answer 1, answer 2, message, progress."""
    progress, *others = [part.value for part in parts(labeler, widgets.HTML)]
    return [*others, progress]


def side_of(labeler, word):
    """The button of the answer that starts with this word."""
    return "first" if f">{word}" in seen(labeler)[1] else "second"


def lines(path):
    return [json.loads(line) for line in path.read_bytes().splitlines()]


# Judging


KEYS = {"first": "1", "second": "2", "tie": "T", "skip": "s", "undo": "U"}


@pytest.mark.parametrize("act", [click, lambda labeler, name: press(labeler, KEYS[name])])
def test_buttons_and_keys_write_what_was_meant(path, act):
    labeler = PreferenceLabeler(make_pairs(9), path, annotator="robin")
    for number in range(6):
        prompt, *answers, _, progress = seen(labeler)
        assert f"post {number}<" in prompt and f"{number} of 9 judged by robin" in progress
        act(labeler, side_of(labeler, "good" if number % 2 else "bad"))
        record = lines(path)[-1]
        shown = [record[f"candidate_{record['shown_first'] ^ place}"] for place in (0, 1)]
        assert all(text in answer for text, answer in zip(shown, answers, strict=True))
    act(labeler, "tie")
    act(labeler, "skip")
    act(labeler, "undo")
    assert [record["choice"] for record in lines(path)] == [0, 1, 0, 1, 0, 1, None, None, None]
    assert [record.get("action") for record in lines(path)[6:]] == [None, "skip", "undo"]
    assert {record["annotator"] for record in lines(path)} == {"robin"}
    assert "post 7<" in seen(labeler)[0]
    assert labeler.judgements == lines(path)[:7] == read_judgements(path)


def test_a_line_is_on_the_disk_before_the_next_pair_is_shown(path, monkeypatch):
    labeler = PreferenceLabeler(make_pairs(2), path)
    states = []
    monkeypatch.setattr(os, "fsync", lambda _: states.append((lines(path), seen(labeler)[0])))
    click(labeler, "tie")
    ((written, prompt),) = states
    assert len(written) == 1 and "post 0<" in prompt and "post 1<" in seen(labeler)[0]


def test_keys_go_to_an_empty_field_that_has_the_focus_from_the_first_click_on(path, monkeypatch):
    labeler = PreferenceLabeler(make_pairs(3), path)
    (typed,), sent = parts(labeler, widgets.Text), []
    monkeypatch.setattr(typed, "focus", lambda: sent.append("focus"))
    click(labeler, "first")
    press(labeler, "1")
    assert sent == ["focus"] * 2 and typed.value == ""


def test_the_order_is_drawn_by_seed_annotator_and_pair(path):
    def order(pairs=100, **settings):
        path.unlink(missing_ok=True)
        labeler = PreferenceLabeler(make_pairs(pairs), path, **settings)
        for _ in range(pairs):
            labeler.judge("tie")
        return [judgement["shown_first"] for judgement in labeler.judgements]

    assert order() == order() != order(seed=1)
    assert order() != order(annotator="robin")
    assert order(pairs=50) == order()[:50]
    assert 30 <= sum(order()) <= 70


def test_unknown_keys_and_disabled_buttons_do_nothing_but_say_so(path):
    labeler = PreferenceLabeler(make_pairs(1), path)
    press(labeler, "3")
    assert "Keys: 1, 2" in seen(labeler)[3] and path.read_bytes() == b""
    press(labeler, "u")
    assert "Nothing to undo" in seen(labeler)[3]
    assert [buttons(labeler)[name].disabled for name in KEYS] == [False] * 4 + [True]
    press(labeler, "1")
    assert "All pairs are judged" in seen(labeler)[3]
    assert [buttons(labeler)[name].disabled for name in KEYS] == [True] * 4 + [False]
    press(labeler, "2")
    with pytest.raises(ValueError, match="no action '1': choose one of first,"):
        labeler.judge("1")
    assert len(lines(path)) == 1
    press(labeler, "u")
    assert "post 0<" in seen(labeler)[0] and labeler.judgements == []


def test_a_double_click_or_a_key_held_down_counts_once(path, monkeypatch):
    monkeypatch.setattr(labelling, "TOO_SOON", 0.3)
    now = [0.0]
    monkeypatch.setattr(labelling.time, "monotonic", lambda: now[0])
    labeler = PreferenceLabeler(make_pairs(9), path)
    for now[0] in (5.0, 5.2, 5.4, 5.6):
        press(labeler, "1")
    assert len(lines(path)) == 1 and "too quick" in seen(labeler)[3]
    now[0] = 6.0
    click(labeler, "first")
    assert len(lines(path)) == 2


def test_texts_have_no_effect_on_the_page_and_come_back_as_they_were(path):
    pair = {"input_text": RARE, "candidate_0": RARE + "0", "candidate_1": "<script>1</script>"}
    labeler = PreferenceLabeler([pair], path, annotator=RARE)
    assert "<script>" not in "".join(seen(labeler)) and "<b>" not in "".join(seen(labeler))
    click(labeler, "first")
    (judgement,) = read_judgements(path)
    assert {**judgement, **pair, "annotator": RARE} == judgement
    assert PreferenceLabeler([pair], path, annotator=RARE).judgements == [judgement]


def test_pairs_that_cannot_be_judged_are_refused_with_their_number(path):
    same = {"input_text": "p", "candidate_0": "a", "candidate_1": "a "}
    with pytest.raises(DataError, match=r"pairs\[2\]: .* are equal"):
        PreferenceLabeler([*make_pairs(2), same], path)


# Undo, crash, restart, company


def test_undo_goes_back_step_by_step_also_after_a_restart(path):
    labeler = PreferenceLabeler(make_pairs(4), path)
    for action in ("tie", "skip", "first"):
        click(labeler, action)
    click(labeler, "undo")
    again = PreferenceLabeler(make_pairs(4), path)
    assert "post 2<" in seen(again)[0]
    click(again, "undo")
    assert "post 1<" in seen(again)[0]
    click(again, side_of(again, "good"))
    assert [(r["choice"], r.get("action")) for r in read_judgements(path)] == [
        (None, None),
        (1, None),
    ]
    assert len(lines(path)) == 6


def in_processes(*functions):
    """Run functions in processes of their own, at the same time; return how each has ended."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=function) for function in functions]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


def test_a_killed_process_loses_nothing_and_the_next_one_goes_on(path):
    def judge_three_and_die():
        labeler = PreferenceLabeler(make_pairs(5), path)
        for _ in range(3):
            click(labeler, side_of(labeler, "good"))
        os.kill(os.getpid(), signal.SIGKILL)

    assert in_processes(judge_three_and_die) == [-signal.SIGKILL]
    labeler = PreferenceLabeler(make_pairs(5), path)
    assert [judgement["choice"] for judgement in labeler.judgements] == [1, 1, 1]
    assert "post 3<" in seen(labeler)[0]


def test_two_annotators_write_to_one_file_at_the_same_time(path):
    def judge_all(name):
        labeler = PreferenceLabeler(make_pairs(40), path, annotator=name)
        for action in ["undo", *["first"] * 20, "undo", *["second"] * 21]:
            click(labeler, action)

    assert in_processes(lambda: judge_all("ann"), lambda: judge_all("bob")) == [0, 0]
    assert len(lines(path)) == 2 * 42
    for name in ("ann", "bob"):
        labeler = PreferenceLabeler(make_pairs(40), path, annotator=name)
        assert len(labeler.judgements) == 40
        assert {judgement["annotator"] for judgement in labeler.judgements} == {name}
        click(labeler, "undo")
    assert len(read_judgements(path)) == 78


def test_a_half_written_last_line_is_cut_off_wherever_it_ends(path):
    labeler = PreferenceLabeler(make_pairs(3), path, annotator="é")
    click(labeler, "first")
    one = path.read_bytes()
    click(labeler, "second")
    two = path.read_bytes()
    for cut in range(len(one) + 1, len(two) - 1):
        path.write_bytes(two[:cut])
        with pytest.warns(UserWarning, match="only half written"):
            labeler = PreferenceLabeler(make_pairs(3), path, annotator="é")
        assert path.read_bytes() == one and "post 1<" in seen(labeler)[0]
    path.write_bytes(two[:-1])  # only the line's end is missing
    assert len(PreferenceLabeler(make_pairs(3), path, annotator="é").judgements) == 2
    assert path.read_bytes() == two


def test_a_line_that_another_left_half_written_does_not_swallow_ours(path):
    labeler = PreferenceLabeler(make_pairs(3), path)
    click(labeler, "first")
    with open(path, "ab") as file:
        file.write(b'{"input_text": "po')
    with pytest.warns(UserWarning, match='is removed: b\'{"input_text": "po\''):
        click(labeler, "second")
    assert [pair_of(j) for j in read_judgements(path)] == [pair_of(p) for p in make_pairs(2)]


def test_a_file_that_cannot_be_written_is_one_clear_error(tmp_path, path, monkeypatch):
    with pytest.raises(DataError, match=r"cannot be written \(Is a directory\).*Check the path"):
        PreferenceLabeler(make_pairs(2), tmp_path)
    labeler = PreferenceLabeler(make_pairs(2), path)

    # The mode bits would not stop root, under whom tests often run in containers.
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    with monkeypatch.context() as patch:
        patch.setattr(judgements, "FileLock", refuse)
        click(labeler, "first")
        assert f"{path}: cannot be written (Permission denied)" in seen(labeler)[3]
        assert "post 0<" in seen(labeler)[0] and labeler.judgements == []
    click(labeler, "first")
    assert "post 1<" in seen(labeler)[0] and len(lines(path)) == 1


# Export


def test_export_leaves_out_and_counts_ties_and_skips(tmp_path, path):
    labeler = PreferenceLabeler(make_pairs(6), path, annotator="robin")
    with pytest.raises(ValueError, match="no pair is decided"):
        labeler.export(tmp_path / "preferences.jsonl")
    for word in ("good", "bad", "tie", "skip", "skip"):
        click(labeler, word if word in KEYS else side_of(labeler, word))
    assert labeler.export(tmp_path / "preferences.jsonl") == {"exported": 2, "tie": 1, "skip": 2}
    good, bad = make_pairs(2)
    assert schemas.read_preferences(tmp_path / "preferences.jsonl") == [
        {**good, "choice": 1, "annotator": "robin"},
        {**bad, "choice": 0, "annotator": "robin"},
    ]


# Replay


def test_without_a_front_end_a_file_is_replayed_under_its_annotator_s_name(path, monkeypatch):
    pairs = schemas.read_preferences(data_dir() / "summarize" / "preferences_test.jsonl")[:30]
    live = PreferenceLabeler(pairs, path, annotator="robin", replay=SHIPPED)
    assert live.judgements == []
    click(live, "tie")

    monkeypatch.setenv(HEADLESS, "1")
    labeler = PreferenceLabeler(pairs[:20], path, annotator="robin", replay=SHIPPED)
    choices = {pair_of(j): (j["choice"], j["annotator"]) for j in read_judgements(SHIPPED)}
    assert {pair_of(j): (j["choice"], j["annotator"]) for j in labeler.judgements} == {
        pair_of(pair): choices[pair_of(pair)] for pair in pairs[:20]
    }
    assert len({j["shown_first"] for j in labeler.judgements}) == 2
    PreferenceLabeler(pairs[:20], path, replay=SHIPPED)  # what is judged is not judged again
    assert len(lines(path)) == 21
    with pytest.raises(DataError, match=r"no judgement of this pair: .*'post 0'"):
        PreferenceLabeler(make_pairs(1), path, replay=SHIPPED)


def test_a_replayed_skip_is_a_skip(tmp_path, path, monkeypatch):
    monkeypatch.setenv(HEADLESS, "1")
    labeler = PreferenceLabeler(make_pairs(1), path)
    click(labeler, "skip")
    again = PreferenceLabeler(make_pairs(1), tmp_path / "again.jsonl", replay=path)
    assert again.judgements == labeler.judgements


def test_the_shipped_judgements_are_cleo_s_by_rule_bit_for_bit(tmp_path):
    pairs = schemas.read_preferences(data_dir() / "summarize" / "preferences_test.jsonl")
    build.write_judgements(tmp_path, pairs)
    assert (tmp_path / "judgements.jsonl").read_bytes() == SHIPPED.read_bytes()
    shipped = read_judgements(SHIPPED)
    assert [pair_of(j) for j in shipped] == [pair_of(pair) for pair in pairs[:30]]
    assert {j["annotator"] for j in shipped} == {"cleo"}
    gold = agreement_with_scorer(shipped, annotators.gold_scores)
    assert (round(gold.share * gold.pairs), gold.pairs, gold.left_out) == (27, 28, 2)


def test_a_rule_judges_with_its_annotator_s_taste_and_noise():
    pairs = schemas.read_preferences(data_dir() / "summarize" / "preferences_test.jsonl")[:600]
    (ada, *_), rng = annotators.ANNOTATORS, random.Random(0)
    found = list(annotators.judge(pairs, ada, rng))
    gold = agreement_with_scorer(found, annotators.gold_scores)
    assert 0.8 < gold.share < 0.98
    ties = [record for record in found if record["choice"] is None]
    assert 20 < len(ties) < 200
    assert 240 < sum(record["shown_first"] for record in found) < 360


# The record


@pytest.mark.parametrize(
    ("changes", "remedy"),
    [
        *(({"choice": wrong}, "Write 0 or 1, the better") for wrong in (2, True, "0", 0.0, [1])),
        *(({"shown_first": wrong}, "Write 0 if candidate_0") for wrong in (None, 2, False, "1")),
        *(({"action": wrong, "choice": None}, "leave `action` out") for wrong in ("tie", None, 1)),
        ({"action": "skip"}, "with the choice null"),
        ({"annotator": " "}, "`annotator` is empty"),
        ({"candidate_1": "x "}, "are equal"),
        ({"candidate_0": None}, "Write a text"),
    ],
)
def test_a_bad_field_is_named_with_file_line_and_remedy(path, changes, remedy):
    path.parent.mkdir()
    schemas.write_jsonl(path, [JUDGEMENT, {**JUDGEMENT, **changes}])
    with pytest.raises(DataError) as caught:
        read_judgements(path)
    assert str(caught.value).startswith(f"{path}, line 2: ") and remedy in str(caught.value)
    with pytest.raises(DataError):
        append_judgement(path, {**JUDGEMENT, **changes})
    assert len(lines(path)) == 2


@pytest.mark.parametrize("field", JUDGEMENT)
def test_every_field_must_be_there(path, field):
    path.parent.mkdir()
    schemas.write_jsonl(path, [{key: JUDGEMENT[key] for key in JUDGEMENT if key != field}])
    with pytest.raises(DataError, match=f"line 1: the field `{field}` is missing"):
        read_judgements(path)


# Agreement


def judged(*choices):
    return [{**JUDGEMENT, "input_text": f"p{i}", "choice": c} for i, c in enumerate(choices)]


def test_agreement_of_two_annotators_by_hand():
    first = judged(0, 0, 0, 1, 1, 1, None, 0)
    second = list(reversed(judged(0, 0, 1, 1, 1, 1, 0, None)))
    found = agreement_between(first, [*second, {**JUDGEMENT, "input_text": "only theirs"}])
    assert (found.pairs, found.left_out) == (6, 2)
    assert found.share == pytest.approx(5 / 6)
    # Wilson at 5 of 6; kappa: chance agrees in 3/6 * 2/6 + 3/6 * 4/6 = 1/2.
    assert (found.low, found.high) == pytest.approx((0.4365, 0.9699), abs=1e-4)
    assert found.kappa == pytest.approx((5 / 6 - 1 / 2) / (1 - 1 / 2))


def test_agreement_with_any_scorer_of_whole_texts():
    texts = []

    def longer_is_better(batch):
        texts.extend(batch)
        return [float(len(text)) for text in batch]

    records = [
        {**JUDGEMENT, "candidate_0": "long answer", "choice": choice} for choice in (0, 0, 1)
    ]
    found = agreement_with_scorer([*records, JUDGEMENT], longer_is_better)
    assert texts[:2] == ["a post [summary]: long answer", "a post [summary]: y"]
    assert (found.pairs, found.left_out) == (3, 1)  # the last one's answers are equally long
    assert found.share == pytest.approx(2 / 3)


def test_the_agreement_of_annotators():
    said = {"ada": [0, 1, 1, 0], "ben": [0, 1, 0, 1], "cleo": [0, 1, 1]}
    records = [
        {**JUDGEMENT, "input_text": f"p{i}", "choice": choice, "annotator": name}
        for name, choices in said.items()
        for i, choice in enumerate(choices)
    ]
    found = annotator_agreement(records)
    assert list(found.index) == ["ada and ben", "ada and cleo", "ben and cleo", "all"]
    assert found["pairs"].tolist() == [4, 3, 3, 10]
    assert found["agreement"].tolist() == pytest.approx([1 / 2, 1, 2 / 3, 7 / 10])
    assert found.loc["ada and ben", "kappa"] == pytest.approx(0)
    assert found.loc["ada and cleo", "kappa"] == pytest.approx(1)
    assert tuple(found.loc["all", ["low", "high"]]) == pytest.approx(
        wilson_interval(7, 10), abs=1e-4
    )
    with pytest.raises(ValueError, match="no pair was judged by two"):
        annotator_agreement(records[:4])


def test_gold_scores_whole_texts_like_gold():
    (record,) = schemas.read_preferences(data_dir() / "summarize" / "preferences_test.jsonl")[:1]
    post, summary = record["input_text"], record["candidate_0"]
    assert annotators.gold_scores([post + summary]) == [annotators.gold(post, summary)]
    with pytest.raises(ValueError, match=r"no answer to score in 'no mark': write"):
        annotators.gold_scores([post + summary, "no mark"])


def test_what_cannot_be_compared_is_an_error():
    with pytest.raises(ValueError, match="No pair of answers is decided by both"):
        agreement_between(judged(0, None), judged(None, 1))
    with pytest.raises(ValueError, match="judge some more"):
        agreement_with_scorer([], lambda texts: [])
    with pytest.raises(ValueError, match="there twice"):
        agreement_between([*judged(0), *judged(1)], judged(0))
    assert math.isnan(agreement_between(judged(1, 1), judged(1, 1)).kappa)
