"""Diffs: lists of operations on state fields. Building them, applying them, comparing two values.

On the wire an operation is a JSON list, `[code, target, ...arguments]` (docs/wire.md); a target is
a field's name, or `[field, step, ...]` for a place inside it: a text step enters an object, an
index enters a list. Values inside are the tagged JSON of values/, and everything here works on
that JSON: the fold must never build Python values, because their classes may have changed.
"""

from __future__ import annotations

import decimal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Final, NamedTuple

import orjson

from eventstore import values
from eventstore.errors import InvalidDiff

__all__ = [
    "ABSENT",
    "DEPTH_MAX",
    "Diff",
    "Misfit",
    "Operation",
    "Path",
    "Shape",
    "add_numbers",
    "apply",
    "apply_operation",
    "check_depth",
    "check_wire",
    "diff_between",
    "encode_fields",
    "shape_of",
]

#: A place: a field's name, or (field, step, ...).
Path = str | tuple[str | int, ...]

#: Levels of JSON in one field. The JSON writer stops at 254, and a value in a diff sits below the
#: operation and its list.
DEPTH_MAX: Final = 245
#: Steps of a path.
STEPS_MAX: Final = 64
#: Digits of one number: far more than anybody counts to, and a bound on what one event can cost.
DIGITS_MAX: Final = 4_000

#: The one context of every Decimal sum in the fold, so that no process's own context decides.
_DECIMALS: Final = decimal.Context(
    prec=200,
    rounding=decimal.ROUND_HALF_EVEN,
    Emin=-9_999,
    Emax=9_999,
    traps=[decimal.InvalidOperation, decimal.Overflow],
)


class _Absent:
    """The value of a field that is not there."""

    def __repr__(self) -> str:
        return "ABSENT"

    def __bool__(self) -> bool:
        return False


ABSENT: Final = _Absent()


class Misfit(Exception):
    """An operation does not fit the value it meets. Private to the fold: it becomes a verdict."""


class Shape:
    """What a stored value is, as far as operations care; one byte in a view's field row."""

    ABSENT = 0
    NULL = 1
    BOOL = 2
    NUMBER = 3
    TEXT = 4
    LIST = 5
    DICT = 6
    OTHER = 7  # a tagged value: a datetime, an array, ...

    NAMES: Final = (
        "nothing", "null", "a boolean", "a number", "text", "a list", "an object", "a tagged value"
    )  # fmt: skip


_NUMBER_TAGS: Final = ("$int", "$decimal", "$float")


def shape_of(value: object) -> int:
    """Return the Shape of a JSON value."""
    shape = _SHAPES_BY_TYPE.get(type(value))
    if shape is None:
        return Shape.ABSENT if value is ABSENT else Shape.OTHER
    if shape == Shape.DICT and len(value) == 1:  # type: ignore[arg-type]
        tag = next(iter(value))  # type: ignore[call-overload]
        if tag[:1] == "$":
            return Shape.NUMBER if tag in _NUMBER_TAGS else Shape.OTHER
    return shape


_SHAPES_BY_TYPE: Final[dict[type, int]] = {
    str: Shape.TEXT,
    int: Shape.NUMBER,
    float: Shape.NUMBER,
    bool: Shape.BOOL,
    type(None): Shape.NULL,
    list: Shape.LIST,
    dict: Shape.DICT,
}


# --- operations --------------------------------------------------------------------------------


class Operation(NamedTuple):
    """One operation as people read it: what, where, and with which Python values."""

    code: str
    path: tuple[str | int, ...]
    arguments: tuple[object, ...]


