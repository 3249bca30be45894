"""MLX and NVFP4 folders for an aim: what may be chosen, what is refused, what is written for chosen types."""

import json
from collections import Counter
from dataclasses import replace

import pytest

from qexport.assign.assignment import PLAIN, Assignment, Prediction
from qexport.checkpoint.local import LocalCheckpoint
from qexport.doctor import diagnose
from qexport.errors import InputError, UsageProblem
from qexport.evidence.store import Kind
from qexport.formats.format import CALIBRATED
from qexport.formats.gguf.importance import gguf_importance, uncollected, unfelt
from qexport.formats.linears import kernel_of
from qexport.formats.mlx.options import MlxOptions
from qexport.formats.nvfp4.options import Nvfp4Options
from qexport.formats.registry import FORMATS

LARGE = {"hidden": 256, "intermediate": 256, "layers": 4}


def diagnosis(folder):
    return diagnose(LocalCheckpoint(folder))


def plan(found, options):
    return FORMATS["mlx" if isinstance(options, MlxOptions) else "nvfp4"].plan(found, options)[0]


def chosen(found, options, word_of, label="x", predicted=None):
    """The options with a type for each group, as the run sets them."""
    kind = FORMATS["mlx" if isinstance(options, MlxOptions) else "nvfp4"]
    base = plan(found, options).assignment
    groups = kind.sizing.candidates(found, options).groups
    types = {name: word_of(number) for number, names in enumerate(groups) for name in names}
    return replace(options, types_from=Assignment(base.format, label, {**base.types, **types}, predicted))


def config_in(made):
    return json.loads(next(file.header for file in made.files if file.name == "config.json"))


OPTIONS = [
    MlxOptions(size=1_000_000),
    Nvfp4Options(size=1_000_000),
    Nvfp4Options(size=1_000_000, layout="compressed-tensors"),
]


@pytest.mark.parametrize("options", OPTIONS, ids=["mlx", "modelopt", "compressed-tensors"])
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe", "qwen3_5_tied", "llama"])
def test_each_word_can_be_planned_for_all_of_its_groups(zoo, name, options):
    found = diagnosis(zoo(name, **LARGE))
    kind = FORMATS["mlx" if isinstance(options, MlxOptions) else "nvfp4"]
    free = kind.sizing.candidates(found, options)
    assert not free.barred
    assert len({name for group in free.groups for name in group}) == sum(map(len, free.groups))
    sizes = {}
    for word in free.words:
        made = plan(found, chosen(found, options, lambda _, word=word: word))
        assert {made.assignment.types[name] for group in free.groups for name in group} == {word}
        sizes[word] = made.size
    assert sizes[PLAIN] == max(sizes.values())
    assert sizes[free.words[0]] < sizes[PLAIN]


def test_what_mlx_chooses_for(zoo):
    found = diagnosis(zoo("qwen3_5_moe", **LARGE))
    free = FORMATS["mlx"].sizing.candidates(found, MlxOptions(bpw=5.0))
    names = {name for (name,) in free.groups}
    assert {"model.embed_tokens.weight", "lm_head.weight"} < names
    assert "model.layers.0.mlp.experts.gate_proj.weight" in names
    assert "model.layers.0.mlp.gate.weight" not in names  # routers keep their 8 bits
    assert not any("norm" in name or "conv1d" in name or "mtp" in name for name in names)
    assert min(int(word[0]) for word in free.words if word != PLAIN) == 3
    narrow = diagnosis(zoo("qwen3_5_tied"))
    tied = {name for (name,) in FORMATS["mlx"].sizing.candidates(narrow, MlxOptions(bpw=5.0)).groups}
    assert "model.embed_tokens.weight" in tied
    assert "lm_head.weight" not in tied


@pytest.mark.parametrize("layout", ["modelopt", "compressed-tensors"])
@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe"])
def test_nvfp4_chooses_for_what_runs_as_one(zoo, name, layout):
    found = diagnosis(zoo(name, **LARGE))
    tensors = {tensor.name: tensor for tensor in found.repaired.view()}
    free = FORMATS["nvfp4"].sizing.candidates(found, Nvfp4Options(bpw=6.0, layout=layout))
    for group in free.groups:
        assert len({kernel_of(tensors[name]) for name in group}) == 1
    whole = Counter(kernel_of(tensors[name]) for group in free.groups for name in group)
    assert len(whole) == len(free.groups)
    names = {name for group in free.groups for name in group}
    assert ("lm_head.weight" in names) == (layout == "modelopt")
    assert not any("embed" in name or "mtp" in name or "visual" in name for name in names)


