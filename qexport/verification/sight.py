"""What the source sees: transformers' own tower and model, given a picture as its processor would prepare it.

Processors resize, and no two do it alike, so pictures have a size that none of them changes; what is left is
a mean, a deviation and an order of patches, a few lines here. Prompts are the tokens that a runtime makes of
text around a picture: its place is filled with the model's own image tokens, between two that say where it
begins and ends.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np

from qexport.errors import InputError
from qexport.evidence.modules import empty_sight, fill, lend_text, state_of
from qexport.evidence.quiet import quiet_transformers
from qexport.families.known import FAMILIES
from qexport.families.roles import Block
from qexport.families.vision import image_tokens, preprocessor
from qexport.verification.pictures import Picture
from qexport.verification.reference import Scored, scores_of

if TYPE_CHECKING:
    from qexport.families.view import ModelView

PICTURES = (
    Picture("7", "blue", x=0.55, y=0.45, size=0.8),
    Picture("triangle", "red", "black", x=0.45, y=0.55),
)
QUESTION = "What is in the picture?"
# llama.cpp's least number of tokens for an image of any size (clip.cpp, set_limit_image_tokens).
_LEAST_TOKENS = 8
_TOKENS = 256  # of Gemma 3, by transformers' class
# By the end of the keys of a config that name tokens (image_token_id, boi_token_index and the like).
_BEGINS, _ENDS = ("vision_start", "boi_"), ("vision_end", "eoi_")


@dataclass(frozen=True)
class Optics:
    """How pictures go into a model: its tower's sizes, its processor's numbers.

    Attributes:
        mean, deviation: of values from 0 to 1, for each colour.
        side: of a square that no processor resizes, in pixels.
        tokens: that it becomes.
        merge: patches along a side of a token; 0 where the tower sees all pictures in one size.
    """

    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    side: int
    tokens: int
    patch: int
    frames: int = 1
    merge: int = 0

    def prepare(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        """What transformers' processor makes of uint8 ``(side, side, 3)``."""
        mean, deviation = (np.array(each, dtype=np.float32) for each in (self.mean, self.deviation))
        values = (pixels.astype(np.float32) / 255 - mean) / deviation
        if not self.merge:
            return {"pixel_values": values.transpose(2, 0, 1)[None]}
        patches = len(pixels) // self.patch
        side = (patches // self.merge, self.merge, self.patch)
        # The patches of a token stand together, each as colours, frames, rows, columns.
        cut = values.reshape(*side, *side, 3).transpose(0, 3, 1, 4, 6, 2, 5)
        rows = np.repeat(cut[:, :, :, :, :, None], self.frames, axis=5).reshape(patches * patches, -1)
        return {"pixel_values": rows, "image_grid_thw": np.array([[1, patches, patches]])}


def optics(view: ModelView) -> Optics:
    """Those of a source, or of a folder that was opened.

    Raises:
        InputError: it has no tower, or its processor's files do not say how a picture is prepared.
    """
    given, vision = preprocessor(view.files), view.vision
    if vision is None:
        raise InputError("its config.json has no vision_config that it follows")
    mean, deviation = given.get("image_mean"), given.get("image_std")
    if not isinstance(mean, list) or not isinstance(deviation, list) or len(mean) != len(deviation):
        raise InputError("no preprocessor_config.json gives image_mean and image_std")
    dims = vision.dims
    colours = tuple(mean), tuple(deviation)
    if "v_merge" not in dims:
        tokens = view.config.get("mm_tokens_per_image") or _TOKENS
        return Optics(*colours, dims["v_image"], tokens, dims["v_patch"])
    token = dims["v_patch"] * dims["v_merge"]
    size = given.get("size")
    least = given.get("min_pixels") or (size.get("shortest_edge") if isinstance(size, Mapping) else 0) or 0
    along = max(math.ceil(_LEAST_TOKENS**0.5), math.ceil(least**0.5 / token))
    return Optics(
        *colours, along * token, along * along, dims["v_patch"], dims.get("v_temporal", 1), dims["v_merge"]
    )


@dataclass(frozen=True)
class Seen:
    """A question about a picture.

    Attributes:
        inputs: the picture as transformers' processor prepares it.
        before, after: the text around it; its own tokens are in neither.
        ids: the whole prompt, with a token for every row that the tower makes of the picture.
        image_token: that token.
    """

    pixels: np.ndarray
    inputs: Mapping[str, np.ndarray]
    before: str = ""
    after: str = QUESTION
    ids: tuple[int, ...] = ()
    image_token: int = -1


def ids_around(view: ModelView, tokens: int) -> tuple[list[int], int]:
    """The tokens of a picture, where it begins and ends among them; and the one that stands for its rows."""
    named = image_tokens(FAMILIES[view.family], view.config)
    image = next(number for key, number in named.items() if key.startswith("image_token"))
    begin, end = (
        next(number for key, number in named.items() if key.startswith(start)) for start in (_BEGINS, _ENDS)
    )
    return [begin, *[image] * tokens, end], image


class SourceSight:
    """The view's tower in transformers, in float32; its language model is lent by the reference of text.

    Raises:
        EnvironmentProblem: transformers is missing or too old for this family.
        InputError: the view's tensors are not the model's.
    """

    def __init__(self, view: ModelView) -> None:
        import torch

        self.optics = optics(view)
        self._model = empty_sight(view)
        inner = self._model.model
        wanted = {n: p for n, p in state_of(inner).items() if not n.startswith("language_model.")}
        tower = (tensor for tensor in view if tensor.block is Block.VISION)
        filled = fill(tower, wanted, lambda _: torch.float32)
        if missing := sorted(set(wanted) - set(filled)):
            raise InputError(
                f"{view.label}: transformers expects {missing[0]!r}, which the model does not have"
            )
        inner.load_state_dict(filled, strict=False, assign=True)

    @cached_property
    def embeddings(self) -> tuple[np.ndarray, ...]:
        """Of :data:`PICTURES`: a row for each token."""
        return tuple(self.embed(picture.pixels(self.optics.side)) for picture in PICTURES)

    @property
    def frames(self) -> tuple[np.ndarray, ...]:
        """What each of the frames that a patch is made of is multiplied with; none where there are no frames.

        A picture is the same in all of them, so that only the sum is seen in what the tower makes of it.
        """
        if not self.optics.merge:
            return ()
        weight = self._model.model.visual.patch_embed.proj.weight
        return tuple(frame.numpy() for frame in weight.detach().unbind(2))

    def embed(self, pixels: np.ndarray) -> np.ndarray:
        """A row for each token, with what goes into deeper layers behind it, where anything does."""
        import torch

        given = tensors_of(self.optics.prepare(pixels))
        with quiet_transformers(), torch.inference_mode():
            return rows_of(self._model.model.get_image_features(**given, return_dict=True))

    def score(self, text: Any, seen: Seen, tokens: Sequence[int], *, top: int) -> tuple[Scored, ...]:
        """Scores of ``tokens`` after the prompt, by the language model of ``text``, transformers' own."""
        import torch

        lend_text(self._model, text)
        ids = torch.tensor([[*seen.ids, *tokens]])
        kinds = (ids == seen.image_token).int()
        given = tensors_of(seen.inputs)
        named = "mm_token_type_ids" if "image_grid_thw" in given else "token_type_ids"
        with quiet_transformers(), torch.inference_mode():
            logits = self._model(
                input_ids=ids, **given, **{named: kinds}, logits_to_keep=len(tokens) + 1, use_cache=False
            ).logits[0, :-1]
        return scores_of(logits, tokens, top)


def tensors_of(inputs: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The same for torch."""
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(values)) for name, values in inputs.items()}


def rows_of(features: Any) -> np.ndarray:
    """transformers' features of one picture as a row for each token."""
    import torch

    found = features.pooler_output
    rows = found[0] if isinstance(found, tuple | list) or found.ndim == 3 else found
    deeper = getattr(features, "deepstack_features", None) or ()
    whole: np.ndarray = torch.cat([rows, *deeper], dim=-1).float().numpy()
    return whole
