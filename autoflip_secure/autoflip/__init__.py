"""Which parameters live: exploration, guidance, agreement, scores, mask and compaction, computed from sums alone."""
