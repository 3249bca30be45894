"""Calibration: importance matrices, read from files or collected from text."""
