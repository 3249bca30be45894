"""What is wrong with a recipe is said with its line, all of it at once."""

import os
from pathlib import Path

import pytest
from recipe_texts import SMALL, complaints, load, write

from qexport.errors import UsageProblem
from qexport.recipe.load import load_recipe

GOOD = "source: {model: org/Model}\n"
LIST = GOOD + "artifacts:\n"
FP8 = LIST + " - fp8:\n"
GGUF = LIST + " - gguf: "


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "r.yaml:1: the file is empty"),
        ("- 1\n", "r.yaml:1: a recipe is a mapping, with source, compare, "),
        ("source: [\n", "r.yaml:2: this is not YAML: "),
        ("source: {model: a/b}\nsuorce: 1\n", "r.yaml:2: unknown key 'suorce'; did you mean 'source'?"),
        ("artifacts: []\n", "r.yaml:1: 'source' is missing"),
        ("source: {}\n", "r.yaml:1: 'model' is missing"),
        ("source: {model: }\n", "r.yaml:1: 'model' is missing"),
        ("source: {model: yes}\n", "r.yaml:1: text is expected here, not 'yes' (put it in quotes)"),
        ("source: {model: [a]}\n", "r.yaml:1: text is expected here, not a list"),
        ("source: a/b\n", "r.yaml:1: a mapping is expected here, with keys such as model"),
        ("source: {model: a/b, name: a/b}\n", "r.yaml:1: 'a/b' is no name for files"),
        (GOOD + "mtp: {mode: grft}\n", "r.yaml:2: 'grft' is not one of auto, keep, graft, drop, tune"),
        (GOOD + "mtp: {mode: graft}\n", "r.yaml:2: mode graft needs a 'base'"),
        (GOOD + "vision: {mode: graft}\n", "r.yaml:2: mode graft needs a 'base' whose tower is taken"),
        (GOOD + "vision: {revision: x}\n", "r.yaml:2: a 'revision' without a 'base'"),
        (GOOD + "mtp: {revision: x}\n", "r.yaml:2: a 'revision' without a 'base'"),
        (GOOD + "mtp:\n  mode: auto\n  mode: keep\n", "r.yaml:4: 'mode' is there twice; the first"),
        (GOOD + "calibration: {tokens: 1}\n", "r.yaml:2: tokens must be 2 at least"),
        (GOOD + "calibration: {tokens: many}\n", "r.yaml:2: a whole number is expected here, not 'many'"),
        (GOOD + "calibration: {imatrix: a, seed: 1}\n", "r.yaml:2: 'imatrix' is a matrix that is ready"),
        (GOOD, "r.yaml:1: 'artifacts' is missing"),
        (LIST, "r.yaml:2: 'artifacts' is missing: a list of what"),
        (GOOD + "artifacts: [x]\n", "r.yaml:2: an artifact is expected here"),
        (FP8 + "   mlx:\n", "r.yaml:3: an artifact has one of gguf, mlx, fp8, nvfp4"),
        (LIST + " - gguf:\n", "r.yaml:3: 'types' is missing"),
        (GGUF + "{types: Q8_0}\n", "r.yaml:3: a list of types such as [Q4_K_M, Q8_0] is"),
        (LIST + " - gguf:\n    types: [Q8_0,\n     Q4_KM]\n", "r.yaml:5: unknown GGUF type 'Q4_KM'; did"),
        (GGUF + "{types: [Q8_0, q8_0]}\n", "r.yaml:3: Q8_0 is there twice"),
        (GGUF + "{types: [Q8_0], split_max_size: big}\n", "r.yaml:3: a size such as 2G"),
        (GGUF + "{types: [Q8_0], output_type: Q9}\n", "r.yaml:3: unknown tensor type 'Q9'"),
        (GGUF + "{types: [Q8_0], imatrix: x}\n", "r.yaml:3: unknown key 'imatrix'"),
        (LIST + " - mlx: {bits: 7}\n", "r.yaml:3: bits is 7; it may be 2, 3, 4, 5, 6, 8"),
        (LIST + " - mlx: {bits: 6.5}\n", "r.yaml:3: a whole number is expected here, not '6.5'"),
        (LIST + " - mlx: {bits: '6'}\n", "r.yaml:3: a whole number is expected here, not '6'"),
        (LIST + " - fp8: {mtp_bf16: maybe}\n", "r.yaml:3: true or false is expected here"),
        (FP8 + "   importance: true\n", "r.yaml:4: fp8 has no use for importance"),
        (LIST + " - mlx:\n   importance: true\n", "r.yaml:4: importance needs a 'calibration:'"),
        (LIST + " - nvfp4: {scale_search: importance}\n", "r.yaml:3: scale_search importance needs"),
        (FP8 + "   name: a b\n", "r.yaml:4: 'a b' is no name for an artifact"),
        (FP8 + "   folder: ../x\n", "r.yaml:4: '../x' is no name for a folder"),
        (FP8 + " - fp8:\n   folder: b\n", "r.yaml:4: two artifacts are called 'fp8' (the first"),
        (FP8 + " - fp8:\n   name: b\n", "r.yaml:4: b and fp8 would both be written to Model-FP8"),
        (FP8 + "   gates: {min_agreement: 2}\n", "r.yaml:4: min_agreement must be a share, 1 at most"),
        (FP8 + "   gates: {max_mean_kld: -1}\n", "r.yaml:4: max_mean_kld must not be negative"),
        (
            GGUF + "{types: [Q8_0]}\n   gates: {max_mean_kld: {Q4_K_M: 1}}\n",
            "r.yaml:4: 'Q4_K_M' is no type of this artifact; known: Q8_0",
        ),
        (FP8 + "   verify: 7\n", "r.yaml:4: true or false is expected here"),
        (LIST + " - fp8: {unverified: allow}\n", "r.yaml:3: unknown key 'unverified'; it stands beside"),
        ("source: {model: a/b, gates: {}}\n", "r.yaml:1: unknown key 'gates'; it stands beside 'source'"),
        (FP8 + "   verify: {prompt: [a]}\n", "r.yaml:4: unknown key 'prompt'; did"),
        (GOOD + "measure: -1\nartifacts:\n - fp8:\n", "r.yaml:2: measure must not be negative"),
        (GOOD + "publish: {repo: here}\nartifacts:\n - fp8:\n", "r.yaml:2: 'here' is no repository"),
        (GOOD + "publish: {repo: me/x}\nartifacts:\n - fp8:\n - mlx:\n", "r.yaml:2: Model-FP8 and"),
        (GOOD + "publish: {private: true}\nartifacts:\n - fp8:\n", "r.yaml:2: 'repo' is missing"),
        (GOOD + "compare: {model: other/Model}\nartifacts:\n - fp8:\n", "r.yaml:2: both models would be"),
        (GOOD + "calibration: {}\nartifacts:\n - fp8:\n", "r.yaml:2: no artifact uses this calibration"),
        (
            GGUF + "{types: [Q4_K_M]}\ncompare: {model: a/B}\ncalibration: {imatrix: x}\n",
            "r.yaml:4: a ready imatrix belongs to one model",
        ),
        (GOOD + "mtp: &a [*a]\n", "r.yaml:2: this is not YAML that can be read: the alias *a holds itself"),
        (GOOD + "[1, 2]: 3\n", "r.yaml:2: a key must be a word"),
        (GOOD + "mtp: {base: \x07}\n", "r.yaml:2: this is not YAML: the character U+0007"),
    ],
)  # fmt: skip
def test_a_problem_is_said_with_its_line(tmp_path, text, said):
    found = complaints(tmp_path, text)
    assert any(line.startswith(said) for line in found), found


