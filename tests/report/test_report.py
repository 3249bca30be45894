"""From receipts to a report value, and to the three files."""

from __future__ import annotations

import cProfile
import json
import pstats
from dataclasses import replace

import pytest
from receipts_by_hand import (
    FAILED,
    MATRIX,
    UNRUN,
    bench,
    entry,
    gguf,
    large_ladder,
    measures,
    of_base,
    receipt,
)

from qexport.errors import EnvironmentProblem, InputError
from qexport.receipt.measures import Estimate
from qexport.receipt.speeds import Bench
from qexport.receipt.text import nats, percent, speed
from qexport.receipt.typed import fit
from qexport.receipt.words import gate_value
from qexport.report import Gate, gather, write_report
from qexport.report.report import pair_up
from qexport.report.words import summary
from qexport.report.write import lay_out

GATES = (
    Gate("Tuned-Q4_K_M.gguf", "max_mean_kld", 0.03, 0.0169, True),
    Gate("Tuned-NVFP4/", "max_mean_kld", 0.03, None, False),
)


def test_a_report_is_strict_json(tmp_path):
    base = receipt(tmp_path / "base", of_base(gguf("Q4_K_M", 17_000_000_000, measures=measures(0.02, 0.7))))
    report = gather(large_ladder(tmp_path), gates=GATES, compare=[base])
    written = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert written["schema"] == 2
    (ours, theirs) = written["models"]
    assert [len(model["artifacts"]) for model in (ours, theirs)] == [11, 1]
    assert {made["state"] for made in ours["artifacts"]} >= {"passed", "failed"}
    assert written["gates"][0]["gate"] == "max_mean_kld"


def test_every_figure_of_a_receipt_is_in_its_row(tmp_path):
    made = gguf(
        "Q4_K_M", 16_550_000_000, measures=measures(0.016, 0.6, 0.81, bench=bench(37.0), mtp_tok_s=50)
    )
    (row,) = gather([receipt(tmp_path, made)]).models[0].artifacts
    assert (row.kind, row.label, row.name) == ("gguf", "Q4_K_M", "Tuned-Q4_K_M.gguf")
    assert (row.size, row.bits_per_weight, row.state) == (16_550_000_000, 4.9, "passed")
    found = row.measures
    assert found.kld is not None
    # 99.9 % of 4080 positions is beyond 4 of them: no percentile.
    assert (found.kld.mean, found.kld.p99, found.kld.p99_9, found.kld.max) == (0.016, 0.16, None, 1.2)
    assert (found.same_top1, found.perplexity_ratio) == (Estimate(0.984), Estimate(1.008))
    assert found.positions == 4080
    assert (found.acceptance, found.source_acceptance) == (Estimate(0.81), Estimate(0.525))
    assert str(row.verification.engine) == "xllamacpp 1.2"
    assert row.bench == fit(Bench, bench(37.0), "bench", [])
    assert row.bench.best is not None
    assert row.bench.best.n_max == 2
    assert row.files[0].sha256 == made["files"][0]["sha256"]
    assert row.options["imatrix"] == MATRIX


def test_the_work_grows_with_the_receipts_and_no_faster(tmp_path):
    def calls(count):
        made = [
            gguf(
                f"T{at}",
                10**9 + at * 7919 % 997,
                measures=measures(0.01 + at / 99, 9, bench=bench(at + 1, ())),
            )
            for at in range(count)
        ]
        folders = [receipt(tmp_path / f"{count}-{at}", each) for at, each in enumerate(made)]
        with cProfile.Profile() as profile:
            write_report(folders, tmp_path / f"report-{count}")
        return {place: each[1] for place, each in pstats.Stats(profile).stats.items()}

    few, many = calls(15), calls(60)
    # Up to fourteen places are tried for a name in each picture, and fewer where there is room.
    grown = {place: calls for place, calls in many.items() if calls > max(6 * few.get(place, 0), 300 * 60)}
    assert grown == {}


