"""Selection, sizes and jobs: what shares a read runs together, as far as a machine has room."""

import re
from dataclasses import replace
from pathlib import Path

import pytest
from recipe_texts import SMALL, load

from qexport.errors import UsageProblem
from qexport.formats.gguf.options import GgufOptions
from qexport.recipe.choice import ModelChoice
from qexport.recipe.select import Unit, select, units_of, words_for
from qexport.run.job import targets_of
from qexport.run.jobs import MachineLimits, plan_jobs
from qexport.run.local import Local, Runtimes
from qexport.run.model import examine
from qexport.run.rates import calibration_seconds, core_seconds, pass_seconds, slowly
from qexport.run.target import Target
from qexport.run.weigh import Burden, Weighed, active_weights, assay_seconds, guess, weigh

BOTH = SMALL + "compare: {model: org/Base}\n"
G = 10**9


def words(units):
    return [str(unit) for unit in units]


def test_select(tmp_path):
    recipe = load(tmp_path, BOTH)
    assert words(select(recipe, [])) == [
        "model/gguf:Q4_K_M",
        "model/gguf:Q8_0",
        "model/mlx",
        "compare/gguf:Q4_K_M",
        "compare/gguf:Q8_0",
        "compare/mlx",
    ]
    assert words(select(recipe, ["mlx", "model/gguf:Q8_0"])) == [
        "model/gguf:Q8_0",
        "model/mlx",
        "compare/mlx",
    ]
    assert words(select(recipe, ["compare/, mlx"])) == [
        "model/mlx",
        "compare/gguf:Q4_K_M",
        "compare/gguf:Q8_0",
        "compare/mlx",
    ]
    assert select(recipe, ["", ","]) == units_of(recipe)
    with pytest.raises(UsageProblem, match=r"--only gguf:Q8 names nothing .*did you mean 'gguf:Q8_0'"):
        select(recipe, ["gguf:Q8"])


@pytest.mark.parametrize("text", [SMALL, BOTH])
def test_words_select_what_they_were_made_for(tmp_path, text):
    recipe = load(tmp_path, text)
    every = units_of(recipe)
    for chosen in range(1, 1 << len(every)):
        units = tuple(unit for i, unit in enumerate(every) if chosen >> i & 1)
        assert select(recipe, words_for(recipe, units)) == units
    assert words_for(load(tmp_path, SMALL), units_of(load(tmp_path, SMALL))) == ("gguf", "mlx")


def burden(recipe, sizes, **more):
    units = [
        Weighed(unit, size, 1.0, "Q4" in unit.type, True)
        for unit, size in zip(units_of(recipe), sizes, strict=True)
    ]
    return replace(Burden("model", tuple(units), 50 * G, G, 0.0, 2 * G, exact=True), **more)


def only(jobs):
    return [job.only for job in jobs]


def test_everything_together_where_there_is_room(tmp_path):
    recipe = load(tmp_path, SMALL)
    (job,) = plan_jobs(recipe, [burden(recipe, [17 * G, 29 * G, 22 * G])], MachineLimits())
    assert job.only == ("gguf", "mlx")
    assert (job.output, job.disk) == (68 * G, 120 * G)  # with the source, and what calibration may spill
    assert job.memory == 29 * G + (2 << 30)  # the largest file in a runtime
    assert (job.name, job.exact) == ("Model", True)


def test_split_by_disk_and_by_memory(tmp_path):
    recipe = load(tmp_path, SMALL)
    given = burden(recipe, [17 * G, 29 * G, 22 * G])
    jobs = plan_jobs(recipe, [given], MachineLimits(disk=101 * G))
    assert only(jobs) == [("gguf",), ("mlx",)]
    assert [job.name for job in jobs] == ["Model-1of2", "Model-2of2"]
    assert all(job.disk <= 101 * G for job in jobs)
    assert only(plan_jobs(recipe, [given], MachineLimits(disk=81 * G))) == [
        ("gguf:Q4_K_M",),
        ("gguf:Q8_0",),
        ("mlx",),
    ]
    with pytest.raises(
        UsageProblem, match=r"gguf:Q8_0 needs 79.0 GB of disk, 50.0 GB of them .* and 78.0 GB"
    ):
        plan_jobs(recipe, [given], MachineLimits(disk=78 * G))
    with pytest.raises(UsageProblem, match=r"gguf:Q8_0 needs 31.1 GB of memory, and 30.0 GB"):
        plan_jobs(recipe, [given], MachineLimits(memory=30 * G))
    with pytest.raises(UsageProblem, match="3 jobs are needed, and 2 are allowed"):
        plan_jobs(recipe, [given], MachineLimits(disk=81 * G, jobs=2))


