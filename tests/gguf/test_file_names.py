"""Every name that can be written is a name that llama.cpp and the Hub read as what it is.

The rules are written down here a second time, from llama.cpp's ``common/download.cpp`` and ``preset.cpp``
(b11434) and ``@huggingface/gguf``, so that a slip in one place shows.
"""

import re
import string
from itertools import product
from types import SimpleNamespace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from qexport.container.gguf_file import shard_names
from qexport.errors import UsageProblem
from qexport.formats.gguf.file_name import file_stem, found_by_tag, is_model_name, matrix_name
from qexport.formats.gguf.file_types import FILE_TYPES
from qexport.formats.gguf.options import GgufOptions

NO_MODELS = ("mmproj", "imatrix", "mtp-", "eagle3-", "dflash-", "dspark-")
WORDS = (
    "mtp",
    "MTP",
    "mmproj",
    "imatrix",
    "iMatrix",
    "eagle3",
    "dflash",
    "dspark",
    "smtp",
    "BF16",
    "f16",
    "Q8_0",
)
SPLIT = re.compile(r"^(.+)-([0-9]{5})-of-([0-9]{5})$", re.IGNORECASE)
# Ids of the Hub are like this; folders and --model-name are anything.
LETTERS = string.ascii_letters + string.digits + "-._+ "


def llama_lists(path: str) -> bool:
    """gguf_filename_is_model; upstream looks at small letters only, others do not."""
    name = path.rsplit("/", 1)[-1]
    return name.endswith(".gguf") and not any(word in name.lower() for word in NO_MODELS)


def llama_finds(paths: list[str], tag: str) -> str | None:
    """find_best_model for ``-hf repo:tag``, over a listing by name."""
    for path in sorted(paths):
        split = SPLIT.match(path.removesuffix(".gguf"))
        if llama_lists(path) and re.search(tag + "[.-]", path, re.IGNORECASE):
            if split is not None and int(split[2]) != 1:
                continue
            return path
    return None


def hub_label(name: str) -> str:
    """parseGGUFQuantLabel of @huggingface/tasks 0.21: what looks like a type last, in their order."""
    kinds = (
        "F32|F16|Q4_0|Q4_1|Q8_0|Q5_0|Q5_1|Q2_K|Q3_K_S|Q3_K_M|Q3_K_L|Q4_K_S|Q4_K_M|Q5_K_S|Q5_K_M|Q6_K|IQ2_XXS|"
        "IQ2_XS|Q2_K_S|IQ3_XS|IQ3_XXS|IQ1_S|IQ4_NL|IQ3_S|IQ3_M|IQ2_S|IQ2_M|IQ4_XS|IQ1_M|BF16|TQ1_0|TQ2_0|MXFP4_MOE|"
        "NVFP4|Q1_0|Q2_0|Q2_K_XL|Q3_K_XL|Q4_K_XL|Q5_K_XL|Q6_K_XL|Q8_K_XL|MXFP4"
    )
    return [m[0] for m in re.finditer(f"({kinds})(_([A-Z]+))?", name.upper())][-1]


def view(label: str = "org/Model") -> SimpleNamespace:
    return SimpleNamespace(label=label, mtp_layers=1)


def written(label: str, types: list[str], shards: int = 1, **options: object) -> dict[str, list[str]]:
    stems = {kind: file_stem(view(label), kind, GgufOptions(**options))[0] for kind in types}  # type: ignore[arg-type]
    return {kind: list(shard_names(stem, shards)) for kind, stem in stems.items()}


def check(names: dict[str, list[str]]) -> None:
    every = [name for each in names.values() for name in each]
    assert len(set(every)) == len(every)
    for kind, files in names.items():
        assert all(map(llama_lists, files)), files
        assert {hub_label(name) for name in files} == {kind}
        # Nobody can name F16 beside BF16: the one ends in the other. The card names such a file in full.
        others = [name for name in every if kind != "F16" or name not in names.get("BF16", ())]
        assert llama_finds(others, kind) == files[0]


NAMES = st.one_of(
    st.text(LETTERS, max_size=30),
    st.lists(st.sampled_from((*WORDS, "Tuned", "9B", "v1.5", "00001-of-00002")), max_size=5).flatmap(
        lambda words: st.lists(st.sampled_from("-._"), min_size=len(words), max_size=len(words)).map(
            lambda joints: "".join(w + j for w, j in zip(words, joints, strict=True))
        )
    ),
)


