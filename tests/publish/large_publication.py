"""What a publisher of a 27B has: receipts of its files, with figures as real ones have them, made by hand."""

from __future__ import annotations

import hashlib
from dataclasses import replace

from qexport.families.hyper import resolve
from qexport.families.known import FAMILIES
from qexport.receipt.about import About, Conversation
from qexport.receipt.measures import Drafts, Estimate, Kld, Measures
from qexport.receipt.memory import cache_of
from qexport.receipt.speeds import Bench, Machine, Range, RuntimeVersion, Speed
from qexport.receipt.types import Artifact, File, MatrixFile, Source, WeightFile
from qexport.receipt.verification import REQUIRED, Check, Status, Verdict, Verification

GB = 10**9
CONFIG = {
    "vocab_size": 248320,
    "hidden_size": 5120,
    "num_hidden_layers": 64,
    "num_attention_heads": 24,
    "num_key_value_heads": 4,
    "head_dim": 256,
    "linear_num_value_heads": 48,
    "full_attention_interval": 4,
    "intermediate_size": 17408,
    "max_position_embeddings": 262144,
}
ABOUT = About(
    cache=cache_of(resolve(FAMILIES["qwen3_5"], CONFIG), 1),
    chat=Conversation(
        "<|im_start|>system\n{system_prompt}<|im_end|>\n<|im_start|>user\n{prompt}<|im_end|>\n"
        "<|im_start|>assistant\n<think>\n",
        "on",
    ),
    sampling={"temperature": 0.7, "top_k": 20, "top_p": 0.8, "min_p": 0.0, "presence_penalty": 1.5},
    description="A tune of Qwen3.6-27B for patient, step-by-step explanations of code and mathematics.",
    base="Qwen/Qwen3.6-27B",
)
SOURCE = Source(
    label="alice/Tuned-27B@0123abcd",
    revision="0123abcd" * 5,
    files={"model.safetensors": WeightFile(1184, 55_600_000_000, "ab" * 32)},
    mtp="grafted from Qwen/Qwen3.6-27B@89abcdef",
    vision=True,
    tower="own",
    card={"license": "apache-2.0", "language": ["en"], "pipeline_tag": "image-text-to-text"},
    about=ABOUT,
)
PROMPTS = (
    "In two or three sentences: why is the sky blue?",
    "Write a Python function that returns the n-th Fibonacci number.",
)
ANSWER = (
    "Sunlight holds all colours. Air scatters short waves more than long ones, so blue reaches the eye from "
    "everywhere above, while red and yellow go straight on."
)
ROUGH = ANSWER.replace("everywhere above", "all over the sky").replace("straight on", "through")
CODE = "def fib(n):\n    a, b = 0, 1\n    for _ in range(n):\n        a, b = b, a + b\n    return a"
# Label, GB, bits per weight, mean and error of the divergence, 99th percentile, same top-1, acceptance, and
# tokens a second without the head.
LADDER = (
    ("Q2_K", 10.7, 3.16, 0.131, 0.0042, 1.42, 0.861, 0.741, 46.0),
    ("IQ3_XXS", 11.4, 3.35, 0.0912, 0.0031, 1.05, 0.886, 0.749, 41.5),
    ("Q3_K_M", 13.8, 4.07, 0.0502, 0.0017, 0.62, 0.918, 0.763, 42.0),
    ("IQ4_XS", 15.2, 4.46, 0.0184, 0.00072, 0.21, 0.949, 0.781, 39.1),
    ("Q4_K_M", 17.1, 5.02, 0.0171, 0.00061, 0.19, 0.951, 0.782, 37.4),
    ("Q5_K_M", 19.8, 5.81, 0.0052, 0.00019, 0.058, 0.973, 0.786, 32.0),
    ("Q6_K", 22.9, 6.73, 0.0021, 0.000083, 0.022, 0.983, 0.788, 28.2),
    ("Q8_0", 29.0, 8.51, 0.00049, 0.000021, 0.0051, 0.991, 0.788, 23.0),
)
PARTS = {
    "Q4_K_M": {
        "embeddings": {"Q4_K": 700_000_000},
        "attention": {"Q4_K": 1_300_000_000, "Q6_K": 240_000_000},
        "linear attention": {"Q4_K": 2_900_000_000, "Q6_K": 300_000_000, "F32": 9_000_000},
        "MLP": {"Q4_K": 7_000_000_000, "Q6_K": 3_000_000_000},
        "lm_head": {"Q6_K": 1_043_000_000},
        "MTP head": {"Q8_0": 440_000_000, "Q6_K": 100_000_000},
    }
}


def _bench(bare: float) -> Bench:
    """On one machine, with 0 to 4 drafts at a time."""
    gains, shares = (1.0, 1.34, 1.52, 1.55, 1.49), (0.0, 0.79, 0.71, 0.63, 0.55)
    speeds = tuple(
        Speed(
            n_max,
            Range(bare * gain, 0.97 * bare * gain, 1.02 * bare * gain),
            Range(1480.0, 1450.0, 1502.0),
            1000 * n_max,
            int(1000 * n_max * share),
        )
        for n_max, (gain, share) in enumerate(zip(gains, shares, strict=True))
    )
    machine = Machine("AMD Ryzen 9 7950X", 32, "Linux x86_64", "NVIDIA GeForce RTX 4090")
    return Bench(RuntimeVersion("xllamacpp", "2026.10.11549"), machine, 0, 4, 128, 3, 512, speeds)


