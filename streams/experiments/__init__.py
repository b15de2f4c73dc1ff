"""Experiment definitions: their types, validation, and the compacted topic that holds them."""
