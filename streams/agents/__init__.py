"""What runs in a join worker: the agent, an owner task a partition, and what they publish."""
