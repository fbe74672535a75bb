"""Data sets, partitioners and a silo's own folder. Importing this package loads nothing heavy."""