class Diff:
    """An immutable, ordered list of operations; each method returns a longer diff.

    A path is a field's name or a tuple `(field, step, ...)`: `("order", "lines", 0, "price")`.
    All operations of a diff take effect together or not at all. Values are copied when they are
    given, so what the caller changes later changes nothing here.

    Every method raises InvalidDiff for a path or an argument that could fit no state, and
    UnsupportedValue, with the path, for a value that cannot be stored.
    """

    __slots__ = ("_count", "_operations")

    def __init__(self, fields: Mapping[str, object] | None = None) -> None:
        """Start empty, or with one `set` for each of `fields`."""
        self._operations: list[list[Any]] = []
        if fields:
            for name, value in fields.items():
                if type(name) is not str or not name or name == "*" or not name.isascii():
                    _check_path(name)
                self._operations.append(["set", name, values.to_json(value, (name,))])
        self._count = len(self._operations)

    @classmethod
    def from_json(cls, operations: Sequence[Sequence[Any]]) -> Diff:
        """Return the diff of operations in wire form; InvalidDiff when they are not."""
        for operation in operations:
            check_wire(operation)
        diff = cls()
        diff._operations = [list(operation) for operation in operations]
        diff._count = len(diff._operations)
        return diff

    # --- building -----------------------------------------------------------------------------

    def set(self, path: Path, value: object) -> Diff:
        """Put a value, whatever was there."""
        return self._with("set", path, values.to_json(value, _steps(path)))

    def delete(self, path: Path) -> Diff:
        """Take a field or a key away; nothing happens where there is none."""
        return self._with("delete", path)

    def append(self, path: Path, item: object) -> Diff:
        """Add one item at the end of a list; an absent one is created."""
        return self._with("append", path, values.to_json(item, _steps(path)))

    def extend(self, path: Path, items: Sequence[object]) -> Diff:
        """Add items at the end of a list; an absent one is created."""
        if isinstance(items, str | bytes | Mapping):
            raise InvalidDiff(f"extend {path!r}: needs a sequence of items, not {_name(items)}")
        steps = _steps(path)
        return self._with("extend", path, [values.to_json(item, steps) for item in items])

    def insert(self, path: Path, index: int, item: object) -> Diff:
        """Put an item before position `index` (0 to the length) of an existing list."""
        _check_index("insert", path, index)
        return self._with("insert", path, index, values.to_json(item, _steps(path)))

    def remove(self, path: Path, index: int) -> Diff:
        """Take the item at position `index` out of a list."""
        _check_index("remove", path, index)
        return self._with("remove", path, index)

    def increment(self, path: Path, by: object = 1) -> Diff:
        """Add to a number: int, float or Decimal, the last two never together; absent is 0."""
        number = values.to_json(by, _steps(path))
        if shape_of(number) != Shape.NUMBER:
            raise InvalidDiff(f"increment {path!r}: needs a number, not {_name(by)}")
        return self._with("increment", path, number)

    def merge_into(self, path: Path, entries: Mapping[str, object]) -> Diff:
        """Set keys of an object, leaving its other keys; an absent one is created."""
        if not isinstance(entries, Mapping):
            raise InvalidDiff(f"merge_into {path!r}: needs a mapping, not {_name(entries)}")
        steps = _steps(path)
        merged: dict[str, object] = {}
        for key, value in entries.items():
            if not isinstance(key, str) or key[:1] == "$":
                raise InvalidDiff(
                    f"merge_into {path!r}: key {key!r} must be text that does not begin with '$'"
                )
            merged[key] = values.to_json(value, (*steps, key))
        return self._with("merge_into", path, merged)

    def append_text(self, path: Path, text: str) -> Diff:
        """Add text at the end of a text; an absent one is created."""
        if not isinstance(text, str):
            raise InvalidDiff(f"append_text {path!r}: needs text, not {_name(text)}")
        return self._with("append_text", path, values.to_json(text, _steps(path)))

    def then(self, other: Diff) -> Diff:
        """Return this diff followed by another."""
        diff = Diff()
        diff._operations = [*self._wire(), *other._wire()]
        diff._count = len(diff._operations)
        return diff

    def _with(self, code: str, path: Path, *arguments: object) -> Diff:
        steps = _check_path(path)
        target: str | list[str | int] = steps[0] if len(steps) == 1 else list(steps)  # type: ignore[assignment]
        longer = Diff.__new__(Diff)
        # The list is shared by all prefixes of one chain of calls; a second branch copies it.
        # So a diff of n operations costs n, and no diff ever changes under its holder.
        shared = self._operations
        if len(shared) != self._count:
            shared = shared[: self._count]
        shared.append([code, target, *arguments])
        longer._operations = shared
        longer._count = self._count + 1
        return longer

    # --- reading ------------------------------------------------------------------------------

    def _wire(self) -> list[list[Any]]:
        return self._operations[: self._count]

    @property
    def fields(self) -> frozenset[str]:
        """The names of the fields that this diff touches."""
        return frozenset(_field_of(operation[1]) for operation in self._wire())

    def fields_in_order(self) -> list[str]:
        """Return the names of the fields that this diff touches, the first touched first."""
        return list(dict.fromkeys(_field_of(operation[1]) for operation in self._wire()))

    def on(self, field: str) -> list[list[Any]]:
        """Return the operations on one field, in wire form; they must not be changed."""
        return [operation for operation in self._wire() if _field_of(operation[1]) == field]

    def overwritten(self) -> frozenset[str]:
        """The fields whose earlier value this diff replaces, or whose order it depends on.

        Another writer's change to them would be lost or misplaced, so `commit` guards them.
        append, extend, append_text, increment, merge_into and sets inside an object are not
        among them: they commute with what others do.
        """
        return frozenset(
            _field_of(operation[1]) for operation in self._wire() if _overwrites(operation)
        )

    def encode(self) -> bytes:
        """Return the wire form; InvalidDiff when operations contradict what comes before them."""
        operations = self._wire()
        if self._count > 1:
            _check_together(operations)
        body = orjson.dumps(operations)
        try:
            check_depth(body, operations)
        except Misfit as misfit:
            raise InvalidDiff(f"{misfit}; nothing was written") from None
        return body

    def to_json(self) -> list[list[Any]]:
        """Return the operations in wire form."""
        return orjson.loads(orjson.dumps(self._wire()))  # type: ignore[no-any-return]

    def __iter__(self) -> Iterator[Operation]:
        for code, target, *arguments in self.to_json():
            path = (target,) if isinstance(target, str) else tuple(target)
            yield Operation(
                code, path, tuple(values.from_json(item, unresolved="keep") for item in arguments)
            )

    def __len__(self) -> int:
        return self._count

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Diff):
            return NotImplemented
        return orjson.dumps(self._wire()) == orjson.dumps(other._wire())

    def __hash__(self) -> int:
        return hash(orjson.dumps(self._wire()))

    def __repr__(self) -> str:
        return "Diff()" + "".join(
            f".{code}({', '.join(map(repr, (path[0] if len(path) == 1 else path, *arguments)))})"
            for code, path, arguments in self
        )


