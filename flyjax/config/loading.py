"""Read config files and KEY=VALUE settings; every error is one line that names the key and the remedy.

experiment = load_experiment("experiments/quickstart.yaml", ["simulation.extent=2"])
"""

from __future__ import annotations

import copy
import hashlib
import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from flyjax.config.schema import Experiment
from flyjax.utils.errors import UserError, nearest


class _Loader(yaml.SafeLoader):
    """YAML 1.2 floats: '1e-3' is a number (PyYAML's 1.1 rules read it as a string)."""


_Loader.yaml_implicit_resolvers = {k: list(v) for k, v in yaml.SafeLoader.yaml_implicit_resolvers.items()}
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?$"),
    list("-+0123456789."),
)


def read_yaml(text: str) -> Any:
    """Parse YAML with 1.2 floats; data only, no objects."""
    return yaml.load(text, Loader=_Loader)


def read_yaml_file(path: str | Path) -> Any:
    """Parse a YAML file.

    **Raises:** `UserError` if it is not YAML.
    """
    try:
        return read_yaml(Path(path).read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from None


def read_config(path: str | Path) -> Any:
    """Read a config file, not validated.

    **Raises:** `UserError` if it is missing or is not YAML.
    """
    path = Path(path)
    if not path.is_file():
        known = sorted(str(p) for p in path.parent.glob("*.yaml"))
        hint = nearest(path, known) or (f" Known: {', '.join(known)}." if known else "")
        raise UserError(f"no config file {path}.{hint}")
    return read_yaml_file(path) or {}


def apply_overrides(data: dict, overrides: Iterable[str] | None) -> dict:
    """Return a copy of `data` with `section.key=value` settings applied.

    **Raises:** `UserError` for a setting that is not of this form.
    """
    data = copy.deepcopy(data)
    for item in overrides or ():
        key, eq, value = item.partition("=")
        if not eq or not key.strip():
            raise UserError(f"--set needs KEY=VALUE, for example simulation.extent=2; got {item!r}")
        target = data
        *path, last = key.strip().split(".")
        for part in path:
            target = target.setdefault(part, {})
            if not isinstance(target, dict):
                raise UserError(f"--set {item}: {part!r} is a value, not a section")
        try:
            target[last] = read_yaml(value)
        except yaml.YAMLError:
            raise UserError(f"--set {item}: the value is not valid YAML") from None
    return data


def _field_at(location: tuple[int | str, ...]) -> tuple[FieldInfo | None, list[str]]:
    """The field at a pydantic error location, and the known keys of its section."""
    model: Any = Experiment
    field: FieldInfo | None = None
    known: dict[Any, FieldInfo] = {}
    for part in location:
        known = getattr(model, "model_fields", {})
        field = known.get(part)
        model = getattr(field, "annotation", None)
    return field, list(known)


def _bounds(field: FieldInfo) -> str:
    """The range of a field in words."""
    words = {"ge": "at least", "gt": "more than", "le": "at most", "lt": "less than"}
    limits = {k: getattr(m, k, None) for m in field.metadata for k in words if getattr(m, k, None) is not None}
    return " and ".join(f"{words[k]} {v:g}" for k, v in limits.items())


def _one_line(error: ValidationError, source: str) -> str:
    first = error.errors()[0]
    field, known = _field_at(first["loc"])
    where = ".".join(str(p) for p in first["loc"])
    message = first["msg"].removeprefix("Value error, ")
    if not where:
        return f"{source}: {message}"
    if first["type"] == "extra_forbidden":
        return f"{source}: unknown key {where!r}.{nearest(str(first['loc'][-1]), known)}"
    if field is not None and first["type"].startswith(("greater_than", "less_than")):
        message = f"out of range, {_bounds(field)}"
    got = "" if isinstance(first["input"], (dict, BaseModel)) else f" (got {first['input']!r})"
    return f"{source}: {where}: {message}{got}"


def parse_experiment(data: Any, source: str = "config") -> Experiment:
    """Validate a plain dictionary.

    **Raises:** `UserError` for an unknown key (with the nearest known one), a wrong type or a value out of range
    (with the range).
    """
    if not isinstance(data, dict):
        raise UserError(f"{source}: a config is a mapping of sections, got {type(data).__name__}")
    try:
        return Experiment.model_validate(data)
    except ValidationError as error:
        raise UserError(_one_line(error, source)) from None


def load_experiment(path: str | Path, overrides: Iterable[str] | None = ()) -> Experiment:
    """Read a config file and apply `KEY=VALUE` overrides.

    **Raises:** `UserError` if the file is missing, is not YAML, or does not validate.
    """
    path, data = Path(path), read_config(path)
    if isinstance(data, dict):
        data.pop("made_with", None)  # in the config.yaml of a run
        data.setdefault("name", path.stem)
        data = apply_overrides(data, overrides)
    return parse_experiment(data, str(path))


def dump_yaml(experiment: Experiment) -> str:
    """The experiment as YAML, defaults filled in."""
    return yaml.safe_dump(experiment.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def content_hash(*parts: Any) -> str:
    """16 hex digits that are equal for equal JSON-able content."""
    text = json.dumps(parts, sort_keys=True, default=lambda x: x.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
