"""The figures: what is drawn is what was given."""

from html.parser import HTMLParser

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch

from rlhf_helpers import plots


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_a_training_curve_shows_every_point_and_a_running_mean():
    history = [{"step": 5, "loss": 3.0}, {"other": 1.0}, {"step": 10, "loss": 1.0}]
    dots, line = plots.training_curve(history, "loss", window=3).lines
    assert dots.get_xydata().tolist() == [[5, 3], [10, 1]]
    assert line.get_ydata().tolist() == [2, 2]


def test_ppo_curves_have_a_panel_a_key_and_hide_the_rest():
    history = [{"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0}] * 2
    panels = plots.ppo_curves(history, list("abcd"))
    assert [axes.get_title() for axes in panels.flat if axes.get_visible()] == list("abcd")


RUNS = pd.DataFrame(
    [("a", "kl", 0, 1.0), ("a", "kl", 5, 3.0), ("b", "kl", 0, 7.0), ("b", "rank_loss", 2, 0.5)],
    columns=["run", "tag", "step", "value"],
)


def test_training_curves_have_a_panel_a_tag_and_a_colour_a_run():
    panels = plots.training_curves(RUNS, window=3)
    kl, loss, unused = panels.flat
    assert [kl.get_title(), loss.get_title()] == ["kl", "rank_loss"]
    assert not unused.get_visible()
    points = [line.get_xydata().tolist() for line in kl.lines[::2]]
    assert points == [[[0, 1], [5, 3]], [[0, 7]]]
    assert kl.lines[1].get_ydata().tolist() == [2, 2]  # the running mean
    assert [text.get_text() for text in kl.get_legend().get_texts()] == ["a", "b"]
    assert [text.get_text() for text in loss.get_legend().get_texts()] == ["b"]
    assert loss.lines[0].get_color() == kl.lines[2].get_color() != kl.lines[0].get_color()


def test_training_curves_of_one_run_need_no_legend_and_tags_can_be_chosen():
    panels = plots.training_curves(RUNS[RUNS["run"] == "b"], ["rank_loss"])
    assert [axes.get_title() for axes in panels.flat if axes.get_visible()] == ["rank_loss"]
    assert panels.flat[0].get_legend() is None
    with pytest.raises(ValueError, match="no such tag: gold; choose among kl, rank_loss"):
        plots.training_curves(RUNS, ["kl", "gold"])


def test_training_curves_draw_more_runs_than_there_are_colours():
    runs = pd.DataFrame([(f"{i}", "kl", 0, float(i)) for i in range(9)], columns=RUNS.columns)
    assert len(plots.training_curves(runs).flat[0].get_legend().get_texts()) == 9


def test_shares_by_bins_are_the_means_of_bins_of_equal_size():
    values = pd.Series(range(100), index=range(100, 200))  # an index that is not 0, 1, ...
    axes = plots.share_by_bins(values, {"large": values >= 75}, bins=4)
    points = axes.containers[0].lines[0].get_xydata()
    assert points.tolist() == [[12, 0], [37, 0], [62, 0], [87, 1]]


def test_histograms_of_whole_numbers_have_a_bin_a_number_and_sum_to_one():
    axes = plots.histograms({"a": [1, 2, 2, 3], "b": [2, 3]}, "words")
    for bars in axes.containers:
        assert sum(bar.get_height() for bar in bars) == pytest.approx(1)
        assert {bar.get_width() for bar in bars} == {1.0}
    assert [bar.get_height() for bar in axes.containers[0]] == [0.25, 0.5, 0.25]


def test_gold_against_proxy_draws_each_run_in_both_panels():
    history = [{"reward_mean": 0.0, "gold": 1.0}, {"reward_mean": 2.0, "gold": 1.0}]
    proxy, gold = plots.gold_against_proxy({"x": history, "y": history}, sft_gold=1.5)
    assert [line.get_ydata().tolist() for line in proxy.lines] == [[1, 1]] * 2
    assert gold.lines[-1].get_ydata()[0] == 1.5


def test_overoptimisation_draws_proxy_and_gold_against_the_root_of_the_kl():
    rows = [(-0.01, 0.0, 0.0), (1.0, 1.0, 1.0), (4.0, 2.0, -1.0)]
    table = pd.DataFrame(rows, columns=["kl", "proxy", "gold"])
    axes = plots.overoptimisation({"PPO": table, "best of n": table.assign(gold_se=0.5)})
    proxy, gold = axes.lines[:2]
    assert proxy.get_xydata().tolist() == [[0, 0], [1, 1], [2, 2]]
    assert gold.get_xydata().tolist() == [[0, 0], [1, 1], [2, -1]]
    assert len(axes.lines) == 4 and len(axes.collections) == 1
    assert axes.get_legend().get_texts()[2].get_text() == "best of n: proxy"


def test_policies_by_beta_puts_the_learned_ones_on_the_lines_of_the_best():
    reference, rewards = torch.tensor([0.5, 0.5]), torch.tensor([0.0, 1.0])

    def optimum(beta):
        return torch.softmax(reference.log() + rewards / beta, -1)

    learned = torch.stack([optimum(0.5), optimum(2.0)])
    axes = plots.policies_by_beta([0.5, 2.0], learned, optimum, ["a", "b"])
    line, dots = axes.lines[:2]
    assert np.interp(2.0, *line.get_xydata().T) == pytest.approx(dots.get_ydata()[1], abs=1e-6)


def test_a_policy_path_ends_beside_the_best_probability():
    axes = plots.policy_path(torch.tensor([[0.5, 0.5], [0.1, 0.9]]), torch.tensor([0.1, 0.9]), "ab")
    assert axes.lines[0].get_ydata()[-1] == pytest.approx(axes.lines[1].get_ydata()[0])


def test_points_bars_and_matrix_carry_their_numbers():
    table = pd.DataFrame({"x": [1.0, 2.0], "y": [3.0, 4.0], "beta": [0.5, 1.0]})
    assert plots.points(table, "x", "y", "beta").texts[1].get_text().strip() == "beta 1"
    assert [t.get_text() for t in plots.bars({"4 bit": 0.5}, "MB").texts] == ["0.5"]
    shares = pd.DataFrame([[1.0, 0.8], [0.8, 1.0]], ["a", "b"], ["a", "b"])
    assert [t.get_text() for t in plots.matrix(shares, "t").texts] == [
        "1.00",
        "0.80",
        "0.80",
        "1.00",
    ]


def test_methods_stand_where_their_distance_puts_them_each_with_its_name():
    columns = ["gold", "gold_se", "win_rate", "win_rate_low", "win_rate_high", "kl"]
    rows = [[1.5, 0.1, 0.5, 0.4, 0.6, -0.01], [2.9, 0.1, 0.7, 0.65, 0.75, 4.0]]
    panels = plots.methods(pd.DataFrame(rows, ["SFT", "PPO"], columns))
    assert [t.get_text() for t in panels[1].get_legend().get_texts()] == ["SFT", "PPO"]
    assert [line.get_xydata().tolist() for line in panels[0].lines] == [[[0.0, 1.5]], [[2.0, 2.9]]]
    assert [line.get_ydata().tolist() for line in panels[1].lines] == [[0.5], [0.7]]


def test_what_temperature_gives_for_free_is_a_grey_line_in_gold():
    free = pd.DataFrame({"temperature": [0, 0.5, 1], "kl": [9.0, 1.0, -0.01], "gold": [3, 2.5, 1]})
    columns = ["gold", "gold_se", "win_rate", "win_rate_low", "win_rate_high", "kl"]
    gold, won = plots.methods(pd.DataFrame([[3, 0.1, 0.5, 0.4, 0.6, 4]], ["PPO"], columns), free)
    table = pd.DataFrame({"kl": [0, 1], "proxy": [0, 1], "gold": [0, 1]})
    for axes in (gold, plots.overoptimisation({"PPO": table}, free)):
        line = axes.lines[-1]
        assert line.get_xydata().tolist() == [[3, 3], [1, 2.5], [0, 1]]
        assert (line.get_color(), line.get_label()) == (plots.GREY, "for free: temperature")
    assert len(won.lines) == 1
    assert won.get_legend().get_texts()[-1].get_text() == "for free: temperature"


def test_a_table_of_texts_shows_html_as_text():
    html = plots.texts(pd.DataFrame({"answer": ["<b>bold</b>"], "gold": [1.234]})).to_html()
    assert "&lt;b&gt;bold&lt;/b&gt;" in html and "1.23" in html
    assert "tex2jax_ignore" in html  # else Jupyter takes what is between two $ for a formula


class Cells(HTMLParser):
    """The elements of a page, the texts of its table's cells, and what is marked in them."""

    def __init__(self, page: str):
        super().__init__()
        self.elements, self.cells, self.marked = set(), [], []
        self.inside: list[str] = []
        self.feed(page)

    def handle_starttag(self, tag, attributes):
        self.elements.add(tag)
        self.inside.append(tag)
        if tag in ("td", "mark"):
            (self.cells if tag == "td" else self.marked).append("")

    def handle_endtag(self, tag):
        self.inside.remove(tag)

    def handle_data(self, text):
        if "td" in self.inside:
            self.cells[-1] += text
        if "mark" in self.inside:
            self.marked[-1] += text


def shown(untuned: str, tuned: str, prompt: str = "p") -> Cells:
    table = pd.DataFrame([{"prompt": prompt, "untuned": untuned, "tuned": tuned, "gold": 1.234}])
    return Cells(plots.differences(table).to_html())


def test_differences_between_two_answers_are_marked_word_by_word():
    page = shown("My boss mocks me. Help?", "My old boss mocks us. Help?")
    assert page.cells == ["p", "My boss mocks me. Help?", "My old boss mocks us. Help?", "1.23"]
    assert page.marked == ["me.", "old", "us."]
    assert shown("the same", "the same").marked == []
    assert shown("", "all new").marked == ["all new"]


NASTY = [
    "<script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    "</td></table><h1>big</h1>",
    "a < b && c > d",
    "&lt;b&gt;",
    "<mark>not mine</mark>",
    "{x} %s $x$ 'q' \"q\"",
]


@pytest.mark.parametrize("text", NASTY)
def test_whatever_a_model_writes_is_shown_as_text(text):
    for untuned, tuned in ((text, "fine"), ("fine", text), (text, text), (text, f"{text} more")):
        page = shown(untuned, tuned, prompt=text)
        assert page.cells[:3] == [text, untuned, tuned]
        allowed = {"style", "table", "thead", "tbody", "tr", "th", "td", "mark"}
        assert page.elements <= allowed