def test_the_matrix_is_collected_in_as_few_jobs_as_possible(tmp_path):
    recipe = load(tmp_path, SMALL.replace("[Q4_K_M, Q8_0]", "[Q4_K_M, Q8_0, Q4_0]"))
    jobs = plan_jobs(recipe, [burden(recipe, [17 * G, 29 * G, 15 * G, 22 * G])], MachineLimits(disk=90 * G))
    assert ("gguf:Q4_K_M", "gguf:Q4_0") in only(jobs)


def test_two_models_never_share_a_job(tmp_path):
    recipe = load(tmp_path, BOTH)
    burdens = [
        guess(recipe, each, 9e9, [unit for unit in units_of(recipe) if unit.subject == each.key])
        for each in recipe.subjects
    ]
    jobs = plan_jobs(recipe, burdens, MachineLimits())
    assert only(jobs) == [("model/gguf", "model/mlx"), ("compare/gguf", "compare/mlx")]
    assert len({job.name for job in jobs}) == 2
    assert not any(job.exact for job in jobs)


def test_each_job_of_a_split_artifact_has_room_for_the_tower(tmp_path):
    """Pictures are proven with every type, so that its file is beside each."""
    recipe = load(tmp_path, SMALL)
    given = burden(recipe, [17 * G, 29 * G, 22 * G])
    units = [replace(each, beside=G if each.unit.artifact == "gguf" else 0) for each in given.units]
    (job,) = plan_jobs(recipe, [replace(given, units=tuple(units))], MachineLimits())
    assert job.output == 69 * G
    jobs = plan_jobs(recipe, [replace(given, units=tuple(units))], MachineLimits(disk=82 * G))
    assert sorted(each.output for each in jobs) == [18 * G, 22 * G, 30 * G]


def test_sizes_come_from_plans_and_are_near_the_guess(tmp_path, zoo):
    folder = zoo("qwen3_5")
    recipe = load(
        tmp_path,
        f"""
        source: {{model: {folder}, name: Zoo}}
        calibration: {{tokens: 64}}
        artifacts:
          - gguf: {{types: [Q8_0, BF16, Q4_K_M]}}
          - nvfp4: {{scale_search: importance}}
          - merged:
        """,
    )
    subject = recipe.subject("model")
    diagnosis = examine(ModelChoice(str(folder)), download=False)
    found = weigh(recipe, subject, diagnosis, units_of(recipe))
    sizes = {each.unit.short: each.nbytes for each in found.units}
    matrix = {each.unit.short for each in found.units if each.weighted}
    assert matrix == {"gguf:Q4_K_M", "nvfp4"}
    assert found.source == 0  # it is here
    assert found.exact
    weights = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    assert weights <= sizes["merged"] < 1.5 * weights + 10**6
    assert sizes["gguf:Q4_K_M"] < sizes["gguf:Q8_0"] < sizes["gguf:BF16"]
    assert {each.unit.short for each in found.units if each.beside} == {
        f"gguf:{t}" for t in ("Q8_0", "BF16", "Q4_K_M")
    }
    view = diagnosis.repaired.view()
    assert 0 < active_weights(view) < view.parameters


def test_experts_count_by_how_many_a_token_meets(zoo):
    view = examine(ModelChoice(str(zoo("qwen3_5_moe"))), download=False).repaired.view()
    share = view.text["num_experts_per_tok"] / view.text["num_experts"]
    layers = [t for t in view if t.layer is not None and t.block.value != "vision" and len(t.shape) >= 2]
    experts = sum(t.data.numel for t in layers if ".experts." in t.name)
    whole = sum(t.data.numel for t in layers)
    assert experts > whole / 2
    assert active_weights(view) == pytest.approx(whole - (1 - share) * experts)


def test_what_chooses_types_is_counted(tmp_path, zoo):
    """The assay, gradients and the text of error feedback; with a matrix that is ready the text alone."""
    folder, matrix = zoo("qwen3_5"), tmp_path / "m.gguf_file"
    matrix.write_bytes(b"GGUF")

    def weighed(calibration, options):
        recipe = load(
            tmp_path,
            f"""
            source: {{model: {folder}, name: Zoo}}
            calibration: {{{calibration}}}
            artifacts: [gguf: {{types: [Q4_K_M, Q3_K_M]{options}}}]
            """,
        )
        diagnosis = examine(ModelChoice(str(folder)), download=False)
        return weigh(recipe, recipe.subject("model"), diagnosis, units_of(recipe))

    plain, best = weighed("tokens: 64", ""), weighed("tokens: 64, feedback_tokens: 32", ", quality: best")
    diagnosis = examine(ModelChoice(str(folder)), download=False)
    view = diagnosis.repaired.view()
    assert plain.calibration == active_weights(view) * 64
    assert best.calibration == active_weights(view) * (64 + 2 * 64 + 32)
    more = sum(each.core_seconds for each in best.units) - sum(each.core_seconds for each in plain.units)
    assay = assay_seconds(Target(GgufOptions(like="Q4_K_M"), tmp_path), diagnosis)
    assert more == pytest.approx(assay, rel=0.01)  # one for both files
    assert assay > 0
    ready = weighed(f"imatrix: {matrix}, feedback_text: {matrix}, feedback_tokens: 32", ", quality: best")
    assert ready.calibration == active_weights(view) * 32


