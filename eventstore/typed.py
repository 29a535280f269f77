"""State types: a pydantic model, a dataclass or a TypedDict that says what an app's state is.

Writes are checked field by field, before anything is appended; `build` makes an instance of the
stored fields. pydantic does the checking, in its usual mode: "12" is taken for an int, and what it
made of a value is what is stored, so the log has the declared types.

A typed state is for other services too, so it is stored as plain data: a model or dataclass
becomes an object of its fields, by their names, and an enum member its value. What is JSON's own
or tagged data (a datetime, a Decimal, a set) stays as it is. `State.data` has the instances again.

What one field cannot tell is judged when the whole is built: checks over several fields, fields
that are missing so far, and constraints on what an operation leaves behind (a list's length, a
number's bounds after an increment). Validators run at each write and each build, so they have to
accept their own results; a value that would not read back as it was written is refused.
"""

from __future__ import annotations

import collections
import dataclasses
import enum
import functools
import sys
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from decimal import Decimal
from typing import Any, Final, NoReturn

import pydantic
import typing_extensions
from pydantic_core import SchemaValidator

from eventstore import values
from eventstore.diff import Diff
from eventstore.errors import ConfigError, InvalidState, UnreadableValue

__all__ = ["StateType"]

_Steps = tuple[str | int, ...]


