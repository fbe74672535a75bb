"""Private, pruned federated training: AutoFLIP computed from secure sums.

Importing this package loads nothing heavy; torch, Opacus and Flower are imported by the parts that use them.
"""

__version__ = "0.1.0"
__all__ = ["__version__"]
