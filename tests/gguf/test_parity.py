"""Whole files against llama.cpp's converter and llama-quantize: every key, shape, type and byte.

The goldens were made by the tools themselves (tests/oracle/make_golden.py). A zoo model's files of all types
are written in one pass here, through the doctor, as a user's would be.
"""

import pytest
from oracle import imatrix as made_imatrix
from oracle import make_golden
from oracle.summary import compare
from zoo import ZOO

from qexport.checkpoint.opening import open_checkpoint
from qexport.doctor.diagnose import diagnose
from qexport.evidence.imatrix_file import read_imatrix
from qexport.formats.gguf.format import GGUF
from qexport.formats.gguf.options import GgufOptions
from qexport.formats.gguf.plan import plan_gguf
from qexport.onepass.execute import execute

FLOATS = ("BF16", "F16", "F32")


def variants(weighted):
    return list(_variants(weighted))


def _variants(weighted):
    for name in ZOO:
        groups = {}
        for variant in make_golden.variants_of(name):
            kind, _, extra = variant.partition(".")
            if extra.startswith("imatrix") == weighted:
                groups.setdefault(extra, []).append(kind)
        for extra, kinds in groups.items():
            yield pytest.param(name, extra, kinds, id=f"{name}{'-' + extra if extra else ''}")


def written(folder, out, kinds, *, mtp="auto", **options):
    diagnosis = diagnose(open_checkpoint(str(folder)), mtp=mtp)
    plans = plan_gguf(diagnosis.repaired.view(), kinds, GgufOptions(mtp_type="mixture", **options))
    execute(plans, out)
    return {plan.label: out / plan.files[0].name for plan in plans}


def heads(folder, out, kinds):
    """Heads of several types beside a trunk, all from one pass."""
    diagnosis = diagnose(open_checkpoint(str(folder)))
    plans = GGUF.plan(diagnosis, GgufOptions(("BF16",), mtp="drafter"))
    for kind in kinds:
        plans += GGUF.alongside(diagnosis, GgufOptions(mtp="drafter", mtp_type=kind, no_mmproj=True))
    execute(plans, out)
    trunk, *alone = (out / plan.files[0].name for plan in plans)
    without = written(folder, out / "without", ["BF16"], mtp="drop")
    assert trunk.read_bytes() == without["BF16"].read_bytes()
    assert [path.name for path in alone] == [f"mtp-{folder.name}-{kind}.gguf" for kind in kinds]
    return dict(zip(kinds, alone, strict=True))


def differences(path, golden, kind, source):
    """The converter writes float files in the source's order; we write all files in llama-quantize's."""
    found = compare(path, golden, source=source)
    if kind in FLOATS:
        found = [line for line in found if not (line.startswith("tensor ") and " in the file is " in line)]
    return found


@pytest.mark.parametrize(("name", "extra", "kinds"), variants(weighted=False))
def test_files_equal_the_toolchains(zoo, tmp_path, name, extra, kinds):
    """Of a head alone (``mtp``) the trunk beside it, too: it is the model without a head."""
    if extra == "mtp":
        files = heads(zoo(name), tmp_path, kinds)
    else:
        files = written(zoo(name), tmp_path, kinds, mtp="drop" if extra == "no-mtp" else "auto")
    for kind in kinds:
        golden = make_golden.load(name, f"{kind}.{extra}" if extra else kind)
        assert differences(files[kind], golden, kind, zoo(name)) == [], kind


@pytest.mark.parametrize(("name", "extra", "kinds"), variants(weighted=True))
def test_files_with_importance_equal_the_toolchains(zoo, tmp_path, name, extra, kinds):
    tensors = make_golden.load(name, make_golden.variants_of(name)[0])["tensors"]
    matrix = made_imatrix.write(tmp_path / "imatrix.gguf", tensors, full=extra.endswith("-full"))
    files = written(zoo(name), tmp_path, kinds, imatrix=read_imatrix(matrix))
    for kind in kinds:
        golden = make_golden.load(name, f"{kind}.{extra}")
        found = compare(files[kind], golden, source=zoo(name))
        if kind == "Q8_0":  # llama-quantize names the matrix although Q8_0 ignores it; we do not
            found = [line for line in found if "quantize.imatrix." not in line]
        assert found == [], kind


def test_every_golden_is_compared():
    compared = {
        (p.values[0], f"{kind}.{p.values[1]}" if p.values[1] else kind)
        for weighted in (False, True)
        for p in variants(weighted)
        for kind in p.values[2]
    }
    kept = {(path.parent.name, path.stem) for path in make_golden.GOLDEN.glob("*/*.json")}
    assert kept == compared
