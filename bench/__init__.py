"""Benchmarks: one command for the join beside other engines (``python -m bench``), scripts for its parts."""

import logging

logging.getLogger("aiokafka").setLevel(logging.CRITICAL)  # of topics just made: it tries again by itself
