"""The official flyvis models on this machine: found, checked, copied and listed.

Fifty networks flow/0000/000 .. 049 (Lappalainen et al. 2024, Nature), about 49 kB each. They are not part of this
project: flyvis' own command downloads them, and `install` copies them from there.
"""

import hashlib
import importlib.util
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from flyjax.circuit import build_connectome, read_flyvis
from flyjax.utils import environment
from flyjax.utils.atomic_io import sha256, write_atomic
from flyjax.utils.errors import UserError, as_user_errors, nearest

N_MODELS = 50
#: Name and SHA-256 of the archive that flyvis 1.2.0 downloads (flyvis_cli download_pretrained_models).
ARCHIVE = "results_pretrained_models.zip"
ARCHIVE_SHA256 = "71c78d4070556a536b13b23ee3139cd2788aa2a9d07d430a223b4edead281db1"
SUMS = "SHA256SUMS"
_MEMBER = re.compile(r"(?:^|/)(flow/0000/\d{3})/(best_chkpt|chkpts/chkpt_00000)$")
_MAX_BYTES = 64 << 20  # of one checkpoint; an official one has 49 kB


def cache_folder() -> Path:
    """The folder of the models: FLYJAX_DATA/flyvis, or ~/.cache/flyjax/flyvis."""
    return (environment.data_root() or environment.cache_dir()) / "flyvis"


def find_download() -> Path | None:
    """The download of flyvis on this machine: in FLYVIS_ROOT_DIR, or beside an installed flyvis."""
    root = environment.flyvis_root()
    roots = [root] if root else []
    spec = importlib.util.find_spec("flyvis")
    for place in (spec.submodule_search_locations if spec else None) or ():
        roots += [Path(place) / "data", Path(place).parent / "data"]
    for root in roots:
        for found in (root / "results", root / ARCHIVE):
            if found.is_file() or (found / "flow" / "0000").is_dir():
                return found
    return None


def _members(source: Path) -> Iterator[tuple[str, str, bytes]]:
    """(model, file in it, content) of every checkpoint in a folder or a zip, at any depth."""
    if source.is_dir():
        for path in sorted(p for pattern in ("best_chkpt", "chkpt_00000") for p in source.rglob(pattern)):
            # Absolute, so that flow/0000 or a single model may be given too.
            if (match := _MEMBER.search(path.resolve().as_posix())) and path.stat().st_size <= _MAX_BYTES:
                yield match[1], match[2], path.read_bytes()
        return
    try:
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                # Only the content is read: no path of the archive is written to.
                if (match := _MEMBER.search(info.filename)) and info.file_size <= _MAX_BYTES:
                    yield match[1], match[2], archive.read(info)
    except zipfile.BadZipFile:
        raise UserError(f"{source} is neither a folder nor a zip, or is torn: download it again") from None


def install(source: str | Path, target: Path | None = None) -> list[str]:
    """Copy the models of a flyvis download into the cache, each read and checked first.

    Writes `SHA256SUMS`, which `sha256sum -c` understands, over all models in the cache.

    **Arguments:**

    - `source`: a folder or zip with flow/0000/NNN/best_chkpt in it, at any depth.
    - `target`: by default `cache_folder()`.

    **Returns:** the names copied.

    **Raises:** `UserError` if there are no models in it, or one cannot be read as flyvis' (nothing of that model is
    copied then).
    """
    source, target = environment.expanded(source), target or cache_folder()
    if not source.exists():
        raise UserError(f"no folder or zip {source}")
    chosen: dict[str, bytes] = {}
    for name, file, content in _members(source):
        if file == "best_chkpt" or name not in chosen:
            chosen[name] = content
    if not chosen:
        raise UserError(
            f"no flow/0000/NNN/best_chkpt in {source}: give the folder or zip that flyvis download-pretrained made"
        )
    # The tables of types, pairs and offsets are the same at every extent.
    connectome, sums = build_connectome(0), _sums(target)
    with tempfile.TemporaryDirectory() as folder, as_user_errors():
        copy = Path(folder) / "best_chkpt"
        for name, content in sorted(chosen.items()):
            copy.write_bytes(content)
            try:
                read_flyvis(connectome, copy)
            except UserError as error:
                raise UserError(str(error).replace(str(copy), f"{name} in {source}")) from None
            write_atomic(target / name / "best_chkpt", content)
            sums[name] = hashlib.sha256(content).hexdigest()
            write_atomic(target / SUMS, "".join(f"{digest}  {k}/best_chkpt\n" for k, digest in sorted(sums.items())))
    return sorted(chosen)


def _sums(folder: Path) -> dict[str, str]:
    """Model -> SHA-256, as noted when they were copied."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    lines = (line.split(maxsplit=1) for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    try:
        return {file.strip().removesuffix("/best_chkpt"): digest for digest, file in lines}
    except ValueError:
        raise UserError(f"{path} is torn or edited: delete it and run scripts/fetch_flyvis.py again") from None


def installed(folder: Path | None = None) -> dict[str, str]:
    """Models in the cache by name: 'ok', 'changed' (another checksum), 'missing' or 'no checksum'."""
    folder = folder or cache_folder()
    sums = _sums(folder)
    found = {p.parent.relative_to(folder).as_posix(): p for p in folder.glob("flow/*/*/best_chkpt")}

    def state(name: str) -> str:
        if name not in found:
            return "missing"
        if name not in sums:
            return "no checksum"
        return "ok" if sha256(found[name]) == sums[name] else "changed"

    return {name: state(name) for name in sorted({*sums, *found})}


def checkpoint_file(name: str) -> Path:
    """The file of `simulation.parameters`: a path, or a model of the ensemble in the user's folders.

    **Raises:** `UserError` if there is none, or its checksum differs.
    """
    given = environment.expanded(name)
    if given.exists():
        return given
    data = environment.data_root()
    roots = [*([data, data / "flyvis"] if data else []), environment.cache_dir() / "flyvis"]
    for root in roots:
        folder = root / name
        for candidate in (folder / "best_chkpt", folder / "chkpts" / "chkpt_00000", folder.with_suffix(".npz"), folder):
            if candidate.is_file():
                expected = _sums(root).get(name) if candidate == folder / "best_chkpt" else None
                if expected and sha256(candidate) != expected:
                    raise UserError(
                        f"{candidate} was edited or damaged, its checksum differs: run python scripts/fetch_flyvis.py "
                        "again"
                    )
                return candidate
    if name.startswith("flow/"):
        raise UserError(
            f"no flyvis model {name!r} in {roots[-1]} (or FLYJAX_DATA): run python scripts/fetch_flyvis.py, "
            "or use simulation.parameters=sampled, which needs no download"
        )
    raise UserError(
        f"simulation.parameters: no file {name!r}.{nearest(name, ['sampled', 'flow/0000/000'])} "
        "Give 'sampled', 'flow/0000/000' or the path of a flyvis checkpoint."
    )
