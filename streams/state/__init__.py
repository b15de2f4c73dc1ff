"""State of source partitions: a journal on Kafka, and databases that are prefixes of it."""
