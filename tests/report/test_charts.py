"""Pictures: every mark on its scale and inside its frame, names that cover nothing."""

from __future__ import annotations

import math
import re
from dataclasses import replace
from itertools import combinations, pairwise
from xml.etree import ElementTree

import pytest
from receipts_by_hand import bench, gguf, large_ladder, measures, of_base, receipt

from qexport.formats.registry import FORMATS
from qexport.receipt.types import Forecast, Possible
from qexport.report import gather
from qexport.report.labels import place
from qexport.report.mtp_charts import acceptance_chart, speed_chart
from qexport.report.scale import Linear, Log
from qexport.report.size_chart import FLOOR, size_chart
from qexport.report.svg import NARROW, WIDE, Box, element, text, text_width

WIDTHS = pytest.mark.parametrize("width", [WIDE, NARROW])


def drawn(chart, width):
    return ElementTree.fromstring(str(chart.draw(width)))


def points(root):
    """Title and place of every mark."""
    found = {}
    for group in root.iter("g"):
        if group.get("class") == "point":
            x, y = re.fullmatch(r"translate\((.*),(.*)\)", group.get("transform")).groups()
            found[group.find("title").text] = (float(x), float(y))
    return found


def ladder(folder, *klds, size=1_000_000_000):
    made = [gguf(f"T{at}", size * (at + 1), measures=measures(kld, 10 * kld)) for at, kld in enumerate(klds)]
    return gather([receipt(folder, *made)])


@WIDTHS
def test_every_part_of_every_chart_is_inside_the_picture(tmp_path, width):
    base = receipt(
        tmp_path / "base", of_base(gguf("Q4_K_M", 10**10, measures=measures(0.02, 3, bench=bench(9))))
    )
    report = gather(large_ladder(tmp_path), compare=[base])
    for chart in (size_chart(report), acceptance_chart(report), speed_chart(report)):
        root = drawn(chart, width)
        height = float(root.get("height"))
        assert root.get("viewBox") == f"0 0 {root.get('width')} {root.get('height')}"
        for node in root.iter():
            for name, most in (
                ("x", width),
                ("x1", width),
                ("x2", width),
                ("y", height),
                ("y1", height),
                ("y2", height),
            ):
                if node.get(name) is not None:
                    assert 0 <= float(node.get(name)) <= most, ElementTree.tostring(node)
        for node in root.iter("rect"):
            assert float(node.get("width")) > 0
            assert float(node.get("x")) + float(node.get("width")) <= width


@WIDTHS
def test_smaller_is_left_and_closer_is_lower(tmp_path, width):
    at = list(points(drawn(size_chart(ladder(tmp_path, 0.1, 0.01, 0.001)), width)).values())
    xs, ys = [x for x, _ in at], [y for _, y in at]
    assert xs == sorted(xs)
    assert ys == sorted(ys)
    # Ten times is the same distance everywhere.
    assert ys[1] - ys[0] == pytest.approx(ys[2] - ys[1], abs=0.2)
    assert xs[1] - xs[0] == pytest.approx(xs[2] - xs[1], abs=0.2)


@pytest.mark.parametrize("none", [0.0, -1e-9, 1e-9, FLOOR / 2])
def test_what_is_zero_has_a_place_of_its_own(tmp_path, none):
    root = drawn(size_chart(ladder(tmp_path, 0.1, 0.0001, none)), WIDE)
    ys = [y for _, y in points(root).values()]
    axis = max(float(node.get("y1")) for node in root.iter("line") if node.get("class") == "axis")
    assert ys[2] == pytest.approx(axis, abs=0.2)
    assert ys[0] < ys[1] < ys[2] - 20
    assert "0" in [node.text for node in root.iter("text") if node.get("class") == "tick"]


def test_nothing_but_zeros(tmp_path):
    root = drawn(size_chart(ladder(tmp_path, 0.0, 0.0)), NARROW)
    assert len({y for _, y in points(root).values()}) == 1


def test_one_artifact_is_a_chart(tmp_path):
    ((x, y),) = points(drawn(size_chart(ladder(tmp_path, 0.01)), WIDE)).values()
    assert 60 < x < WIDE - 20
    assert 20 < y < 480


def test_without_measures_there_is_no_chart(tmp_path):
    report = gather([receipt(tmp_path, gguf("Q8_0", 10))])
    assert (size_chart(report), acceptance_chart(report), speed_chart(report)) == (None, None, None)


def test_heads_in_folders_of_their_own_are_no_points(tmp_path):
    report = gather(large_ladder(tmp_path))
    assert len(points(drawn(size_chart(report), WIDE))) == 10
    assert "6bit-MTP" not in str(acceptance_chart(report).wide)


