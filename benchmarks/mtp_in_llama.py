"""Tokens per verification of MTP heads in llama.cpp, greedy and sampled: the same prompts for every file.

    python benchmarks/mtp_in_llama.py before.gguf after.gguf --prompts held.jsonl [--count 12] [--answer 128]

Prompts are records of ids or of text, as `qexport mtp generate --prompts` takes them. A verification gives
what it accepts of the drafts and one token more: so tokens over tokens less accepted drafts.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from qexport.evidence.corpus import read_corpus
from qexport.evidence.records import Ids
from qexport.headtune.generate import Sampling
from qexport.verification.client import HttpSession
from qexport.verification.runtime import Settings
from qexport.verification.runtimes import Xllamacpp


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--prompts", type=Path, required=True)
    parser.add_argument("--count", type=int, default=12)
    parser.add_argument("--answer", type=int, default=128)
    parser.add_argument("--n-max", type=int, default=3)
    parser.add_argument("--temperature", type=float, default=0.7)
    args = parser.parse_args()
    prompts = []
    for record in read_corpus(args.prompts).records[: args.count]:
        assert isinstance(record.content, Ids)
        prompts.append(record.content.ids[: record.prompt or None])
    sampled = Sampling(args.temperature).llama()
    for file in args.files:
        with Xllamacpp().open(file, Settings(args.n_max, 2048, 1, 3600)) as session:
            assert isinstance(session, HttpSession)
            for word, how in (("greedy", {}), (f"T = {args.temperature:g}", sampled)):
                tokens = accepted = drafted = 0
                for number, prompt in enumerate(prompts):
                    found = session.sample(prompt, n_predict=args.answer, how={**how, "seed": number})
                    tokens += len(found.tokens)
                    accepted += found.draft_accepted
                    drafted += found.draft_n
                figure = tokens / (tokens - accepted)
                share = accepted / drafted if drafted else 0
                print(f"{file.name}: {word}: {figure:.3f} tokens per verification, {share:.1%} accepted")


if __name__ == "__main__":
    main()
