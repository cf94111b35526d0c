"""Parts of your own: students, teachers, methods and data sets that are not this project's.

A part is named on the command line, as `package.module:attribute`, as `file.py:attribute` or by an entry point that an
installed package registered, or it is an object that is handed over in Python. `find` resolves all four. Built-in names are
not looked up here: who has such a list looks there first. The kinds themselves say what a part must be able to do.

What identifies a part is its attribute's name and the sha256 of the one source file that defines it. `Part.label` holds both
and is no reference: nothing that a cache or a run has recorded can be imported by its text.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from types import ModuleType
from typing import Any, Literal, final

from bird.errors import UsageError, nearest, unknown_name

__all__ = ["FORMS", "Kind", "Part", "find", "is_label", "is_reference", "registered", "wrong_part"]

Kind = Literal["student", "teacher", "method", "dataset"]

NAME = r"[^\W\d]\w*(?:\.[^\W\d]\w*)*"
REFERENCE = re.compile(rf"(?:(?P<file>.+\.py)|(?P<module>{NAME})):(?P<attribute>{NAME})")
LABEL = re.compile(r".+@([0-9a-f]{12}|unknown)")
FORMS = "package.module:attribute, file.py:attribute"
SHOWN = 8  # names in an error


@final
@dataclass(frozen=True)
class Origin:
    """Where a part that was named was found: the text that named it, its module, the absolute path of its file, its name
    there, and the digest of its source. Another process imports the code when it unpickles this."""

    kind: Kind
    given: str
    module: str
    path: str
    attribute: str
    sha256: str | None

    def __reduce__(self) -> tuple[Any, ...]:
        return _found_again, (self.kind, self.given, self.module, self.path, self.attribute, self.sha256)


@final
@dataclass(frozen=True)
class Part:
    """An object of the user's, and what identifies it. `file` is the name of the source file, without its folder; it and
    `sha256` are None where no source can be found (compiled code, a line typed into an interpreter)."""

    kind: Kind
    value: Any
    attribute: str
    file: str | None
    sha256: str | None
    weights: str | None = None
    """of a module that was handed over with its weights: a digest of these"""
    origin: Origin | None = None
    """of a part that was named, None of an object"""

    def __reduce__(self) -> tuple[Any, ...]:
        # The origin comes first: another process must have the code before it meets a value that refers to it.
        state = {each.name: getattr(self, each.name) for each in fields(self) if each.name != "origin"}
        return _unpickled, (self.origin, state)

    @property
    def label(self) -> str:
        """The part's short name in records: `Net@1a2b3c4d5e6f`."""
        return f"{self.attribute}@{(self.sha256 or 'unknown')[:12]}"

    @property
    def where(self) -> str:
        """The part in an error: `--student Net of net.py`."""
        return f"--{self.kind} {self.attribute}" + (f" of {self.file}" if self.file else "")

    def identity(self) -> dict[str, str | None]:
        """What must be equal for two parts to be the same. The file's name is not in it: a file may be renamed."""
        found = {"attribute": self.attribute, "sha256": self.sha256}
        return found if self.weights is None else {**found, "weights": self.weights}

    def same(self, recorded: Mapping[str, Any]) -> bool:
        """Whether a record is of this part's code."""
        return (recorded.get("attribute"), recorded.get("sha256")) == (self.attribute, self.sha256)

    def record(self) -> dict[str, str | None]:
        """The identity with the file's name, for people to read."""
        return {**self.identity(), "file": self.file}


def is_reference(text: str) -> bool:
    """Whether the text has the form of a reference to code. Built-in prefixes (`timm:`) have it, too, and come first."""
    return REFERENCE.fullmatch(text) is not None


def is_label(text: str) -> bool:
    """Whether the text has the form of `Part.label`: what a cache or a run calls a part of somebody's own."""
    return LABEL.fullmatch(text) is not None