def test_all_at_once_in_the_order_of_the_file(tmp_path):
    found = complaints(
        tmp_path,
        """
        artifacts:
          - gguf: {types: [Q4_K_X, Q9]}
          - mlx: {bits: six}
        sorce: 1
        verify: {n_predict: x}
        """,
    )
    assert [line.split(": ")[0] for line in found] == [
        "r.yaml:1",  # no source
        "r.yaml:2",
        "r.yaml:2",
        "r.yaml:3",
        "r.yaml:4",
        "r.yaml:5",
    ]


def test_a_recipe_that_cannot_be_read(tmp_path):
    with pytest.raises(UsageProblem, match="cannot be read"):
        load_recipe(tmp_path / "none.yaml")
    path = write(tmp_path, "x")
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UsageProblem, match="not text"):
        load_recipe(path)


def test_text_is_what_stands_there(tmp_path):
    recipe = load(tmp_path, SMALL.replace("org/Model}", "org/Model, revision: 0012345}"))
    assert recipe.subject("model").choice.revision == "0012345"
    recipe = load(tmp_path, SMALL.replace("org/Model}", "org/Model, revision: 1e10}"))
    assert recipe.subject("model").choice.revision == "1e10"


def test_where_it_stands_is_a_line_and_a_column(tmp_path):
    text = GOOD + "artifacts:\n  - gguf: {types: [Q8_0, Q4_KM]}\n  - mlx: {bits: six, bist: 4}\n"
    with pytest.raises(UsageProblem) as caught:
        load(tmp_path, text)
    places = [line.partition("r.yaml:")[2].partition(": ")[0] for line in str(caught.value).splitlines()[1:4]]
    assert places == ["3:26", "4:17", "4:22"]


