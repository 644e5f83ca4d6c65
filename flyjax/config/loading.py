"""Read config files and KEY=VALUE settings; every error is one line that names the key and the remedy.

    experiment = load_experiment("experiments/quickstart.yaml", ["simulation.extent=2"])

YAML 1.2 as data: text, numbers, true and false, null, lists and mappings. PyYAML reads YAML 1.1, where 26:40 is 1600,
010 is 8, no is false and 1e-3 is text. Here `1e-3`, `010` and `1_0` are what they look like, keys are text, a key may
stand once, and the size of what aliases stand for is bounded.
"""

import copy
import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from pydantic import BaseModel

from flyjax.config.experiment import Experiment
from flyjax.config.search_space import PROTOCOL_SIMULATION_RANGES
from flyjax.config.strict import SectionError
from flyjax.utils.errors import UserError, nearest
from flyjax.utils.format import printable

MAX_BYTES, MAX_NODES, MAX_DEPTH, MAX_DIGITS = 1_000_000, 20_000, 30, 400

TOO_MUCH = f"more than {MAX_DEPTH} levels or {MAX_NODES:,} values, where an alias counts as what it stands for"

_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_SCALARS: dict[str, tuple[re.Pattern[str], Callable[[str], Any]]] = {
    "null": (re.compile(r"~|null|Null|NULL|"), lambda text: None),
    "bool": (re.compile(r"true|True|TRUE|false|False|FALSE"), lambda text: text[0] in "tT"),
    "int": (re.compile(r"[-+]?[0-9]+"), int),
    "float": (_FLOAT, lambda text: float(re.sub(r"\.(?=[a-zA-Z])", "", text))),
}
_TAG = "tag:yaml.org,2002:"


class _Loader(yaml.SafeLoader):
    yaml_implicit_resolvers: dict = {}
    depth = n_nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        self.depth, self.n_nodes = self.depth + 1, self.n_nodes + 1
        if self.depth > MAX_DEPTH or self.n_nodes > MAX_NODES:
            raise yaml.MarkedYAMLError(problem=TOO_MUCH, problem_mark=self.peek_event().start_mark)
        node = super().compose_node(parent, index)
        self.depth -= 1
        return node


