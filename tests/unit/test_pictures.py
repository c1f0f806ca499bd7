"""The diagrams of img/: as the script draws them, legible, and without collisions."""

import importlib
import runpy
import sys
import xml.etree.ElementTree as ElementTree
from itertools import combinations, pairwise
from pathlib import Path

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "img"))  # scripts, not a package
script = importlib.import_module("draw")
vocabulary = importlib.import_module("picture")

SVG = "{http://www.w3.org/2000/svg}"
Rectangle = tuple[float, float, float, float]  # left, top, right, bottom


def of_text(picture, text) -> Rectangle:
    box = text.get_window_extent(FigureCanvasAgg(picture).get_renderer())
    return box.x0, picture.height - box.y1, box.x1, picture.height - box.y0


def of_box(box) -> Rectangle:
    return box.x, box.y, box.x + box.width, box.y + box.height


def grown(rectangle: Rectangle, by: float) -> Rectangle:
    left, top, right, bottom = rectangle
    return left - by, top - by, right + by, bottom + by


def inside(inner: Rectangle, outer: Rectangle) -> bool:
    return all(np.array(inner[:2]) >= outer[:2]) and all(np.array(inner[2:]) <= outer[2:])


def overlap(one: Rectangle, other: Rectangle) -> bool:
    return bool(all(np.array(one[:2]) < other[2:]) and all(np.array(other[:2]) < one[2:]))


def crosses(route, rectangle: Rectangle) -> bool:
    """Whether a line through some points enters a rectangle; looked at every half pixel or so."""
    points = np.concatenate([np.linspace(start, end, 1000) for start, end in pairwise(route)])
    return bool(((points > rectangle[:2]) & (points < rectangle[2:])).all(axis=1).any())


def faults(picture) -> list[str]:
    """What is wrong with a picture's layout, in words."""
    owned = [(text, box) for box in picture.boxes + picture.panels for text in box.texts]
    texts = {text: of_text(picture, text) for text in picture.plane.texts if text.get_text()}
    free = [text for text in texts if text not in dict(owned)]
    boxes = [of_box(box) for box in picture.boxes]
    panels = [of_box(panel) for panel in picture.panels]
    card = (
        vocabulary.MARGIN - 1,
        18,
        vocabulary.WIDTH - vocabulary.MARGIN + 1,
        picture.height - 18,
    )
    names = {text: repr(text.get_text()) for text in texts}
    found = [
        f"{names[text]} does not fit into its box"
        for text, box in owned
        if not inside(grown(texts[text], 3), of_box(box))
        or not box.x + 7 <= texts[text][0] <= texts[text][2] <= box.x + box.width - 7
    ]
    found += [f"{names[t]} is too small" for t in texts if t.get_fontsize() < 12 * 0.75]
    found += [
        f"{names[one]} touches {names[other]}"
        for one, other in combinations(texts, 2)
        if overlap(texts[one], grown(texts[other], 1))
    ]
    for text in free:
        around = grown(texts[text], 4)
        if not inside(texts[text], card):
            found.append(f"{names[text]} leaves the card")
        if any(overlap(around, box) for box in boxes):
            found.append(f"{names[text]} touches a box")
        if any(overlap(around, panel) and not inside(around, panel) for panel in panels):
            found.append(f"{names[text]} crosses a panel's edge")
    found += [
        f"a line crosses {names[text]}"
        for text in texts
        if any(crosses(route, grown(texts[text], 3)) for route in picture.routes)
    ]
    for group in (boxes, panels):
        found += [
            f"{one} and {other} are too close"
            for one, other in combinations(group, 2)
            if overlap(one, grown(other, 5))
        ]
    for box in boxes:
        if not inside(box, card):
            found.append(f"{box} leaves the card")
        if any(overlap(box, panel) and not inside(grown(box, 8), panel) for panel in panels):
            found.append(f"{box} crosses a panel's edge")
        if any(crosses(route, box) for route in picture.routes):
            found.append(f"a line crosses {box}")
    return found