def test_a_failed_artifact_says_so(tmp_path):
    assert ">NVFP4 (failed)<" in str(size_chart(gather(large_ladder(tmp_path))).wide)


def test_the_other_model_is_hollow(tmp_path):
    base = receipt(tmp_path / "b", of_base(gguf("Q8_0", 10**10, measures=measures(0.01, 0.2))))
    chart = size_chart(
        gather([receipt(tmp_path / "t", gguf("Q8_0", 10**10, measures=measures(0.02, 0.3)))], compare=[base])
    )
    classes = [node.get("class") for node in drawn(chart, WIDE).iter("path")]
    assert sorted(classes) == ["mark gguf", "mark gguf other"]
    assert "hollow: org/Base" in [entry.words for entry in chart.legend]


def test_bars_are_as_long_as_their_values(tmp_path):
    report = gather([receipt(tmp_path, gguf("Q8_0", 10, measures=measures(0.01, 0.1, bench=bench(40.0))))])
    root = drawn(speed_chart(report), WIDE)
    lengths = [float(node.get("width")) for node in root.iter("rect")]
    assert [length / lengths[0] for length in lengths] == pytest.approx([1, 1.25, 1.45, 1.4, 1.2], abs=0.01)
    classes = [node.get("class") for node in root.iter("rect")]
    assert classes == ["bar bare", "bar mtp", "bar mtp best", "bar mtp", "bar mtp"]


def test_the_source_stands_across_each_bar(tmp_path):
    report = gather([receipt(tmp_path, gguf("Q8_0", 10, measures=measures(0.01, 0.1, 0.25)))])
    root = drawn(acceptance_chart(report), WIDE)
    (bar,) = root.iter("rect")
    (across,) = (node for node in root.iter("line") if node.get("class") == "beside")
    start, width = float(bar.get("x")), float(bar.get("width"))
    assert float(across.get("x1")) - start == pytest.approx(width * 0.525 / 0.25, abs=0.3)


def test_figures_of_two_machines_are_told_apart(tmp_path):
    made = [gguf(cpu, 10, measures=measures(0.01, 0.1, bench=bench(9.0, cpu=cpu))) for cpu in ("one", "two")]
    chart = speed_chart(gather([receipt(tmp_path, *made)]))
    assert [note.startswith("Not all were measured alike: ") for note in chart.notes] == [True, True]


class TestScales:
    @pytest.mark.parametrize(
        ("low", "high"), [(0, 1), (0, 57.3), (1e9, 2.9e10), (10.2e9, 10.4e9), (0, 0.004)]
    )
    def test_ticks_are_round_and_few(self, low, high):
        ticks = Linear(low, high, 0, 100).ticks()
        assert 3 <= len(ticks) <= 8
        assert all(low <= tick <= high * (1 + 1e-9) for tick in ticks)
        step = ticks[1] - ticks[0]
        assert f"{step:.0e}"[0] in "125"

    def test_values_beyond_the_ends_stay_inside(self):
        scale = Linear(0, 10, 50, 150)
        assert [scale(value) for value in (-5, 0, 5, 10, 99)] == [50, 50, 100, 150, 150]

    @pytest.mark.parametrize("values", [[0.01], [0.3, 0.31], [1e-5, 4.0], [7.0], [0.0, 0.02], []])
    def test_logarithms_hold_all_values_and_have_ticks(self, values):
        scale = Log.over(values, 100, 0, 120, floor=1e-6)
        ticks = scale.ticks()
        assert ticks == sorted(ticks)
        assert len(ticks) >= 2
        assert all(0 <= scale(tick) <= 100 for tick in ticks)
        assert any(math.log10(tick) == round(math.log10(tick)) for tick in ticks)
        for value in values:
            assert scale(value) == 120 if value < 1e-6 else 0 < scale(value) < 100


def meet(one: Box, other: Box) -> bool:
    """Whether they share any area."""
    across = one.left < other.right and other.left < one.right
    return across and one.top < other.bottom and other.top < one.bottom


