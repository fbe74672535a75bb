"""Adversaries, and silos that a simulation spoils on purpose. Nothing honest rests on this folder."""
