"""Train the demo model's vision tower: pictures become embeddings that the model, as it is, takes for words.

    python tools/train_sight.py MODEL --out DIR [--steps N] [--seed S]

Only the tower is trained. The language model, its MTP head and its tokenizer are those of MODEL, bit for bit,
so whatever was measured of its text stays true. The pictures are those of qexport/verification/pictures.py: a
circle, a square, a triangle or one of three digits, in one of four colours on a light or a dark ground; the
answer names both, "A red circle." On one CPU core the default takes some minutes.
"""

import argparse
import json
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from random import Random
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import Qwen3_5Config, Qwen3_5ForConditionalGeneration

from demo_corpus import render
from qexport.evidence.linear_attention import in_pieces
from qexport.verification.pictures import Picture
from train_demo import optimizers_of, token_id

__all__ = ["PREPROCESSOR", "QUESTIONS", "VISION", "main", "train"]

VISION: dict[str, Any] = {
    "depth": 2,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_size": 64,
    "in_channels": 3,
    "initializer_range": 0.02,
    "intermediate_size": 128,
    "model_type": "qwen3_5_vision",
    "num_heads": 4,
    "num_position_embeddings": 64,
    "out_hidden_size": 256,
    "patch_size": 16,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
}
SIDE = 128
PREPROCESSOR: dict[str, Any] = {
    "image_mean": [0.5, 0.5, 0.5],
    "image_processor_type": "Qwen2VLImageProcessor",
    "image_std": [0.5, 0.5, 0.5],
    "merge_size": 2,
    "patch_size": 16,
    # In pixels: every picture is seen at least as large as those that it was trained on.
    "size": {"longest_edge": 4 * SIDE * SIDE, "shortest_edge": SIDE * SIDE},
    "temporal_patch_size": 2,
}
QUESTIONS = ("What is in the picture?", "What do you see?")
COLOURS = ("red", "green", "blue", "yellow")
THINGS = ("circle", "square", "triangle", "1", "4", "7")
DEFAULT_STEPS = 1500
_PICTURE = "<|vision_start|>" + "<|image_pad|>" * (SIDE // 32) ** 2 + "<|vision_end|>"


def a_picture(rng: Random) -> Picture:
    """One of those that the tower learns."""
    size = rng.uniform(0.65, 0.85)
    room = 0.06
    return Picture(
        rng.choice(THINGS),
        rng.choice(COLOURS),
        rng.choice(("white", "black")),
        0.5 + rng.uniform(-room, room),
        0.5 + rng.uniform(-room, room),
        size,
    )


def answer_to(picture: Picture) -> str:
    """What the model is to say of it."""
    words = str(picture)
    return f"{words[0].upper()}{words[1:]}."


def patches(pictures: Sequence[Picture]) -> torch.Tensor:
    """As transformers' processor cuts them: the two by two patches of a token stand together, each frame
    twice."""
    pixels = torch.stack([torch.from_numpy(picture.pixels(SIDE)) for picture in pictures])
    values = (pixels.float() / 255 - 0.5) / 0.5
    merged = SIDE // 32
    cut = values.view(len(pictures), merged, 2, 16, merged, 2, 16, 3).permute(0, 1, 4, 2, 5, 7, 3, 6)
    frames = cut[:, :, :, :, :, :, None].expand(*cut.shape[:6], 2, 16, 16)
    return frames.reshape(len(pictures) * (SIDE // 16) ** 2, -1)


def batch(tokenizer: Tokenizer, rng: Random, count: int) -> tuple[dict[str, torch.Tensor], torch.Tensor]:
    """What the model is given, and what it is to say: -100 where that does not matter."""
    pictures = [a_picture(rng) for _ in range(count)]
    texts = [
        render([("user", _PICTURE + rng.choice(QUESTIONS)), ("assistant", answer_to(picture))])
        for picture in pictures
    ]
    rows = [tokenizer.encode(text).ids for text in texts]
    length = max(map(len, rows))
    end, start = token_id(tokenizer, "<|im_end|>"), tokenizer.encode("assistant\n").ids
    ids = torch.full((count, length), token_id(tokenizer, "<|endoftext|>"))
    labels = torch.full((count, length), -100)
    for at, row in enumerate(rows):
        ids[at, : len(row)] = torch.tensor(row)
        begin = next(i for i in range(len(row), 0, -1) if row[i - len(start) : i] == start)
        stop = row.index(end, begin) + 1
        labels[at, begin:stop] = ids[at, begin:stop]
    side = SIDE // 16
    return {
        "input_ids": ids,
        "pixel_values": patches(pictures),
        "image_grid_thw": torch.tensor([[1, side, side]] * count),
        "mm_token_type_ids": ids.eq(token_id(tokenizer, "<|image_pad|>")).int(),
    }, labels


@torch.no_grad()
def right(model: Any, tokenizer: Tokenizer, count: int = 200, seed: int = 987_654) -> float:
    """The share of unseen pictures whose whole answer would be chosen, a token at a time."""
    model.eval()
    given, labels = batch(tokenizer, Random(seed), count)
    choice = model(**given, use_cache=False).logits[:, :-1].argmax(-1)
    wanted = labels[:, 1:]
    same = (choice == wanted) | (wanted == -100)
    model.train()
    return float(same.all(-1).float().mean())


def train(
    source: Path, out: Path, *, steps: int, seed: int, first: int = 400, size: int = 16, lr: float = 3e-3
) -> float:
    """Train a tower for ``source`` and write the whole model to ``out``; the share of right answers.

    One of these sizes that ``source`` has already is trained on.
    """
    torch.manual_seed(seed)
    torch.set_num_threads(1)
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    stored = load_file(source / "model.safetensors")
    given = json.loads((source / "config.json").read_text())
    config = given | {"vision_config": VISION}
    model = Qwen3_5ForConditionalGeneration(Qwen3_5Config(**config)).float()
    begun_before = given["vision_config"] == VISION
    text = {name: tensor for name, tensor in stored.items() if not name.startswith("model.visual.")}
    known = stored if begun_before else text
    model.load_state_dict({n: t.float() for n, t in known.items() if not n.startswith("mtp.")}, strict=False)
    model.tie_weights()
    model.requires_grad_(requires_grad=False)
    tower = model.model.visual.requires_grad_()
    rng = Random(seed + 1)
    if not begun_before:
        tell_apart(tower, rng, first)
    optimizers = optimizers_of([tower], lr)
    begun = time.monotonic()
    for step in range(1, steps + 1):
        given, labels = batch(tokenizer, rng, size)
        with in_pieces(model):
            logits = model(**given, use_cache=False).logits[:, :-1]
        loss = functional.cross_entropy(logits.flatten(0, 1), labels[:, 1:].flatten(), ignore_index=-100)
        learn(loss, tower, optimizers, lr * min(1.0, step / 50, 2 * (1 - step / (steps + 1))))
        if step % 25 == 0:
            print(f"step {step} loss {loss.item():.4f} {time.monotonic() - begun:.0f} s", file=sys.stderr)
        if step % 250 == 0 or step == steps:
            trained = {f"model.visual.{name}": tensor for name, tensor in tower.state_dict().items()}
            save(source, out, text | {name: t.bfloat16() for name, t in trained.items()}, config)
            print(f"right {right(model, tokenizer):.3f}", file=sys.stderr)
    model.load_state_dict({name: t.bfloat16().float() for name, t in trained.items()}, strict=False)
    return right(model, tokenizer)


def tell_apart(tower: Any, rng: Random, steps: int, *, size: int = 64, lr: float = 3e-3) -> None:
    """Colours and shapes, without the language model, which costs ten times the tower: what it makes of a
    picture is to tell them."""
    names = (COLOURS, THINGS)
    heads = torch.nn.ModuleList(torch.nn.Linear(VISION["out_hidden_size"], len(each)) for each in names)
    both = torch.nn.ModuleList([tower, heads])
    optimizers, side = optimizers_of([both], lr), SIDE // 16
    for step in range(1, steps + 1):
        pictures = [a_picture(rng) for _ in range(size)]
        grid = torch.tensor([[1, side, side]] * size)
        rows = tower(patches(pictures), grid_thw=grid).pooler_output.view(size, -1, VISION["out_hidden_size"])
        colours = torch.tensor([COLOURS.index(picture.colour) for picture in pictures])
        things = torch.tensor([THINGS.index(picture.shape) for picture in pictures])
        by_colour, by_thing = (head(rows.mean(dim=1)) for head in heads)
        loss = functional.cross_entropy(by_colour, colours) + functional.cross_entropy(by_thing, things)
        learn(loss, both, optimizers, lr * min(1.0, step / 50, 2 * (1 - step / (steps + 1))))
        if step % 50 == 0:
            share = by_thing.argmax(-1).eq(things).float().mean().item()
            print(f"step {step} of the tower alone, loss {loss.item():.4f}, {share:.2f}", file=sys.stderr)


def learn(loss: Any, module: Any, optimizers: Sequence[torch.optim.Optimizer], lr: float) -> None:
    """One step."""
    torch.autograd.backward(loss)
    torch.nn.utils.clip_grad_norm_(module.parameters(), 1.0)
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["lr"] = lr
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)


def save(source: Path, out: Path, tensors: dict[str, torch.Tensor], config: dict[str, Any]) -> None:
    """The model with its new tower; whatever else ``source`` has is copied."""
    out.mkdir(parents=True, exist_ok=True)
    for path in source.iterdir():
        if path.is_file() and path.suffix != ".safetensors":
            (out / path.name).write_bytes(path.read_bytes())
    weights = out / "model.safetensors"
    ordered = {name: tensors[name].contiguous() for name in sorted(tensors)}
    save_file(ordered, weights, metadata={"format": "pt"})
    weights.chmod(0o644)  # safetensors writes it for its owner only
    for name, value in (("config.json", config), ("preprocessor_config.json", PREPROCESSOR)):
        (out / name).write_text(json.dumps(value, indent=2, ensure_ascii=False) + "\n", encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> None:
    """The command line of ``python tools/train_sight.py``."""
    parser = argparse.ArgumentParser(description="Train the vision tower of qexport's demo model.")
    parser.add_argument("model", type=Path, help="folder of the model")
    parser.add_argument("--out", type=Path, required=True, help="folder for the model with its tower")
    parser.add_argument("--steps", type=int, default=DEFAULT_STEPS)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(argv)
    print(f"right {train(options.model, options.out, steps=options.steps, seed=options.seed):.3f}")


if __name__ == "__main__":
    main()
