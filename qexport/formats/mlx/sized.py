"""A folder whose types are chosen for an aim: affine widths and groups, for every matrix by itself.

mlx-lm runs each matrix by itself and reads its scheme from config.json by its path, so nothing is fused; the
embedding and lm_head are matrices like others. Routers keep the 8 bits that mlx-lm gives them. Below 3 bits
errors are no longer small, and what they cost cannot be foretold. The head goes by ``mtp_bits``.

config.json names the scheme nearest to the mean width as that of all, which readers and limits go by, and the
others by path.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import replace
from typing import TYPE_CHECKING

from qexport.assign.assignment import PLAIN, Assignment
from qexport.errors import UsageProblem, closest
from qexport.formats.format import Candidates
from qexport.formats.mlx.dialect import dialect_of
from qexport.formats.mlx.options import AFFINE_BITS, AFFINE_GROUPS, MODES, RECIPES, Scheme
from qexport.formats.mlx.plan import plan_mlx, trunk_of
from qexport.formats.mlx.schemes import is_matrix
from qexport.formats.sized_folder import called

if TYPE_CHECKING:
    from qexport.doctor.repaired import Repaired
    from qexport.formats.mlx.options import MlxOptions
    from qexport.formats.plan import ArtifactPlan


_FLOOR = 3
_MIDDLE = 4
_BITS = tuple(bits for bits in AFFINE_BITS if bits >= _FLOOR)
WORDS = (*(Scheme(group, bits).label for bits in _BITS for group in AFFINE_GROUPS), PLAIN)
_LIKE = (*(f"{bits}bit" for bits in AFFINE_BITS), *RECIPES, *(mode for mode in MODES if mode != "affine"))


def candidates(repaired: Repaired) -> Candidates:
    """What may be chosen."""
    dialect = dialect_of(repaired.view())
    kept = dialect.plain | dialect.gates
    free = [
        tensor.name
        for tensor in trunk_of(repaired)
        if is_matrix(tensor) and tensor.role not in kept and not tensor.shape[-1] % min(AFFINE_GROUPS)
    ]
    return Candidates(
        words=WORDS,
        groups=tuple((name,) for name in free),
        floors=(f"every matrix has {_FLOOR} bits at least",),
    )


def plain(options: MlxOptions, like: str) -> MlxOptions:
    """What ``like`` alone would be written with. Raises UsageProblem: there is no such type."""
    if like in RECIPES:
        return options.without_aim(recipe=like)
    if like in MODES and like in _LIKE:
        return options.without_aim(mode=like, importance=None)
    named = re.fullmatch(r"([2-68])bit(?:-g(32|64|128))?", like)
    if named is not None:
        return options.without_aim(bits=int(named[1]), group_size=int(named[2]) if named[2] else None)
    raise UsageProblem(
        f"--like {like} is no type of MLX's{closest(like, _LIKE)}",
        hint=f"There are {', '.join(_LIKE)}; 6bit-g128 names a group.",
    )


def best(options: MlxOptions) -> tuple[MlxOptions, ...]:
    """The best folder of the size of the type that is named."""
    group = options.group_size
    like = options.label if group in (None, MODES[options.mode][0]) else f"{options.label}-g{group}"
    return (replace(options, like=like, bits=None, group_size=None, mode="affine", recipe=None),)


def plan_sized(repaired: Repaired, options: MlxOptions) -> tuple[ArtifactPlan, ...]:
    """The plan of options with an aim; until the types are chosen, one of about its size stands in."""
    given = options.types_from
    if isinstance(given, Assignment):
        usual = _usual(repaired, given)
        made = options.without_aim(types_from=given, bits=usual.bits, group_size=usual.group_size)
    elif options.like is not None:
        made = plain(options, options.like)
    else:
        made = options.without_aim(bits=_near(repaired, options))
    return called(plan_mlx(repaired, made, sized=True), options, options.label)


def _usual(repaired: Repaired, given: Assignment) -> Scheme:
    """Of the affine schemes the one nearest to the mean width; of several that which most weights have."""
    count: Counter[Scheme] = Counter()
    for tensor in trunk_of(repaired):
        word = given.types.get(tensor.name, PLAIN)
        if word != PLAIN and (scheme := Scheme.labelled(word)).mode == "affine":
            count[scheme] += tensor.data.numel
    mean = sum(scheme.bits * weights for scheme, weights in count.items()) / max(1, count.total())
    found = sorted(count, key=lambda scheme: (abs(scheme.bits - mean), -count[scheme]))
    return found[0] if found else Scheme(64, _MIDDLE)


def _near(repaired: Repaired, options: MlxOptions) -> int:
    """The width at which all matrices come nearest to a size or to bits per weight."""
    if options.size is None and options.bpw is None:
        return _MIDDLE
    trunk = plan_mlx(repaired, options.without_aim(bits=_MIDDLE))[0]
    values = sum(tensor.data.numel for tensor in trunk_of(repaired) if is_matrix(tensor))
    wanted = options.size or trunk.size * (options.bpw or 0) / trunk.bits_per_weight
    exact = _MIDDLE + (wanted - trunk.size) * 8 / max(1, values)
    return min(_BITS, key=lambda bits: abs(bits - exact))
