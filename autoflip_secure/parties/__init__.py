"""Who takes part in a secure sum, and what both protocols share: identities, roster, signed messages, silos' own rules.

Used by secagg and ckks alike. Nothing here knows how a sum is protected.
"""
