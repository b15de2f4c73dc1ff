"""The join: pure attribution of conversions to exposures, unit state, batch step. No I/O, no clock."""
