"""What handlers are given besides the state: the props of one flow, the params of a component."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Final, NoReturn

from eventstore import UnsupportedValue, values

__all__ = ["SERVE_RESULT", "Params", "Properties"]

#: Where the result of serve rides in the body of a request.
SERVE_RESULT: Final = "_serve_result"


class Properties(dict[str, Any]):
    """The props of one flow, for its serve and then for its updates.

    serve may add props, and the updates see them. `serve_result` is what serve returned (of a
    generator, the list of what it yielded), None before that and in flows without serve.
    """

    __slots__ = ("_serve_result", "was_served")

    def __init__(self, props: Mapping[str, Any] | None = None) -> None:
        """Copy `props`.

        Raises:
            TypeError: they are no mapping, or a name is not text.
            ValueError: one has the name that is kept for the result of serve.
        """
        if props is None:
            props = {}
        if type(props) is not dict and not isinstance(props, Mapping):
            raise TypeError(f"props must be a dict of names and values, not {props!r:.80}")
        super().__init__(props)
        for name in self:
            if not isinstance(name, str):
                raise TypeError(f"props: the name {name!r} is not text")
        if SERVE_RESULT in self:
            raise ValueError(f"props: the name {SERVE_RESULT!r} is kept for the result of serve")
        self._serve_result: Any = None
        #: Whether there is a `serve_result`, which may be None.
        self.was_served = False

    @property
    def serve_result(self) -> Any:
        """What serve returned."""
        return self._serve_result

    def served(self, result: Any) -> None:
        """Keep what serve returned."""
        self._serve_result = result
        self.was_served = True

    def __missing__(self, name: str) -> NoReturn:
        raise KeyError(f"{name!r} is not among the props; there are: {', '.join(self) or '-'}")

    def encode(self) -> bytes:
        """Return the body of a request.

        Raises:
            UnsupportedValue: a prop, or the result of serve, cannot be stored.
            ValueError: serve added a prop of the name that is kept for its result.
        """
        if SERVE_RESULT in self:
            raise ValueError(f"props: the name {SERVE_RESULT!r} is kept for the result of serve")
        if not self.was_served:
            return values.encode(dict(self))
        try:
            return values.encode({**self, SERVE_RESULT: self._serve_result})
        except UnsupportedValue as error:
            if error.path[:1] != (SERVE_RESULT,):
                raise
            path = ("props.serve_result", *error.path[1:])  # as its author knows it
            raise UnsupportedValue(path, error.reason) from error

    @classmethod
    def decode(cls, body: bytes) -> Properties:
        """Return the props in the body of a request, whoever appended it.

        Raises:
            UnreadableValue: a value's class is not known in this process.
            TypeError: the body is no object of names and values.
        """
        fields = values.decode(body)
        served = isinstance(fields, dict) and SERVE_RESULT in fields
        result = fields.pop(SERVE_RESULT) if served else None
        props = cls(fields)
        if served:
            props.served(result)
        return props

    def __reduce__(self) -> tuple[Any, ...]:
        return _rebuild, (dict(self), self._serve_result, self.was_served)


def _rebuild(fields: dict[str, Any], result: Any, was_served: bool) -> Properties:
    props = Properties(fields)
    if was_served:
        props.served(result)
    return props


class Params(dict[str, Any]):
    """The params of a component: the same for all its instances, and fixed from the start."""

    def __missing__(self, name: str) -> NoReturn:
        raise KeyError(
            f"{name!r} is not among the component's params; there are: {', '.join(self) or '-'}"
        )

    def _refuse(self, *args: object, **options: object) -> NoReturn:
        raise TypeError(
            "the params of a component are fixed, because handlers may run in several processes:"
            " what changes belongs into the state"
        )

    __setitem__ = __delitem__ = __ior__ = _refuse
    update = setdefault = pop = popitem = clear = _refuse

    def __reduce__(self) -> tuple[Any, ...]:
        return Params, (dict(self),)
