"""Foldlog's event store: the log is the truth, state is a fold over it, anything can be replayed."""
