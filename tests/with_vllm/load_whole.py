"""Loads a folder in vLLM with its vision tower and its MTP head, strictly: `python load_whole.py FOLDER`.

Prints, as JSON, how many parameters of the tower and of each model class came out of the checkpoint, and ends
once the head is there; fails where any parameter was left as it was.
"""

import json
import os
import sys
from importlib import import_module
from pathlib import Path

sys.path.append(str(Path(__file__).parents[2] / "qexport" / "children" / "programs"))


def main(folder):
    """Load it, and count."""
    engine = import_module("engine_vllm")  # before vLLM: it says how that is to run
    import_module("cpu_kernels")
    engine.let_off(json.loads((Path(folder) / "config.json").read_text()))
    loader, counted = engine.DefaultModelLoader, {}
    check = loader.track_weights_loading

    def counting(self, model, loaded, *rest, **options):
        name = type(model).__name__
        for each in loaded or ():
            part = "tower" if "visual." in each else name
            counted[part] = counted.get(part, 0) + 1
        check(self, model, loaded, *rest, **options)
        if "MTP" in name:
            print(json.dumps(counted), flush=True)
            os._exit(0)

    loader.track_weights_loading = counting
    engine.vllm.LLM(
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
    raise SystemExit("no MTP head was loaded")


if __name__ == "__main__":
    main(sys.argv[1])