def test_every_mean_is_shown_with_its_standard_error(tmp_path):
    def estimate(value):
        return {"value": value, "error": 0.0123}

    made = gguf("Q4_K_M", 10**9)
    made["verification"] = {
        "verified": ["loads"],
        "measures": {
            "positions": 1020,
            "kld": {"mean": 0.5, "error": 0.0123},
            **{name: estimate(0.5) for name in ("same_top1", "perplexity_ratio", "acceptance")},
            "source_acceptance": estimate(0.5),
            "routing_flips": {
                "mean": 0.5,
                "error": 0.0123,
                "layers": [{"layer": 3, "share": 0.25, "error": 0.01}],
            },
        },
    }
    (tmp_path / "qexport.json").write_text(json.dumps({"schema": 2, "artifacts": [made]}))
    (row,) = gather([tmp_path]).models[0].artifacts
    tables = {table.title: table for table in lay_out(gather([tmp_path])).parts[0].tables}
    shown = tables["Artifacts"]
    assert row.measures.perplexity_ratio == Estimate(0.5, 0.0123)
    cells = dict(zip((column.title for column in shown.columns), shown.rows[0], strict=True))
    means = ["KL divergence", "Routing flips", "Same top-1", "Perplexity ratio", "MTP acceptance", "Source's"]
    assert [cells[name] for name in means if "±" not in cells.get(name, "")] == []
    assert tables["Routing flips by layer"].rows == (("3", "25.0 ± 1.0 %"),)


@pytest.mark.parametrize(
    "junk",
    [
        None,
        3,
        [],
        {"kld": {"mean": "low"}, "same_top1": [1], "acceptance": float("nan")},
        {"kld": {"p99": 3.0}, "bench": {"speeds": []}, "positions": True},
        {"bench": {**bench(3.0), "speeds": [{"n_max": 0}]}},
        {"bench": bench(0.0)},
        {"bench": bench(float("nan"))},
    ],
)
def test_measures_that_are_none_are_none(tmp_path, junk):
    report = gather([receipt(tmp_path, gguf("Q8_0", 1000, measures=junk))])
    (row,) = report.models[0].artifacts
    found = row.measures
    assert (found.kld, found.same_top1, found.acceptance, row.bench, found.positions) == (None,) * 5
    json.dumps(report.to_json(), allow_nan=False)


def test_an_entry_as_bare_as_another_version_could_leave_it(tmp_path):
    bare = {key: gguf("Q8_0", 1000)[key] for key in ("kind", "label", "files")}
    paths = write_report([receipt(tmp_path / "in", bare)], tmp_path / "out")
    assert "1 artifact, 1 kB. None passed verification; 1 not run (Q8_0)." in paths.markdown.read_text()


def test_verdicts_are_told_apart(tmp_path):
    folder = receipt(
        tmp_path,
        gguf("Q8_0", 3000),
        gguf("Q4_0", 2000, verification=FAILED),
        gguf("Q2_K", 1000, verification=None),
        entry("nvfp4", "NVFP4", {"nv/model.safetensors": 4000}, verification=UNRUN),
    )
    report = gather([folder])
    assert {row.label: row.state for row in report.models[0].artifacts} == {
        "Q8_0": "passed",
        "Q4_0": "failed",
        "Q2_K": "not run",
        "NVFP4": "not run",
    }
    assert summary(report) == [
        "4 artifacts, 10 kB. 1 passed verification; 1 failed (Q4_0: failed: comparing answers); "
        "2 not run (Q2_K, NVFP4)."
    ]


def test_rows_go_by_format_then_size_and_a_head_follows_its_trunk(tmp_path):
    report = gather(large_ladder(tmp_path))
    labels = [row.label for row in report.models[0].artifacts]
    assert labels[:2] == ["Q2_K", "Q3_K_M"]
    assert labels[-4:] == ["6bit", "6bit-MTP", "FP8", "NVFP4"]
    head = report.models[0].artifacts[-3]
    assert head.is_drafter
    # What its trunk has shown is not its own; that its drafts were the trunk's choice is.
    assert (head.measures.kld, head.measures.same_top1) == (None, None)
    assert head.measures.acceptance == Estimate(0.523)
    assert head not in report.models[0].measured


