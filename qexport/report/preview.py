"""``report.png``: title, verdict and size chart as a picture, for a card and for previews of links.

Pillow draws it, and is no dependency of qexport: who wants the picture installs it. What is drawn is the
chart's own SVG, of which there are lines, text, circles and a few straight shapes; colours are those of the
page by day.
"""

from __future__ import annotations

import io
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from xml.etree import ElementTree

from qexport.errors import EnvironmentProblem, InputError
from qexport.formats.registry import FORMATS
from qexport.receipt.safe_text import visible
from qexport.report.overview import verdict_of
from qexport.report.size_chart import size_chart

if TYPE_CHECKING:
    from collections.abc import Mapping

    from PIL import ImageDraw

    from qexport.report.report import Report


PREVIEW_NAME = "report.png"
_WIDE, _HIGH, _CHART, _MARGIN, _TOP = 1200, 630, 1040.0, 80.0, 104.0
_SCALE = 2  # drawn twice as large, and made smaller: no jagged edges
_GROUND, _TEXT, _QUIET, _RULE, _BARE = "#fbfbf9", "#16191d", "#5d6670", "#e3e5e4", "#cdd2d5"
_VERDICTS = {"good": "#0a6b48", "bad": "#b3261e", "open": "#7a5600"}
# By class: colour, width. Others are drawn in the colour of their format.
_LINES = {"grid": (_RULE, 1), "axis": (_QUIET, 1), "leader": (_QUIET, 1), "pareto": (_BARE, 3)}
_FAINT = {"stem": (1, 0.55), "error": (5, 0.35), "foretold": (1, 0.6), "guess": (2, 1.0)}
_PLAIN = ("tick", "label")


def preview(report: Report) -> bytes:
    """The picture, as the bytes of a PNG.

    Raises:
        EnvironmentProblem: Pillow is not installed.
        InputError: no divergence was measured: there is nothing to draw.
    """
    try:
        from PIL import Image, ImageDraw
    except ImportError as error:
        raise EnvironmentProblem("a picture needs Pillow", hint="pip install pillow") from error
    chart = size_chart(report)
    if chart is None:
        raise InputError("no KL divergence was measured: there is nothing to draw", hint="Leave --png out.")
    root = ElementTree.fromstring(str(chart.draw(_CHART)))
    high = max(_HIGH, int(_TOP + float(root.attrib["height"])))  # a key makes it longer
    picture = Image.new("RGB", (_WIDE * _SCALE, high * _SCALE), _GROUND)
    pen = _Pen(ImageDraw.Draw(picture), picture)
    look, verdict = verdict_of(report.models[0])
    pen.text(_MARGIN, 66, _shortened(report.title), _TEXT, 38)
    pen.text(_WIDE - _MARGIN, 64, verdict, _VERDICTS[look], 24, anchor="end")
    for node in root:
        pen.draw(node, _MARGIN, _TOP, _TEXT)
    file = io.BytesIO()
    picture.resize((_WIDE, high), Image.Resampling.LANCZOS).save(file, "PNG", optimize=True)
    return file.getvalue()


def _shortened(title: str) -> str:
    words = visible(title)
    return words if len(words) <= 44 else f"{words[:43]}…"


