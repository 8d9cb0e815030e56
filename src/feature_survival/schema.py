"""What every YAML file of the user passes through: strict sections, and errors of one line."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from types import UnionType
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError


class InputError(Exception):
    """Something the user gave is wrong. The message is one line; the command line exits with code 2."""


def unknown(what: str, name: str, known: list[str]) -> InputError:
    """The error for a name outside a list, with the nearest known one."""
    near = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return InputError(f"{what}: unknown name {name!r}; {hint}known: {', '.join(known)}")


class Section(BaseModel):
    """Base of all sections: immutable, and unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, protected_namespaces=())


Schema = TypeVar("Schema", bound=Section)


def read_yaml(path: Path, schema: type[Schema]) -> Schema:
    """Read a YAML file and check it against a section.

    Raises InputError: one line with the file, the key, what was found and what is allowed.
    """
    from ruamel.yaml import YAML  # YAML 1.2, as DVC reads it: 3e-3 is a number, a doubled key an error
    from ruamel.yaml.error import MarkedYAMLError, YAMLError

    try:
        raw = YAML(typ="safe").load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file; run from the repository's top") from None
    except MarkedYAMLError as error:
        line = error.problem_mark.line + 1 if error.problem_mark else "?"
        raise InputError(f"{path}: line {line}: {(error.problem or 'not YAML').splitlines()[0]}") from None
    except (YAMLError, UnicodeDecodeError) as error:
        raise InputError(f"{path}: not readable as YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, dict):
        raise InputError(f"{path}: found {type(raw).__name__}; a mapping of sections is needed")
    return validate(raw, str(path), schema)


def validate(raw: Any, where: str, schema: type[Schema]) -> Schema:
    """Check plain data against a section; `where` leads the message."""
    try:
        return schema.model_validate(raw)
    except ValidationError as error:
        raise InputError(f"{where}: {_one_line(error, schema)}") from None


def _one_line(error: ValidationError, schema: type[Section]) -> str:
    """The first problem of a validation, as `key: problem, found ...`, and how many more there are."""
    problems = error.errors(include_url=False)
    first = problems[0]
    key = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        known = _fields_at(schema, first["loc"][:-1])
        text = str(unknown(key, str(first["loc"][-1]), known)).replace("unknown name", "unknown key")
    elif first["type"] == "missing":
        text = f"{key}: this key is missing"
    elif first["type"] == "value_error":
        message = first["msg"].removeprefix("Value error, ")
        text = f"{key}: {message}" if key else message
    else:
        message = first["msg"][0].lower() + first["msg"][1:]
        text = f"{key}: {message}, found {first['input']!r}"
    return text + (f" (and {len(problems) - 1} more)" if len(problems) > 1 else "")


def _fields_at(schema: type[Section], location: tuple[int | str, ...]) -> list[str]:
    """The keys allowed at a place in the file."""
    section: Any = schema
    for part in location:
        if hasattr(section, "model_fields"):
            section = section.model_fields[str(part)].annotation
        else:  # a catalogue, dict[str, Section]: any name, the same fields
            section = section.__args__[-1]
        if isinstance(section, UnionType):  # Section | None
            section = section.__args__[0]
    return list(section.model_fields)


def set_key(content: Any, key: str, value: Any, where: str) -> None:
    """Set `a.b.c` in nested mappings; InputError, led by `where`, where there is no such key."""
    *way, last = key.split(".")
    for number, part in enumerate(way):
        if not isinstance(content, dict) or part not in content:
            raise unknown(f"{where}: {'.'.join(way[: number + 1])}", part, list(content))
        content = content[part]
    if not isinstance(content, dict):
        raise InputError(f"{where}: {key!r}: {way[-1]!r} holds no further keys")
    content[last] = value


def value_at(content: Any, key: str) -> Any:
    """The value at a dotted key, None where there is none. A part may hold dots itself: `models.llama-3.2-1b`."""
    for name in content if isinstance(content, Mapping) else ():
        if key == str(name):
            return content[name]
        if key.startswith(f"{name}."):
            found = value_at(content[name], key[len(str(name)) + 1 :])
            if found is not None:
                return found
    return None
