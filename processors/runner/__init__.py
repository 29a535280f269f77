"""The runner: lanes of requests, the threads and the loop that run them, and their processes."""

from __future__ import annotations

from processors.runner.engine import Runner, RunnerStatus, Running

__all__ = ["Runner", "RunnerStatus", "Running"]
