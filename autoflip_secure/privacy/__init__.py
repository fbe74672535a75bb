"""Differential privacy: noise, accounting, the plan of a session, and a silo's durable ledger.

Light modules (accounting, discrete_noise, ledger, plan, sampling) load no torch; gradient_sum and local_sgd do.
"""
