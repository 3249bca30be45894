"""From a model's name to proven artifacts: open, diagnose, plan, write, verify, receipt."""