def crowds():
    """Where marks lie: apart, around a place, all on it, along a curve, in a corner, everywhere."""
    yield "apart", [(60.0 + 90 * at, 40.0 + 50 * at) for at in range(5)]
    yield "around", [(300 + 14 * math.cos(at), 150 + 14 * math.sin(at)) for at in range(6)]
    yield "one place", [(300.0 + 0.1 * at, 150.0) for at in range(40)]
    yield "curve", [(20.0 + 14 * at, 30 + 7000 / (30 + 14 * at)) for at in range(40)]
    yield "corner", [(595.0 - at % 5, 295.0 - at // 5) for at in range(25)]
    yield "everywhere", [((37 * at) % 599 + 0.5, (61 * at) % 299 + 0.5) for at in range(400)]


@pytest.mark.parametrize("name", ["Q4_K_M", "long" * 8, "模型" * 6])
@pytest.mark.parametrize("crowd", [pytest.param(each, id=name) for name, each in crowds()])
def test_names_cover_neither_points_nor_each_other(crowd, name):
    frame = Box(0, 0, 600, 300)
    names = [f"{name}{at}" for at in range(len(crowd))]
    labels = place(crowd, names, frame)
    boxes = [label.box for label in labels.placed]
    assert not any(meet(one, other) for one, other in combinations(boxes, 2))
    assert all(box.inside(frame) for box in boxes)
    for x, y in crowd:
        assert not any(meet(box, Box(x - 5, y - 5, x + 5, y + 5)) for box in boxes)
    # Each name is in the picture or in the key, and once.
    numbers = dict(labels.key)
    said = [label.words for label in labels.placed if label.words not in numbers]
    assert sorted([*said, *(each for number in numbers.values() for each in number)]) == sorted(names)
    assert len(crowd) > 100 or {label.words for label in labels.placed} >= set(numbers)


@WIDTHS
@pytest.mark.parametrize("far", [1.0, 1.000001])
def test_forty_files_of_one_size_and_closeness_have_their_names(tmp_path, width, far):
    made = [gguf(f"T{at}-XL", int(10**10 * far**at), measures=measures(0.01, 0.1)) for at in range(40)]
    root = drawn(size_chart(gather([receipt(tmp_path, *made)])), width)
    assert [node.text for node in root.iter("text") if node.get("class") == "name"] == ["1"]
    lines = [node for node in root.iter("text") if node.get("class") == "key"]
    named = re.findall(r"T\d+-XL", " ".join(node.text for node in lines))
    assert sorted(named) == sorted(f"T{at}-XL" for at in range(40))
    assert all(
        text_width(node.text) <= width and float(node.get("y")) < float(root.get("height")) for node in lines
    )


def test_what_failed_is_not_on_the_line_of_what_is_worth_taking(tmp_path):
    made = [gguf(f"T{at}", 10**9 * at, measures=measures(0.1**at, 1.0)) for at in (1, 2, 3)]
    made[1]["verification"] = {**made[1]["verification"], "verdict": "fail: agreement", "passed": False}
    root = drawn(size_chart(gather([receipt(tmp_path, *made)])), WIDE)
    at = points(root)
    (joined,) = (node for node in root.iter("line") if node.get("class") == "pareto")
    ends = [tuple(float(joined.get(key)) for key in pair) for pair in (("x1", "y1"), ("x2", "y2"))]
    assert sorted(ends) == sorted(where for name, where in at.items() if "failed" not in name)


def test_elements_are_escaped():
    made = str(text(1, 2, "<a & b>", class_='"x"'))
    assert made == '<text x="1" y="2" class="&#34;x&#34;">&lt;a &amp; b&gt;</text>'
    assert str(element("line", stroke_width=0.5, x=None)) == '<line stroke-width="0.5"></line>'


def test_every_format_has_a_shape_of_its_own():
    marks = [each.words.mark for each in FORMATS.values()]
    assert len(set(marks)) == len(marks)
    assert all(marks)


def test_what_was_predicted_of_other_sizes_is_a_line_that_the_marks_lie_on(tmp_path):
    report = ladder(tmp_path, 0.1, 0.01, 0.001)
    assert "dashed" not in size_chart(report).reading
    (model,) = report.models
    curve = tuple(
        Possible(size, kld)
        for size, kld in ((10**7, 9.0), (10**9, 0.1), (2 * 10**9, 0.01), (3 * 10**9, 0.001), (10**12, 0.0))
    )
    chosen = [replace(each, predicted=Forecast(0.01, aim="x", curve=curve)) for each in model.artifacts]
    chart = size_chart(replace(report, models=(replace(model, artifacts=tuple(chosen)),)))
    assert "A dashed line is what was predicted" in chart.reading
    root = drawn(chart, WIDE)
    lines = [node for node in root.iter("line") if node.get("class") == "foretold"]
    marks = sorted(points(root).values())
    ends = [tuple(float(node.get(key)) for key in ("x1", "y1", "x2", "y2")) for node in lines]
    # From mark to mark; what is far outside of the picture is left out.
    assert ends == [(*one, *other) for one, other in pairwise(marks)]