@pytest.mark.parametrize("name", script.PICTURES)
def test_a_picture_has_no_collisions(name):
    picture = script.PICTURES[name]()
    assert picture.boxes and picture.routes
    assert faults(picture) == []


def test_faults_are_found():
    picture = vocabulary.Picture("Faults", "all of them", 400)
    picture.panel(40, 100, 100, 60, "a heading wider than its panel")
    first = picture.box("data", 200, 100, 100, 60, "far too long for it")
    picture.box("step", 290, 150, 100, 60, "near")
    picture.box("number", 130, 130, 40, 40, "", "5")
    picture.box("people", 720, 300, 100, 60, "", "out")
    picture.write(250, 98, "edge")
    picture.write(140, 300, "line")
    picture.write(150, 304, "tiny", size=9)
    picture.write(90, 160, "between")
    picture.arrow((100, 300), (200, 300))
    picture.arrow(first.left, first.right)
    found = "\n".join(faults(picture))
    for fault in (
        "'a heading wider than its panel' does not fit",
        "'far too long for it' does not fit",
        "(200, 100, 300, 160) and (290, 150, 390, 210) are too close",
        "(130, 130, 170, 170) crosses a panel's edge",
        "(720, 300, 820, 360) leaves the card",
        "'edge' touches a box",
        "a line crosses 'line'",
        "'line' touches 'tiny'",
        "'tiny' is too small",
        "'between' crosses a panel's edge",
        "a line crosses (200, 100, 300, 160)",
        "a line crosses 'far too long for it'",
    ):
        assert fault in found
    assert "'near'" not in found and "'5'" not in found


def test_the_committed_pictures_are_all_that_is_drawn():
    drawn = {f"{name}.svg" for name in script.PICTURES}
    assert {path.name for path in (ROOT / "img").glob("*.svg")} == drawn


def test_the_committed_pictures_are_drawn_byte_for_byte_whatever_the_readers_style(tmp_path):
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    if f"matplotlib=={matplotlib.__version__}" not in pins:
        pytest.skip("this is another matplotlib than constraints.txt pins; its glyphs may differ")
    style = {"font.size": 30, "lines.linewidth": 7, "svg.fonttype": "none", "text.usetex": True}
    with matplotlib.rc_context(style):
        paths = script.draw(tmp_path)
        assert matplotlib.rcParams["font.size"] == 30, "the reader's style must survive"
    assert [path.stem for path in paths] == list(script.PICTURES)
    for path in paths:
        assert path.read_bytes() == (ROOT / "img" / path.name).read_bytes(), path.name


@pytest.mark.parametrize("name", script.PICTURES)
def test_a_picture_is_small_titled_and_needs_no_font(name):
    path = ROOT / "img" / f"{name}.svg"
    assert path.stat().st_size < 120_000
    root = ElementTree.parse(path).getroot()
    assert root.findtext(f"{SVG}title") == script.PICTURES[name]().title
    assert not list(root.iter(f"{SVG}text"))


def test_help_draws_nothing(capsys, monkeypatch):
    before = {path: path.stat().st_mtime_ns for path in (ROOT / "img").glob("*.svg")}
    monkeypatch.setattr(sys, "argv", ["draw.py", "--help"])
    with pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(ROOT / "img" / "draw.py"), run_name="__main__")
    assert stopped.value.code == 0
    assert "all pictures" in capsys.readouterr().out
    assert before == {path: path.stat().st_mtime_ns for path in before}


def test_the_measured_pictures_are_those_of_the_committed_notebooks(tmp_path):
    drawn = script.copy_measured(tmp_path)
    assert [path.name for path in drawn] == sorted(
        (path.name for path in (ROOT / "img").glob("*.png")), reverse=True
    )
    for path in drawn:
        assert path.read_bytes() == (ROOT / "img" / path.name).read_bytes()