def encode_fields(fields: Mapping[str, object]) -> bytes:
    """Return `Diff(fields).encode()`: the same bytes, at a third of the cost for plain values."""
    operations = []
    for name, value in fields.items():
        kind = type(value)
        plain = kind in _SCALARS or (
            kind is int and values.INTEGER_MIN <= value <= values.INTEGER_MAX  # type: ignore[operator]
        )
        if not plain or type(name) is not str or not name or name == "*":
            return Diff(fields).encode()
        operations.append(("set", name, value))
    try:
        return orjson.dumps(operations)
    except TypeError:  # a lone surrogate: the slow way says where
        return Diff(fields).encode()


#: What is its own JSON, whatever its value (text with a lone surrogate fails to encode).
_SCALARS: Final = frozenset((str, bool, type(None)))


# --- what a diff may say -----------------------------------------------------------------------


def _steps(path: Path) -> tuple[str | int, ...]:
    return (path,) if isinstance(path, str) else path


def _name(value: object) -> str:
    return type(value).__name__


def _field_of(target: str | list[Any]) -> str:
    return target if isinstance(target, str) else target[0]


def _overwrites(operation: list[Any]) -> bool:
    code, target = operation[0], operation[1]
    if isinstance(target, list):
        if any(isinstance(step, int) for step in target):
            return True
        return code in ("delete", "insert", "remove")
    return code in ("set", "delete", "insert", "remove")


