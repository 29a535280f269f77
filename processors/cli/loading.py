"""Finding the components that a command line names: `module:component`."""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import sys
import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from processors.component import Component

__all__ = ["load_component", "load_components", "source_files"]


def load_components(names: Sequence[str]) -> list[Component]:
    """Return the components that are named, each of which has an update to run.

    Raises:
        click.ClickException: one cannot be had; the message says why, and what to write instead.
    """
    found: dict[str, Component] = {}
    for name in dict.fromkeys(names):
        component = load_component(name)
        if not component.updates:
            raise click.UsageError(
                f"{name}: component {component.name} has no updates, so there is nothing to run;"
                f" declare one with @{name.rpartition(':')[2]}.update(...)"
            )
        if component.name in found:
            raise click.UsageError(
                f"{name}: there is a component called {component.name} before it; two would share"
                " one app, and run each other's requests"
            )
        found[component.name] = component
    return list(found.values())


def load_component(name: str) -> Component:
    """Return the component at `module:attribute`; the current folder can be imported from.

    Raises:
        click.ClickException: there is none; the message says what is there instead.
    """
    from processors.component import Component

    module_name, colon, path = name.partition(":")
    if not module_name or (colon and not path):
        raise click.UsageError(f"{name!r}: write module:component")
    # "." begins a relative import, which importlib refuses in words of its own.
    if module_name.startswith(".") or _has_folders(module_name):
        raise click.UsageError(_no_path(module_name, path))
    module = _import(module_name, path)
    if not colon:
        raise click.UsageError(f"{name!r}: write module:component; {_listed(module, '')}")
    value: object = module
    for step in path.split("."):
        try:
            value = getattr(value, step)
        except AttributeError:
            raise click.UsageError(
                f"{name}: module {module_name} has no {path!r}; {_listed(module, path)}"
            ) from None
    if not isinstance(value, Component):
        raise click.UsageError(
            f"{name}: this is {_described(value)}, not a Component; {_listed(module, path)}"
        )
    return value


def _import(name: str, component: str) -> ModuleType:
    folder = os.getcwd()
    if folder not in sys.path:
        # As `python -m` has it; a command that was installed has its own folder there instead.
        sys.path.insert(0, folder)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and (name == error.name or name.startswith(f"{error.name}.")):
            raise click.UsageError(_not_found(name, component, folder)) from None
        raise click.ClickException(
            f"module {name} cannot be imported, because it imports {error.name!r}, which is not"
            f" installed in {sys.prefix}"
        ) from None
    except Exception as error:
        # The user's own code: its traceback is the message, without our frames and importlib's.
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if "importlib" not in frame.filename][1:]
        shown = "".join(
            (*traceback.format_list(own), *traceback.format_exception_only(error))
        ).rstrip()
        raise click.ClickException(f"module {name} cannot be imported:\n{shown}") from None


def _has_folders(name: str) -> bool:
    return "/" in name or os.sep in name


def _no_path(name: str, component: str) -> str:
    """Return what to write instead of a file's name, and where, if not here."""
    bare = name.removesuffix(".py")
    if not _has_folders(name):
        return _write_module(name, bare.strip(".") or "module", component)
    module = Path(bare).name or "module"
    folder = Path(bare).expanduser().absolute().parent.resolve()
    try:
        steps = folder.relative_to(Path.cwd().resolve()).parts
    except ValueError:
        return f"{_write_module(name, module, component)}, in the folder {folder}"
    return _write_module(name, ".".join((*steps, module)), component)


def _write_module(name: str, module: str, component: str) -> str:
    return f"{name!r} is a file's name; write the module's: {module}:{component or 'component'}"


def _not_found(name: str, component: str, folder: str) -> str:
    if name.endswith(".py"):
        return _no_path(name, component)
    beside = sorted(
        path.stem if path.suffix == ".py" else path.name
        for path in Path(folder).iterdir()
        if (path.suffix == ".py" or (path / "__init__.py").exists()) and path.stem.isidentifier()
    )
    near = difflib.get_close_matches(name.partition(".")[0], beside, n=1)
    hint = f" Perhaps {near[0]} is meant." if near else ""
    return (
        f"there is no module {name!r}. Looked for in the current folder ({folder}) and in what is"
        f" installed in {sys.prefix}: go to the folder that has it, or set PYTHONPATH to that"
        f" folder.{hint}"
    )


def _components(module: ModuleType) -> list[str]:
    from processors.component import Component

    return [name for name, value in vars(module).items() if isinstance(value, Component)]


def _listed(module: ModuleType, path: str) -> str:
    names = _components(module)
    near = difflib.get_close_matches(path, names, n=1)
    if near:
        return f"perhaps {module.__name__}:{near[0]} is meant"
    if names:
        return f"its components: {', '.join(f'{module.__name__}:{name}' for name in names)}"
    return "it has no components"


def _described(value: object) -> str:
    component = getattr(value, "component", None)
    if type(value).__name__ == "ComponentInstance" and component is not None:
        return f"an instance of {component.name}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    return f"of type {type(value).__name__}"


def source_files(names: Sequence[str]) -> list[Path]:
    """Return the files whose change means other code: all loaded modules but installed ones.

    The files of the named modules too, when they could not be imported.
    """
    places = {sysconfig.get_paths()[place] for place in ("stdlib", "platstdlib", "purelib")}
    installed = tuple(str(Path(place).resolve()) + os.sep for place in places)
    files = [getattr(module, "__file__", None) for module in list(sys.modules.values())]
    for name in names:
        try:
            spec = importlib.util.find_spec(name.partition(":")[0])
        except (ImportError, ValueError, AttributeError):
            continue
        files.append(None if spec is None else spec.origin)
    found = {Path(file).resolve() for file in files if file and file.endswith(".py")}
    return sorted(path for path in found if path.is_file() and not str(path).startswith(installed))