def _verified(name: str, engine: RuntimeVersion, measures: Measures, *, sees: bool, drafts: bool, text: str):
    checks = [*REQUIRED, Check.NUMBERS, Check.TOKENS, Check.ENDS, Check.TEMPLATE_KEPT, Check.TEMPLATE]
    checks += [Check.AGREEMENT, Check.MTP_HEAD, Check.DIVERGENCE]
    checks += [Check.MTP_LOADS, Check.MTP_TEXT, Check.MTP_ACCEPTANCE] if drafts else []
    checks += [Check.IMAGE_LOADS, Check.IMAGE_EMBEDDINGS, Check.IMAGE_TEXT] if sees else []
    findings = tuple(Verdict(check, Status.PASS, f"{check.value} is well") for check in checks)
    if not drafts:
        findings += (Verdict(Check.MTP_LOADS, Status.SKIPPED, f"{engine.name} has no MTP"),)
    return Verification(
        artifact=name,
        engine=engine,
        findings=findings,
        prompts=PROMPTS,
        texts=(text, CODE),
        as_source=(text == ANSWER, True),
        drafts=Drafts(131, 100, 2) if drafts else None,
        measures=measures,
    )


def _measures(mean: float, error: float, p99: float, top1: float, accepted: float) -> Measures:
    return Measures(
        positions=4080,
        kld=Kld(mean, error, mean / 4, mean * 2, mean * 4, p99, None, p99 * 4),
        same_top1=Estimate(top1, 0.003),
        perplexity_ratio=Estimate(1 + mean / 3, 0.002),
        drafts=4080,
        acceptance=Estimate(accepted, 0.007),
        source_acceptance=Estimate(0.789, 0.007),
        agreement=1.0 - mean,
        agreement_tokens=128,
    )


def _file(name: str, size: float) -> File:
    return File(name, int(size * GB), hashlib.sha256(name.encode()).hexdigest())


def gguf_files() -> list[Artifact]:
    """A ladder with bench and tower."""
    llama = RuntimeVersion("xllamacpp", "2026.10.11549")
    found = []
    for label, size, bits, mean, error, p99, top1, accepted, speed in LADDER:
        name = f"Tuned-27B-{label}.gguf"
        measured = _measures(mean, error, p99, top1, accepted)
        text = ANSWER if mean < 0.02 else ROUGH
        found.append(
            Artifact(
                "gguf",
                label,
                (_file(name, size),),
                bits_per_weight=bits,
                parts=PARTS.get(label, {}),
                verification=_verified(name, llama, measured, sees=True, drafts=True, text=text),
                bench=_bench(speed) if label in ("Q4_K_M", "Q8_0") else None,
                source=SOURCE,
                matrix=MatrixFile("Tuned-27B-imatrix.gguf_file", "cd" * 32, ("qexport-calib-1",), 131072),
                tool="0.1.0",
                written="2026-11-28T10:00:00+00:00",
            )
        )
    tower = Artifact("mmproj", "mmproj-BF16", (_file("mmproj-BF16.gguf", 0.931),), source=SOURCE)
    matrix = Artifact("imatrix", "imatrix", (_file("Tuned-27B-imatrix.gguf_file", 0.012),), source=SOURCE)
    return [*found, tower, matrix]


def folders() -> list[Artifact]:
    """MLX with its drafter, FP8, NVFP4, each in a folder of its own."""
    served, mlx = RuntimeVersion("transformers", "5.17.0"), RuntimeVersion("mlx-lm", "0.32.2")
    made = (
        ("mlx", "6bit", 22.8, 6.66, mlx, (0.0091, 0.0003, 0.0534, 0.969, 0.784)),
        ("fp8", "FP8", 30.9, 8.9, served, (0.0052, 0.0002, 0.05, 0.972, 0.787)),
        ("nvfp4", "NVFP4", 21.9, 6.5, served, (0.0391, 0.0013, 0.41, 0.926, 0.772)),
    )
    found = []
    for kind, label, size, bits, engine, figures in made:
        proof = _verified(label, engine, _measures(*figures), sees=kind != "mlx", drafts=False, text=ANSWER)
        artifact = Artifact(
            kind,
            label,
            (_file(f"{label}/model.safetensors", size), _file(f"{label}/config.json", 0.000004)),
            bits_per_weight=bits,
            details={"vision_tensors": 333} if kind == "mlx" else {},
            verification=proof,
            source=SOURCE,
            mtp_layouts=("drafter",) if kind == "mlx" else (),
            tool="0.1.0",
            written="2026-11-28T10:00:00+00:00",
        )
        found.append(artifact)
    trunk = found[0].verification
    assert trunk is not None
    proof = Verification(
        "6bit-MTP",
        findings=(Verdict(Check.MTP_HEAD, Status.PASS, "it guesses well"),),
        measures=Measures(acceptance=trunk.measures.acceptance),
        required=(Check.MTP_HEAD,),
    )
    file = _file("6bit-MTP/model.safetensors", 0.849)
    head = replace(found[0], kind="mlx-drafter", label="6bit-MTP", files=(file,), verification=proof)
    return [*found, head]
