"""What people write, as plain data: YAML files and KEY=VALUE settings, not validated yet."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

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
    """YAML with 1.2 floats; data only, no objects."""
    return yaml.load(text, Loader=_Loader)


def apply_overrides(data: dict, overrides) -> dict:
    """A copy of `data` with `section.key=value` settings applied."""
    data = json.loads(json.dumps(data))
    for item in overrides or ():
        key, eq, value = item.partition("=")
        if not eq or not key.strip():
            raise UserError(f"--set wants KEY=VALUE, for example simulation.extent=2; got {item!r}")
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


def read_config(path: str | Path) -> Any:
    """What a config file holds, not validated. **Raises:** `UserError` if it is missing or is not YAML."""
    path = Path(path)
    if not path.is_file():
        known = sorted(str(p) for p in path.parent.glob("*.yaml")) if path.parent.is_dir() else []
        hint = nearest(path, known) or (f" Known: {', '.join(known)}." if known else "")
        raise UserError(f"no config file {path}.{hint}")
    try:
        return read_yaml(path.read_text()) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not valid YAML: {' '.join(str(error).split())[:200]}") from None
