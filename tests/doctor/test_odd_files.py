"""Whatever the small files say, the doctor answers with findings or a refusal, never with a crash."""

from __future__ import annotations

import contextlib
import copy
import json

import pytest
from doctor_bench import HeadersOnly, ids, opened, repair, tensors_in
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from quirks_planted import change_tensors
from quirks_planted import tensors_in as loaded

from qexport.doctor import diagnose, explain
from qexport.errors import QexportError

VALUES = st.sampled_from(
    [None, True, 0, -1, 3, 2.5, "", "bfloat16", "x/y", [], [1], ["a"], {}, {"a": 1}, "gone"]
)


class Altered(HeadersOnly):
    """Another checkpoint with some small files replaced."""

    def __init__(self, inner, files):
        super().__init__(inner)
        self._changed = files

    def read_file(self, name):
        return self._changed.get(name) or super().read_file(name)


def spots(value, path=()):
    """The path of every value in a JSON document that is not inside a long list or vocabulary."""
    if isinstance(value, dict):
        for key, inner in list(value.items())[:40]:
            yield (*path, key)
            yield from spots(inner, (*path, key))


def put(document, path, value):
    *outer, last = path
    for key in outer:
        document = document[key]
    if value == "gone":
        del document[last]
    else:
        document[last] = value


@pytest.mark.parametrize("name", ["qwen3_5", "qwen3_5_moe_text", "gemma3", "llama3"])
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_any_value_anywhere(zoo, name, data):
    source = opened(zoo(name))
    files = [f for f in source.files if f.endswith(".json")]
    file = data.draw(st.sampled_from(files))
    document = json.loads(source.read_file(file))
    changed = copy.deepcopy(document)
    put(changed, data.draw(st.sampled_from(sorted(set(spots(document))))), data.draw(VALUES))
    with contextlib.suppress(QexportError):
        diagnosis = diagnose(Altered(source, {file: json.dumps(changed).encode()}))
        json.dumps(diagnosis.to_json())
        json.dumps(explain(diagnosis).to_json())
        _ = diagnosis.repaired.text


def test_gemma_wrapper_keeps_its_names(zoo, tmp_path):
    """As its publisher writes it: names of old, and a text_config that leaves out defaults."""
    folder = zoo("gemma3", form="wrapper", vision=True)
    diagnosis, out = repair(folder, tmp_path / "out")
    assert ids(diagnosis, "error", "repaired") == set()
    assert tensors_in(out).keys() == tensors_in(folder).keys()
    assert (out / "config.json").read_bytes() == (folder / "config.json").read_bytes()
    text = diagnosis.repaired.text
    assert text["tie_word_embeddings"] is True
    assert (text["rope_theta"], text["rope_local_base_freq"]) == (1000000.0, 10000.0)
    assert text["rope_parameters"]["sliding_attention"]["rope_theta"] == 10000.0


def test_gemma_without_its_tower_becomes_text(zoo_copy, tmp_path):
    folder = zoo_copy("gemma3", form="wrapper", vision=True)
    change_tensors(folder, lambda t: {n: x for n, x in t.items() if n.startswith("language_model.")})
    diagnosis, out = repair(folder, tmp_path / "out")
    assert ids(diagnosis, "error", "repaired") == {"vision.absent"}
    config = json.loads((out / "config.json").read_text())
    assert (config["architectures"], config["model_type"]) == (["Gemma3ForCausalLM"], "gemma3_text")
    assert loaded(out).keys() == {n.removeprefix("language_model.") for n in loaded(folder)}
    assert ids(diagnose(opened(out)), "error", "repaired") == set()
