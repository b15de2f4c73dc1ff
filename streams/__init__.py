"""The pipeline: events on Kafka in, traffic allocations out."""
