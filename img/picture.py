"""The vocabulary of the course's diagrams: a card with boxes, panels, arrows and lines of text.

One unit is one CSS pixel, y grows downwards. Each kind of thing keeps its colour and its shape
through all pictures. What is drawn is also recorded, so that a test can look for collisions.
"""

from dataclasses import dataclass
from itertools import pairwise

import matplotlib
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.patches import Circle, FancyBboxPatch, Patch, PathPatch, Polygon, Wedge
from matplotlib.path import Path as Line
from matplotlib.text import Text

from rlhf_helpers.plots import BLUE, GREEN, GREY, ORANGE, PURPLE, RED

INK, QUIET, CARD, EDGE = "#1F2933", "#56616C", "#FAFAF8", "#D3D8DD"
WIDTH, MARGIN, POINTS = 800, 28, 0.75  # points a pixel
KINDS = {  # colour and meaning of each kind of box
    "people": (PURPLE, "people"),
    "data": (BLUE, "data"),
    "trained": (GREEN, "trained model"),
    "frozen": (GREY, "frozen model"),
    "token": (RED, "token chosen"),
    "number": (ORANGE, "numbers"),
    "step": (INK, "code"),
}
FONTS = {  # by file: a system's own DejaVu may be another version
    name: FontProperties(fname=f"{matplotlib.get_data_path()}/fonts/ttf/DejaVuSans{suffix}.ttf")
    for name, suffix in (("regular", ""), ("bold", "-Bold"), ("mono", "Mono"))
}
Point = tuple[float, float]


@dataclass
class Box:
    """A box as drawn, the texts that must fit into it, and where arrows dock, a gap off it."""

    x: float
    y: float
    width: float
    height: float
    texts: list[Text]

    @property
    def left(self) -> Point:
        return self.x - 4, self.y + self.height / 2

    @property
    def right(self) -> Point:
        return self.x + self.width + 4, self.y + self.height / 2

    @property
    def top(self) -> Point:
        return self.x + self.width / 2, self.y - 4

    @property
    def bottom(self) -> Point:
        return self.x + self.width / 2, self.y + self.height + 4


