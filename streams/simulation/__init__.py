"""Simulated experiments on a machine's cores: scenarios as files, bare policies or whole definitions.

The truth and the figures are :mod:`bandit_core`'s (`simulator`, `league`); here is what touches files,
processes and the terminal, and :mod:`streams.simulation.definition`, which runs a definition through the
allocator's own computation.
"""
