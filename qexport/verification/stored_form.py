"""Every module's stored form against what the config tells a loader, the MTP head included.

Loaders do not check this themselves: a head that is missing or listed under a wrong name loads without a word
and drafts garbage. Five findings, from headers and a few scalars, with nothing run:

================  ====================================================================================
``tensors``       the family's tensors are all there, of the right shape, and no others; tied as declared
``stored``        codes and scales fit together
``declared``      each module is in the form that the config promises (:mod:`qexport.formats.hf`)
``fused``         what runtimes fuse is in one form, and NVFP4 partners share scales of weights and inputs
``mtp_declared``  a head is declared if and only if it is there
================  ====================================================================================

Left out: what scales and codes say. That a head was shifted twice shows when it runs
(:mod:`qexport.verification.comparison`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

from qexport.artifacts.artifact import Opened, skeleton
from qexport.artifacts.layout import Asked, Promise
from qexport.artifacts.weights import StoredWeight, home_of
from qexport.checkpoint.tensors import LogicalTensor
from qexport.doctor.subject import EMBEDDING, HEAD, same_bits
from qexport.errors import InputError
from qexport.families.build import EXPERT_PARTS, expected_tensors
from qexport.families.hyper import resolve
from qexport.families.names import VISION_NAMES
from qexport.families.roles import EXPERT_ROLES, VISION_LINEARS, Role
from qexport.families.vision import VisionHyper, resolve_vision
from qexport.formats.linears import FUSED_ROLES
from qexport.receipt.verification import Check, Status, Verdict
from qexport.sizes import counted
from qexport.verification.judge import skipped

if TYPE_CHECKING:
    from qexport.artifacts.artifact import AnyWeight
    from qexport.artifacts.forms import Form
    from qexport.families.view import ModelTensor


_ONCE = {"global scales": ("weight_global_scale", "weight_scale_2"), "scales of inputs": ("input_scale",)}
# vLLM's in_proj_ba; stored as floats by everybody, but it has to be so for both.
_PARTNERS = (*FUSED_ROLES, frozenset({Role.LINEAR_A, Role.LINEAR_B}))


@dataclass(frozen=True)
class _Weight:
    """A stored weight and what the family knows of it."""

    name: str
    stored: StoredWeight
    tensor: ModelTensor | None
    expert: int | None = None

    @cached_property
    def form(self) -> Form | None:
        """``None`` where the parts make no sense together; that is reported once, under ``stored``."""
        try:
            return self.stored.form
        except InputError:
            return None

    @property
    def role(self) -> Role | None:
        role = None if self.tensor is None else self.tensor.role
        return None if role in VISION_LINEARS and not self.name.endswith(".weight") else role


def check_stored_form(artifact: Opened) -> list[Verdict]:
    """All findings about what is stored; a layout that promises nothing (GGUF) gets two of the five."""
    missing = _missing(artifact)
    findings = [
        _finding(Check.TENSORS, [*missing, *_unknown(artifact), *_ties(artifact)], "tensors, all known")
    ]
    if not artifact.layout.own:
        weights = list(_weights(artifact))
        count = f"{len(weights)} weights"
        findings.append(_finding(Check.STORED, list(_broken(weights)), f"{count}, codes and scales fit"))
        findings.append(_declared(artifact, weights, count))
        unlike = list(_unlike(weights)) if artifact.layout.fuses else []
        findings.append(_finding(Check.FUSED, unlike, "fused modules are alike"))
    if (head := _mtp(artifact)) is not None:
        findings.append(head)
    return findings


def _finding(check: Check, problems: list[str], good: str) -> Verdict:
    data = {"problems": problems[:50], "count": len(problems)}
    if problems:
        more = f" (and {len(problems) - 3} more)" if len(problems) > 3 else ""
        return Verdict(check, Status.FAIL, "; ".join(problems[:3]) + more, data)
    return Verdict(check, Status.PASS, good, data)


def _expected(artifact: Opened) -> dict[str, ModelTensor]:
    bare = skeleton(artifact.family, artifact.text, int(artifact.has_head), artifact.label, _vision(artifact))
    return {tensor.name: tensor for tensor in bare}


def _vision(artifact: Opened) -> VisionHyper | None:
    """The tower that has to be whole, where any of it is there."""
    if not any(name.startswith(VISION_NAMES) for name in artifact.weights):
        return None
    return resolve_vision(artifact.family, artifact.config, artifact.text["hidden_size"])


def _weights(artifact: Opened) -> Iterator[_Weight]:
    expected = _expected(artifact)
    for name, stored in artifact.weights.items():
        assert isinstance(stored, StoredWeight)
        home, expert = home_of(name)
        yield _Weight(name, stored, expected.get(home), expert)


def _missing(artifact: Opened) -> Iterator[str]:
    optional = {"lm_head.weight"} if artifact.text.get("tie_word_embeddings") else set()
    layers = int(artifact.has_head)
    expected = _expected(artifact)
    hyper = resolve(artifact.family, artifact.text)
    for prefix, template, _, _ in expected_tensors(hyper, layers, _vision(artifact)):
        name = template.name
        canonical = prefix + name
        if canonical in artifact.weights or template.optional or canonical in optional:
            continue
        if template.role in EXPERT_ROLES:
            fused, _, single = EXPERT_PARTS[name]
            if prefix + fused in artifact.weights or f"{prefix}{fused}.weight" in artifact.weights:
                continue
            count = expected[canonical].shape[0]
            lost = [prefix + single.format(e=e) for e in range(count)]
            yield from (f"{each} is missing" for each in lost if each not in artifact.weights)
        else:
            yield f"{canonical} is missing"


def _unknown(artifact: Opened) -> Iterator[str]:
    expected = _expected(artifact)
    for name, weight in artifact.weights.items():
        home, expert = home_of(name)
        tensor = expected.get(home)
        if tensor is None:
            yield f"{name} is not part of the {artifact.family.name} family"
            continue
        try:
            shape = weight.decode().shape
        except InputError as error:
            if artifact.layout.own:
                yield error.message
            continue
        wanted = tensor.shape
        if expert is not None:
            wanted = wanted[1:] if expert < wanted[0] else ()
        elif name != home and "gate_up_proj" in name:
            wanted = (wanted[0], 2 * wanted[1], wanted[2])
        if shape != wanted:
            yield f"{name} is {list(shape)}, but config.json says {list(wanted)}"


def _ties(artifact: Opened) -> Iterator[str]:
    tied = bool(artifact.text.get("tie_word_embeddings"))
    if tied and HEAD in artifact.weights and not artifact.layout.own:
        dialect, embedding = artifact.family.dialect, artifact.weights.get(EMBEDDING)
        if artifact.layout.word != "mlx" or dialect is None or not dialect.output_twice:
            yield "tie_word_embeddings is true, yet there is an lm_head.weight: readers take one or the other"
        elif embedding is not None and not _twins(artifact.weights[HEAD], embedding):
            yield "lm_head.weight is another matrix than the embedding, which mlx-vlm takes in its place"
    root, text = artifact.config.get("tie_word_embeddings"), artifact.config.get("text_config")
    inner = text.get("tie_word_embeddings") if isinstance(text, Mapping) else None
    if not artifact.layout.own and root is not None and inner is not None and root != inner:
        yield f"tie_word_embeddings is {root} at the root of config.json and {inner} in text_config"


def _twins(one: AnyWeight, other: AnyWeight) -> bool:
    """Whether the same bits are stored of both."""
    assert isinstance(one, StoredWeight)
    assert isinstance(other, StoredWeight)
    mine, theirs = (
        {name: LogicalTensor.whole(part.checkpoint, part.tensor) for name, part in weight.parts.items()}
        for weight in (one, other)
    )
    return mine.keys() == theirs.keys() and all(same_bits(mine[name], theirs[name]) for name in mine)


def _broken(weights: list[_Weight]) -> Iterator[str]:
    for weight in weights:
        try:
            weight.stored.decode()
        except InputError as error:
            yield error.message


def _declared(artifact: Opened, weights: list[_Weight], count: str) -> Verdict:
    problems: list[str] = []
    try:
        rule = artifact.layout.promises(artifact)
        for weight in weights:
            if weight.role is None or weight.form is None:
                continue
            promise = rule(Asked(weight.stored.module, weight.role, weight.form))
            problems.extend(_disagreement(weight, promise))
        problems.extend(artifact.layout.contradictions(artifact))
    except InputError as error:
        return skipped(Check.DECLARED, error.message)
    return _finding(Check.DECLARED, problems, f"{count} in the form that the config promises")


def _disagreement(weight: _Weight, promise: Promise) -> Iterator[str]:
    what, form = weight.stored.module, weight.form
    if isinstance(promise, str):
        yield f"{what}: {promise}"
    elif form is not None and (form if form.kind != "float" else None) != promise:
        yield f"{what} is stored as {form}, but the config promises {promise or 'floats'}"


def _unlike(weights: list[_Weight]) -> Iterator[str]:
    """Fused partners in different forms, or with global scales of their own."""
    groups: dict[tuple[object, ...], list[_Weight]] = {}
    for weight in weights:
        if weight.tensor is None or weight.form is None:
            continue
        role, place = weight.tensor.role, (weight.tensor.block, weight.tensor.layer)
        partners = next((group for group in _PARTNERS if role in group), None)
        if role in EXPERT_ROLES:
            # One kernel runs all experts of a layer: one form; scales are shared inside an expert.
            groups.setdefault((*place, "experts"), []).append(weight)
        if partners is not None:
            groups.setdefault((*place, partners, weight.expert), []).append(weight)
    for key, members in groups.items():
        forms = {str(weight.form) for weight in members}
        first, last = members[0].stored.module, members[-1].stored.module
        if len(forms) > 1:
            yield f"{first} to {last} are run as one and stored as {' and '.join(sorted(forms))}"
            continue
        if "experts" in key:
            continue
        for what, parts in _ONCE.items():
            scales = {value for weight in members for value in _shared(weight, parts)}
            if len(scales) > 1:
                yield f"{first} and {last} are run as one and have {what} of their own: {sorted(scales)}"


def _shared(weight: _Weight, parts: tuple[str, ...]) -> Iterator[float]:
    nvfp4 = weight.form is not None and weight.form.kind == "nvfp4"
    for part in parts if nvfp4 else ():
        if part in weight.stored.parts:
            yield from weight.stored.parts[part].whole().float().view(-1).tolist()


def _mtp(artifact: Opened) -> Verdict | None:
    """``None``: the family has none, and nothing is to be said of it."""
    check, declared = Check.MTP_DECLARED, artifact.declared_mtp
    data = {"declared": declared, "present": artifact.has_head}
    if artifact.family.head is None:
        return None
    if declared and not artifact.has_head:
        words = f"the config declares {counted(declared, 'MTP layer')}, and no tensors of it are there"
        return Verdict(check, Status.FAIL, words, data)
    # MLX keeps a head outside of the trunk, whose config then need not know of it.
    if artifact.has_head and not declared and not artifact.details.get("head_outside"):
        words = "there is an MTP head that the config does not declare: nobody will use it"
        return Verdict(check, Status.FAIL, words, data)
    words = "a head, declared" if artifact.has_head else "no head, and none declared"
    return Verdict(check, Status.PASS, words, data)