def find(kind: Kind, given: object, known: Iterable[str] = ()) -> Part:
    """The part that `given` names, or is. `known` are the built-in names, for the error about a name that nobody has.

    Executes the module that is named. Raises UsageError: for a name that is neither known nor registered, for a module that
    is not there or does not import (with its own error), and for an attribute that it does not have.
    """
    if not isinstance(given, str):
        return _part(kind, given, _called(given), None)
    if (entry := _entry(kind, given)) is not None:
        if not entry.attr:
            raise _fault(kind, given, f"an entry point without an attribute ({entry.value})", "MODULE:ATTRIBUTE")
        with _errors_of_import(kind, given, entry.module):
            module = importlib.import_module(entry.module)
        return _attribute(kind, given, module, entry.attr)
    found = REFERENCE.fullmatch(given)
    if found is None:
        names = [*dict.fromkeys([*known, *registered(kind)])]
        if (file := given.rstrip(":")).endswith(".py"):
            there = ", ".join(_names_in(Path(file).expanduser())[:SHOWN])
            fix = f"write {file}:NAME" + (f"; the file defines {there}" if there else "")
            raise _fault(kind, given, "a file without a name in it", "file.py:attribute", fix)
        raise unknown_name(
            f"--{kind}", given, names, f"see `bird list {kind}s`", wanted=f"one of {', '.join(names)}; or {FORMS}"
        )
    module = _file(kind, given, Path(found["file"])) if found["file"] else _module(kind, given, found["module"])
    return _attribute(kind, given, module, found["attribute"])


def _names_in(file: Path) -> list[str]:
    """The public classes and functions that a file defines, without running it; none where it cannot be read."""
    try:
        body = ast.parse(file.read_bytes()).body
    except (OSError, SyntaxError, ValueError):
        return []
    kinds = (ast.ClassDef, ast.FunctionDef)
    return [each.name for each in body if isinstance(each, kinds) and not each.name.startswith("_")]


def registered(kind: Kind) -> dict[str, str]:
    """What installed packages have registered for a kind (the entry-point group `bird.students` and its like): the code
    that each name stands for, by name. Nothing is imported."""
    return {each.name: f"{each.value} of {_package(each)}" for each in entry_points(group=f"bird.{kind}s")}


def wrong_part(part: Part, wanted: str, fix: str = "see docs/own-parts.md") -> UsageError:
    """The error for a part that is not what its kind asks for."""
    found = f"an object of {type(part.value).__name__}"
    if inspect.isclass(part.value):
        found = f"the class {part.value.__qualname__}"
    elif callable(part.value) and hasattr(part.value, "__qualname__"):
        found = f"the function {part.value.__qualname__}"
    return UsageError(where=part.where, found=found, wanted=wanted, fix=fix)


def _entry(kind: Kind, name: str) -> EntryPoint | None:
    found = {each.value: each for each in entry_points(group=f"bird.{kind}s") if each.name == name}
    if len(found) > 1:
        packages = " and ".join(sorted(map(_package, found.values())))
        raise _fault(kind, name, f"a name that {packages} both register", "one package for a name")
    return next(iter(found.values()), None)


def _package(entry: EntryPoint) -> str:
    return "an unknown package" if entry.dist is None else entry.dist.name


def _module(kind: Kind, given: str, name: str) -> ModuleType:
    with _errors_of_import(kind, given, name), _importable(Path.cwd()):
        return importlib.import_module(name)


