"""What a recipe becomes."""

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import pytest
from recipe_texts import SMALL, complaints, load

from qexport.checkpoint.yaml_tree import parse_yaml
from qexport.formats.registry import FORMATS
from qexport.recipe.fields import field_kinds, fields_of, model_of
from qexport.recipe.gates import Limits
from qexport.recipe.schema import File
from recipe_schema import json_schema

if TYPE_CHECKING:
    from nowhere import OnlyForTypeCheckers


@dataclass(frozen=True)
class _Any:
    needed: str
    flag: bool = False
    number: float | None = None
    choice: Literal["a", "b"] = "a"
    many: tuple[int, ...] = ()
    pairs: tuple[tuple[str, str], ...] = ()
    path: "Path | None" = None
    secret: "OnlyForTypeCheckers | None" = None


def read(text, cls, **more):
    root = parse_yaml(text, "f", lambda place, message: pytest.fail(f"{place}: {message}"))
    return model_of(cls, "Any", **more).model_validate(root, context={"folder": Path("there")})


def test_any_dataclass_is_read_by_its_annotations():
    text = "needed: 7\nflag: yes\nnumber: 1e-3\nchoice: b\nmany: [1, 2]\npairs: {z: y, a: b}\npath: x\n"
    found = read(text, _Any, hidden=("secret",))
    assert {name: getattr(found, name) for name in found.model_fields_set} == {
        "needed": "7",
        "flag": True,
        "number": 0.001,
        "choice": "b",
        "many": (1, 2),
        "pairs": (("z", "y"), ("a", "b")),
        "path": Path("there/x"),
    }


@pytest.mark.parametrize("name", FORMATS)
def test_every_option_class_can_be_read(name):
    """An annotation that the reader does not know would only show when somebody uses the key."""
    kind = FORMATS[name]
    model_of(kind.options, name, hidden=kind.hidden)
    assert set(kind.sizes) <= set(field_kinds(kind.options, kind.hidden))


def test_the_schema_knows_every_key_and_what_it_means():
    schema = json_schema()
    assert list(schema["properties"]) == fields_of(File, ())
    assert schema["required"] == ["source", "artifacts"]
    parts = {**schema["$defs"], "": schema}
    for name, part in parts.items():
        assert part["additionalProperties"] is False, name
    for word, kind in FORMATS.items():
        keys = set(parts[word.upper()]["properties"])
        assert keys == set(field_kinds(kind.options, kind.hidden)) | ({"types"} if kind.ladder else set())
    assert parts["Verify"]["properties"]["draft_max"]["maximum"] == 16
    assert "at a time" in parts["Verify"]["properties"]["draft_max"]["description"]
    assert parts["Mtp"]["properties"]["mode"]["enum"] == ["auto", "keep", "graft", "drop", "tune"]
    assert parts["Artifact"]["oneOf"] == [{"required": [word]} for word in FORMATS]


