"""Draws the course's pictures: `python img/draw.py` writes them all beside this file.

The diagrams are SVG; the two measured pictures are PNG, taken from the committed run of a
notebook. Text becomes paths, so that a diagram looks the same everywhere and drawing it twice gives
the same bytes; what the shapes and colours mean is in `picture.py`.
"""

import argparse
import base64
import json
from collections.abc import Callable
from pathlib import Path

import matplotlib
from picture import ORANGE, QUIET, Picture


def how_rlhf_works() -> Picture:
    """The three steps, for newcomers."""
    picture = Picture(
        "How RLHF works", "Imitate people, learn what they like, then practise on a leash.", 556
    )
    box, arrow = picture.box, picture.arrow
    picture.panel(28, 92, 198, 396, "1  Imitate")
    picture.panel(242, 92, 198, 396, "2  Learn the taste")
    picture.panel(456, 92, 316, 396, "3  Practise")
    imitate = picture.stack(
        (42, 138, 170, 34),
        ["people", "People", "write answers"],
        ["data", "Demonstrations", "prompt and answer"],
        ["frozen", "Pretrained model", "only continues text"],
        ["trained", "SFT model", "answers as people do"],
    )
    taste = picture.stack(
        (256, 138, 170, 34),
        ["frozen", "SFT model", "writes two answers"],
        ["people", "People", "pick the better"],
        ["data", "Preferences", "chosen and rejected"],
        ["trained", "Reward model", "predicts their pick"],
    )
    picture.stack(
        (470, 138, 288, 34),
        ["data", "Prompts"],
        ["trained", "Policy, trained by PPO", "starts as a copy of the SFT model"],
    )
    reward = box("frozen", 470, 322, 134, 58, "Reward model", "frozen")
    box("frozen", 624, 322, 134, 58, "SFT model", "frozen")
    tuned = box("trained", 529, 414, 170, 58, "Tuned model", "answers people like")
    arrow((525, 273), (525, 318))
    arrow((549, 318), (549, 273))
    arrow((614, 273), tuned.top)
    arrow((691, 273), (691, 318), colour=ORANGE, dashed=True, both=True)
    picture.write(515, 295, "text", align="right")
    picture.write(559, 295, "score", align="left")
    picture.write(702, 287, "KL", align="left")
    picture.write(702, 304, "leash", align="left")
    picture.write(137, 397, "fine-tuning", align="left")
    picture.write(624, 397, "in the end", align="left")
    arrow(imitate[3].right, (234, 443), (234, 167), taste[0].left)
    arrow(taste[3].right, (448, 443), (448, 351), reward.left)
    return picture.finished()


PROMPT = '{"input_text": "r/pets: My cat … [summary]: "}'
DEMONSTRATION = """\
{"input_text": "r/pets: My cat … [summary]: ",
 "output_text": "My cat ignores me."}"""
PREFERENCE = """\
{"input_text": "r/pets: My cat … [summary]: ",
 "candidate_0": "I have a cat.",
 "candidate_1": "My cat ignores me.",
 "choice": 1}"""
RANKING = """\
{"input_text": "r/pets: My cat … [summary]: ",
 "candidates": ["I have a cat.",
     "My cat ignores me.", "It rains."],
 "ranking": [1, 0, 2]}"""


def data_formats() -> Picture:
    """The four kinds of records, and which stage learns from which."""
    picture = Picture(
        "What the data look like", "JSONL: one such object a line. Four records of one post.", 606
    )
    box, arrow = picture.box, picture.arrow
    records = (
        (128, "Demonstration", "an answer to imitate", DEMONSTRATION),
        (226, "Preference", "which answer is better", PREFERENCE),
        (360, "Ranking", "several answers, the best first", RANKING),
        (494, "Prompt", "for the policy to answer itself", PROMPT),
    )
    cards = []
    for y, name, meaning, record in records:
        lines = record.splitlines()
        picture.write(28, y - 17, name, 14.5, "bold", align="left")
        picture.write(170, y - 17, meaning, colour=QUIET, align="left")
        height = 18 + 18 * len(lines)
        cards.append(box("data", 28, y, 396, height, "", *lines, font="mono", align="left"))
    sft = box("trained", 500, 126, 272, 58, "SFT model", "learns to imitate them", tag="L6")
    box(
        "trained",
        500,
        299,
        272,
        78,
        "Reward model",
        "learns to score answers",
        "as people choose",
        tag="L7",
    )
    policy = box("trained", 500, 483, 272, 58, "Policy", "practises, by PPO", tag="L8")
    arrow(cards[0].right, sft.left)
    arrow(cards[1].right, (462, 271), (462, 328), (496, 328))
    arrow(cards[2].right, (462, 405), (462, 348), (496, 348))
    arrow(cards[3].right, policy.left)
    return picture.finished()