@pytest.mark.parametrize(("layout", "every"), [("modelopt", False), ("compressed-tensors", True)])
def test_a_text_for_scales_of_inputs_is_counted(tmp_path, zoo, layout, every):
    """llm-compressor's way shows every expert each token; ModelOpt's sends them as the model does."""
    folder = zoo("qwen3_5_moe")
    recipe = load(
        tmp_path,
        f"""
        source: {{model: {folder}, name: Zoo}}
        calibration: {{feedback_tokens: 64}}
        artifacts: [nvfp4: {{scheme: NVFP4, layout: {layout}}}]
        """,
    )
    diagnosis = examine(ModelChoice(str(folder)), download=False)
    view = diagnosis.repaired.view()
    burden = weigh(recipe, recipe.subject("model"), diagnosis, units_of(recipe))
    assert burden.calibration == (view.parameters if every else active_weights(view)) * 64


def test_estimates_add_up():
    assert pass_seconds(10.0, 2 * G, 2) == pytest.approx(7.0)
    assert calibration_seconds(1e9, 0, 4) == 0
    # docs/measurements.md: 1.26 B values at 165 tokens/s on two cores
    assert calibration_seconds(1.26e9, 165, 2) == pytest.approx(1.0, rel=0.3)


def test_the_estimate_is_what_the_ladder_took(zoo):
    """Weighted types take longer than plain ones, and more types longer than fewer."""
    from qexport.formats.gguf.options import GgufOptions
    from qexport.formats.gguf.plan import plan_gguf
    from qexport.run.weigh import stand_in

    view = examine(ModelChoice(str(zoo("qwen3_5"))), download=False).repaired.view()
    plain = core_seconds(plan_gguf(view, ["Q4_K_M"], GgufOptions()))
    weighted = core_seconds(plan_gguf(view, ["Q4_K_M"], GgufOptions(imatrix=stand_in(view, None))))
    both = core_seconds(plan_gguf(view, ["Q4_K_M", "Q8_0"], GgufOptions()))
    assert 0 < plain < weighted
    assert plain < both
    tiny = plan_gguf(view, ["IQ2_M"], GgufOptions(imatrix=stand_in(view, None)))
    assert slowly(tiny, 2) is None  # seconds
    said = slowly(tiny * 1000, 2)
    assert re.fullmatch(r"ggml itself encodes IQ2_S, IQ3_S, slowly: about \d+ min on 2 threads", said)
    assert slowly(plan_gguf(view, ["Q4_K_M"], GgufOptions()) * 1000, 1) is None


def test_targets(tmp_path):
    recipe = load(
        tmp_path,
        SMALL
        + "  - fp8:\n    verify: {runtime: vllm}\n  - merged:\n  - nvfp4:\n    verify: false\n"
        + "verify: {n_predict: 9}\n",
    )
    subject, units = recipe.subject("model"), select(recipe, ["gguf:Q8_0", "mlx", "fp8", "merged", "nvfp4"])
    out = Path("out")
    server = Path("server")
    local = Local(out, Runtimes(server, {"vllm": Path("py")}))
    gguf, mlx, fp8, merged, nvfp4 = targets_of(recipe, subject, units, local)
    assert (gguf.options.types, gguf.out) == (("Q8_0",), out / "Model-GGUF")
    assert (gguf.verify.n_predict, gguf.verify.llama_server) == (9, server)
    assert (mlx.options.bits, mlx.verify.runtime_python) == (6, None)
    assert (fp8.verify.runtime, fp8.verify.runtime_python) == ("vllm", Path("py"))
    assert nvfp4.verify is None
    assert merged.out == out / "Model-BF16"
    assert targets_of(recipe, subject, [Unit("compare", "gguf", "Q8_0")], local) == []
    unproven = targets_of(recipe, subject, units, Local(out, runtimes=None))
    assert all(target.verify is None for target in unproven)