class StateType:
    """What one app's state has to look like. Immutable, and safe to share between threads."""

    def __init__(self, cls: type, root: _Place) -> None:
        self.cls = cls
        self.name = cls.__name__
        self._root = root

    @classmethod
    def of(cls, state_type: type) -> StateType:
        """Return the checks of a type.

        Raises:
            ConfigError: it is no pydantic model, dataclass or TypedDict, or pydantic cannot
                validate one of its fields.
        """
        named = getattr(state_type, "__qualname__", repr(state_type))
        if not isinstance(state_type, type) or not (
            (issubclass(state_type, pydantic.BaseModel))
            or dataclasses.is_dataclass(state_type)
            or typing_extensions.is_typeddict(state_type)
        ):
            raise ConfigError(
                f"state_type {named}: give a pydantic model, a dataclass or a TypedDict"
            )
        if issubclass(state_type, pydantic.RootModel):
            raise ConfigError(f"state_type {named}: a RootModel has no fields")
        try:
            adapter: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(_for_pydantic(state_type))
            return cls(state_type, _Place(adapter.core_schema, {}))
        except (pydantic.errors.PydanticUserError, NameError, TypeError) as error:
            raise ConfigError(f"state_type {named}: {error}") from error

    def check_diff(self, diff: Diff) -> Diff:
        """Return the diff as it is stored: every value checked, and made plain.

        Raises:
            InvalidState: a field or key that the type does not have, a value of another type,
                or an operation that fits no value of the field's type; nothing was written.
        """
        return Diff.from_json([self.check_operation(operation) for operation in diff.to_json()])

    def check_field(self, name: str, value: object) -> object:
        """Return what is stored as this field: the value as pydantic takes it, made plain.

        Raises:
            InvalidState: the type has no such field, or its type does not take the value.
            UnsupportedValue: the type takes it, and the log cannot hold it.
        """
        return values.from_json(self._checked(self._at((name,)), value, (name,)))

    def check_operation(self, operation: Sequence[Any]) -> list[Any]:
        """Return an operation in wire form as it is stored.

        Raises:
            InvalidState: as for `check_diff`.
        """
        code, target, *arguments = operation
        steps: _Steps = (target,) if isinstance(target, str) else tuple(target)
        place = self._at(steps)
        if code == "delete":
            return list(operation)
        argument = self._value(arguments[-1], steps)
        if code == "set":
            return [code, target, self._checked(place, argument, steps)]
        wanted = _CHANGED[code]
        if place.kind is not None and place.kind not in wanted:
            self._refuse(steps, f"{code} needs {wanted[0]}, and its type is {place.kind}")
        if code in ("append", "insert"):
            item = self._checked(place.items, argument, (*steps, code))
            return [code, target, *arguments[:-1], item]
        if code == "extend":
            items = [
                self._checked(place.items, item, (*steps, code, index))
                for index, item in enumerate(argument)
            ]
            return [code, target, items]
        if code == "merge_into":
            entries = {
                key: self._checked(self._below(place, (*steps, key)), item, (*steps, key))
                for key, item in argument.items()
            }
            return [code, target, entries]
        if code == "increment" and place.kind is not None:
            amounts = _AMOUNTS[place.kind]
            if type(argument) not in amounts:
                found = type(argument).__name__
                self._refuse(steps, f"increment by a {found}, and its type is {place.kind}")
        return list(operation)

    def build(self, fields: Mapping[str, object]) -> Any:
        """Return an instance made of an instance's stored fields.

        Raises:
            InvalidState: the fields do not fit the type (any more); the message names each path.
        """
        try:
            built = self._root.validator.validate_python(dict(fields), by_name=True)
            faults = "; ".join(_shown(path, _NO_FIELD) for path in _dropped(dict(fields), built))
        except pydantic.ValidationError as error:
            faults = _faults(error)
        if faults:
            raise InvalidState(
                f"the stored state does not fit {self.name}: {faults}. Open the app with"
                ' validate="off" to read it as it is'
            )
        return built

    def _value(self, json_value: Any, steps: _Steps) -> Any:
        try:
            return values.from_json(json_value)
        except UnreadableValue as error:
            self._refuse(steps, str(error))

    def _checked(self, place: _Place, value: Any, steps: _Steps) -> Any:
        """Return the JSON of a value as it is stored at a place."""
        try:
            made = place.validator.validate_python(value, by_name=True)
        except pydantic.ValidationError as error:
            raise InvalidState(f"{self.name}: {_faults(error, steps)}. Not written") from None
        except (AttributeError, KeyError, TypeError):
            # A validator that looks at another field (info.data) finds none here: left to `build`.
            return values.to_json(_plain(value), steps)
        for path in _dropped(value, made, steps):
            self._refuse(path, _NO_FIELD)
        stored = _plain(made)
        json_value = values.to_json(stored, steps)
        try:
            again = place.validator.validate_python(stored, by_name=True)
        except pydantic.ValidationError as error:
            self._refuse(steps, f"as it is stored, it would not fit: {_faults(error)}")
        if not _alike(made, again):
            self._refuse(
                steps,
                f"{made!r:.80} would read back as {again!r:.80}; a declared type for what is Any, a"
                " discriminator in a union, or a validator that accepts its own result helps",
            )
        return json_value

    def _at(self, steps: _Steps) -> _Place:
        """Return what the type says about a path."""
        place = self._root
        for depth in range(1, len(steps) + 1):
            place = self._below(place, steps[:depth])
        return place

    def _below(self, place: _Place, steps: _Steps) -> _Place:
        """Return what is one step below a place; `steps` is the whole path."""
        step = steps[-1]
        if place.fields is not None and isinstance(step, str):
            if step in place.fields:
                return place.field(step)
            if not place.open:
                self._refuse(steps, f"{_NO_FIELD}; there are {', '.join(place.fields)}")
            return place.items
        wanted = _LISTS if isinstance(step, int) else _OBJECTS
        if place.kind is not None and place.kind not in wanted:
            self._refuse(steps, f"needs {wanted[0]}, and the type there is {place.kind}")
        if place.kind == "dict":
            self._checked(place.keys, step, steps)
        return place.items

    def _refuse(self, steps: _Steps, reason: str) -> NoReturn:
        raise InvalidState(f"{self.name}: {_shown(steps, reason)}. Not written")


# --- places: what pydantic's schema says about one path ------------------------------------------


