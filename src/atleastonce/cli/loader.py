"""From ``module:attribute`` to a service."""

from __future__ import annotations

import importlib
import importlib.util
import sys
import traceback
from difflib import get_close_matches
from pathlib import Path

from atleastonce.errors import AtLeastOnceError, ConfigurationError
from atleastonce.service import Service


def load_service(name: str) -> Service:
    """The service that ``name`` (``app:service``) means; the current directory is searched first, as by ``python``.

    Raises:
        ConfigurationError: names the module or attribute that is missing, and what comes close to it.
    """
    module_name, colon, attribute = name.partition(":")
    if not module_name or not colon or not attribute:
        raise ConfigurationError(f'"{name}" names no service; write module:attribute, like app:service')
    if module_name.endswith(".py") or "/" in module_name:
        better = module_name.removesuffix(".py").strip("./").replace("/", ".")
        raise ConfigurationError(f'"{module_name}" is a file; write the module\'s name, like {better}:{attribute}')
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    found = _import(module_name)
    for part in attribute.split("."):
        if not hasattr(found, part):
            close = get_close_matches(part, _services(found), n=3, cutoff=0.1) or _services(found)[:3]
            hint = f"; did you mean {' or '.join(f'{module_name}:{n}' for n in close)}?" if close else ""
            raise ConfigurationError(f'module {module_name} has no attribute "{part}"{hint}')
        found = getattr(found, part)
    if not isinstance(found, Service):
        others = _services(sys.modules[module_name])
        hint = f"; services there: {', '.join(f'{module_name}:{n}' for n in others)}" if others else ""
        raise ConfigurationError(f"{name} is a {type(found).__name__}, not a Service{hint}")
    return found


def _import(name: str) -> object:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        missing = error.name or name
        if name != missing and not name.startswith(f"{missing}."):
            raise ConfigurationError(f'module {name} imports "{missing}", which is not installed') from error
        close = get_close_matches(missing.rpartition(".")[2], [p.stem for p in Path.cwd().glob("*.py")], n=3)
        hint = f"; did you mean {' or '.join(close)}?" if close else f" in {Path.cwd()} or on the Python path"
        raise ConfigurationError(f'no module "{missing}"{hint}') from None
    except AtLeastOnceError:
        raise  # a bad annotation, two handlers for one source: it says itself what to change
    except Exception as error:
        frame = traceback.extract_tb(error.__traceback__)[-1]
        place = f"{Path(frame.filename).name}:{frame.lineno}"
        if isinstance(error, SyntaxError):
            place = f"{Path(error.filename or name).name}:{error.lineno}"
        raise ConfigurationError(
            f"module {name} cannot be imported: {type(error).__name__} at {place}: {getattr(error, 'msg', error)}"
        ) from error


def _services(module: object) -> list[str]:
    return [name for name, value in getattr(module, "__dict__", {}).items() if isinstance(value, Service)]
