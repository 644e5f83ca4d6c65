"""What a lab can add of its own, by name: one registry per kind, which lists the built-in ones in the same table.

A file named in `plugins` of a config registers with a decorator:

    from flyjax.utils import registry

    @registry.metric("silent_share")
    def silent_share(evaluated): ...

Built-in entries are listed here by their place, "module:name", and imported at first use, so that a name can be checked
without importing what it stands for. The signatures of each kind are in docs/how_to/own_parts.md.
"""

import hashlib
import importlib.util
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from flyjax.utils.environment import expanded
from flyjax.utils.errors import UserError, nearest, reading

T = TypeVar("T")


class Registry(Mapping[str, Any]):
    """Entries of one kind by name, in the order in which they were registered.

    **Arguments:**

    - `kind`: what the entries are, as the config calls it.
    - `built_in`: places of the built-in entries, "module:name".
    - `prefix`: with which every name begins.
    """

    def __init__(self, kind: str, built_in: Mapping[str, str], prefix: str = ""):
        self.kind, self.built_in, self._prefix = kind, tuple(built_in), prefix
        self._entries: dict[str, Any] = dict(built_in)
        self._sources: dict[str, str] = {}

    def __call__(self, name: str) -> Callable[[T], T]:
        """Decorator that registers a function or class under a name.

        **Raises:** `UserError` for a name that is taken, is no identifier, or has another prefix.
        """
        if not name.isidentifier() or not name.startswith(self._prefix):
            begins = f"begins with {self._prefix}" if self._prefix else "begins with no digit"
            raise UserError(f"{self.kind} {name!r}: a name has letters, digits and _, and {begins}")
        if name in self._entries:
            raise UserError(f"there is a {self.kind} {name!r} already: choose another name")

        def register(entry: T) -> T:
            self._entries[name], self._sources[name] = entry, _loading
            return entry

        return register

    def __getitem__(self, name: str) -> Any:
        """**Raises:** `UserError` for an unknown name, naming the nearest."""
        if name not in self._entries:
            raise UserError(f"no {self.kind} {name!r}; there are: {', '.join(self)}.{nearest(name, self)}")
        entry = self._entries[name]
        return pkgutil.resolve_name(entry) if isinstance(entry, str) else entry

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    @property
    def own(self) -> tuple[str, ...]:
        """Names that plugins have registered."""
        return tuple(self._sources)

    def source(self, name: str) -> str | None:
        """SHA-256 of the file that registered a name; None for a built-in one."""
        return self._sources.get(name)

    def forget(self, sha256: str) -> None:
        """Remove what a file has registered."""
        for name in [name for name, source in self._sources.items() if source == sha256]:
            del self._entries[name], self._sources[name]