def _check_path(path: object) -> tuple[str | int, ...]:
    steps = (path,) if isinstance(path, str) else path
    if not isinstance(steps, tuple) or not steps:
        raise InvalidDiff(
            f"path {path!r} ({_name(path)}): give a field's name, which is text, or a tuple"
            " (field, step, ...)"
        )
    if not isinstance(steps[0], str) or not steps[0] or steps[0] == "*":
        raise InvalidDiff(f"path {path!r}: a field's name is text, not empty and not '*'")
    if len(steps) > STEPS_MAX:
        raise InvalidDiff(f"path {path!r}: {len(steps)} steps; at most {STEPS_MAX}")
    for step in steps[1:]:
        if isinstance(step, bool) or not isinstance(step, str | int):
            raise InvalidDiff(f"path {path!r}: step {step!r} is neither a key nor an index")
        if isinstance(step, int) and step < 0:
            raise InvalidDiff(
                f"path {path!r}: index {step} counts from the end, and the end moves when others"
                " append; give the index from the start"
            )
        if isinstance(step, str) and step[:1] == "$":
            raise InvalidDiff(f"path {path!r}: {step!r}: a key that begins with '$' is a tag")
    for step in steps:
        if isinstance(step, str):
            try:
                step.encode()
            except UnicodeEncodeError:
                raise InvalidDiff(f"path {path!r}: {step!r} is not valid Unicode text") from None
    return steps


def _check_index(code: str, path: Path, index: object) -> None:
    if isinstance(index, bool) or not isinstance(index, int) or index < 0:
        raise InvalidDiff(f"{code} {path!r}: index {index!r} must be an int of 0 or more")


#: code -> (number of arguments, what the last argument must be)
_SHAPES: Final[dict[str, tuple[int, int | None]]] = {
    "set": (1, None),
    "delete": (0, None),
    "append": (1, None),
    "extend": (1, Shape.LIST),
    "insert": (2, None),
    "remove": (1, Shape.NUMBER),
    "increment": (1, Shape.NUMBER),
    "merge_into": (1, Shape.DICT),
    "append_text": (1, Shape.TEXT),
}


def check_wire(operation: object) -> None:
    """Check one operation in wire form, whoever wrote it; InvalidDiff says what is wrong."""
    if (
        type(operation) is list
        and len(operation) == 3
        and operation[0] == "set"
        and type(operation[1]) is str
        and operation[1] not in ("", "*")
    ):
        return  # by far the most frequent one
    if not isinstance(operation, list | tuple) or len(operation) < 2:
        raise InvalidDiff(f"operation {operation!r}: not a list [code, target, ...]")
    code, target, *arguments = operation
    shape = _SHAPES.get(code) if isinstance(code, str) else None
    if shape is None:
        raise InvalidDiff(f"operation {code!r} is unknown; there are {', '.join(_SHAPES)}")
    _check_path(tuple(target) if isinstance(target, list) else target)
    if isinstance(target, list) and len(target) == 1:
        raise InvalidDiff(f"{code} {target!r}: a whole field is named by text, not by a list")
    count, wanted = shape
    if len(arguments) != count:
        raise InvalidDiff(f"{code} {target!r}: {len(arguments)} arguments instead of {count}")
    found = shape_of(arguments[-1]) if arguments else None
    if wanted is not None and found is not None and found != wanted:
        raise InvalidDiff(
            f"{code} {target!r}: needs {Shape.NAMES[wanted]}, not {Shape.NAMES[found]}"
        )
    if code in ("insert", "remove"):
        _check_index(code, target, arguments[0])
    if code == "merge_into" and any(key[:1] == "$" for key in arguments[0]):
        raise InvalidDiff(f"{code} {target!r}: a key that begins with '$' is a tag")


