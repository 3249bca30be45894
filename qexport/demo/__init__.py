"""A tiny Qwen3.5-style model inside the package, and what a LoRA merge leaves of it."""

from pathlib import Path

__all__ = ["MODEL"]

MODEL = Path(__file__).parent / "model"
"""The published form: MTP head, vision tower, chat template. Made by ``python tools/train_demo.py``."""
