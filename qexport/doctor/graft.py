"""Taking a tower of the base model, its MTP head above all: does it fit, and its tensors as they lie there.

Nothing is read: the grafted tensors point into the base checkpoint, so they are copied bit for bit when the
pass gets to them. A head that does not fit loads in no runtime, or loads and is never right; so every reason
is looked for, and all are named at once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from qexport.checkpoint.tensors import LogicalTensor
from qexport.doctor.layout import convert_experts, trunk_layout
from qexport.doctor.subject import EMBEDDING, Subject
from qexport.doctor.tokens import token_ids
from qexport.errors import InputError
from qexport.families.build import expected_tensors, expert_tensor, template_shape
from qexport.families.family import Family
from qexport.families.hyper import Hyper, resolve
from qexport.families.roles import EXPERT_ROLES, Block, Role
from qexport.families.vision import resolve_vision

TowerMode = Literal["auto", "keep", "graft", "drop"]
# What the head's decoder layer computes with, beyond what its shapes say. Heads behind the trunk are found by
# its length.
_COMPARED = (
    "num_hidden_layers",
    "hidden_size",
    "intermediate_size",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "rms_norm_eps",
    "attention_bias",
    "attn_output_gate",
    "num_experts",
    "n_routed_experts",
    "n_shared_experts",
    "num_experts_per_tok",
    "moe_intermediate_size",
    "shared_expert_intermediate_size",
    "norm_topk_prob",
    "n_group",
    "topk_group",
    "routed_scaling_factor",
    "use_qk_norm",
)
_ROPE = ("rope_type", "rope_theta", "partial_rotary_factor", "mrope_section", "mrope_interleaved")


def tower_problems(
    hyper: Hyper, tensors: Mapping[str, LogicalTensor], config: Mapping[str, Any], block: Block
) -> list[str]:
    """What is missing from a tower in ``tensors``, or has another shape than this model needs.

    Of a vision tower, which has prefixes of its own, what is too much as well.
    """
    problems: list[str] = []
    try:
        vision = resolve_vision(hyper.family, config, hyper.hidden) if block is Block.VISION else None
    except InputError as error:
        return [error.message]
    dims = hyper.dims if vision is None else {**hyper.dims, **vision.dims}
    known = set()
    for prefix, template, where, _ in expected_tensors(hyper, 1, vision):
        if where is not block:
            continue
        name = prefix + template.name
        known.add(name)
        try:
            shape = template_shape(template, dims, name)
            found = tensors.get(name)
            if template.role in EXPERT_ROLES:
                found, _ = expert_tensor(prefix, template.name, shape, tensors)
        except InputError as error:
            problems.append(error.message)
            continue
        if found is None:
            if not template.optional:
                problems.append(f"{name} is missing")
        elif found.shape != shape:
            problems.append(f"{name} has shape {list(found.shape)}, this model needs {list(shape)}")
    if block is Block.VISION:
        problems += [f"{name} is not part of the tower" for name in tensors if name not in known]
    return list(dict.fromkeys(problems))


def own_matrices(family: Family, head: Iterable[str]) -> list[str]:
    """Matrices of a head's own that readers of this family take from the model."""
    if family.head is None or any(t.role is Role.MTP_EMBED for t in family.head.first):
        return []
    alone = (family.head.prefix + name for name in ("embed_tokens.weight", "lm_head.weight"))
    return [name for name in alone if name in head]


def head_tensors(base: Subject, trunk: Mapping[str, LogicalTensor]) -> dict[str, LogicalTensor]:
    """The base's head with its experts laid out as those of ``trunk``."""
    head = {name: base.tensors[name] for name in base.head}
    layout = trunk_layout(trunk)
    return head if layout is None else convert_experts(head, layout)


def misfits(subject: Subject, base: Subject) -> list[str]:
    """Every reason why the base's head cannot serve this model; empty if it can."""
    reasons: list[str] = []
    if base.family is not subject.family:
        reasons.append(f"the base is {base.family.name}, this model is {subject.family.name}")
    layers = max(base.head.values(), default=-1) + 1
    if layers == 0:
        reasons.append(f"{base.checkpoint.label} has no MTP head itself")
    elif layers > 1:
        reasons.append(f"its head has {layers} layers; llama.cpp runs exactly one")
    reasons += [f"its head has a matrix of its own ({name})" for name in own_matrices(base.family, base.head)]
    reasons += setting_reasons(subject, base, _COMPARED, _ROPE)
    if layers == 1 and base.family is subject.family:
        hyper = resolve(subject.family, subject.text)
        reasons += tower_problems(hyper, base.tensors, base.config, Block.MTP)
    return reasons + _vocabulary(subject, base)[0]


def vocabulary_notes(subject: Subject, base: Subject) -> list[str]:
    """What differs between the two vocabularies without harm."""
    return _vocabulary(subject, base)[1]


def setting_reasons(
    subject: Subject, base: Subject, keys: Iterable[str], turning: Iterable[str]
) -> list[str]:
    """The keys of the language model, and of its RoPE, that have another value in the base."""
    mine, theirs = resolve(subject.family, subject.text).text, resolve(base.family, base.text).text
    pairs = [(key, mine.get(key), theirs.get(key)) for key in keys]
    ours, other = mine["rope_parameters"], theirs["rope_parameters"]
    pairs += [(f"rope {key}", ours.get(key), other.get(key)) for key in turning]
    return [
        f"{key} is {here!r} here and {there!r} in the base"
        for key, here, there in pairs
        if here is not None and there is not None and here != there
    ]


def _vocabulary(subject: Subject, base: Subject) -> tuple[list[str], list[str]]:
    reasons: list[str] = []
    notes: list[str] = []
    rows = [s.tensors[EMBEDDING].shape[0] if EMBEDDING in s.tensors else None for s in (subject, base)]
    if rows[0] != rows[1] and None not in rows:
        notes.append(f"the embedding has {rows[0]} rows here and {rows[1]} in the base")
    if "tokenizer.json" not in subject.checkpoint.files or "tokenizer.json" not in base.checkpoint.files:
        return reasons, [*notes, "the token ids could not be compared: one of the two has no tokenizer.json"]
    if subject.checkpoint.read_file("tokenizer.json") == base.checkpoint.read_file("tokenizer.json"):
        return reasons, notes
    mine, theirs = token_ids(subject), token_ids(base)
    by_id = {number: token for token, number in theirs.items()}
    clash = [(t, n) for t, n in mine.items() if theirs.get(t, n) != n or by_id.get(n, t) != t]
    if clash:
        token, number = clash[0]
        other = f"{by_id[number]!r} there" if number in by_id else f"{theirs[token]} there"
        reasons.append(
            f"{len(clash)} token ids differ from the base's, such as {token!r} ({number} here, {other})"
        )
    if added := len(mine.keys() - theirs.keys()) - len([t for t, _ in clash if t not in theirs]):
        notes.append(f"{added} tokens were added; the head has not been trained on them")
    return reasons, notes