class _Dumper(yaml.SafeDumper):
    """Quotes what either version of YAML would not read as text."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


_Dumper.add_implicit_resolver(f"{_TAG}float", re.compile(f"^(?:{_FLOAT.pattern})$"), list("-+0123456789."))
for _name, (_pattern, _) in _SCALARS.items():
    _Loader.add_implicit_resolver(f"{_TAG}{_name}", re.compile(f"^(?:{_pattern.pattern})$"), None)


class _Reader:
    """The value of a node, each of whose parts counts as often as it is used."""

    def __init__(self) -> None:
        self.n_nodes = 0

    def refuse(self, node: yaml.Node, path: tuple[str, ...], problem: str) -> yaml.YAMLError:
        where = ".".join(path)
        return yaml.MarkedYAMLError(problem=f"{where}: {problem}" if where else problem, problem_mark=node.start_mark)

    def value(self, node: yaml.Node, path: tuple[str, ...] = ()) -> Any:
        self.n_nodes += 1
        kind = node.tag.removeprefix(_TAG)
        if len(path) > MAX_DEPTH or self.n_nodes > MAX_NODES:
            raise self.refuse(node, path[:3], TOO_MUCH)
        if isinstance(node, yaml.SequenceNode) and kind == "seq":
            return [self.value(item, (*path, str(k))) for k, item in enumerate(node.value)]
        if isinstance(node, yaml.MappingNode) and kind == "map":
            out: dict[str, Any] = {}
            merged: dict[str, Any] = {}
            for key, item in node.value:
                if not isinstance(key, yaml.ScalarNode):
                    raise self.refuse(key, path, "a key has to be text")
                if key.value == "<<" and not key.style:
                    for base in reversed(item.value if isinstance(item, yaml.SequenceNode) else [item]):
                        if not isinstance(base, yaml.MappingNode):
                            raise self.refuse(base, (*path, "<<"), "only mappings can be merged")
                        merged |= self.value(base, (*path, "<<"))
                    continue
                if key.value in out:
                    raise self.refuse(key, (*path, key.value), "the key stands twice: remove one of them")
                out[key.value] = self.value(item, (*path, key.value))
            return merged | out
        if isinstance(node, yaml.ScalarNode) and kind == "str":
            return node.value
        if isinstance(node, yaml.ScalarNode) and kind in _SCALARS:
            pattern, convert = _SCALARS[kind]
            if pattern.fullmatch(node.value) and len(node.value) <= MAX_DIGITS:
                return convert(node.value)
            raise self.refuse(node, path, f"{node.value[:40]!r} is no {kind} of at most {MAX_DIGITS} characters")
        raise self.refuse(node, path, f"the tag {node.tag} is not supported: write plain values")


def read_yaml(text: str, source: object = "text") -> Any:
    """Parse YAML into plain data.

    **Raises:** `UserError`, one line with the source, the line in it and the key.
    """
    try:
        node = yaml.compose(text, Loader=_Loader)
        return None if node is None else _Reader().value(node)
    except yaml.MarkedYAMLError as error:
        line = f", line {error.problem_mark.line + 1}" if error.problem_mark is not None else ""
        raise UserError(printable(f"{source}{line} is not valid YAML: {error.problem or error.context}")) from None
    except yaml.YAMLError as error:
        raise UserError(printable(f"{source} is not valid YAML: {error}")) from None


def read_yaml_file(path: str | Path) -> Any:
    """Parse a YAML file, UTF-8 and at most 1 MB.

    **Raises:** `UserError`, as `read_yaml`.
    """
    with open(path, "rb") as file:
        data = file.read(MAX_BYTES + 1)
    if len(data) > MAX_BYTES:
        raise UserError(f"{path} is larger than {MAX_BYTES:,} bytes: no config file is")
    try:
        return read_yaml(data.decode("utf-8-sig"), path)
    except UnicodeDecodeError as error:
        line = data[: error.start].count(b"\n") + 1
        raise UserError(f"{path}, line {line} is not valid YAML: not UTF-8 text; save it as UTF-8") from None


def dump_yaml(data: Any) -> str:
    """Plain data, or a section, as YAML that reads back as it was."""
    data = data.model_dump(mode="json") if isinstance(data, BaseModel) else data
    return yaml.dump(data, Dumper=_Dumper, sort_keys=False, allow_unicode=True)


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
        *path, last = key.strip().split(".")
        if not eq or not all((*path, last)):
            raise UserError(f"--set needs KEY=VALUE, for example simulation.extent=2; got {item!r}")
        target = data
        for part in path:
            if target.get(part) is None:
                target[part] = {}
            target = target[part]
            if not isinstance(target, dict):
                raise UserError(f"--set {item}: {part!r} is a value, not a section")
        target[last] = read_yaml(value, f"--set {key.strip()}")
    return data


def _follow_stimulus(data: dict, settings: Iterable[str]) -> dict:
    """The stimuli that are named make the range of a search that has none of its own and would not hold them.

    One that a setting chooses is that of every block that the file lists, and where the range lacks it, its only value.
    """
    simulation, search = (data.get(name) or {} for name in ("simulation", "search"))
    if not isinstance(simulation, dict) or not isinstance(search, dict):
        return data
    keys = {item.partition("=")[0].strip() for item in settings}
    chosen = "simulation.visual_input_type" in keys and "search.simulations" not in keys
    spans = search.get("simulation_ranges", PROTOCOL_SIMULATION_RANGES)
    span = spans.get("visual_input_type") if isinstance(spans, Mapping) else None
    blocks = [dict(b) for b in search.get("simulations") or () if isinstance(b, Mapping)]
    if chosen and blocks:
        blocks = [{k: v for k, v in b.items() if k != "visual_input_type"} for b in blocks]
        search = {**search, "simulations": blocks}
        data = {**data, "search": search}
    named = (section.get("visual_input_type") for section in (simulation, *blocks))
    names = list(dict.fromkeys(name for name in named if isinstance(name, str)))
    known = span.get("values") if isinstance(span, Mapping) else getattr(span, "values", None)
    if span is None or not (chosen or "simulation_ranges" not in search) or {*names} <= {*(known or ())}:
        return data
    spans = {**spans, "visual_input_type": {"scale": "choice", "values": names}}
    return {**data, "search": {**search, "simulation_ranges": spans}}


def parse_experiment(data: Any, source: str = "config", settings: Sequence[str] = ()) -> Experiment:
    """Validate a plain dictionary.

    **Arguments:** `settings` are the KEY=VALUE in it: the line names that which is the cause instead of `source`.

    **Raises:** `UserError` for an unknown key (with the nearest known one), a wrong type or a value out of range
    (with the range).
    """
    if not isinstance(data, dict):
        raise UserError(f"{source}: a config is a mapping of sections, got {type(data).__name__}")
    try:
        # The section is made after the plugins were loaded, which may add coefficients.
        return Experiment.model_validate(_follow_stimulus({"training": {}, **data}, settings))
    except SectionError as error:
        causes = [s for s in settings if f"{error.key}.".startswith(f"{s.partition('=')[0].strip()}.")]
        raise UserError(printable(f"{f'--set {causes[-1]}' if causes else source}: {error.problem}")) from None


def load_experiment(path: str | Path, overrides: Iterable[str] | None = ()) -> Experiment:
    """Read a config file and apply `KEY=VALUE` overrides.

    **Raises:** `UserError` if the file is missing, is not YAML, or does not validate.
    """
    path, data, settings = Path(path), read_config(path), list(overrides or ())
    if not isinstance(data, dict):
        return parse_experiment(data, str(path))
    data.pop("made_with", None)  # in the config.yaml of a run
    data.setdefault("name", path.stem)

    def parsed(given: list[str]) -> Experiment:
        return parse_experiment(apply_overrides(data, given), str(path), given)

    def problem(given: list[str]) -> str:
        try:
            parsed(given)
        except UserError as error:
            return str(error)
        return ""

    try:
        return parsed(settings)
    except UserError as error:
        if not str(error).startswith(f"{path}: "):
            raise
        # A relation between keys: the cause are the settings that do not hold together.
        cause = settings
        for one in settings:
            rest = [s for s in cause if s is not one]
            cause = rest if problem(rest) == str(error) else cause
        if not cause:
            raise
        raise UserError(f"--set {' --set '.join(cause)}{str(error).removeprefix(str(path))}") from None


def content_hash(*parts: Any) -> str:
    """16 hex digits that are equal for equal JSON-able content."""
    text = json.dumps(parts, sort_keys=True, default=lambda x: x.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
