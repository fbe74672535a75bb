"""What a person reads of a run: progress while it lasts, a self-contained HTML page afterwards."""
