"""What the page shows beside tables: what to pick, a card for each, answers side by side, drafts."""

from __future__ import annotations

import io
import re
import sys
from dataclasses import replace
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path
from random import Random
from xml.etree import ElementTree

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "publish"))
from large_publication import ANSWER, CODE, PROMPTS, ROUGH, SOURCE, folders, gguf_files

from qexport.errors import EnvironmentProblem, InputError
from qexport.formats.registry import FORMATS
from qexport.receipt.measures import Drafting, Estimate
from qexport.receipt.types import AgainstPlain, Forecast, Gate, TunedHead
from qexport.report.answers import asked, marked, pieces
from qexport.report.labels import place
from qexport.report.ladder_chart import ladder_chart, retuned_chart
from qexport.report.overview import overviews, taken, verdict_of
from qexport.report.preview import preview
from qexport.report.report import Model, Report
from qexport.report.size_chart import size_chart
from qexport.report.svg import NARROW, WIDE, Box
from qexport.report.write import html, lay_out, markdown, save_report

FILES = [each for each in gguf_files() if each.is_model]
BESIDE = tuple(each for each in gguf_files() if not each.is_model)


def drafting(factor: float = 1.0) -> Drafting:
    def of(*values: float) -> tuple[Estimate, ...]:
        return tuple(Estimate(value * factor, 0.01) for value in values)

    return Drafting(4080, of(0.78, 0.7, 0.63, 0.58), of(1.78, 2.32, 2.66, 2.86), of(1.8, 2.4, 2.8, 3.0))


def followed(artifact, factor=1.0):
    proof = artifact.verification
    heads = replace(proof.measures, head=drafting(factor), source_head=drafting())
    return replace(artifact, verification=replace(proof, measures=heads))


def model(*artifacts, beside=BESIDE) -> Model:
    return Model("alice/Tuned-27B", tuple(artifacts), beside=beside)


def page(*artifacts) -> str:
    return html(lay_out(Report((model(*artifacts),))))


def test_what_to_pick_for_each_memory():
    found = taken(model(*FILES, *folders()))
    assert [each.gib for each in found] == [16, 24, 32]
    assert [pick[0] for pick in found[1].picks] == ["Q5_K_M", "MLX 6bit", "NVFP4"]
    assert found[0].picks == (("Q3_K_M", "close, differs now and then", "up to 10k tokens of text"),)
    assert taken(model(replace(FILES[0], source=replace(SOURCE, about=type(SOURCE.about)())))) == ()


def test_picking_needs_no_script():
    text = page(*FILES)
    memories = re.findall(r'<input type="radio" name="memory" id="(m\d+)" class="(m\d)"( checked)?>', text)
    assert [each[0] for each in memories] == ["m16", "m24", "m32"]
    assert [bool(each[2]) for each in memories] == [True, False, False]
    for at in range(1, len(memories) + 1):
        assert f".m{at}:checked ~ .panels .p{at}" in text
    assert "<script" not in text


def test_a_card_says_what_it_fits_and_how_it_is_run():
    cards = {each.artifact.label: each for each in overviews(model(*FILES, *folders()))}
    q4 = cards["Q4_K_M"]
    assert (q4.size, q4.close, q4.look, q4.verdict) == ("17.1 GB", "very close", "good", "passed")
    assert [fit.context for fit in q4.fits] == ["", "", "", "84k", "205k"]
    tower = "--mmproj mmproj-BF16.gguf --spec-type draft-mtp"
    assert q4.command == f"llama-server -m Tuned-27B-Q4_K_M.gguf {tower}"
    assert q4.sees == "sees pictures, proven"
    assert dict(q4.figures)["Speed"] == "58.0 tokens/s, 1.55 ×"
    assert cards["FP8"].command == "vllm serve FP8"
    assert cards["FP8"].verdict == "passed, without drafting"
    assert "6bit-MTP" not in cards
    (blind,) = overviews(model(FILES[0], beside=()))
    assert blind.sees == "text alone"
    assert "--mmproj" not in blind.command


@pytest.mark.parametrize(
    ("change", "look", "words"),
    [
        ({}, "good", "all 2 passed"),
        ({"verification": None}, "open", "1 of 2 proven"),
        ({"gates": (Gate("a", "max_mean_kld", 0.1),)}, "bad", "1 of 2 failed"),
    ],
)
def test_the_verdict_on_all(change, look, words):
    assert verdict_of(model(FILES[0], replace(FILES[1], **change))) == (look, words)


