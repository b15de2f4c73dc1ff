"""Benchmarks: one command for the join beside other engines (``python -m bench``), scripts for its parts."""