def _file(kind: Kind, given: str, path: Path, name: str | None = None) -> ModuleType:
    """The module of a file, executed once for each content. `name` is what another process calls it."""
    path = path.expanduser().resolve()
    try:
        source = path.read_bytes()
    except OSError as error:
        raise _fault(kind, given, error.strerror or str(error), "a Python file", "check the path") from None
    name = name or f"own_{path.stem}_{hashlib.sha256(str(path).encode() + source).hexdigest()[:12]}"
    if name in sys.modules:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses and pickle look it up
    try:
        with _errors_of_import(kind, given, name), _importable(path.parent):
            exec(compile(source, path, "exec"), module.__dict__)  # not the loader: it may take an older .pyc
    except BaseException:
        del sys.modules[name]
        raise
    return module


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    """Modules of a folder can be imported, after all others: it hides no installed package."""
    sys.path.append(str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _errors_of_import(kind: Kind, given: str, module: str) -> Iterator[None]:
    try:
        yield
    except (Exception, SystemExit) as error:
        if isinstance(error, ModuleNotFoundError) and error.name and f"{module}.".startswith(f"{error.name}."):
            found = f"no module named {error.name}"
            fix = "install it, run the command in the folder that holds it, or give file.py:attribute"
        else:
            said = (str(error).strip() or "no message").splitlines()[0]
            found = f"a module that does not import ({type(error).__name__}: {said})"
            fix = "import it in Python and mend what fails; --debug shows the line"
        raise _fault(kind, given, found, "a module that imports", fix) from error


def _attribute(kind: Kind, given: str, module: ModuleType, attribute: str) -> Part:
    value: Any = module
    for name in attribute.split("."):
        if not hasattr(value, name):
            public = [each for each in dir(value) if not each.startswith("_")]
            mine = [each for each in public if getattr(getattr(value, each), "__module__", "") == module.__name__]
            close = nearest(name, mine, 3) or nearest(name, public, 3)
            shown = list(dict.fromkeys([*close, *(mine or public)]))[:SHOWN]
            raise _fault(
                kind,
                given,
                f"no attribute {name}",
                f"an attribute that is there: {', '.join(shown) or 'it has none'}",
                f"did you mean {' or '.join(close)}?" if close else "check the name",
            )
        value = getattr(value, name)
    part = _part(kind, value, attribute, module)
    file = str(getattr(module, "__file__", None) or "")
    return replace(part, origin=Origin(kind, given, module.__name__, file, attribute, part.sha256))


def _found_again(kind: Kind, given: str, module: str, path: str, attribute: str, sha256: str | None) -> Origin:
    """The origin, once its code is imported here. Raises UsageError where the code is not here, does not import, or is
    other code than the process had that sent it."""
    named = REFERENCE.fullmatch(given)
    if module in sys.modules:
        code = sys.modules[module]
    elif named and named["file"]:
        code = _file(kind, given, Path(path) if Path(path).exists() else Path(named["file"]), module)
    else:
        file = Path(path)
        with _importable(file.parents[module.count(".") + (file.name == "__init__.py")]):
            code = _module(kind, given, module)
    origin = _attribute(kind, given, code, attribute).origin
    assert origin is not None
    if origin.sha256 != sha256:
        raise _fault(
            kind, given, "other code", "the code that the command was given", "give every worker the same file"
        )
    return origin


def _unpickled(origin: Origin | None, state: Mapping[str, Any]) -> Part:
    return Part(origin=origin, **state)


def _part(kind: Kind, value: object, attribute: str, module: ModuleType | None) -> Part:
    """A part with the digest of its source: the file that defines a class or function; of another object the module that
    holds it, or, where it was handed over, the file of its class."""
    plain: Any = value
    if not (inspect.isclass(value) or inspect.isroutine(value)):
        plain = module or type(value)
    try:
        name = inspect.getsourcefile(plain)
        source = Path(name).read_bytes() if name else None
    except (OSError, TypeError):
        name = None
    if name is None:
        name, source = "", _typed(plain)
    return Part(kind, value, attribute, Path(name).name or None, _sha256(source))


def _typed(value: Any) -> bytes | None:
    """The source of what was typed into a notebook, which keeps it."""
    try:
        return inspect.getsource(value).encode()
    except (OSError, TypeError):
        return None


def _sha256(source: bytes | None) -> str | None:
    return None if source is None else hashlib.sha256(source).hexdigest()


def _called(value: object) -> str:
    name = str(getattr(value, "__qualname__", type(value).__qualname__)).replace("<locals>.", "")
    line = getattr(getattr(value, "__code__", None), "co_firstlineno", 0)
    return name.replace("<lambda>", f"lambda-of-line-{line}")


def _fault(kind: Kind, given: str, found: str, wanted: str, fix: str = "write it so") -> UsageError:
    return UsageError(where=f"--{kind} {given}", found=found, wanted=wanted, fix=fix)
