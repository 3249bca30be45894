"""Assignments: which stored type each tensor gets, as a value between the model's view and a plan."""
