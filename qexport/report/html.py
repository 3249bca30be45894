"""The report as one HTML file: nothing is loaded from anywhere, no script runs.

Everything from a receipt passes through Jinja's escaping; pictures are built from escaped parts. The page
forbids itself, by a content security policy, to load or run anything but its own style.
"""

from __future__ import annotations

from functools import cache
from importlib import resources
from typing import TYPE_CHECKING

from markupsafe import Markup

from qexport.receipt.safe_text import without_hidden

if TYPE_CHECKING:
    from jinja2 import Template

    from qexport.report.page import Page


_TEMPLATE, _STYLE = "report.html.jinja", "report.css"


def html(page: Page) -> str:
    """The text of report.html."""
    return _template().render(
        report=page.report,
        summary=page.summary,
        gates=page.gates,
        charts=page.charts,
        comparisons=page.comparisons,
        parts=page.parts,
        glossary=page.glossary,
        style=Markup(_read(_STYLE)),
    )


@cache
def _template() -> Template:
    from jinja2 import Environment, StrictUndefined

    environment = Environment(
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
        autoescape=True,
        finalize=lambda value: without_hidden(value) if type(value) is str else value,
    )
    return environment.from_string(_read(_TEMPLATE))


def _read(name: str) -> str:
    return resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
