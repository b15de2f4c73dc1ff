"""The edge client: decisions in process, without I/O; exposures in the background."""

from streams.edge.client import EdgeClient, EdgeStatistics
from streams.edge.decision import REASONS, Decision
from streams.edge.emitter import EmitterOptions, EmitterStatistics

__all__ = ["REASONS", "Decision", "EdgeClient", "EdgeStatistics", "EmitterOptions", "EmitterStatistics"]