def reward_model() -> Picture:
    """How the reward model is trained, and how it is used."""
    picture = Picture(
        "The reward model",
        "From pairs, it learns which answer people like better. Then it scores any answer.",
        556,
    )
    box, arrow = picture.box, picture.arrow
    picture.panel(28, 92, 744, 248, "Training")
    picture.write(140, 114, "one prompt, two candidates, and people chose one", align="left")
    model = box("trained", 258, 148, 136, 132, "Reward model", "the same one", "for both")
    loss = box("number", 592, 164, 166, 100, "loss = 0.17", "−log σ(1.4 − (−0.3))")
    for y, which, text, value in (
        (146, "chosen", "“My cat ignores me.”", "1.4"),
        (222, "rejected", "“I have a cat.”", "−0.3"),
    ):
        answer = box("data", 42, y, 192, 60, f"prompt + {which}", text)
        number = box("number", 420, y + 10, 146, 40, "", f"r_{which} = {value}")
        arrow(answer.right, (254, y + 30))
        arrow((398, y + 30), number.left)
        arrow(number.right, (588, y + 30))
    arrow(loss.bottom, (675, 318), (326, 318), model.bottom, dashed=True)
    picture.write(500, 302, "gradient of −log σ(r_chosen − r_rejected)")
    picture.panel(28, 358, 744, 126, "Inference")
    picture.write(140, 380, "one prompt, one completion, one number", align="left")
    answer = box("data", 42, 408, 192, 60, "prompt + completion", "“My cat is cold to me.”")
    model = box("frozen", 258, 408, 136, 60, "Reward model", "frozen")
    score = box("number", 420, 418, 146, 40, "", "r = 1.2")
    arrow(answer.right, model.left)
    arrow(model.right, score.left)
    picture.write(579, 438, "higher: people like it better", align="left")
    return picture.finished()


def agent_and_environment() -> Picture:
    """The words of reinforcement learning, translated for language models."""
    picture = Picture(
        "Agent and environment", "Reinforcement learning’s words for what happens.", 640
    )
    box, arrow = picture.box, picture.arrow
    box(
        "trained",
        28,
        92,
        250,
        156,
        "Agent",
        "the language model",
        "policy: π(next token | text so far)",
    )
    picture.panel(522, 92, 250, 156, "Environment")
    box("step", 536, 132, 222, 36, "", "appends the token")
    box("frozen", 536, 178, 222, 56, "Reward model", "scores the finished text")
    for y, text, start, end in (
        (136, "action: the next token", 282, 518),
        (180, "state: prompt + text so far", 518, 282),
        (224, "reward: a score, at the end", 518, 282),
    ):
        arrow((start, y), (end, y))
        picture.write(400, y - 16, text)
    picture.panel(28, 266, 744, 302, "An episode: a post about a cat")
    picture.write(92, 314, "state, and after it the action", colour=QUIET, align="left")
    picture.write(716, 314, "reward", colour=QUIET)
    tokens = ("Cat", "moved", "out", ".", "⟨end⟩")
    for step, token in enumerate(tokens):
        y = 330 + 40 * step
        picture.write(42, y + 16, f"t = {step + 1}", align="left")
        box("data", 92, y, 210, 32, "", "My cat has … [summary]:")
        for i, earlier in enumerate(tokens[:step]):
            box("data", 310 + 72 * i, y, 64, 32, "", earlier)
        box("token", 310 + 72 * step, y, 64, 32, "", token)
        if step < 4:
            picture.write(716, y + 16, "0")
    box("number", 676, 490, 80, 32, "", "1.3")
    picture.write(
        92, 547, "In PPO, every token also pays for the KL leash.", colour=QUIET, align="left"
    )
    return picture.finished()


def ppo_loop() -> Picture:
    """What happens in a round of PPO, and what one part keeps for the next."""
    picture = Picture("The loop of PPO", "Rollout, score, step, again: what each part keeps.", 608)
    arrow = picture.arrow
    picture.panel(44, 92, 200, 416, "1  Rollout")
    picture.panel(266, 92, 172, 283, "2  Score")
    picture.panel(460, 92, 312, 416, "3  Step")
    _, policy, _, kept = picture.stack(
        (58, 136, 172, 22),
        ["data", "Prompts"],
        ["trained", "Policy", "samples responses;", "value head: values"],
        ["frozen", "Reference, frozen", "reads the same tokens"],
        ["data", "Kept", "responses", "logprobs", "ref_logprobs", "values"],
    )
    texts, _, scores = picture.stack(
        (280, 136, 144, 34),
        ["data", "Texts", "prompt + response"],
        ["frozen", "Reward model", "frozen"],
        ["number", "Scores"],
    )
    rewards, _, _, trained = picture.stack(
        (474, 136, 284, 35),
        ["number", "Rewards", "−kl_coef · (logprobs − ref_logprobs)", "+ score, on the last token"],
        ["number", "Advantages", "GAE, from rewards and values"],
        ["number", "Loss", "clipped, of policy and values"],
        ["trained", "Policy and value head", "some epochs of mini-batches"],
    )
    arrow(policy.right, (255, policy.right[1]), (255, texts.left[1]), texts.left)
    arrow(scores.right, (449, scores.right[1]), (449, rewards.left[1]), rewards.left)
    arrow(kept.right, (456, kept.right[1]))
    arrow(trained.bottom, (616, 538), (34, 538), (34, policy.left[1]), policy.left)
    picture.write(352, 524, "a better policy, and the next prompts")
    return picture.finished()


