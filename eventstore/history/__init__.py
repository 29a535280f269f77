"""Reading the past: what `at=`, `tail` and `fork` look up, and a second fold to verify by."""