def test_a_card_of_chosen_types_says_what_for_and_what_it_brought():
    predicted = Forecast(0.007, aim="the size of Q4_K_M")
    beside = AgainstPlain(True, Estimate(0.007), Estimate(0.0175), Estimate(0.0105, 0.0005), 8192)
    chosen = replace(FILES[1], label="QX-Q4_K_M", predicted=predicted, against_plain=beside)
    plain, card = overviews(model(FILES[0], chosen))
    assert (plain.chosen, card.chosen) == ("", "types chosen for the size of Q4_K_M")
    assert dict(card.figures)["Beside plain"] == "60.0 ± 2.9 % less"
    assert "Beside plain" not in dict(plain.figures)


def test_a_name_far_from_its_mark_is_nearer_to_no_other():
    """On a phone, Q3_K_M stood beside the mark of Q4_K_M, which its line ran into."""
    random, names = Random(0), [f"Q{at}_K_M" for at in range(8)]
    many = 0
    for _ in range(40):
        points = [(random.uniform(90, 190), random.uniform(150, 300)) for _ in names]
        bars = [Box(x - 2, y - 90, x + 2, y) for x, y in points]
        placed = place(points, names, Box(84, 140, 354, 430), bars).placed
        for label in (each for each in placed if each.far and each.words in names):
            many += 1
            assert min(points, key=lambda point: label.box.distance(*point)) == label.point, label.words
    assert many > 4


def test_answers_are_beside_what_the_source_says():
    first, second = asked(FILES)
    assert (first.prompt, first.from_source) == (PROMPTS[0], True)
    own, other = first.answers
    assert own.who == ("the source", "IQ4_XS", "Q4_K_M", "Q5_K_M", "Q6_K", "Q8_0")
    assert own.same
    assert "<mark>" not in own.text
    assert other.who == ("Q2_K", "IQ3_XXS", "Q3_K_M")
    assert re.findall("<mark>(.*?)</mark>", other.text) == ["all", "over", "the", "sky,", "through."]
    assert [each.who[0] for each in second.answers] == ["the source"]
    assert "\n    a, b = 0, 1\n" in second.answers[0].text


def test_what_the_source_said_outranks_what_follows_from_others():
    (found, _) = asked(FILES[:1], {PROMPTS[0]: "Another answer."})
    assert found.from_source
    assert [each.who for each in found.answers] == [("the source",), ("Q2_K",)]


def test_where_the_source_is_not_known_the_closest_is_compared_with():
    def unknown(made):
        return replace(made, verification=replace(made.verification, as_source=()))

    found = asked([unknown(each) for each in FILES])[0]
    assert not found.from_source
    assert found.answers[0].who[0] == "IQ4_XS"  # the first of those that say what Q8_0 says
    assert found.answers[0].text == ANSWER
    assert asked([unknown(FILES[0])]) == ()


class Shown(HTMLParser):
    def __init__(self):
        super().__init__()
        self.tags, self.words = [], ""

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        assert attrs == []

    def handle_data(self, data):
        self.words += data


@pytest.mark.parametrize(
    "text", ["<script>x</script> & <mark>", "a\u202eb <img src=x onerror=y>\n\tz", "</mark>"]
)
def test_answers_are_text(text):
    parser = Shown()
    parser.feed(str(marked(pieces(text, "something else"))))
    assert set(parser.tags) <= {"mark"}
    assert parser.words.split() == text.replace("\u202e", "").split()
    assert "".join(word for word, _ in pieces(text, "x")) == text


def test_questions_answers_and_parts_of_anybody_are_text():
    nasty = "<script>alert(1)</script>\n\n</div></section><img src=x onerror=y>"
    planted = []
    for made in FILES[:2]:
        proof = replace(
            made.verification, prompts=(nasty,), texts=(f"{made.label} {nasty}",), as_source=(False,)
        )
        planted.append(replace(made, verification=proof, parts={"embeddings": {nasty: 1}, "MLP": {"F16": 1}}))
    text = page(*planted)
    assert "<script" not in text
    assert "<img" not in text
    assert text.count("&lt;/div&gt;&lt;/section&gt;&lt;img") == 3
    assert text.count("<section") == text.count("</section>")
    assert text.count("<div") == text.count("</div>")


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_the_ladder_is_inside_its_picture_and_names_stand_apart(width):
    rows = [followed(each, 1 - at / 100) for at, each in enumerate(FILES)]
    chart = ladder_chart(Report((model(*rows),)))
    root = ElementTree.fromstring(str(chart.draw(width)))
    height = float(root.get("height"))
    names = [node for node in root.iter("text") if node.get("class") == "name"]
    assert {node.text for node in names} == {each.label for each in FILES}
    places = sorted(float(node.get("y")) for node in names)
    assert all(below - above >= 15 for above, below in pairwise(places))
    assert 0 < places[0] < places[-1] < height
    marks = [
        tuple(map(float, re.fullmatch(r"translate\((.*),(.*)\)", node.get("transform")).groups()))
        for node in root.iter("g")
        if node.get("class") == "point"
    ]
    assert len(marks) == 4 * len(FILES)
    assert all(0 < x < width and 0 < y < height for x, y in marks)
    assert len([node for node in root.iter("line") if node.get("class") == "own"]) == 4


