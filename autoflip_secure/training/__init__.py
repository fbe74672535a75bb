"""Local training without privacy noise, evaluation, and the counts that are summed to score in private."""
