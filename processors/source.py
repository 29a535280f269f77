"""What a function is, as text: so that two versions of it can be told apart."""

from __future__ import annotations

import ast
import functools
import inspect
import sys
import textwrap
import tokenize
from types import CodeType
from typing import Any

from eventstore import UnsupportedValue, values

__all__ = ["source_of"]


def source_of(function: Any) -> str:
    """Return a function as it is written; the same text in every process that has this version.

    Comments and layout do not count; what the function calls does not either. An object that can be
    called is what its class says. Of a partial, what it gives counts where that can be stored.
    """
    if isinstance(function, functools.partial):
        return f"{source_of(function.func)} {[_given(one) for one in function.args]}"
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(function)))
    except (OSError, TypeError, SyntaxError, ValueError, tokenize.TokenError):
        # No source: one made at run time, say. Byte code is of one version of Python.
        code = getattr(inspect.unwrap(function), "__code__", None)
        if code is not None:
            return f"{sys.version_info[:2]} {_byte_code(code)}"
        name = f"{type(function).__module__}.{type(function).__qualname__}"
        called = getattr(type(function), "__call__", None)  # noqa: B004  # its own code
        return f"{name} {source_of(called)}" if inspect.isfunction(called) else name
    return ast.unparse(tree)


def _given(value: object) -> str:
    try:
        return values.encode(value).hex()
    except UnsupportedValue:
        return f"{type(value).__module__}.{type(value).__qualname__}"


def _byte_code(code: CodeType) -> str:
    return f"{code.co_code.hex()} {code.co_names} {[_constant(one) for one in code.co_consts]}"


def _constant(constant: object) -> str:
    if isinstance(constant, CodeType):
        return _byte_code(constant)
    if isinstance(constant, frozenset):  # whose order is another one in each process
        return f"frozenset {sorted(map(repr, constant))}"
    return repr(constant)
