"""CKKS summation with a key nobody holds: the coordinator adds ciphertexts, only all silos of a sum together open it.

Specification: protocols/ckks/README.md. Lattice arithmetic, noise and encoding are Microsoft SEAL's, through TenSEAL;
nothing here trains, touches a network or imports torch.
"""
