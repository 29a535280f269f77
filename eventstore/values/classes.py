"""Which class a name in the log means, and which name a class has: what was registered, or its own.

No module is imported here, and no code of a class runs.
"""

from __future__ import annotations

import dataclasses
import enum
import sys
import types
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from eventstore.values.limits import Refused

__all__ = [
    "Registered",
    "class_named",
    "is_dataclass",
    "is_enum",
    "is_model",
    "name_of",
    "own_name",
    "registered_by_class",
    "registered_by_name",
]


class Registered(NamedTuple):
    """A class that `values.register` was given; without functions it keeps its usual form."""

    cls: type
    tag: str
    to_json: Callable[[Any], object] | None
    from_json: Callable[[Any], Any] | None


#: Filled by `values.register` alone; a class may be found under several names.
registered_by_class: dict[type, Registered] = {}
registered_by_name: dict[str, Registered] = {}


def own_name(cls: type) -> str:
    """Return the name of a class that was not registered."""
    return f"{cls.__module__}:{cls.__qualname__}"


def name_of(cls: type) -> str:
    """Return the name under which a class is written; Refused when it could not be found again."""
    registered = registered_by_class.get(cls)
    if registered is not None:
        return registered.tag
    name = own_name(cls)
    if _loaded_class(name) is not cls:
        raise Refused(
            f"the class {cls.__module__}.{cls.__qualname__} cannot be found again by its name:"
            " define it at the top of a module, or register it with values.register"
        )
    return name


def class_named(name: object, is_kind: Callable[[type], bool]) -> type:
    """Return the class that a name in the log means, without importing anything; or Refused."""
    if type(name) is not str:
        raise Refused("the name of its class is not text")
    registered = registered_by_name.get(name)
    cls = _loaded_class(name) if registered is None else registered.cls
    if cls is None:
        raise Refused(
            f"the class {name} is not known to this process: import its module first, or register"
            " the class that stands for it with values.register"
        )
    if not is_kind(cls):
        raise Refused(f"{name} is not a class of the kind that was written")
    return cls


def _loaded_class(name: str) -> type | None:
    module_name, separator, qualified = name.partition(":")
    module = sys.modules.get(module_name) if separator else None
    if not isinstance(module, types.ModuleType):
        return None
    # Straight from the namespaces: a module's __getattr__ may import, and a lazy module loads
    # itself when an attribute is asked for in the usual way.
    namespace: Mapping[str, object] = object.__getattribute__(module, "__dict__")
    found: object = None
    for step in qualified.split("."):
        found = namespace.get(step)
        if not isinstance(found, type):
            return None
        namespace = type.__getattribute__(found, "__dict__")
    return found if isinstance(found, type) else None


def is_model(cls: type) -> bool:
    """Say whether a class is a pydantic model; where pydantic is not loaded, nothing is."""
    pydantic = sys.modules.get("pydantic")
    return pydantic is not None and issubclass(cls, pydantic.BaseModel)


def is_dataclass(cls: type) -> bool:
    """Say whether a class is a dataclass."""
    return dataclasses.is_dataclass(cls)


def is_enum(cls: type) -> bool:
    """Say whether a class is an Enum."""
    return issubclass(cls, enum.Enum)
