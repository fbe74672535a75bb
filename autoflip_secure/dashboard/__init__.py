"""A live page over the files of a run, a coordinator or a silo. Reads only; nothing it serves can change anything."""