def test_what_does_not_divide_into_tiles_is_barred(zoo):
    found = diagnosis(zoo("qwen3_5", hidden=192))
    free = FORMATS["nvfp4"].sizing.candidates(found, Nvfp4Options(bpw=6.0, layout="compressed-tensors"))
    assert set(free.barred.values()) == {frozenset({"F8_E4M3"})}
    assert FORMATS["nvfp4"].sizing.candidates(found, Nvfp4Options(bpw=6.0)).barred == {}


@pytest.mark.parametrize(
    ("aim", "folder", "label"),
    [
        ({"size": 17_000_000_000}, "{name}-MLX-QX-17GB", "QX-17GB"),
        ({"bpw": 4.75}, "{name}-MLX-QX-4.75bpw", "QX-4.75bpw"),
        ({"like": "mixed_4_6"}, "{name}-MLX-QX-mixed_4_6", "QX-mixed_4_6"),
        ({"max_kld": 0.01}, "{name}-MLX-QX-kld0.01", "QX-kld0.01"),
    ],
)
def test_names(zoo, aim, folder, label):
    options = MlxOptions(**aim, mtp_bits=8)
    assert FORMATS["mlx"].folder(options) == folder
    found = diagnosis(zoo("qwen3_5"))
    trunk, drafter = FORMATS["mlx"].plan(found, options)
    assert (trunk.label, drafter.label) == (label, f"{label}-MTP")
    assert trunk.assignment.label == label
    assert FORMATS["nvfp4"].folder(Nvfp4Options(like="mlp")) == "{name}-NVFP4-QX-mlp"
    named = FORMATS["nvfp4"].folder(Nvfp4Options(bpw=5.5, layout="compressed-tensors"))
    assert named == "{name}-NVFP4A16-QX-5.5bpw"


@pytest.mark.parametrize("like", ["6bit", "mixed_3_6", "mxfp4"])
def test_like_a_type_of_mlx(zoo, like):
    found = diagnosis(zoo("qwen3_5"))
    options = MlxOptions(like=like)
    plain = FORMATS["mlx"].sizing.plain(options, like)
    assert plain.label == like
    assert plain.aim is None
    assert plan(found, plain).assignment.types == plan(found, options).assignment.types


def test_what_stands_in_is_about_as_large(zoo):
    found = diagnosis(zoo("qwen3_5", **LARGE))
    sizes = {bits: plan(found, MlxOptions(bits=bits)) for bits in (3, 4, 5, 6, 8)}
    for bits, made in sizes.items():
        types = made.assignment.types
        assert plan(found, MlxOptions(size=made.size)).assignment.types == types
        assert plan(found, MlxOptions(bpw=made.bits_per_weight)).assignment.types == types, bits


def test_the_config_names_what_is_nearest_to_the_mean(zoo):
    found = diagnosis(zoo("qwen3_5", **LARGE))
    options = MlxOptions(size=1_000_000)
    made = plan(
        found, chosen(found, options, lambda number: "8-bit g32" if number % 8 == 3 else "5-bit g128")
    )
    settings = config_in(made)["quantization"]
    assert (settings["bits"], settings["group_size"]) == (5, 128)
    others = [value for value in settings.values() if isinstance(value, dict)]
    assert others
    assert all(value == {"group_size": 32, "bits": 8} for value in others)


def test_like_a_scope(zoo):
    found = diagnosis(zoo("qwen3_5", **LARGE))
    options = Nvfp4Options(like="nvidia", importance=CALIBRATED)
    plain = FORMATS["nvfp4"].sizing.plain(options, "nvidia")
    assert (plain.scope, plain.scale_search) == ("nvidia", "importance")
    assert options.search == "importance"
    assert plan(found, Nvfp4Options(like="mlp")).size == plan(found, Nvfp4Options()).size