def test_folders_are_named_by_themselves(tmp_path):
    made = entry("fp8", "FP8", {"model.safetensors": 10, "config.json": 1})
    above = entry("mlx", "4bit", {"Tuned-MLX/model.safetensors": 10, "Tuned-MLX/a/b.json": 1})
    rows = gather([receipt(tmp_path / "Tuned-FP8", made), receipt(tmp_path, above)]).models[0].artifacts
    assert [row.name for row in rows] == ["Tuned-MLX/", "Tuned-FP8/"]


def test_an_artifact_is_reported_once(tmp_path):
    folder = receipt(tmp_path / "a", gguf("Q8_0", 1000))
    assert len(gather([folder, folder, tmp_path]).models[0].artifacts) == 1


def test_importance_matrices_are_no_artifacts(tmp_path):
    matrix = entry("imatrix", "imatrix", {"tuned-imatrix.gguf_file": 10})
    assert len(gather([receipt(tmp_path / "a", matrix, gguf("Q8_0", 10))]).models[0].artifacts) == 1
    with pytest.raises(InputError, match="nothing to report on"):
        gather([receipt(tmp_path / "b", matrix)])


def test_a_folder_without_a_receipt_is_refused(tmp_path):
    with pytest.raises(InputError, match=r"qexport\.json"):
        write_report([tmp_path], tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_provenance_is_said_once(tmp_path):
    report = gather(large_ladder(tmp_path))
    facts = {fact.what: fact.text for fact in report.models[0].facts}
    assert len(facts) == len(report.models[0].facts)
    assert facts["Source"].startswith("alice/Tuned on the Hugging Face Hub, commit 0123abcd")
    assert facts["Source"].endswith("54 GB of weights")
    assert facts["MTP head"].startswith("grafted from org/Base, bit for bit")
    assert facts["Calibration"] == (
        "importance matrix tuned-imatrix.gguf_file, from qexport-calib-1 131072 tokens"
    )
    assert facts["Written by"] == "qexport 0.1.0"
    assert report.models[0].repairs == ("rope parameters in the old form (rope.legacy)",)


class TestComparison:
    def test_two_models_side_by_side(self, tmp_path):
        ours = receipt(tmp_path / "t", gguf("Q4_K_M", 100, measures=measures(0.01, 0.2)), gguf("Q8_0", 200))
        theirs = receipt(tmp_path / "b", of_base(gguf("Q4_K_M", 101, measures=measures(0.02, 0.3))))
        report = gather([ours], compare=[theirs])
        assert report.title == "alice/Tuned beside org/Base"
        ((other, pairs),) = report.pairs
        assert other.title == "org/Base"
        assert [(pair.ours.size, pair.theirs.size, pair.matched) for pair in pairs] == [(100, 101, True)]
        (side,) = lay_out(report).comparisons
        assert [row[:2] for row in side.table.rows] == [("Q4_K_M", "alice/Tuned"), ("Q4_K_M", "org/Base")]
        assert side.words.startswith("The same types, made with the same settings.")

    def test_folders_of_two_sources_are_compared_without_being_told(self, tmp_path):
        ours, theirs = gguf("Q8_0", 100), of_base(gguf("Q8_0", 100))
        theirs["files"][0]["sha256"] = "0" * 64
        report = gather([receipt(tmp_path / "t", ours), receipt(tmp_path / "b", theirs)])
        assert [model.title for model in report.models] == ["alice/Tuned", "org/Base"]

    @pytest.mark.parametrize(
        ("change", "words"),
        [
            ({"imatrix": None}, "imatrix.calibration.corpus: qexport-calib-1 and not set"),
            ({"imatrix": {**MATRIX, "calibration": {**MATRIX["calibration"], "tokens": 9}}}, "131072 and 9"),
            ({"output_type": "Q6_K"}, "output_type: not set and Q6_K"),
        ],
    )
    def test_settings_that_differ_are_said(self, tmp_path, change, words):
        ours = gguf("Q4_K_M", 100)
        theirs = of_base({**ours, "options": {**ours["options"], **change}})
        report = gather([receipt(tmp_path / "t", ours)], compare=[receipt(tmp_path / "b", theirs)])
        (side,) = lay_out(report).comparisons
        assert any(words in line for line in side.differences)

    def test_names_and_times_are_no_settings(self, tmp_path):
        ours = gguf("Q4_K_M", 100)
        calibration = {**MATRIX["calibration"], "seconds": 1.0}
        matrix = {**MATRIX, "file": "base-imatrix.gguf_file", "sha256": "cd" * 32, "calibration": calibration}
        theirs = of_base({**ours, "options": {**ours["options"], "imatrix": matrix, "model_name": "Base"}})
        report = gather([receipt(tmp_path / "t", ours)], compare=[receipt(tmp_path / "b", theirs)])
        assert lay_out(report).comparisons[0].differences == ()

    def test_another_text_is_a_difference(self, tmp_path):
        folder = receipt(tmp_path, gguf("Q8_0", 100, measures=measures(0.01, 0.2)))
        (row,) = gather([folder]).models[0].artifacts
        report = row.verification
        shorter = replace(report, measures=replace(report.measures, positions=10))
        other = replace(row, verification=shorter)
        ((pair),) = pair_up([row], [other])
        assert pair.differing == ("measured on 4080 and 10 positions",)


def test_the_same_receipts_give_the_same_files(tmp_path):
    folders = large_ladder(tmp_path)
    one = write_report(folders, tmp_path / "one", GATES)
    other = write_report(folders, tmp_path / "other", GATES)
    for name in ("html", "markdown", "json"):
        assert getattr(one, name).read_bytes() == getattr(other, name).read_bytes()
    assert json.loads(one.json.read_text())["written"] == "2026-11-20"


def test_a_report_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EnvironmentProblem, match="cannot be made"):
        write_report([receipt(tmp_path / "in", gguf("Q8_0", 10))], tmp_path / "file")


