"""Text that comes from handlers, made fit to be stored. No more is found here."""

from __future__ import annotations

__all__ = ["storable", "text_of"]


def text_of(error: BaseException) -> str:
    """Return an exception's text; its class is a handler's, so that making it may raise."""
    try:
        return str(error)
    except Exception as another:
        return f"its text cannot be made: {type(another).__name__}"


def storable(text: str) -> str:
    r"""Return text as JSON can hold it: names of files may have surrogates, shown as `\udcff`."""
    return text.encode(errors="backslashreplace").decode()
