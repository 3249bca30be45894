"""The tables of a report."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from qexport.receipt.measures import USUAL_DRAFTS, Estimate
from qexport.receipt.tables import (
    ACCEPTANCE,
    BESIDE_PLAIN,
    BITS,
    FLIPS,
    IMAGES,
    KLD,
    PREDICTED,
    SAME_TOP1,
    SIZE,
    SPEED,
    VERIFIED,
    Column,
    TextTable,
    share,
)
from qexport.receipt.text import nats, ratio, speed, with_error
from qexport.receipt.words import gate_value, gate_words

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    from qexport.receipt.measures import Drafting, Kld, LayerFlips
    from qexport.receipt.types import Artifact
    from qexport.report.report import Model, Pair, Report


def artifact_table(model: Model) -> TextTable:
    """All of a model's artifacts, with the figures that people choose by."""
    return TextTable.of("Artifacts", _ARTIFACT, model.artifacts)


def divergence_table(model: Model) -> TextTable:
    """The whole distribution of the KL divergence."""
    note = (
        "Nats; ± is the standard error of the mean, from blocks of neighbouring positions. A percentile of "
        "99 % is the value that one position in a hundred exceeds; ten positions must."
    )
    found = [artifact for artifact in model.measured if artifact.measures.kld is not None]
    return TextTable.of("KL divergence in full", _DIVERGENCE, found, note)


def flips_table(model: Model) -> TextTable:
    """Routing flips layer by layer, a column for each artifact."""
    found = {
        artifact.title: {each.layer: each for each in artifact.measures.routing_flips.layers}
        for artifact in model.measured
        if artifact.measures.routing_flips
    }
    layers = sorted({layer for shares in found.values() for layer in shares})
    columns = [_numbers(title, partial(_flips_in, shares)) for title, shares in found.items()]
    note = "Shares of tokens that are sent to other experts than in the source; early flips make later ones."
    return TextTable.of("Routing flips by layer", (Column("Layer", str), *columns), layers, note)


def ladder_table(model: Model) -> TextTable:
    """What each head's drafts come to, by how far ahead and how many."""
    rows = [(each.title, each.measures.head) for each in model.measured if each.measures.head]
    source = next((each.measures.source_head for each in model.measured if each.measures.source_head), None)
    rows += [("the source's own", source)] if source else []
    depth = max((len(head.acceptance) for _, head in rows), default=0)
    columns = (
        Column("Head", lambda row: row[0]),
        *(_numbers(f"Accepted, {at + 1} ahead", partial(_ahead, at)) for at in range(depth)),
        _numbers(f"Tokens per verification, {USUAL_DRAFTS} drafts", lambda row: with_error(row[1].usual)),
        _numbers("The same, drafts drawn", lambda row: with_error(row[1].usual_sampled)),
    )
    note = "Greedy drafts are llama.cpp's; vLLM and SGLang draw them and test them against the model."
    return TextTable.of("Drafts", columns, rows, note)


def _ahead(at: int, row: tuple[str, Drafting]) -> str:
    found = row[1].acceptance
    return with_error(found[at], share=True) if at < len(found) else ""


def speed_table(model: Model) -> TextTable:
    """Every setting of every bench."""
    timed = [(each, each.bench) for each in model.measured if each.bench is not None]
    found = [(artifact, bench, each) for artifact, bench in timed for each in bench.speeds]
    note = "Medians over repeats; n-max is how many tokens are drafted at a time."
    return TextTable.of("Speed", SPEED, found, note)


def gate_table(report: Report) -> TextTable:
    """Each gate and its outcome, those that were not kept first."""
    return TextTable.of("Gates", _GATE, sorted(report.gates, key=lambda gate: gate.passed))


def comparison_table(ours: Model, theirs: Model, pairs: Sequence[Pair]) -> TextTable:
    """The same type of two models, line under line."""
    sides = [side for pair in pairs for side in ((pair.ours, ours.title), (pair.theirs, theirs.title))]
    return TextTable.of(f"{ours.title} and {theirs.title}", _SIDE, sides)


def checksum_table(model: Model) -> TextTable:
    """Every file of weights and beside them."""
    return TextTable.of("Files", _FILE, [file for artifact in model.artifacts for file in artifact.files])


def _numbers(title: str, value: Callable[[Any], str]) -> Column:
    return Column(title, value, number=True)


def _kld(title: str, value: Callable[[Kld], float | None]) -> Column:
    return _numbers(title, lambda a: nats(value(a.measures.kld) if a.measures.kld else None))


def _of_side(column: Column) -> Column:
    return Column(column.title, lambda side: column.value(side[0]), column.number)


def _flips_in(shares: Mapping[int, LayerFlips], layer: int) -> str:
    found = shares.get(layer)
    return "" if found is None else with_error(Estimate(found.share, found.error), share=True)


def _bare(artifact: Artifact) -> str:
    bare = artifact.bench.bare if artifact.bench else None
    return speed(bare.tok_s.median if bare else None)


def _best(artifact: Artifact) -> str:
    best = artifact.bench.best if artifact.bench else None
    return f"{speed(best.tok_s.median)} (n-max {best.n_max})" if best and best.n_max else ""


_P99 = _kld("99\u00a0%", lambda kld: kld.p99)
_ARTIFACT = (
    Column("Type", lambda a: f"{a.title} (MTP head)" if a.is_drafter else a.title),
    *(SIZE, VERIFIED, IMAGES, BITS, KLD, PREDICTED, BESIDE_PLAIN, _P99, SAME_TOP1),
    FLIPS,
    _numbers("Perplexity ratio", lambda a: ratio(a.measures.perplexity_ratio)),
    ACCEPTANCE,
    share("Source's", "source_acceptance"),
    Column("By", lambda a: str(a.verification.engine) if a.verification else ""),
    Column("File", lambda a: a.name),
)
_DIVERGENCE = (
    Column("Artifact", lambda a: a.title),
    _numbers("Mean", KLD.value),
    _kld("Median", lambda kld: kld.median),
    _kld("90 %", lambda kld: kld.p90),
    _kld("95 %", lambda kld: kld.p95),
    _kld("99 %", lambda kld: kld.p99),
    _kld("99.9\u00a0%", lambda kld: kld.p99_9),
    _kld("Largest", lambda kld: kld.max),
    _numbers("Positions", lambda a: str(a.measures.positions or "")),
)
# Of an artifact and its model's title.
_SIDE = (
    Column("Type", lambda side: side[0].title),
    Column("Model", lambda side: side[1]),
    *map(_of_side, (SIZE, KLD, _P99, FLIPS, SAME_TOP1, ACCEPTANCE)),
    _of_side(share("Its source's", "source_acceptance")),
    _of_side(_numbers("Tokens/s", _bare)),
    _of_side(_numbers("Best with MTP", _best)),
)
_GATE = (
    Column("Outcome", lambda gate: "kept" if gate.passed else "NOT KEPT"),
    Column("Artifact", lambda gate: gate.artifact),
    Column("Gate", lambda gate: gate_words(gate.gate)),
    _numbers("Limit", lambda gate: gate_value(gate.gate, gate.limit)),
    _numbers("Value", lambda gate: gate_value(gate.gate, gate.value)),
)
_FILE = (
    Column("File", lambda file: file.name),
    _numbers("Bytes", lambda file: f"{file.size:,}"),
    Column("SHA-256", lambda file: file.sha256),
)