def test_what_spans_parts_is_said_beside_what_is_wrong_in_one(tmp_path):
    found = complaints(
        tmp_path,
        """
        source: {model: org/Model}
        mtp: {mode: grft}
        artifacts:
          - mlx: {bits: six}
          - fp8:
          - fp8:
          - nvfp4:
            folder: Model-FP8
        publish: {repo: here}
        """,
    )
    assert [line.partition(": ")[0] for line in found] == [
        "r.yaml:2",
        "r.yaml:4",
        *["r.yaml:6"] * 2,
        "r.yaml:7",
        "r.yaml:9",
    ]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (GOOD + "measure: " + "9" * 5000, "a whole number is expected here, not '999"),
        (GOOD + "measure: 9223372036854775808", "a whole number is expected here"),
        (GOOD + "measure: 1e3", "a whole number is expected here, not '1e3'"),
        (GOOD + "measure: 1:30:00", "a whole number is expected here, not '1:30:00'"),
        (GOOD + "measure: 0o777", "a whole number is expected here, not '0o777'"),
        (GOOD + "measure: 2147483648", "measure must be 1073741824 at most"),
        (GOOD + "calibration: {tokens: 0}", "tokens must be 2 at least"),
        (FP8 + "   gates: {max_mean_kld: .nan}\n", "a number is expected here, not '.nan'"),
        (FP8 + "   gates: {max_mean_kld: nan}\n", "a number is expected here, not 'nan'"),
        (FP8 + "   gates: {max_size: " + "9" * 400 + "}\n", "a size such as 2G or 500M is expected"),
        (FP8 + "   verify: {n_predict: 0}\n", "n_predict must be 1 at least"),
        (FP8 + "   verify: {draft_max: 2147483648}\n", "draft_max must be 16 at most"),
        (FP8 + "   verify: {time_limit: 0}\n", "time_limit must be 1 at least"),
        (FP8 + "   verify: {prompts: Hello}\n", "a list of texts is expected here, not 'Hello'"),
        (FP8 + "   verify: [x]\n", "true or false is expected here, not a list"),
        (LIST + " - mlx: 4\n", "a mapping is expected here, with keys such as size, bpw"),
        (LIST + " - gguf: {types: [Q8_0], tensor_types: {a: [b]}}\n", "text is expected here, not a list"),
        (GOOD + "artifacts: {gguf: 1}\n", "a list of artifacts is expected here, not a mapping"),
        (GOOD + "source: !!python/name:os.system\n", "tags such as"),
        (GOOD + "mtp: {base: 2026-02-31, mode: [a]}\n", "graft, drop, tune is expected here, not a list"),
    ],
)  # fmt: skip
def test_odd_values(tmp_path, text, said):
    found = complaints(tmp_path, text if "artifacts" in text else text + "\nartifacts:\n - fp8:\n")
    assert any(said in line for line in found), found


def test_text_may_look_like_a_date_or_a_number(tmp_path):
    recipe = load(tmp_path, SMALL.replace("org/Model}", "org/Model, revision: 2026-02-31, name: 1}"))
    assert (recipe.subject("model").choice.revision, recipe.subject("model").name) == ("2026-02-31", "1")


def test_a_recipe_is_a_file_and_not_a_flood(tmp_path):
    with pytest.raises(UsageProblem, match="is not a file"):
        load_recipe(tmp_path)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UsageProblem, match="is not a file"):
        load_recipe(tmp_path / "pipe")
    with pytest.raises(UsageProblem, match="cannot be read"):
        load_recipe(Path("a\0b"))
    (tmp_path / "large").write_bytes(b"#" * (5 << 20))
    with pytest.raises(UsageProblem, match="larger than 4 MiB"):
        load_recipe(tmp_path / "large")