def test_gates_are_those_that_receipts_note(tmp_path):
    kept = {"artifact": "a", "gate": "min_acceptance", "limit": 0.5, "value": 0.6, "passed": True}
    noted = [kept, {**kept, "gate": "max_mean_kld", "value": None, "passed": False}]
    folder = receipt(tmp_path, {**gguf("Q8_0", 10), "gates": [*noted, {"gate": "x"}, 3]})
    report = gather([folder])
    assert report.gates == (
        Gate("a", "min_acceptance", 0.5, 0.6, True),
        Gate("a", "max_mean_kld", 0.5, None, False),
    )
    # A gate is no verdict: what was run passed.
    assert report.models[0].artifacts[0].verdict == "passed"
    assert gather([folder], gates=GATES).gates == GATES


def test_gates_that_failed_come_first(tmp_path):
    report = gather(large_ladder(tmp_path), gates=GATES)
    assert "Gates: 1 of 2 limits were not kept." in summary(report)
    rows = lay_out(report).gates.rows
    assert rows[0] == ("NOT KEPT", "Tuned-NVFP4/", "mean KL divergence, at most", "0.03 nats", "not measured")
    assert rows[1][0] == "kept"


@pytest.mark.parametrize(
    ("gate", "value", "words"),
    [
        ("min_acceptance", 0.5, "50.0 %"),
        ("max_size", 12e9, "12 GB"),
        ("max_mean_kld", 0.0, "0 nats"),
        ("max_mean_kld", 100.0, "100 nats"),
        ("something_new", 3.5, "3.5"),
        ("max_size", None, "not measured"),
    ],
)
def test_gates_are_in_their_units(gate, value, words):
    assert gate_value(gate, value) == words


@pytest.mark.parametrize(
    ("shown", "words"),
    [
        (nats(1e-9), "< 0.00001"),
        (nats(-2e-9), "< 0.00001"),
        (nats(0.0), "0"),
        (nats(0.000123456), "0.000123"),
        (nats(12.3456), "12.3"),
        (nats(1234.5), "1234"),
        (percent(0.99999), "99.9 %"),
        (percent(1.0), "100.0 %"),
        (speed(1234.56), "1235"),
        (speed(54.67), "54.7"),
    ],
)
def test_figures(shown, words):
    assert shown == words
