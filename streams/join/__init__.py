"""The join: pure attribution of conversions to exposures, unit state, and the batch step. No I/O, no clock."""
