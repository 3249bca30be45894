"""Training a head: gradients are those of the whole, same seed same bits, and what is broken is seen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from head_texts import EXACT, tiny, view_of
from zoo_types import Zoo

from qexport.evidence.chained import HeadStream
from qexport.headtune.logits import Logits
from qexport.headtune.loss import depth_weights, divergence, loss_of
from qexport.headtune.options import TrainOptions
from qexport.headtune.states import key_of, states_of
from qexport.headtune.text import Document, chunked
from qexport.headtune.train import Trainer, TrainingLost

OPTIONS = TrainOptions(steps=6, rate=1e-3, batch_tokens=64)


class Bench:
    """A tiny head, text for it, and trainers of it."""

    def __init__(self, folder: Path, work: Path) -> None:
        self.stream = HeadStream(view_of(folder), EXACT)
        random = np.random.default_rng(2)
        documents = [
            Document(tuple(random.integers(0, 200, 40).tolist()), prompt, "a", str(prompt))
            for prompt in range(5)
        ]
        self.text = chunked({"train": documents, "select": documents[:1]}, 32)
        self.states = states_of(self.stream, self.text.ids, work)
        self.logits = Logits(self.stream.view, self.stream.device, exact=True, at_once=7 * 300)
        self.work = work

    def trainer(
        self, options: TrainOptions = OPTIONS, judge: Callable[[], float] | None = None, **told: Any
    ) -> Trainer:
        chain = self.stream.head(32)
        embedded = self.stream.embedded(self.text.ids)
        judge = judge or (lambda: float(next(chain.module.parameters()).detach().sum()))
        file = self.work / "training.pt"
        return Trainer(
            chain,
            self.logits,
            self.text,
            self.states,
            embedded,
            options,
            judge=judge,
            checkpoint=file,
            **told,
        )


@pytest.fixture
def bench(zoo: Zoo, tmp_path: Path) -> Bench:
    return Bench(tiny(zoo), tmp_path)


@pytest.mark.parametrize(("mode", "late"), [("argmax", False), ("sampling", False), ("sampling", True)])
def test_gradients_are_those_of_all_at_once(bench: Bench, mode: Any, late: bool) -> None:
    """Slices of anchors, logits that are let go: against one product and torch's own way back."""
    trainer = bench.trainer(replace(OPTIONS, mode=mode))
    chunks = [0, 2, 3]
    loss = trainer.gradients(chunks, late=late)
    chain = trainer._chain
    found = {name: parameter.grad.clone() for name, parameter in chain.module.named_parameters()}
    chain.module.zero_grad()
    final = bench.states.of(chunks)
    heads = list(chain.unrolled(final, bench.stream.embedded(bench.text.ids).of(chunks), 3))
    counts = torch.from_numpy(bench_counts(bench, chunks)).float()
    counts /= counts.sum(dim=(0, 2), keepdim=True)
    whole = torch.zeros(())
    for row in range(len(chunks)):
        trunk = bench.logits.logits(final[row, 1:31])
        each = [bench.logits.trained(head[row, :28]) for head in heads]
        whole = whole + loss_of(mode, late, trunk, each, counts[row])
    whole.backward()
    assert loss == pytest.approx(float(whole.detach()), rel=1e-5)
    for name, parameter in chain.module.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-3, atol=1e-6)


def bench_counts(bench: Bench, chunks: list[int]) -> np.ndarray:
    """Each draft that counts, found one by one."""
    text = bench.text
    found = np.zeros((len(chunks), 3, 28), bool)
    for row, chunk in enumerate(chunks):
        for ahead in range(3):
            for anchor in range(28):
                owners = text.document[chunk, anchor : anchor + ahead + 3]
                found[row, ahead, anchor] = len(set(owners)) == 1 and text.counts[chunk, anchor + ahead + 2]
    return found


def test_losses_by_hand() -> None:
    trunk, head = torch.tensor([[0.0, 1.0]]), torch.tensor([[1.0, 0.0]])
    p, q = trunk.softmax(-1)[0], head.softmax(-1)[0]
    assert float(divergence(trunk, head)) == pytest.approx(float((p * (p / q).log()).sum()))
    one = torch.ones(2, 1)
    both = loss_of("sampling", True, torch.cat([trunk, trunk]), [head, head], one)
    under = float(torch.minimum(p, q).sum())
    assert float(both) == pytest.approx((1 - under) + (1 - under**2))
    sharp = (trunk / 0.5).softmax(-1)[0]
    half = loss_of("argmax", False, trunk, [head], one[:1])
    expected = 0.5 * float((p * (p / q).log()).sum()) + 0.5 * float((sharp * (sharp / q).log()).sum())
    assert float(half) == pytest.approx(expected)
    assert sum(depth_weights(3)) == pytest.approx(1)


