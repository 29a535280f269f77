"""What turns requests into diffs: components, state machines and the daemon that runs them.

Nothing is here yet; requests, effects, parts, chains, sources and lanes are in the fold of
`eventstore` from the first release on, so that this package can be written on top of it.
"""