def test_the_best_of_what_is_named():
    (mlx,) = FORMATS["mlx"].sizing.best(MlxOptions(recipe="mixed_4_6", quality="best"))
    assert (mlx.like, mlx.recipe) == ("mixed_4_6", None)
    (grouped,) = FORMATS["mlx"].sizing.best(MlxOptions(bits=5, group_size=128, quality="best"))
    plain = FORMATS["mlx"].sizing.plain(grouped, grouped.like)
    assert (grouped.like, plain.bits, plain.group_size, plain.quality) == ("5bit-g128", 5, 128, "plain")
    (nvfp4,) = FORMATS["nvfp4"].sizing.best(Nvfp4Options(scope="nvidia", quality="best"))
    assert (nvfp4.like, nvfp4.scope) == ("nvidia", "mlp")
    with pytest.raises(UsageProblem, match="is no scope"):
        FORMATS["nvfp4"].sizing.best(Nvfp4Options(scope="down_proj", quality="best"))


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: MlxOptions(size=10, bits=4), "10 B chooses types; --bits"),
        (lambda: MlxOptions(bpw=4.0, recipe="mixed_3_6"), "4 bits per weight chooses types"),
        (lambda: MlxOptions(bpw=4.0, mode="mxfp4"), "chooses types"),
        (lambda: MlxOptions(bpw=4.0, size=5), "--size and --bpw"),
        (lambda: FORMATS["mlx"].check(MlxOptions(like="6bits")), "--like 6bits is no type of MLX's.*6bit"),
        (lambda: FORMATS["mlx"].check(MlxOptions(like="affine")), "no type of MLX's"),
        (lambda: Nvfp4Options(bpw=5.0, scope="nvidia"), "chooses types; --scope names them"),
        (lambda: Nvfp4Options(bpw=5.0, scale_search="mse"), "mse would weigh them alike"),
        (lambda: FORMATS["nvfp4"].check(Nvfp4Options(like="Q4_K_M")), "--like Q4_K_M is no scope"),
    ],
)
def test_refused(make, words):
    with pytest.raises(UsageProblem, match=words):
        make()


@pytest.mark.parametrize("options", OPTIONS[:2], ids=["mlx", "nvfp4"])
def test_nothing_to_quantize(zoo, options):
    found = diagnosis(zoo("qwen3_5", **LARGE))
    nothing = chosen(found, options, lambda _: PLAIN, predicted=Prediction(0.0, aim="1 MB"))
    types = dict.fromkeys(nothing.types_from.types, PLAIN)
    nothing = replace(nothing, types_from=replace(nothing.types_from, types=types))
    with pytest.raises(InputError, match="1 MB is enough for the model as it is"):
        plan(found, nothing)


def test_predictions_go_with_the_types(zoo):
    found = diagnosis(zoo("qwen3_5", **LARGE))
    for options in OPTIONS:
        word = "4-bit g64" if isinstance(options, MlxOptions) else "NVFP4"
        made = plan(
            found, chosen(found, options, lambda _, w=word: w, predicted=Prediction(0.25, aim="1 MB"))
        )
        assert made.assignment.predicted == Prediction(0.25, aim="1 MB")
        assert made.assignment.to_json()["predicted"]["kld"] == 0.25


def test_a_few_large_matrices_do_not_name_the_folder(zoo):
    """Two large ones of 8 bits are most weights; what lies nearest to the mean is 5."""
    found = diagnosis(zoo("qwen3_5", **LARGE, vocab=2048))
    options = MlxOptions(size=1_000_000)
    large = {"model.embed_tokens.weight", "lm_head.weight"}
    given = chosen(found, options, lambda _: "4-bit g64")
    types = {
        name: "8-bit g64" if name in large else "5-bit g64" if name.endswith("up_proj.weight") else word
        for name, word in given.types_from.types.items()
    }
    made = plan(found, replace(given, types_from=replace(given.types_from, types=types)))
    weights = Counter()
    for tensor in made.tensors:
        weights[tensor.stored.name] += tensor.nbytes
    assert weights["8-bit g64"] > weights["5-bit g64"]
    assert config_in(made)["quantization"]["bits"] == 5


def test_an_embedding_is_weighed_and_has_no_feedback(zoo):
    """Nothing is multiplied with it; lm_head has both."""
    found = diagnosis(zoo("qwen3_5", **LARGE))
    view = found.repaired.view()
    sums, counts = uncollected(view)
    matrix = gguf_importance(
        view, sums, counts, datasets=["d"], chunk_count=1, chunk_size=8,
        label="ones", sensitivity=unfelt(view, 8, 8, ("t",)),
    )  # fmt: skip
    made = plan(found, MlxOptions(like="6bit", importance=matrix, feedback=True))
    kinds = {tensor.canonical: {need.kind for need in tensor.needs} for tensor in made.tensors}
    assert kinds["model.embed_tokens.weight"] == {Kind.INPUT_SQUARES}
    assert kinds["lm_head.weight"] == {Kind.INPUT_SQUARES, Kind.INPUT_PRODUCTS}
    assert kinds["model.layers.0.mlp.up_proj.weight"] == {Kind.INPUT_SQUARES, Kind.INPUT_PRODUCTS}
    plain = plan(found, MlxOptions(bits=6, importance=matrix))
    needs = {tensor.canonical: tensor.needs for tensor in plain.tensors}
    assert needs["model.embed_tokens.weight"] == needs["lm_head.weight"] == ()