class Picture(Figure):
    """A light card with a title, on which boxes, panels, texts and arrows are put."""

    def __init__(self, title: str, subtitle: str, height: float):
        super().__init__(figsize=(WIDTH / 96, height / 96), dpi=96, facecolor="none")
        self.title, self.height, self.kinds = title, height, set[str]()
        self.boxes, self.panels, self.routes = list[Box](), list[Box](), list[list[Point]]()
        self.plane = self.add_axes((0, 0, 1, 1), xlim=(0, WIDTH), ylim=(height, 0))
        self.plane.set_axis_off()
        self._add(rounded(2, 2, WIDTH - 4, height - 4, 16), CARD, EDGE, 1)
        self.write(MARGIN, 40, title, 20, "bold", align="left")
        self.write(MARGIN, 66, subtitle, 13.5, colour=QUIET, align="left")

    def _add(self, patch: Patch, fill: object, edge: object, width: float) -> None:
        patch.set(facecolor=fill, edgecolor=edge, linewidth=width * POINTS, clip_on=False)
        self.plane.add_patch(patch)

    def write(
        self,
        x: float,
        y: float,
        text: str,
        size: float = 13,
        font: str = "regular",
        colour: str = INK,
        align: str = "center",
    ) -> Text:
        """A line of text whose capitals are centred on y, whatever hangs below them."""
        y += 0.36 * size
        return self.plane.text(
            x, y, text, font=FONTS[font], size=size * POINTS, color=colour, ha=align
        )

    def panel(
        self, x: float, y: float, width: float, height: float, heading: str, tag: str = ""
    ) -> Box:
        """A frame around boxes that belong together."""
        self._add(rounded(x, y, width, height, 12), "white", EDGE, 1.2)
        texts = [self.write(x + 14, y + 22, heading, 14.5, "bold", align="left")]
        if tag:
            texts.append(self._tag(x + width - 52, y + 22, tag))
        self.panels.append(Box(x, y, width, height, texts))
        return self.panels[-1]

    def _tag(self, x: float, y: float, tag: str) -> Text:
        """The name of a notebook, white on dark."""
        self._add(rounded(x, y - 11, 38, 22, 6), INK, "none", 0)
        return self.write(x + 19, y, tag, 12, "bold", "white")

    def box(
        self,
        kind: str,
        x: float,
        y: float,
        width: float,
        height: float,
        heading: str,
        *lines: str,
        font: str = "regular",
        align: str = "center",
        tag: str = "",
    ) -> Box:
        """A box with a bold heading, lines of text, and perhaps the name of a notebook."""
        self._shape(kind, x, y, width, height)
        self.kinds.add(kind)
        texts, start, end, middle = [], x, x + width, y + height / 2
        if kind == "people":
            start, end = x + 40, end - 12
            self._add(Circle((x + 26, middle - 7), 5), PURPLE, "none", 0)
            self._add(Wedge((x + 26, middle + 11), 10, 180, 360), PURPLE, "none", 0)
        if tag:
            start = x + 48
            texts.append(self._tag(x + 10, middle, tag))
        rows = [(heading, 14.0, "bold")] * bool(heading) + [(line, 13.0, font) for line in lines]
        for i, row in enumerate(rows):
            at = start + 12 if align == "left" else (start + end) / 2
            down = middle + 19 * (i - (len(rows) - 1) / 2)
            texts.append(self.write(at, down, *row, align=align))
        self.boxes.append(Box(x, y, width, height, texts))
        return self.boxes[-1]

    def stack(self, place: tuple[float, float, float, float], *rows: list[str]) -> list[Box]:
        """Boxes under one another, joined by arrows; a row is a kind, a heading and lines.

        `place` is x and y of the first one, the width of all, and the gap between two.
        """
        x, y, width, gap = place
        boxes = []
        for kind, *texts in rows:
            boxes.append(self.box(kind, x, y, width, 20 + 19 * len(texts), *texts))
            y += boxes[-1].height + gap
        for above, below in pairwise(boxes):
            self.arrow(above.bottom, below.top)
        return boxes

    def _shape(self, kind: str, x: float, y: float, width: float, height: float) -> None:
        colour, right, bottom = KINDS[kind][0], x + width, y + height
        cut, middle = min(11, max(5, 0.2 * height)), y + height / 2
        radius = {"people": height / 2, "token": height / 2, "step": 2}.get(kind, 0.8 * cut)
        patch: Patch = rounded(x, y, width, height, radius)
        if kind == "data":
            fold = [(right - cut, y), (right - cut, y + cut), (right, y + cut)]
            patch = Polygon([(x, y), fold[0], fold[2], (right, bottom), (x, bottom)])
        if kind == "number":
            patch = Polygon(
                [
                    (x, middle),
                    (x + cut, y),
                    (right - cut, y),
                    (right, middle),
                    (right - cut, bottom),
                    (x + cut, bottom),
                ]
            )
        if kind == "frozen":
            patch.set_linestyle((0, (3, 2)))
        self._add(patch, "white" if kind == "step" else tint(colour), colour, 1.8)
        if kind == "data":
            self._add(Polygon(fold), tint(colour, 0.5), colour, 1.2)

    def arrow(
        self, *points: Point, colour: str = QUIET, dashed: bool = False, both: bool = False
    ) -> None:
        """A line through the points, its corners rounded, with a head at its end, or at both."""
        self.routes.append(list(points))
        z = [complex(*point) for point in points]  # turning by 90 degrees is multiplying by 1j
        path, codes = [towards(z[0], z[1], 6 * both)], [Line.MOVETO]
        for before, corner, after in zip(z, z[1:], z[2:], strict=False):
            path += [towards(corner, before, 10), corner, towards(corner, after, 10)]
            codes += [Line.LINETO, Line.CURVE3, Line.CURVE3]
        path, codes = [*path, towards(z[-1], z[-2], 6)], [*codes, Line.LINETO]
        line = PathPatch(Line([(p.real, p.imag) for p in path], codes))
        line.set_linestyle((0, (3, 2)) if dashed else "-")
        self._add(line, "none", colour, 2)
        for tip, before in [(z[-1], z[-2]), (z[0], z[1])][: 1 + both]:
            base = towards(tip, before, 9)
            side = (base - tip) * 0.5j
            head = [(p.real, p.imag) for p in (tip, base + side, base - side)]
            self._add(Polygon(head), colour, colour, 1)

    def finished(self) -> "Picture":
        """Explain the kinds of boxes in a last row, and return the picture."""
        x, y = MARGIN, self.height - 30
        for kind in (kind for kind in KINDS if kind in self.kinds):
            self._shape(kind, x, y - 8, 24, 16)
            self.write(x + 32, y, KINDS[kind][1], colour=QUIET, align="left")
            x += 58 + 7 * len(KINDS[kind][1])
        return self


def rounded(x: float, y: float, width: float, height: float, radius: float) -> Patch:
    """A rectangle with round corners."""
    return FancyBboxPatch((x, y), width, height, f"round,pad=0,rounding_size={radius}")


def tint(colour: str, share: float = 0.13) -> list[float]:
    """The colour mixed with white."""
    return [1 - share * (1 - part) for part in to_rgb(colour)]


def towards(start: complex, end: complex, distance: float) -> complex:
    """The point on the way from start to end, `distance` pixels from start."""
    return start + distance * (end - start) / abs(end - start)
