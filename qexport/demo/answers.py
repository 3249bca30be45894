"""What the merged model itself answers, by transformers, greedily: what every artifact is held against."""

from collections.abc import Sequence
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from qexport.evidence.quiet import quiet_transformers


def source_answers(folder: Path, prompts: Sequence[str], tokens: int) -> dict[str, str]:
    """At most so many tokens for each prompt, in float32 as everything is compared in."""
    with quiet_transformers():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
        tokenizer = PreTrainedTokenizerFast.from_pretrained(folder)
        return {prompt: _answer(model, tokenizer, prompt, tokens) for prompt in prompts}


def _answer(model: torch.nn.Module, tokenizer: PreTrainedTokenizerFast, prompt: str, tokens: int) -> str:
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": prompt}], tokenize=False, add_generation_prompt=True
    )
    ids = torch.tensor([tokenizer(text, add_special_tokens=False)["input_ids"]])
    begun, ends = ids.shape[1], {tokenizer.eos_token_id}
    with torch.inference_mode():
        while ids.shape[1] < begun + tokens:
            following = model(ids).logits[:, -1].argmax(-1, keepdim=True)
            if int(following) in ends:
                break
            ids = torch.cat((ids, following), 1)
    return str(tokenizer.decode(ids[0, begun:], skip_special_tokens=True))
