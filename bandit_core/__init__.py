"""The maths of multi-armed bandits: posteriors, policies, shares; no I/O, no clock, no globals."""