def _check_together(operations: list[list[Any]]) -> None:
    """Try the operations on fields that this very diff sets: what fails here fails everywhere."""
    known: dict[str, Any] = {}
    targets = [_field_of(operation[1]) for operation in operations]
    if len(set(targets)) == len(targets):
        return
    for field, operation in zip(targets, operations, strict=True):
        if operation[0] in ("set", "delete") and isinstance(operation[1], str):
            # A copy: applying works in place, and these lists are about to be encoded.
            value = operation[2] if operation[0] == "set" else ABSENT
            known[field] = orjson.loads(orjson.dumps(value)) if value is not ABSENT else ABSENT
        elif field in known:
            try:
                known[field] = apply_operation(known[field], operation)
            except Misfit as misfit:
                raise InvalidDiff(f"{misfit}, set by this very diff; nothing was written") from None


# --- applying ------------------------------------------------------------------------------------


def apply(fields: Mapping[str, object], diff: Diff) -> dict[str, object]:
    """Return a state's fields after a diff; fields that it does not touch are the same objects.

    Raises:
        InvalidDiff: an operation does not fit; `fields` is as it was.
    """
    changed: dict[str, Any] = {}
    for operation in diff.to_json():
        field = _field_of(operation[1])
        if field not in changed:
            changed[field] = values.to_json(fields[field], (field,)) if field in fields else ABSENT
        try:
            changed[field] = apply_operation(changed[field], operation)
        except Misfit as misfit:
            raise InvalidDiff(str(misfit)) from None
    after = dict(fields)
    for field, value in changed.items():
        if value is ABSENT:
            after.pop(field, None)
        else:
            after[field] = values.from_json(value)
    return after


def apply_operation(value: Any, operation: Sequence[Any]) -> Any:
    """Return a field's value after one operation in wire form that `check_wire` has passed.

    Works in place on `value`, which the caller lends, and costs what the operation touches,
    whatever the size of the value.

    Raises:
        Misfit: the operation does not fit; `value` is as it was.
    """
    target, argument = operation[1], operation[-1]
    if isinstance(argument, dict | list):
        # A copy: the value must not share what the operation holds, or a later operation would
        # change this one too, which the view has yet to write down.
        operation = [*operation[:-1], orjson.loads(orjson.dumps(argument))]
    if isinstance(target, str):
        return _change(value, operation, target)
    holder, step = _descend(value, target)
    if isinstance(step, int):
        if step >= len(holder):
            raise Misfit(f"{_shown(target)}: the list has {len(holder)} items")
        new = _change(holder[step], operation, target)
        if new is ABSENT:
            del holder[step]
        else:
            holder[step] = new
        return value
    new = _change(holder.get(step, ABSENT), operation, target)
    if new is ABSENT:
        holder.pop(step, None)
    else:
        holder[step] = new
    return value


def _descend(value: Any, target: Sequence[Any]) -> tuple[Any, Any]:
    """Return the list or object that holds the last step of a target, and that step."""
    last = len(target) - 1
    for place, step in enumerate(target[1:], 1):
        shape = shape_of(value)
        if shape != (Shape.LIST if isinstance(step, int) else Shape.DICT):
            wanted = "a list" if isinstance(step, int) else "an object"
            raise Misfit(f"{_shown(target[:place])} is {Shape.NAMES[shape]}, not {wanted}")
        if place == last:
            break
        if isinstance(step, int):
            if step >= len(value):
                raise Misfit(f"{_shown(target[:place])}: the list has {len(value)} items")
            value = value[step]
        else:
            value = value.get(step, ABSENT)
    return value, step