@settings(max_examples=100, deadline=None)
@given(
    NAMES,
    st.sampled_from((1, 3)),
    st.sampled_from(("{name}-{type}", "{name}{mtp}-{type}{imatrix}", "{name}.{type}")),
)
def test_every_type_and_split_of_any_model(label: str, shards: int, template: str) -> None:
    check(written(label, list(FILE_TYPES), shards, file_name=template))
    check(written("org/x", list(FILE_TYPES), shards, file_name=template, model_name=label or None))
    assert not llama_lists(matrix_name(label))
    assert not re.search(r"\.gguf$", matrix_name(label))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.sampled_from((*WORDS, "{type}", "{name}", "-", ".", "_", "x")), max_size=7).map("".join))
def test_any_template_gives_a_model_or_says_that_it_is_not_found(template: str) -> None:
    try:
        stem, notes = file_stem(view(), "Q4_K_M", GgufOptions(file_name=template))
    except UsageProblem:
        return
    names = shard_names(stem, 3)
    assert all(map(llama_lists, names))
    assert llama_finds(list(names), "Q4_K_M") is not None or any("does not find" in note for note in notes)
    for other in set(FILE_TYPES) - {"Q4_K_M"}:
        assert llama_finds(list(names), other) is None


@pytest.mark.parametrize(
    ("label", "stem"),
    [
        ("Qwen/Qwen3.5-9B@1a2b3c4d", "Qwen3.5-9B-Q4_K_M"),
        ("my_model.v2+x--y", "my_model.v2+x--y-Q4_K_M"),
        ("Tuned-MTP", "Tuned-Q4_K_M"),
        ("Tuned-mtp-9B", "Tuned-9B-Q4_K_M"),
        ("mtp", "model-Q4_K_M"),
        ("smtp-bot", "smtp_bot-Q4_K_M"),
        ("smtp", "smtp_-Q4_K_M"),
        ("Merged-BF16", "Merged-Q4_K_M"),
        ("x-imatrix-mmproj-y", "x-y-Q4_K_M"),
        ("Big-00001-of-00004", "Big-Q4_K_M"),
    ],
)
def test_what_becomes_of_a_name_and_that_it_is_said(label: str, stem: str) -> None:
    found, notes = file_stem(view(label), "Q4_K_M", GgufOptions())
    assert found == stem
    as_it_was = label.rsplit("/", 1)[-1].split("@")[0] + "-Q4_K_M"
    assert [f"is called {stem}.gguf and not {as_it_was}.gguf" in note for note in notes] == [True] * (
        stem != as_it_was
    )


def test_our_own_reading_is_llama_cpps() -> None:
    names = [
        f"{a}{b}{kind}{c}.gguf" for a, b, kind, c in product(WORDS, "-_", FILE_TYPES, ("", "-00002-of-00003"))
    ]
    for name in names:
        assert is_model_name(name) == llama_lists(name)
        for tag in ("F16", "Q8_0", "Q4_K_M"):
            assert found_by_tag([name], tag) == llama_finds([name], tag)


@pytest.mark.parametrize(
    "template", ["a/{type}", ".{type}", "{name}-{kind}", "a\n{type}", "\u202e{type}", "..\\{type}"]
)
def test_templates_that_are_no_names(template: str) -> None:
    with pytest.raises(UsageProblem):
        file_stem(view(), "Q4_K_M", GgufOptions(file_name=template))


@pytest.mark.parametrize("name", ["Model", "Tuned-MTP", "x-QX-y", "Merged-BF16"])
def test_a_file_made_for_a_size_is_found_as_the_type_it_is_like(name: str) -> None:
    """Alone by the type's tag; beside the plain file by its own, and the plain one keeps its."""
    for kind in ("Q2_K", "Q3_K_L", "Q4_K_M", "Q6_K", "Q8_0", "IQ4_XS"):
        stems = [file_stem(view(name), each, GgufOptions())[0] for each in (kind, f"QX-{kind}")]
        plain, sized = (f"{stem}.gguf" for stem in stems)
        assert sized == f"{plain.removesuffix(f'{kind}.gguf')}QX-{kind}.gguf"
        assert hub_label(sized) == kind
        assert llama_lists(sized)
        assert llama_finds([sized], kind) == sized
        assert llama_finds([sized, plain], kind) == plain
        assert llama_finds([sized, plain], f"QX-{kind}") == sized
