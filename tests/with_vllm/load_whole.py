"""Loads a folder in vLLM with its vision tower and its MTP head, strictly: `python load_whole.py FOLDER`.

Prints, as JSON, how many parameters came out of the checkpoint, of the tower and of each model class; fails
where any did not.
"""

import json
import os
import sys
from importlib import import_module

os.environ.update(VLLM_ENABLE_V1_MULTIPROCESSING="0", VLLM_NO_USAGE_STATS="1", VLLM_LOGGING_LEVEL="WARNING")
os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")


def main(folder):
    """Load it, and count."""
    import_module("cpu_kernels")
    vllm = import_module("vllm")
    loader = import_module("vllm.model_executor.model_loader.default_loader").DefaultModelLoader
    counted, check = {}, loader.track_weights_loading

    def counting(self, model, loaded, *rest, **options):
        for name in loaded or ():
            part = "tower" if "visual." in name else type(model).__name__
            counted[part] = counted.get(part, 0) + 1
        return check(self, model, loaded, *rest, **options)

    loader.track_weights_loading = counting
    vllm.LLM(
        model=folder,
        dtype="bfloat16",
        enforce_eager=True,
        max_model_len=512,
        max_num_seqs=1,
        skip_mm_profiling=True,
        limit_mm_per_prompt={"image": 1, "video": 0},
        model_loader_extra_config={"enable_weights_track": True},
        speculative_config={"method": "mtp", "num_speculative_tokens": 1},
    )
    print(json.dumps(counted))


if __name__ == "__main__":
    main(sys.argv[1])
