"""How each network is wired: builders that take its widths, so a compacted network is built by the code of a dense one.

Everything here is free of batch statistics, of random layers and of in-place operations, as per-sample gradients
require (Opacus) and as the equality of a masked and a compacted network does.
"""
