"""One ServerApp and one ClientApp on Flower's Message API, and everything a run needs around them."""