@pytest.mark.parametrize("width", [WIDE, NARROW])
def test_thirty_names_and_long_ones_stand_apart_too(width):
    rows = [
        followed(replace(FILES[0], label=f"{at}-{'long' * (at % 2) * 40}"), 1 - at / 1000) for at in range(30)
    ]
    root = ElementTree.fromstring(str(ladder_chart(Report((model(*rows),))).draw(width)))
    names = [node for node in root.iter("text") if node.get("class") == "name"]
    places = sorted(float(node.get("y")) for node in names)
    assert len(places) == 30
    assert all(below - above >= 15 for above, below in pairwise(places))
    assert 0 < places[0] < places[-1] < float(root.get("height"))
    marks = [node.get("transform") for node in root.iter("g") if node.get("class") == "point"]
    assert all(58 < float(re.match(r"translate\(([^,]*),", each)[1]) < width for each in marks)
    root = ElementTree.fromstring(str(size_chart(Report((model(*rows),))).draw(width)))
    names = [node for node in root.iter("text") if node.get("class") == "name"]
    assert all(len(node.text) <= 32 for node in names)


def test_drafts_are_told_in_a_table_too():
    text = markdown(lay_out(Report((model(followed(FILES[4])),)))).replace("\u00a0", " ")
    assert "| Head | Accepted, 1 ahead | Accepted, 2 ahead | Accepted, 3 ahead | Accepted, 4 ahead |" in text
    assert "| Q4_K_M | 78.0 ± 1.0 % | 70.0 ± 1.0 % | 63.0 ± 1.0 % | 58.0 ± 1.0 % | 2.66 ± 0.010 |" in text
    assert "| the source's own | 78.0 ± 1.0 % |" in text
    assert ladder_chart(Report((model(FILES[4]),))) is None


def test_a_tuned_head_is_shown_before_and_after():
    told = TunedHead("org/Base@01234567", "argmax", 3, Estimate(1.72, 0.02), Estimate(2.66, 0.03))
    tuned = replace(FILES[4], source=replace(SOURCE, tuned=told))
    chart = retuned_chart(Report((model(tuned),)))
    assert "The head was that of org/Base@01234567." in chart.reading
    bars = [float(node.get("width")) for node in ElementTree.fromstring(str(chart.wide)).iter("rect")]
    assert bars[1] / bars[0] == pytest.approx(2.66 / 1.72, abs=0.01)
    assert retuned_chart(Report((model(FILES[4]),))) is None


def test_the_line_joins_what_nothing_smaller_is_as_close_as():
    worse = replace(folders()[2], label="NVFP4")
    chart = size_chart(Report((model(*FILES, worse),)))
    root = ElementTree.fromstring(str(chart.wide))
    lines = [node for node in root.iter("line") if node.get("class") == "pareto"]
    assert len(lines) == len(FILES) - 1  # NVFP4 is larger than files that are closer
    errors = [node for node in root.iter("line") if node.get("class") == "error"]
    assert len(errors) == len(FILES) + 1
    assert all(float(node.get("y1")) > float(node.get("y2")) for node in errors)


def test_what_was_predicted_is_a_ring():
    chart = size_chart(Report((model(replace(FILES[4], predicted=Forecast(0.0121)), FILES[7]),)))
    (ring,) = ElementTree.fromstring(str(chart.wide)).iter("circle")
    assert ring.get("class") == "guess"
    assert "hollow ring is what was predicted" in chart.reading


def test_the_picture_has_its_marks_where_the_chart_has_them():
    image = pytest.importorskip("PIL.Image")
    data = preview(Report((model(*FILES, *folders()),)))
    assert data == preview(Report((model(*FILES, *folders()),)))
    drawn = image.open(io.BytesIO(data)).convert("RGB")
    assert drawn.size == (1200, 630)
    root = ElementTree.fromstring(str(size_chart(Report((model(*FILES, *folders()),))).draw(1040.0)))
    marks = [node for node in root.iter("g") if node.get("class") == "point"]
    assert len(marks) == 11
    for node in marks:
        across, down = map(float, re.fullmatch(r"translate\((.*),(.*)\)", node.get("transform")).groups())
        kind = next(iter(node)).get("class").split()[1]
        wanted = bytes.fromhex(FORMATS[kind].words.colours[0][1:])
        found = drawn.getpixel((round(80 + across), round(104 + down)))
        assert max(abs(one - other) for one, other in zip(found, wanted, strict=True)) < 40