@dataclass(frozen=True)
class _Pen:
    """Draws elements of our SVG; places are those of the finished picture."""

    on: ImageDraw.ImageDraw
    picture: Any

    def draw(self, node: ElementTree.Element, left: float, top: float, colour: str) -> None:
        """An element and what is in it.

        Args:
            left, top: where its coordinates begin.
            colour: of its format, where it is of one.
        """
        classes = (node.get("class") or "").split()
        known = (FORMATS[word].words.colours[0] for word in classes if word in FORMATS)
        colour = next(known, colour)
        if node.tag == "g":
            moved = re.fullmatch(r"translate\((.*),(.*)\)", node.get("transform") or "")
            across, down = (float(moved[1]), float(moved[2])) if moved else (0.0, 0.0)
            for inner in node:
                self.draw(inner, left + across, top + down, colour)
            return
        at = {key: float(value) for key, value in node.attrib.items() if _is_number(value)}
        if node.tag == "line":
            self._line(at, classes[0], left, top, colour)
        elif node.tag == "circle":
            self._circle(left + at["cx"], top + at["cy"], at["r"], outline=colour)
        elif node.tag == "path":
            self._shape(node.get("d") or "", left, top, None if "other" in classes else colour, colour)
        elif node.tag == "text" and node.text:
            shade = _QUIET if classes[0] in _PLAIN else _TEXT
            turned = node.get("transform") is not None
            anchor = node.get("text-anchor") or "start"
            self.text(left + at["x"], top + at["y"], node.text, shade, 13, anchor=anchor, turned=turned)

    def _line(self, at: Mapping[str, float], word: str, left: float, top: float, colour: str) -> None:
        if word in _FAINT:
            width, share = _FAINT[word]
            colour = _mixed(colour, share)
        else:
            colour, width = _LINES.get(word, (colour, 1))
        ends = ((left + at["x1"], top + at["y1"]), (left + at["x2"], top + at["y2"]))
        self.on.line([_scaled(*end) for end in ends], fill=colour, width=width * _SCALE)

    def _circle(self, x: float, y: float, radius: float, *, outline: str, fill: str | None = None) -> None:
        box = (*_scaled(x - radius, y - radius), *_scaled(x + radius, y + radius))
        self.on.ellipse(box, fill=fill, outline=outline, width=2 * _SCALE)

    def _shape(self, path: str, left: float, top: float, fill: str | None, outline: str) -> None:
        if "a" in path:
            self._circle(left, top, 5.0, outline=outline, fill=fill)
            return
        corners: list[tuple[float, float]] = []
        for step, numbers in re.findall(r"([MLHV])([^MLHVZ]*)", path):
            x, y = corners[-1] if corners else (0.0, 0.0)
            values = [float(number) for number in numbers.split(",")]
            corners.append({"H": (values[0], y), "V": (x, values[0])}.get(step) or (values[0], values[-1]))
        points = [_scaled(left + x, top + y) for x, y in corners]
        self.on.polygon(points, fill=fill, outline=outline, width=2 * _SCALE)

    def text(
        self,
        x: float,
        y: float,
        words: str,
        colour: str,
        size: float,
        *,
        anchor: str = "start",
        turned: bool = False,
    ) -> None:
        """At a baseline, like SVG's."""
        from PIL import Image, ImageDraw, ImageFont

        font = ImageFont.load_default(size * _SCALE)
        place = {"start": "ls", "middle": "ms", "end": "rs"}[anchor]
        if not turned:
            self.on.text(_scaled(x, y), words, fill=colour, font=font, anchor=place)
            return
        length = int(self.on.textlength(words, font=font)) + 4
        high = int(size * _SCALE * 1.6)
        slip = Image.new("RGB", (length, high), _GROUND)
        ImageDraw.Draw(slip).text((length / 2, high * 0.75), words, fill=colour, font=font, anchor="ms")
        upright = slip.rotate(90, expand=True)
        left, top = _scaled(x, y)
        self.picture.paste(upright, (int(left - high * 0.75), int(top - length / 2)))


def _is_number(text: str) -> bool:
    return re.fullmatch(r"-?\d+(\.\d+)?", text) is not None


def _scaled(x: float, y: float) -> tuple[float, float]:
    return x * _SCALE, y * _SCALE


def _mixed(colour: str, share: float) -> str:
    """So much of a colour on the ground."""
    pairs = ((int(colour[at : at + 2], 16), int(_GROUND[at : at + 2], 16)) for at in (1, 3, 5))
    return "#" + "".join(f"{round(share * one + (1 - share) * other):02x}" for one, other in pairs)
