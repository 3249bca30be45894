"""What a LoRA merge leaves behind, made from the demo model: the checkpoint that qexport exists for.

Fine-tuning tools load ``AutoModelForCausalLM``, train an adapter, fold it into the weights and save. The
weights are then slightly different everywhere, and much else is gone: the MTP head (transformers ignores
``mtp.*`` on load), the vision tower, the nested config, the float32 of ``A_log``. Here the adapter is random
and small, so that the text stays readable and the original head still fits; the losses are not imitated but
come from transformers' own load and save.

What becomes of names and of the head's declaration depends on the tool, so both kinds can be had:

- ``bare``: names ``model.*`` and no ``mtp_num_hidden_layers``: what tools leave that save in the model's own
  format and clean up the config. Nothing tells a reader that there ever was a head.
- ``declared``: plain ``from_pretrained`` and ``save_pretrained`` of transformers 5.17: the published names
  ``model.language_model.*`` under a text-only config that still declares a head it lacks. llama.cpp's
  converter takes it, and the file aborts llama.cpp as soon as drafting is asked for (older builds at load).
"""

from pathlib import Path
from typing import Literal

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from qexport.evidence.quiet import quiet_transformers

RANK = 4


def lora_like_merge(
    src: Path,
    out: Path,
    *,
    seed: int = 0,
    scale: float = 0.1,
    style: Literal["bare", "declared"] = "bare",
) -> Path:
    """Merge a random rank-4 adapter into the text model of ``src`` and save it as transformers does.

    Args:
        src: a checkpoint in the published layout, such as ``qexport/demo/model``.
        out: folder of the merged checkpoint.
        seed: of the adapter.
        scale: norm of the change relative to the norm of each weight it is added to. At 0.1 the demo model
            is 0.0002 nats from its source and the original head's drafts are accepted as before; at 0.4
            sentences begin to break.
        style: which kind of leftovers, see above.

    Returns:
        ``out``.
    """
    with quiet_transformers():
        return _merge(src, out, seed=seed, scale=scale, style=style)


def _merge(src: Path, out: Path, *, seed: int, scale: float, style: str) -> Path:
    model = AutoModelForCausalLM.from_pretrained(src, dtype=torch.bfloat16)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, module in model.named_modules():
            if not isinstance(module, torch.nn.Linear) or name == "lm_head":
                continue  # adapters target the linear layers inside the blocks
            weight = module.weight.float()
            up = torch.randn(weight.shape[0], RANK, generator=generator)
            down = torch.randn(RANK, weight.shape[1], generator=generator)
            change = up @ down
            module.weight.copy_(weight + change * (scale * weight.norm() / change.norm()))
    if style == "bare":
        for key in ("mtp_num_hidden_layers", "mtp_use_dedicated_embeddings"):
            if hasattr(model.config, key):
                delattr(model.config, key)
    # transformers reverts its renaming on save, unless told not to.
    model.save_pretrained(out, save_original_format=style == "declared")
    # The generic class, as most trainers load it: saved as TokenizersBackend. AutoTokenizer would give
    # Qwen2Tokenizer, which writes Qwen2's pre-tokenizer (no \p{M}) over Qwen3.5's.
    PreTrainedTokenizerFast.from_pretrained(src).save_pretrained(out)
    return out