class _Place:
    """One place in the type: its validator, and what lies below it.

    `kind` is in pydantic's words ("list", "int", ...), "an object" for models and their like, and
    None where the schema does not tell (Any, unions): there everything is allowed, and `build`
    decides. `schema` is taken apart as far as an operation's path goes; validators that stand
    around a type are run with it, and looked through on the way down.
    """

    def __init__(self, schema: Any, definitions: dict[str, Any], config: Any = None) -> None:
        if schema["type"] == "definitions":
            definitions = {inner["ref"]: inner for inner in schema["definitions"]}
            schema = schema["schema"]
        self._schema, self._definitions, self._config = schema, definitions, config
        while True:
            if schema["type"] == "definition-ref":
                schema = definitions[schema["schema_ref"]]
            elif schema["type"] in _AROUND:
                config = schema.get("config", config)
                schema = schema[_AROUND[schema["type"]]]
            else:
                break
        self._inner, self._inner_config = schema, schema.get("config", config)
        self.kind = _KINDS.get(schema["type"])
        self.open = _allows(schema, self._inner_config)
        fields = schema["fields"] if self.kind == "an object" else None
        if isinstance(fields, list):
            fields = {field["name"]: field for field in fields}
        self.fields: dict[str, Any] | None = fields
        self._fields: dict[str, _Place] = {}

    @functools.cached_property
    def validator(self) -> SchemaValidator:
        schema = self._schema
        if self._definitions:
            inner = list(self._definitions.values())
            schema = {"type": "definitions", "schema": schema, "definitions": inner}
        return SchemaValidator(schema, self._config)

    def field(self, name: str) -> _Place:
        place = self._fields.get(name)
        if place is None:
            assert self.fields is not None
            place = self._fields[name] = self._below(self.fields[name]["schema"])
        return place

    @functools.cached_property
    def items(self) -> _Place:
        """What is below an index or a key, when this is no object with fields."""
        return self._below(self._inner.get(_ITEMS.get(self._inner["type"])))

    @functools.cached_property
    def keys(self) -> _Place:
        return self._below(self._inner.get("keys_schema"))

    def _below(self, schema: Any) -> _Place:
        return _Place(schema or {"type": "any"}, self._definitions, self._inner_config)


_KINDS: Final = {
    "model-fields": "an object", "dataclass-args": "an object", "typed-dict": "an object",
    "list": "list", "dict": "dict", "tuple": "tuple", "set": "set", "frozenset": "frozenset",
    "str": "str", "int": "int", "float": "float", "decimal": "decimal", "bool": "bool",
    "bytes": "bytes", "uuid": "uuid", "date": "date", "time": "time", "datetime": "datetime",
    "timedelta": "timedelta", "enum": "enum",
}  # fmt: skip
#: Schemas that stand around the one that says what the data is, and where they keep it.
_AROUND: Final = {
    "default": "schema", "nullable": "schema", "model": "schema", "dataclass": "schema",
    "function-before": "schema", "function-after": "schema", "function-wrap": "schema",
    "json-or-python": "python_schema", "lax-or-strict": "lax_schema",
}  # fmt: skip
_ITEMS: Final = {"list": "items_schema", "dict": "values_schema"}

_LISTS: Final = ("a list", "list")
_OBJECTS: Final = ("an object", "dict")
#: What an operation changes, in the words of `_Place.kind`; the first is for the message.
_CHANGED: Final = {
    "append": _LISTS,
    "extend": _LISTS,
    "insert": _LISTS,
    "remove": _LISTS,
    "merge_into": _OBJECTS,
    "increment": ("a number", "int", "float", "decimal"),
    "append_text": ("text", "str"),
}
#: What may be added to what. The bounds of a field are those of the sum, not of the amount.
_AMOUNTS: Final[dict[str | None, tuple[type, ...]]] = {
    "int": (int,),
    "float": (int, float),
    "decimal": (int, Decimal),
}


def _allows(schema: Any, config: Any) -> bool:
    """Say whether an object may have fields that its type does not name."""
    stated = schema.get("extra_behavior") or (config or {}).get("extra_fields_behavior")
    return bool(stated == "allow")


def _for_pydantic(annotation: Any) -> Any:
    """Replace typing.TypedDict by the one of typing_extensions, all that pydantic takes on 3.11."""
    if sys.version_info >= (3, 12):
        return annotation
    if typing.is_typeddict(annotation) and type(annotation).__module__ == "typing":
        hints = typing.get_type_hints(annotation, include_extras=True)
        fields: dict[str, Any] = {}
        for name, hint in hints.items():
            inner = _for_pydantic(hint)
            marked = typing.get_origin(hint) in (typing.Required, typing.NotRequired)
            required = name in annotation.__required_keys__
            fields[name] = inner if marked or required else typing_extensions.NotRequired[inner]
        return typing_extensions.TypedDict(annotation.__name__, fields)  # type: ignore[operator]
    arguments = typing.get_args(annotation)
    if not arguments or typing.get_origin(annotation) is typing.Literal:
        return annotation
    replaced = tuple(_for_pydantic(argument) for argument in arguments)
    if all(new is old for new, old in zip(replaced, arguments, strict=True)):
        return annotation
    if isinstance(annotation, types.UnionType):
        return typing.Union[replaced]  # noqa: UP007  (made of a tuple)
    return (
        annotation.copy_with(replaced)
        if hasattr(annotation, "copy_with")
        else (typing.get_origin(annotation)[replaced])
    )


