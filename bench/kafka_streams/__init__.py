"""Kafka Streams as a contestant: a small Maven project, and what builds and starts it."""
