"""Read config files and KEY=VALUE settings; every error is one line that names the key and the remedy.

experiment = load_experiment("experiments/quickstart.yaml", ["simulation.extent=2"])
"""

import copy
import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from flyjax.config.experiment import Experiment
from flyjax.config.search_space import PROTOCOL_SIMULATION_RANGES
from flyjax.config.strict import SectionError
from flyjax.config.strict_yaml import read_yaml, read_yaml_file
from flyjax.utils.errors import UserError, nearest
from flyjax.utils.format import printable


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


def _follow_stimulus(data: dict, overrides: Iterable[str] | None) -> dict:
    """A stimulus that is chosen by a setting and is not in the range of the search is the only one of the run."""
    chosen = any(item.partition("=")[0].strip() == "simulation.visual_input_type" for item in overrides or ())
    search = data.get("search") or {}
    if not chosen or not isinstance(search, dict):
        return data
    spans, name = (
        search.get("simulation_ranges", dict(PROTOCOL_SIMULATION_RANGES)),
        data["simulation"]["visual_input_type"],
    )
    span = spans.get("visual_input_type") if isinstance(spans, dict) else None
    values = span.get("values") if isinstance(span, dict) else getattr(span, "values", None)
    if span is None or name in (values or ()):
        return data
    spans = {**spans, "visual_input_type": {"scale": "choice", "values": [name]}}
    blocks = [{k: v for k, v in b.items() if k != "visual_input_type"} for b in search.get("simulations", ())]
    return {**data, "search": {**search, "simulation_ranges": spans, "simulations": blocks}}


def parse_experiment(data: Any, source: str = "config", settings: Sequence[str] = ()) -> Experiment:
    """Validate a plain dictionary.

    **Arguments:** `settings` are the KEY=VALUE in it: the line names that which is the cause instead of `source`.

    **Raises:** `UserError` for an unknown key (with the nearest known one), a wrong type or a value out of range
    (with the range).
    """
    if not isinstance(data, dict):
        raise UserError(f"{source}: a config is a mapping of sections, got {type(data).__name__}")
    try:
        return Experiment.model_validate(data)
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
    whole = _follow_stimulus(apply_overrides(data, settings), settings)
    try:
        return parse_experiment(whole, str(path), settings)
    except UserError as error:
        if str(error).startswith(f"{path}: "):
            # A relation between keys: the cause is the setting without which it holds.
            one = (s for s in settings if _is_valid(apply_overrides(data, [t for t in settings if t is not s])))
            cause = next(one, " --set ".join(settings) if _is_valid(data) else "")
            if cause:
                raise UserError(f"--set {cause}{str(error).removeprefix(str(path))}") from None
        raise


def _is_valid(data: dict) -> bool:
    try:
        parse_experiment(data)
    except UserError:
        return False
    return True


def content_hash(*parts: Any) -> str:
    """16 hex digits that are equal for equal JSON-able content."""
    text = json.dumps(parts, sort_keys=True, default=lambda x: x.model_dump(mode="json"))
    return hashlib.sha256(text.encode()).hexdigest()[:16]