def test_everything_arrives(tmp_path):
    recipe = load(
        tmp_path,
        """
        source: {model: ./merged, name: Tuned}
        compare: {model: org/Base, revision: v1}
        base: {model: org/Tuned-From, revision: v0}
        mtp: {mode: graft, base: org/Base, revision: v1}
        vision: {mode: graft, base: org/Seeing, revision: v2}
        calibration: {corpus: text/corpus.jsonl, tokens: 4096, precision: float32}
        verify: {n_predict: 16, prompts: [Hello]}
        measure: 0
        gates: {min_acceptance: 0.4}
        artifacts:
          - gguf:
              types: [q4_k, Q8_0]
              tensor_types: {ssm_out: Q8_0, attn: Q6_K}
              split_max_size: 2G
            gates:
              max_mean_kld: {Q4_K_M: 0.03}
              max_size: {Q8_0: 30G}
              min_agreement: 0.9
            verify: {draft_max: 2}
          - mlx: {bits: 6, mtp: [drafter, mtplx]}
            importance: true
          - nvfp4: {scale_search: importance}
          - fp8:
            verify: false
        publish:
          repo: me/{folder}
          card: {license: mit, tags: [a]}
        """,
    )
    model, base = recipe.subjects
    assert (model.name, base.name) == ("Tuned", "Base")
    assert model.choice.model == str(tmp_path / "merged")  # as the recipe sees it, wherever the command runs
    assert base.choice.mtp == "auto"
    assert model.choice.head_base == ("org/Base", "v1")
    assert (model.choice.vision, model.choice.tower_base) == ("graft", ("org/Seeing", "v2"))
    assert model.choice.base == "org/Tuned-From"
    assert recipe.calibration.corpus == tmp_path / "text" / "corpus.jsonl"
    gguf, mlx, nvfp4, fp8 = recipe.artifacts
    assert gguf.types == ("Q4_K_M", "Q8_0")
    assert gguf.options.tensor_types == (("ssm_out", "Q8_0"), ("attn", "Q6_K"))
    assert gguf.options.split_max_size == 2_000_000_000
    assert gguf.importance
    assert gguf.gates.of("Q4_K_M") == Limits(min_agreement=0.9, max_mean_kld=0.03, min_acceptance=0.4)
    assert gguf.gates.of("Q8_0").max_size == 30_000_000_000
    assert fp8.gates.of(None) == Limits(min_acceptance=0.4)
    assert (gguf.verify.n_predict, gguf.verify.draft_max, gguf.verify.prompts) == (16, 2, ("Hello",))
    assert mlx.options.mtp == ("drafter", "mtplx")
    assert (mlx.importance, nvfp4.importance, fp8.importance) == (True, True, False)
    assert fp8.verify is None
    assert [recipe.folder(model, a) for a in recipe.artifacts] == [
        "Tuned-GGUF",
        "Tuned-MLX-6bit",
        "Tuned-NVFP4",
        "Tuned-FP8",
    ]
    assert recipe.repo(base, mlx) == "me/Base-MLX-6bit"
    assert recipe.publish.card.front_matter() == {"license": "mit", "tags": ["a"]}
    assert recipe.publish.private
    assert recipe.measure == 0


def test_importance_where_nothing_is_said(tmp_path):
    plain = load(tmp_path, SMALL)
    assert [a.importance for a in plain.artifacts] == [False, False]
    calibrated = load(tmp_path, SMALL + "calibration: {}\n")
    assert [a.importance for a in calibrated.artifacts] == [True, False]
    assert not calibrated.calibration.sensitivity
    felt = load(tmp_path, SMALL + "calibration: {sensitivity: true, sensitivity_tokens: 512}\n")
    assert (felt.calibration.sensitivity, felt.calibration.sensitivity_tokens) == (True, 512)


def test_overrides(tmp_path):
    recipe = load(
        tmp_path,
        SMALL,
        "source.model=a/b",
        "artifacts.mlx.mlx.bits=4",
        "artifacts.0.gguf.types=[Q6_K]",
        "calibration.tokens=512",
        "measure=1",
        "measure=",
    )
    assert recipe.subject("model").choice.model == "a/b"
    assert recipe.artifact("mlx").options.bits == 4
    assert recipe.artifact("gguf").types == ("Q6_K",)
    assert recipe.calibration.tokens == 512
    assert recipe.measure == 2048


def test_a_path_of_an_override_is_relative_to_the_command(tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    (tmp_path / "recipes").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    recipe = load(tmp_path / "recipes", SMALL, "source.model=./merged")
    assert recipe.subject("model").choice.model == str(tmp_path / "here" / "merged")


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("source.modle=x", "--set source.modle: unknown key 'modle'; did you mean 'model'?"),
        (
            "artifacts.mlx.mlx.bits=x",
            "--set artifacts.mlx.mlx.bits: a whole number is expected",
        ),
        ("artifacts.fp8.x=1", "--set artifacts.fp8.x: there is no entry 'fp8'; there are gguf, mlx"),
        ("source.model.x=1", "--set source.model.x: 'x' cannot be set: what is above it is one value"),
        ("source", "--set source: KEY.PATH=VALUE is expected"),
        ("a..b=1", "--set a..b=1: KEY.PATH=VALUE is expected"),
        ("source={", "--set source: this is not YAML"),
        ("source.model=\ud800", "--set source.model: this is not YAML: the character U+D800"),
        ("measure=" + "[" * 99, "--set measure: this is not YAML that can be read: nested too deeply"),
        ("measure=!!int 3", "--set measure: tags such as"),
        ("measure={a: 1, a: 2}", "--set measure: 'a' is there twice"),
        ("artifacts.99999999999999999999.x=1", "--set artifacts.99999999999999999999.x: there is no entry"),
        ("source=", "--set source: 'source' is missing"),
    ],
)
def test_a_wrong_override_is_said_with_its_path(tmp_path, override, said):
    found = complaints(tmp_path, SMALL, override)
    assert any(line.startswith(said) for line in found), found
