"""What `--spec-draft-p-min` does: drafts, accepted drafts and tokens a pass, of a GGUF with its MTP head.

    python benchmarks/p_min.py Model-Q8_0.gguf

Greedy, 96 tokens for each of six prompts, one thread, by xllamacpp; a line of JSON for each setting.
"""

from __future__ import annotations

import json
import sys

import xllamacpp

from qexport.verification.prompts import BENCH_PROMPTS, RAW_PROMPTS

TOKENS = 96


def measure(file: str, n_max: int, p_min: float) -> dict[str, float]:
    params = xllamacpp.CommonParams()
    params.model.path = file
    params.n_parallel, params.n_ctx, params.warmup, params.cache_ram_mib = 1, 1024, False, 0
    params.cpuparams.n_threads = 1
    params.speculative.types = [xllamacpp.common_speculative_type.COMMON_SPECULATIVE_TYPE_DRAFT_MTP]
    params.speculative.draft.n_max, params.speculative.draft.p_min = n_max, p_min
    params.load_mtp = True
    server = xllamacpp.Server(params)
    asked = [f"<|im_start|>user\n{each}<|im_end|>\n<|im_start|>assistant\n" for each in BENCH_PROMPTS]
    drafted = accepted = tokens = 0
    for prompt in (*asked, *RAW_PROMPTS):
        request = {"prompt": prompt, "n_predict": TOKENS, "temperature": 0, "ignore_eos": True}
        timings = server.handle_completions({**request, "cache_prompt": False})["timings"]
        drafted += timings["draft_n"]
        accepted += timings["draft_n_accepted"]
        tokens += timings["predicted_n"]
    passes = tokens - accepted
    return {
        "n_max": n_max,
        "p_min": p_min,
        "drafts_per_pass": round(drafted / passes, 2),
        "acceptance": round(accepted / drafted, 3),
        "tokens_per_pass": round(tokens / passes, 3),
    }


if __name__ == "__main__":
    for n_max in (3, 6):
        for p_min in (0.0, 0.25, 0.5, 0.75, 0.9):
            print(json.dumps(measure(sys.argv[1], n_max, p_min)), flush=True)
