"""Proposing new arms: from the factor model, and from an endpoint that generates text."""