# --- plain data ----------------------------------------------------------------------------------


def _plain(value: Any) -> Any:
    """Return a value as it is stored: objects of fields for models, values for enum members."""
    if isinstance(value, pydantic.RootModel):
        return _plain(value.root)
    if isinstance(value, pydantic.BaseModel | dict) or _is_dataclass(value):
        return {_plain(name): _plain(item) for name, item in _members(value).items()}
    if isinstance(value, enum.Enum):
        scalar = type(value.value) in (str, int, float, bool, type(None))
        return value.value if scalar else value
    if isinstance(value, list | collections.deque) or _is_named_tuple(value):
        return [_plain(item) for item in value]
    if type(value) in (tuple, set, frozenset):
        items = [_plain(item) for item in value]
        hashable = type(value) is tuple or not any(type(item) in (dict, list) for item in items)
        return type(value)(items) if hashable else value
    return value


def _members(value: Any) -> dict[Any, Any]:
    """Return what a dict, model or dataclass holds, by key or field."""
    if isinstance(value, dict):
        return value
    if isinstance(value, pydantic.BaseModel):
        fields = {name: getattr(value, name) for name in type(value).model_fields}
        return fields | (value.__pydantic_extra__ or {})
    return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}


def _is_dataclass(value: object) -> bool:
    return dataclasses.is_dataclass(value) and not isinstance(value, type)


def _is_named_tuple(value: object) -> bool:
    return isinstance(value, tuple) and hasattr(value, "_fields")


_NO_FIELD: Final = "no such field"


def _dropped(given: Any, made: Any, steps: _Steps = ()) -> Iterator[_Steps]:
    """Yield the paths of what pydantic left out: fields that a class neither has nor allows.

    It leaves them out by default, and then they would be missing in the log. A class that says
    extra="ignore" itself gets what it asks for.
    """
    if isinstance(given, list | tuple) and isinstance(made, list | tuple):
        for index, (item, item_made) in enumerate(zip(given, made, strict=False)):
            yield from _dropped(item, item_made, (*steps, index))
    if not isinstance(given, dict):
        return
    aliases: dict[str, str] = {}
    if isinstance(made, pydantic.BaseModel):
        aliases = _names_by_alias(type(made))
        ignores = made.model_config.get("extra") == "ignore"
    elif isinstance(made, dict):
        # As many keys as were given: a dict whose keys became another type lost nothing.
        ignores = len(made) == len(given)
    elif _is_dataclass(made):
        ignores = False
    else:
        return
    members = _members(made)
    for key, item in given.items():
        name = key if key in members else aliases.get(key, key)
        if name in members:
            yield from _dropped(item, members[name], (*steps, key))
        elif not ignores:
            yield (*steps, key)


def _names_by_alias(cls: type[pydantic.BaseModel]) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, field in cls.model_fields.items():
        alias = field.validation_alias
        choices = alias.choices if isinstance(alias, pydantic.AliasChoices) else [alias]
        for choice in choices:
            step = choice.path[0] if isinstance(choice, pydantic.AliasPath) else choice
            found[str(step)] = name
    return found


def _alike(a: Any, b: Any) -> bool:
    """Say whether two validated values are equal and of the same types all the way down."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict | pydantic.BaseModel) or _is_dataclass(a):
        left, right = _members(a), _members(b)
        return left.keys() == right.keys() and all(_alike(left[key], right[key]) for key in left)
    if isinstance(a, list | tuple | collections.deque):
        return len(a) == len(b) and all(map(_alike, a, b))
    return bool(a == b or (a != a and b != b))


def _faults(error: pydantic.ValidationError, steps: _Steps = ()) -> str:
    """Return pydantic's findings, one after the other, each with its path and without the input."""
    return "; ".join(
        _shown((*steps, *fault["loc"]), fault["msg"])
        for fault in error.errors(include_input=False, include_url=False, include_context=False)
    )


def _shown(steps: _Steps, message: str) -> str:
    return f"{''.join(f'[{step!r}]' for step in steps) or 'the state'}: {message}"
