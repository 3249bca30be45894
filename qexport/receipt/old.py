"""Receipts of schema 1, as schema 2 has them; only there are they still dictionaries.

Left out of what they held: tokens a second of single short runs, percentiles that their positions do not
support, and, of an MTP head in a folder of its own, what its trunk had shown.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from qexport.receipt.measures import supported

_TAILS = {"p90": 0.9, "p95": 0.95, "p99": 0.99, "p99_9": 0.999}
_OF_THE_HEAD = ("mtp_declared", "mtp_head")


def from_schema_1(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of ``artifacts``. What is of the wrong type stays so, for the reader to find."""
    measures, details, options = (_mapping(entry.get(name)) for name in ("measures", "details", "options"))
    verification = _mapping(entry.get("verification"))
    # GGUF options call it imatrix, folder formats importance.
    matrix = _mapping(options.get("imatrix")) or _mapping(options.get("importance"))
    tokens = _mapping(matrix.get("calibration")).get("tokens")
    drafter = "draft" in str(entry.get("kind"))
    return {
        **entry,
        "verification": _verification(verification, measures, drafter) if verification else None,
        "bench": measures.get("bench"),
        "mtp_layouts": details.get("mtp_layouts") or [],
        "model_name": options.get("model_name"),
        "matrix": {**matrix, "tokens": tokens} if matrix else None,
    }


def _verification(value: Mapping[str, Any], measures: Mapping[str, Any], drafter: bool) -> dict[str, Any]:
    findings = value.get("findings")
    findings = [each for each in findings if isinstance(each, dict)] if isinstance(findings, list) else []
    shown = _measures(measures)
    if not drafter:
        return {**value, "findings": findings, "measures": shown, "state": _state(value, findings)}
    return {
        "artifact": value.get("artifact", ""),
        "findings": [each for each in findings if each.get("check") in _OF_THE_HEAD],
        "file_type": value.get("file_type", ""),
        "measures": {name: shown[name] for name in ("drafts", "acceptance", "source_acceptance")},
        "required": ["mtp_head"],
    }


def _state(value: Mapping[str, Any], findings: list[dict[str, Any]]) -> str | None:
    """As far as schema 1 says it; what is certain from the findings alone is left to them."""
    if any(each.get("status") == "fail" for each in findings) or str(value.get("verdict")).startswith("fail"):
        return "failed"
    if value.get("passed") is not True:
        return None
    compared = [each for each in findings if each.get("check") in ("agreement", "divergence")]
    skipped = compared and all(each.get("status") == "skipped" for each in compared)
    return "ran, not compared" if skipped else "passed"


_MEANS = ("same_top1", "perplexity_ratio", "acceptance", "source_acceptance")


def _measures(value: Mapping[str, Any]) -> dict[str, Any]:
    positions = value.get("positions")
    count = positions if isinstance(positions, int) else 0
    kld = value.get("kld")
    kld = kld if isinstance(kld, dict) else {"mean": kld}
    small = [name for name, share in _TAILS.items() if not supported(share, count)]
    return {
        "positions": positions,
        "kld": {k: v for k, v in kld.items() if k not in small} if kld.get("mean") is not None else None,
        "drafts": positions if value.get("acceptance") is not None else None,
        **{name: None if value.get(name) is None else {"value": value[name]} for name in _MEANS},
    }


def _mapping(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}
