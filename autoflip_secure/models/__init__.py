"""Network architectures, and the one flat order in which their parameters travel."""
