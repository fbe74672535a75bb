"""Adversaries that a simulation plays against itself. Nothing honest rests on this folder."""