@pytest.mark.parametrize("title", ["<script>\u202e" * 40, "模型", ""])
def test_any_title_can_be_drawn(title):
    pytest.importorskip("PIL")
    assert preview(Report((replace(model(*FILES), title=title),))).startswith(b"\x89PNG")


def test_a_picture_that_cannot_be_drawn_is_said(tmp_path, monkeypatch):
    unmeasured = Report((model(replace(FILES[0], verification=None)),))
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(EnvironmentProblem, match="a picture needs Pillow"):
        save_report(unmeasured, tmp_path / "out", png=True)
    assert not (tmp_path / "out").exists()
    monkeypatch.undo()
    pytest.importorskip("PIL")
    with pytest.raises(InputError, match="there is nothing to draw"):
        save_report(unmeasured, tmp_path / "out", png=True)
    paths = save_report(Report((model(*FILES),)), tmp_path / "out", png=True)
    assert [path.name for path in paths.all] == ["report.html", "report.md", "report.json", "report.png"]
    assert paths.all[3].read_bytes().startswith(b"\x89PNG")


def test_what_is_kept_in_16_bits_is_said():
    parts = {"embeddings": {"BF16": 9}, "attention": {"BF16": 9, "F32": 1}, "MLP": {"NVFP4": 9, "F32": 1}}
    (card,) = overviews(model(replace(FILES[0], parts=parts)))
    assert card.whole == "in 16 bits: embeddings and attention"
    assert {each.whole for each in overviews(model(*FILES))} == {""}


def test_answers_of_code_keep_their_lines():
    asks, says = "Go on:\n\n    def f(x):", "\n    y = x\n\treturn y\n"
    proof = replace(FILES[0].verification, prompts=(asks,), texts=(says,), as_source=(True,))
    shown = page(replace(FILES[0], verification=proof))
    assert f"<h3>{asks}</h3>" in shown
    assert '<div class="said">    y = x\n    return y</div>' in shown
    assert marked(pieces(CODE, CODE)) == CODE
    assert str(marked(pieces(ROUGH, ROUGH))) == ROUGH


def of_base(made):
    """The same of the base model, whose head is better by more than noise, and whose divergence is not."""
    found = made.verification.measures
    better = Estimate(found.acceptance.value + 0.03, found.acceptance.error)
    nearly = replace(found.kld, mean=found.kld.mean + found.kld.error)
    proof = replace(made.verification, measures=replace(found, acceptance=better, kld=nearly))
    return replace(made, verification=proof, source=replace(SOURCE, label="Qwen/Qwen3.6-27B@89abcdef"))


def test_tuned_and_base_stand_beside_each_other_for_each_type():
    base = Model("Qwen/Qwen3.6-27B", tuple(of_base(each) for each in FILES[3:6]))
    laid = lay_out(Report((model(*FILES), base)))
    (side,) = laid.comparisons
    assert side.names == ("Tuned-27B", "Qwen3.6-27B")
    assert [card.artifact.label for card in side.cards] == ["IQ4_XS", "Q4_K_M", "Q5_K_M"]
    lines = {line.what: (line.ours, line.theirs, line.ahead) for line in side.cards[1].lines}
    assert lines["Drafts accepted"] == ("78.2 ± 0.7 %", "81.2 ± 0.7 %", "theirs")
    assert lines["KL divergence"] == ("0.0171 ± 0.00061", "0.0177 ± 0.00061", "")
    assert (lines["Tokens/s"], lines["Tokens/s, drafting"]) == (("37.4", "37.4", ""), ("58.0", "58.0", ""))
    assert [card.differing for card in side.cards] == [()] * 3
    shown = html(laid)
    assert '<td class="ahead">81.2 ± 0.7 %</td>' in shown
    # What is only said by one is no lead.
    unsaid = replace(base, artifacts=(replace(base.artifacts[0], verification=None),))
    ((card,),) = (each.cards for each in lay_out(Report((model(*FILES), unsaid))).comparisons)
    assert {line.ahead for line in card.lines} == {""}
    assert ("Drafts accepted", "–") in [(line.what, line.theirs) for line in card.lines]


def test_names_of_models_beside_each_other_are_text():
    nasty = "<img src=x onerror=y>"
    base = Model(nasty, (replace(of_base(FILES[4]), options={nasty: nasty}),))
    shown = html(lay_out(Report((model(FILES[4]), base))))
    assert "<img" not in shown
    assert "Not made alike" in shown


def test_paper_is_light_and_unfolded():
    text = page(*FILES)
    (print_,) = re.findall(r"@media print \{.*?\n\}", text, re.S)[:1]
    ground = re.findall(r"--ground: (#\w+)", text)
    assert (ground[0], ground[-1]) == ("#fbfbf9", "#ffffff")
    assert "details::details-content { content-visibility: visible;" in print_
    assert text.index("@media print") > text.index("prefers-color-scheme: dark")
