"""The edge client: decisions in process, without I/O; exposures in the background."""