def bits(weights: Any) -> dict[str, bytes]:
    return {name: values.numpy().tobytes() for name, values in weights.items()}


def test_same_seed_same_bits_and_who_was_killed_goes_on_to_them(bench: Bench) -> None:
    one = bench.trainer(replace(OPTIONS, rate=None)).run()
    assert one.steps == 6
    assert set(one.probes) == {"0.0005", "0.001", "0.002"}
    (bench.work / "training.pt").unlink()
    calls = 0

    class Killed(BaseException):
        pass

    def judge() -> float:
        nonlocal calls
        calls += 1
        if calls == 7:  # three probes, the beginning, three steps
            raise Killed
        return float(next(killed._chain.module.parameters()).detach().sum())

    killed = bench.trainer(replace(OPTIONS, rate=None), judge)
    with pytest.raises(Killed):
        killed.run()
    again = bench.trainer(replace(OPTIONS, rate=None)).run()
    assert bits(again.weights) == bits(one.weights)
    assert again.curve[1:] == one.curve[1:]
    other = bench.trainer(replace(OPTIONS, rate=None, seed=1)).run()
    assert bits(other.weights) != bits(one.weights)


def test_a_checkpoint_of_something_else_is_not_taken(bench: Bench) -> None:
    bench.trainer().run()
    said: list[str] = []
    bench.trainer(replace(OPTIONS, rate=2e-3), say=said.append).run()
    assert said[0].startswith("step 0 of 6")
    said.clear()
    bench.trainer(replace(OPTIONS, rate=2e-3), say=said.append).run()
    assert said == []  # it was at the end
    (bench.work / "training.pt").write_bytes(b"torn")
    bench.trainer(say=said.append).run()
    assert said[0].startswith("step 0 of 6")


def test_the_best_weights_are_kept_and_training_stops_in_time(bench: Bench) -> None:
    figures = iter([1.0, 3.0, 2.0, 2.0, 2.0, 2.0, 9.0])
    found = bench.trainer(replace(OPTIONS, steps=10), lambda: next(figures)).run()
    assert (found.best, found.steps) == (1, 5)
    assert [point.tokens_per_verification for point in found.curve] == [1, 3, 2, 2, 2, 2]


def test_a_loss_that_is_no_number_ends_the_training(bench: Bench) -> None:
    with torch.no_grad():
        bench.states._values[bench.text.part("train").start] = torch.nan
    with pytest.raises(TrainingLost, match="nan"):
        bench.trainer().run()


def test_routers_keep_their_bits(zoo: Zoo, tmp_path: Path) -> None:
    bench = Bench(tiny(zoo, "qwen3_5_moe", experts=4, experts_per_token=2), tmp_path)
    before = bench.stream.head(32).weights()
    after = bench.trainer(judge=iter(range(100)).__next__).run().weights
    same = {name for name in before if torch.equal(before[name], after[name])}
    assert same == {"mtp.layers.0.mlp.gate.weight", "mtp.layers.0.mlp.shared_expert_gate.weight"}


def test_states_are_found_again_and_others_are_not(bench: Bench, zoo: Zoo, tmp_path: Path) -> None:
    class Untouched(HeadStream):
        def trunk(self, *_: Any, **__: Any) -> None:
            raise AssertionError("the trunk is run again")

    again = Untouched(bench.stream.view, EXACT)
    assert states_of(again, bench.text.ids, bench.work).sha256 == bench.states.sha256
    other = HeadStream(view_of(tiny(zoo, seed=7)), EXACT)
    ids = bench.text.ids
    keys = {
        key_of(view, tokens, precision, "cpu")
        for view, tokens, precision in (
            (bench.stream.view, ids, "float32"),
            (other.view, ids, "float32"),
            (bench.stream.view, ids[:1], "float32"),
            (bench.stream.view, ids, "mixed"),
        )
    }
    assert len(keys) == 4