_SCENES, _LAB = "flyjax.stimulus.scenes", "flyjax.stimulus.lab_stimuli"
stimulus = Registry(
    "stimulus",
    {
        "DAVIS": "flyjax.stimulus.davis:DAVIS",
        "optical_flow": "flyjax.stimulus.sintel:SINTEL",
        "video": "flyjax.stimulus.davis:OWN",
        **{name: f"{_SCENES}:{name}" for name in ("scenes_texture", "scenes_edges", "scenes_flow")},
        **{name: f"{_LAB}:{name}" for name in ("flashes", "moving_edges", "gratings")},
        "m_sequence": f"{_LAB}:tiles",
        **{name: f"{_LAB}:{name}" for name in ("white_noise", "blank")},
    },
)
model = Registry(
    "model.variant",
    {
        "A": "flyjax.models.gnn:GNN",
        "B": "flyjax.models.gnn:PairGNN",
        "known_ode": "flyjax.models.gnn:KnownODE",
        "known_ode_tanh": "flyjax.models.gnn:KnownODE",
    },
)
regulariser = Registry(
    "regulariser",
    {
        "coeff_W_L1": "flyjax.models.losses:weight_L1",
        "coeff_edge_diff": "flyjax.models.losses:edge_diff",
        "coeff_edge_norm": "flyjax.models.losses:edge_norm",
        "coeff_message_L1": "flyjax.models.losses:message_L1",
        "coeff_message_L2": "flyjax.models.losses:message_L2",
        "coeff_update_L1": "flyjax.models.losses:update_L1",
        "coeff_update_L2": "flyjax.models.losses:update_L2",
        "coeff_edge_bend": "flyjax.models.losses:edge_bend",
        "coeff_update_bend": "flyjax.models.losses:update_bend",
        "coeff_light_diff": "flyjax.models.losses:light_diff",
    },
    prefix="coeff_",
)
read_out = Registry(
    "read-out",
    {
        "published": "flyjax.recovery.evaluate:published",
        "data": "flyjax.recovery.evaluate:data",
        "refit": "flyjax.recovery.evaluate:refitted",
    },
)
metric = Registry(
    "metric",
    {
        "prediction": "flyjax.recovery.evaluate:prediction_metrics",
        "circuit": "flyjax.recovery.evaluate:recovery_metrics",
        "ceiling": "flyjax.recovery.evaluate:ceiling_metrics",
        "clusters": "flyjax.recovery.evaluate:cluster_metrics",
    },
)
#: Most proposers do without the SDK of the language model.
proposer = Registry(
    "proposer",
    {
        "llm": "flyjax.search.llm.proposer:LLMProposer",
        "rules": "flyjax.search.proposers.rules:RulesProposer",
        "random": "flyjax.search.proposers.samplers:RandomProposer",
        "tpe": "flyjax.search.proposers.samplers:TPEProposer",
        "cmaes": "flyjax.search.proposers.samplers:CMAESProposer",
        "map": "flyjax.search.proposers.samplers:MapProposer",
        "hybrid": "flyjax.search.proposers.samplers:HybridProposer",
        "replay": "flyjax.search.proposers.replay:ReplayProposer",
    },
)
ALL = (stimulus, model, regulariser, metric, proposer, read_out)

#: SHA-256 of the file that is being loaded, and of those that were, by path.
_loading = ""
_loaded: dict[Path, str] = {}


def load_plugin(path: str, sha256: str | None = None) -> str:
    """Run a file of one's own, which registers what it adds; once per content.

    **Arguments:** `sha256`: of the file as a run began with it, where it goes on.

    **Returns:** its SHA-256.

    **Raises:** `UserError` if it is not there, is another file than that of the run, or fails (with the line in it).
    """
    global _loading
    file = expanded(path).resolve()
    if sha256 and _loaded.get(file) == sha256:
        return sha256  # edited since, it would be another run
    with reading(file, "name a Python file in plugins"):
        text = file.read_bytes()
    found = hashlib.sha256(text).hexdigest()
    if sha256 and found != sha256:
        raise UserError(
            f"{path} is not the file that the run began with (SHA-256 {found[:12]}…, then {sha256[:12]}…): restore it, "
            "or choose another --run"
        )
    if _loaded.get(file) == found:
        return found
    for one in ALL:
        one.forget(_loaded.get(file, found))
    _loading = found
    try:
        spec = importlib.util.spec_from_loader(f"flyjax_plugin_{file.stem}_{found[:8]}", None, origin=str(file))
        assert spec is not None
        module = importlib.util.module_from_spec(spec)
        module.__file__ = str(file)
        sys.modules[spec.name] = module  # dataclasses and pickles look it up
        exec(compile(text, str(file), "exec"), module.__dict__)
    except Exception as error:
        for one in ALL:
            one.forget(found)
        lines = [frame.lineno for frame in traceback.extract_tb(error.__traceback__) if frame.filename == str(file)]
        line = getattr(error, "lineno", None) or (lines[-1] if lines else 1)
        raise UserError(f"{path}, line {line}: {type(error).__name__}: {error}") from None
    finally:
        _loading = ""
    _loaded[file] = found
    return found