def _change(value: Any, operation: Sequence[Any], target: Any) -> Any:
    """Return what becomes of the value at the end of the path, before anything was changed."""
    code = operation[0]
    if code == "set":
        return operation[2]
    if code == "delete":
        return ABSENT
    argument = operation[2]
    shape = shape_of(value)
    wanted = _CHANGES[code]
    if shape == Shape.ABSENT and code not in ("insert", "remove"):
        if code == "increment":
            return add_numbers(0, argument)
        return [argument] if code == "append" else argument
    if shape != wanted:
        raise Misfit(
            f"{code} {_shown(target)}: it is {Shape.NAMES[shape]}, not {Shape.NAMES[wanted]}"
        )
    if code == "increment":
        return add_numbers(value, argument)
    if code == "append_text":
        return value + argument
    if code == "merge_into":
        value.update(argument)
    elif code == "append":
        value.append(argument)
    elif code == "extend":
        value.extend(argument)
    elif argument >= len(value) + (code == "insert"):
        raise Misfit(f"{code} {_shown(target)}: index {argument}, the list has {len(value)} items")
    elif code == "insert":
        value.insert(argument, operation[3])
    else:
        del value[argument]
    return value


#: code -> the shape of value that it changes
_CHANGES: Final = {
    "increment": Shape.NUMBER,
    "append_text": Shape.TEXT,
    "merge_into": Shape.DICT,
    "append": Shape.LIST,
    "extend": Shape.LIST,
    "insert": Shape.LIST,
    "remove": Shape.LIST,
}


def _shown(target: Any) -> str:
    if isinstance(target, str):
        return repr(target)
    return repr(target[0] if len(target) == 1 else tuple(target))


def check_depth(body: bytes, operations: Sequence[Any]) -> None:
    """Misfit when an operation would nest a field deeper than can be written again.

    `body` is the wire form of `operations`, and spares most diffs the walk.
    """
    # A path reaches into what is nested already, without a bracket in the body.
    if body.count(b"[") + body.count(b"{") <= DEPTH_MAX - STEPS_MAX:
        return
    for operation in operations:
        if isinstance(operation, list) and len(operation) > 2:
            steps = operation[1] if isinstance(operation[1], list) else ()
            if len(steps) + _depth(operation[2:]) > DEPTH_MAX:
                raise Misfit(f"{operation[0]}: nested deeper than {DEPTH_MAX} levels")


def _depth(value: Any) -> int:
    """Return how many containers are nested, without recursion, which has a limit of its own."""
    deepest = 0
    stack = [(value, 1)]
    while stack:
        current, depth = stack.pop()
        deepest = max(deepest, depth)
        inner = current.values() if isinstance(current, dict) else current
        stack += [(item, depth + 1) for item in inner if isinstance(item, dict | list)]
    return deepest


def add_numbers(left: Any, right: Any) -> Any:
    """Return the sum of two JSON numbers, tagged ones included; Misfit where there is none."""
    if type(left) is int and type(right) is int:
        return _from_int(left + right)
    a, b = _number(left), _number(right)
    if isinstance(a, decimal.Decimal) or isinstance(b, decimal.Decimal):
        if isinstance(a, float) or isinstance(b, float):
            raise Misfit("increment: a float and a Decimal do not add up exactly")
        try:
            total = _DECIMALS.add(decimal.Decimal(a), decimal.Decimal(b))
        except decimal.DecimalException as error:
            raise Misfit(f"increment: {type(error).__name__} in a Decimal sum") from None
        return {"$decimal": _DECIMALS.to_sci_string(total)}
    if isinstance(a, float) or isinstance(b, float):
        try:
            total_float = float(a) + float(b)
        except OverflowError:
            raise Misfit("increment: an int too large for a float") from None
        return _from_float(total_float)
    return _from_int(a + b)


def _number(value: Any) -> int | float | decimal.Decimal:
    if not isinstance(value, dict):
        return value  # type: ignore[no-any-return]
    ((tag, text),) = value.items()
    if not isinstance(text, str) or len(text) > DIGITS_MAX:
        raise Misfit(f"increment: {tag} does not hold a number of at most {DIGITS_MAX} digits")
    try:
        if tag == "$float":
            return float(text)
        # With a context of our own: that of the thread decides what is an error, and the process
        # how many digits int() reads.
        number = decimal.Decimal(text, _DECIMALS)
        if tag == "$decimal":
            return number
        if not text.removeprefix("-").isdecimal():
            raise ValueError
        return int(number)
    except (ValueError, decimal.DecimalException):
        raise Misfit(f"increment: {tag} holds {text[:40]!r}, which is no number") from None


