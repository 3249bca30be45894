"""From a recipe to proven artifacts: plan, collect, write in one pass, prove, judge, report, publish."""
