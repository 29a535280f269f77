"""Reading the past: where `get(at=...)` looks, and what `tail` shows."""