def _from_int(number: int) -> Any:
    if values.INTEGER_MIN <= number <= values.INTEGER_MAX:
        return number
    if number.bit_length() > DIGITS_MAX * 3:
        raise Misfit(f"increment: a sum of more than {DIGITS_MAX} digits")
    return {"$int": str(decimal.Decimal(number))}  # without the process's limit of digits


def _from_float(number: float) -> Any:
    if number - number == 0.0:
        return number
    return {"$float": "nan" if number != number else "inf" if number > 0 else "-inf"}


# --- comparing -----------------------------------------------------------------------------------


def diff_between(old: Mapping[str, object], new: Mapping[str, object]) -> Diff:
    """Return a small diff that turns the fields `old` into `new`.

    `apply(old, diff_between(old, new)) == new`, types included: True, 1 and 1.0 differ. What did
    not change costs nothing; of two ways to say a change, the one with fewer bytes is taken.
    Numbers are set, not incremented: a comparison cannot know what was meant.
    """
    operations: list[list[Any]] = [["delete", name] for name in old if name not in new]
    for name, value in new.items():
        _check_path(name)
        if name not in old:
            operations.append(["set", name, values.to_json(value, (name,))])
        elif old[name] is not value:
            before, after = values.to_json(old[name], (name,)), values.to_json(value, (name,))
            operations += _between((name,), before, after)
    return Diff.from_json(operations)


def _between(path: tuple[str | int, ...], old: Any, new: Any) -> list[list[Any]]:
    if _same(old, new):
        return []
    target: Any = path[0] if len(path) == 1 else list(path)
    whole = [["set", target, new]]
    shape = shape_of(new)
    if shape != shape_of(old) or len(path) >= STEPS_MAX:
        return whole
    if shape == Shape.TEXT and old and new.startswith(old):
        parts = [["append_text", target, new[len(old) :]]]
    elif shape == Shape.DICT:
        parts = _between_dicts(path, old, new)
    elif shape == Shape.LIST:
        parts = _between_lists(path, target, old, new)
    else:
        return whole
    return parts if len(orjson.dumps(parts)) < len(orjson.dumps(whole)) else whole


def _between_dicts(
    path: tuple[str | int, ...], old: dict[str, Any], new: dict[str, Any]
) -> list[list[Any]]:
    parts: list[list[Any]] = [["delete", [*path, key]] for key in old if key not in new]
    for key, value in new.items():
        if key in old:
            parts += _between((*path, key), old[key], value)
        else:
            parts.append(["set", [*path, key], value])
    return parts


def _between_lists(
    path: tuple[str | int, ...], target: Any, old: list[Any], new: list[Any]
) -> list[list[Any]]:
    head = 0
    while head < min(len(old), len(new)) and _same(old[head], new[head]):
        head += 1
    tail = 0
    while tail < min(len(old), len(new)) - head and _same(old[-1 - tail], new[-1 - tail]):
        tail += 1
    gone, come = old[head : len(old) - tail], new[head : len(new) - tail]
    if not gone and not tail:
        return [["append", target, come[0]] if len(come) == 1 else ["extend", target, come]]
    parts: list[list[Any]] = []
    paired = min(len(gone), len(come))
    for index in range(paired):
        parts += _between((*path, head + index), gone[index], come[index])
    # From the back, so that no index moves before it is used.
    parts += [["remove", target, head + index] for index in reversed(range(paired, len(gone)))]
    parts += [["insert", target, head + i, come[i]] for i in range(paired, len(come))]
    return parts


def _same(left: Any, right: Any) -> bool:
    """Compare JSON strictly: True, 1 and 1.0 are three values."""
    if left is right:
        return True
    if type(left) is not type(right):
        return False
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(_same(left[key], right[key]) for key in left)
    if isinstance(left, list):
        return len(left) == len(right) and all(map(_same, left, right))
    if isinstance(left, float):
        return repr(left) == repr(right)  # -0.0 is not 0.0
    return bool(left == right)
