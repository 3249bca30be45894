"""qexport: one pass over a merged checkpoint writes every format its users run, each proven to run."""

__version__ = "0.1.0"

__all__ = ["__version__"]
