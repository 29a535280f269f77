"""ComponentInstance: one instance of a component, as a program works with it."""

from __future__ import annotations

__all__ = ["ComponentInstance"]


class ComponentInstance:
    """One instance of a component."""
