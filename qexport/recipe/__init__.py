"""Recipes: one file that says what is published of a model, read strictly, and run here, in CI or in jobs."""
