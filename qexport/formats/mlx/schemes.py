"""Which modules are quantized, and how: ``quantize_model`` and the mixed recipes of mlx-lm.

https://github.com/ml-explore/mlx-lm/blob/main/mlx_lm/utils.py (``quantize_model``) and ``convert.py``
(``mixed_quant_predicate_builder``). Every matrix is, embedding included, but for convolutions; where rows do
not divide into groups of the default size, the module stays as it is and nothing says so. Router gates of a
mixture of experts have 8 bits in groups of 64 (https://github.com/ml-explore/mlx-lm/issues/349), unless a
recipe decides: then it decides for all.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from qexport.assign.assignment import PLAIN, Assignment
from qexport.errors import InputError
from qexport.families.roles import NORM_ROLES, Role
from qexport.formats.mlx.options import RECIPES, Scheme

if TYPE_CHECKING:
    from qexport.families.family import Dialect
    from qexport.families.view import ModelTensor, ModelView
    from qexport.formats.mlx.options import MlxOptions


GATE_SCHEME = Scheme(64, 8)
_NO_MODULE = NORM_ROLES | {Role.LINEAR_CONV, Role.LINEAR_A_LOG, Role.LINEAR_DT_BIAS}
_DOWN = (Role.FFN_DOWN, Role.EXPERTS_DOWN, Role.SHARED_EXPERT_DOWN)


@dataclass(frozen=True)
class Choices:
    """The scheme of each tensor by canonical name, ``None`` for what stays as it is.

    Attributes:
        overrides: names of those whose scheme config.json has to name: gates, or all in a recipe, and what is
            given another scheme than the default.
        misfits: names of matrices whose rows do not divide into groups.
    """

    schemes: Mapping[str, Scheme | None]
    overrides: frozenset[str]
    misfits: tuple[str, ...]

    def assignment(self, label: str) -> Assignment:
        """The types of the trunk's tensors."""
        types = {name: PLAIN if scheme is None else scheme.label for name, scheme in self.schemes.items()}
        return Assignment("mlx", label, types)


def is_matrix(tensor: ModelTensor) -> bool:
    """Whether mlx-lm could quantize the tensor's module."""
    return len(tensor.shape) >= 2 and tensor.role not in _NO_MODULE


def choose(
    tensors: Iterable[ModelTensor],
    view: ModelView,
    dialect: Dialect,
    options: MlxOptions,
    given: Mapping[str, str],
) -> Choices:
    """The schemes of the trunk's ``tensors``, ``given`` ones first.

    Raises:
        InputError: a given type is for what cannot be quantized.
    """
    seeing = dialect.gates_seeing if view.vision is not None and not options.text_only else None
    gates = dialect.gates if seeing is None else seeing
    schemes: dict[str, Scheme | None] = {}
    overrides: set[str] = set()
    misfits: list[str] = []
    for tensor in tensors:
        schemes[tensor.name] = None
        wanted = given.get(tensor.name)
        if not is_matrix(tensor) or tensor.role in dialect.plain:
            if wanted not in (None, PLAIN):
                raise InputError(f"{tensor.name} cannot be {wanted}: MLX quantizes matrices of modules only")
            continue
        if wanted == PLAIN:
            continue
        scheme = options.scheme
        if options.recipe is not None:
            scheme = _mixed(tensor, view.layers, options)
        elif tensor.role in gates:
            scheme = GATE_SCHEME
        columns = tensor.shape[-1]
        if wanted is not None:
            scheme = Scheme.labelled(wanted)
        elif columns % options.scheme.group_size:
            misfits.append(tensor.name)
            continue
        if columns % scheme.group_size:
            misfits.append(tensor.name)
            continue
        schemes[tensor.name] = scheme
        if options.recipe is not None or tensor.role in gates or scheme != options.scheme:
            overrides.add(tensor.name)
    return Choices(schemes, frozenset(overrides), tuple(misfits))


def _mixed(tensor: ModelTensor, layers: int, options: MlxOptions) -> Scheme:
    """The larger width for v_proj and down_proj of the first and last eighth of the layers and of every third
    between them, and for lm_head."""
    low, high = RECIPES[options.recipe or ""]
    index = tensor.layer or 0
    more = index < layers // 8 or index >= 7 * layers // 8 or (index - layers // 8) % 3 == 2
    wide = tensor.role is Role.OUTPUT or (more and tensor.role in (Role.ATTN_V, *_DOWN))
    return Scheme(options.scheme.group_size, high if wide else low)


def override(scheme: Scheme, *, recipe: bool) -> dict[str, Any]:
    """The entry of config.json, with the keys that mlx-lm's predicates give."""
    entry: dict[str, Any] = {"group_size": scheme.group_size, "bits": scheme.bits}
    return entry | {"mode": scheme.mode} if recipe or scheme.mode != "affine" else entry