def whole_chain() -> Picture:
    """Files, stages, models and notebooks."""
    picture = Picture(
        "The whole chain, and its notebooks", "L1 explains it, the others do it.", 584
    )
    box, arrow = picture.box, picture.arrow
    picture.panel(28, 92, 196, 422, "Data", tag="L2")
    picture.panel(260, 92, 240, 422, "Stage by stage")
    picture.panel(520, 92, 252, 232, "Alternatives, same data")
    picture.panel(520, 342, 252, 172, "All in one pipeline", tag="L3")
    base = box("frozen", 42, 136, 168, 54, "Base model", "pretrained")
    demonstrations = box("data", 42, 213, 168, 54, "Demonstrations")
    preferences = box("data", 42, 290, 168, 54, "Preferences", "and rankings")
    prompts = box("data", 42, 367, 168, 54, "Prompts")
    tests = box("data", 42, 444, 168, 54, "Test sets", "never trained on")
    sft = box("trained", 274, 174, 186, 54, "SFT model", "imitates", tag="L6")
    reward = box("trained", 274, 290, 186, 54, "Reward model", "scores answers", tag="L7")
    tuned = box("trained", 274, 367, 186, 54, "Tuned model", "by PPO", tag="L8")
    evaluation = box("step", 274, 444, 186, 54, "Evaluation", "is it better?", tag="L4")
    arrow(base.right, (242, 163), (242, 191), (270, 191))
    arrow(demonstrations.right, (242, 240), (242, 211), (270, 211))
    for source, stage in ((preferences, reward), (prompts, tuned), (tests, evaluation)):
        arrow(source.right, stage.left)
    arrow(sft.right, (480, 201), (480, 394), tuned.right)
    arrow(reward.bottom, tuned.top)
    arrow(tuned.bottom, evaluation.top)
    box("trained", 534, 136, 224, 52, "DPO", "no reward model", tag="L9")
    box("trained", 534, 196, 224, 52, "ReST", "imitates its best", tag="L10")
    box("trained", 534, 256, 224, 52, "RLAIF", "a model is the judge", tag="L11")
    box("step", 534, 386, 224, 32, "", "on this laptop")
    box("step", 534, 426, 224, 32, "", "on Kubeflow")
    box("step", 534, 466, 224, 32, "", "on Vertex AI", tag="L5")
    return picture.finished()


PICTURES: dict[str, Callable[[], Picture]] = {
    function.__name__: function
    for function in (
        how_rlhf_works,
        data_formats,
        reward_model,
        agent_and_environment,
        ppo_loop,
        whole_chain,
    )
}


def draw(folder: Path) -> list[Path]:
    """Write every picture into the folder as `<name>.svg`; returns the paths."""
    paths = []
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # whatever the reader has set
        matplotlib.rcParams.update({"svg.hashsalt": "rlhf", "svg.fonttype": "path"})
        for name, function in PICTURES.items():
            picture = function()
            paths.append(folder / f"{name}.svg")
            metadata = {"Title": picture.title, "Description": function.__doc__}
            picture.savefig(paths[-1], metadata=metadata | {"Creator": None, "Date": None})
    return paths


# picture -> the notebook whose cell, tagged `picture-<name>`, has drawn it
MEASURED = {"gold-against-proxy": "L8_local_ppo", "before-and-after": "L4_evaluate_model"}


def copy_measured(folder: Path) -> list[Path]:
    """Write the measured pictures into the folder as `<name>.png`; returns the paths."""
    paths = []
    for name, notebook in MEASURED.items():
        path = Path(__file__).parents[1] / "notebooks" / f"{notebook}.ipynb"
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        (cell,) = (c for c in cells if f"picture-{name}" in c["metadata"].get("tags", []))
        (figure,) = (o["data"]["image/png"] for o in cell["outputs"] if "image/png" in str(o))
        paths.append(folder / f"{name.replace('-', '_')}.png")
        paths[-1].write_bytes(base64.b64decode(figure))
    return paths


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description="Draw all pictures of img/ anew.")
    parser.parse_args()
    here = Path(__file__).parent
    for path in draw(here) + copy_measured(here):
        print(path)
