"""The official flyvis models on this machine: found, checked, copied and listed.

Fifty networks flow/0000/000 .. 049 (Lappalainen et al. 2024), about 49 kB each. They are not part
of this project: flyvis' own command downloads them, and `install` takes them from there.
"""

from __future__ import annotations

import hashlib
import importlib.util
import re
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

from flyjax.circuit import build_connectome, read_flyvis
from flyjax.utils import environment
from flyjax.utils.atomic_io import write_atomic
from flyjax.utils.errors import UserError

N_MODELS = 50
#: Name and SHA-256 of the archive that flyvis 1.2.0 downloads (flyvis_cli download_pretrained_models).
ARCHIVE = "results_pretrained_models.zip"
ARCHIVE_SHA256 = "71c78d4070556a536b13b23ee3139cd2788aa2a9d07d430a223b4edead281db1"
SUMS = "SHA256SUMS"
_MEMBER = re.compile(r"(?:^|/)(flow/0000/\d{3})/(best_chkpt|chkpts/chkpt_00000)$")
_MAX_BYTES = 64 << 20  # of one checkpoint; an official one has 49 kB


def cache_folder() -> Path:
    """Where models are kept: FLYJAX_DATA/flyvis, or ~/.cache/flyjax/flyvis."""
    return (environment.data_root() or environment.cache_dir()) / "flyvis"


def sha256(path: Path) -> str:
    """Hex digest of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def find_download() -> Path | None:
    """Where flyvis put its download on this machine: FLYVIS_ROOT_DIR, or beside an installed flyvis."""
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
                yield *match.groups(), path.read_bytes()
        return
    try:
        with zipfile.ZipFile(source) as archive:
            for info in archive.infolist():
                # Read by name and written to names of our own: nothing is extracted where the archive says.
                if (match := _MEMBER.search(info.filename)) and info.file_size <= _MAX_BYTES:
                    yield *match.groups(), archive.read(info)
    except zipfile.BadZipFile:
        raise UserError(f"{source} is neither a folder nor a zip, or is torn: download it again") from None


def install(source: str | Path, target: Path | None = None, on_model: Callable[[str], None] | None = None) -> list[str]:
    """Copy the models of a flyvis download into the cache, each read and checked before it is kept.

    Writes `SHA256SUMS`, which `sha256sum -c` understands, over all models in the cache.

    Args:
        source: a folder or zip with flow/0000/NNN/best_chkpt in it, at any depth.
        target: by default `cache_folder()`.
        on_model: called with each name.

    Returns:
        The names copied.

    **Raises:** `UserError` if there are no models in it, or one cannot be read as flyvis' (nothing
    of that model is kept then).
    """
    source, target = Path(source).expanduser(), target or cache_folder()
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
    for name, content in sorted(chosen.items()):
        path = target / name / "best_chkpt"
        part = path.with_name("best_chkpt.part")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            part.write_bytes(content)
            read_flyvis(connectome, part)
            part.replace(path)
        except UserError as error:
            raise UserError(str(error).replace(str(part), f"{name} in {source}")) from None
        except OSError as error:
            raise UserError(f"cannot write {path}: {error.strerror}") from None
        finally:
            part.unlink(missing_ok=True)
        sums[name] = hashlib.sha256(content).hexdigest()
        write_atomic(target / SUMS, "".join(f"{digest}  {k}/best_chkpt\n" for k, digest in sorted(sums.items())))
        if on_model:
            on_model(name)
    return sorted(chosen)


def _sums(folder: Path) -> dict[str, str]:
    """Model -> SHA-256, as noted when they were copied."""
    path = folder / SUMS
    if not path.is_file():
        return {}
    lines = (line.split(maxsplit=1) for line in path.read_text().splitlines() if line.strip())
    try:
        return {file.strip().removesuffix("/best_chkpt"): digest for digest, file in lines}
    except ValueError:
        raise UserError(f"{path} is torn or edited: delete it and run scripts/fetch_flyvis.py again") from None


def installed(folder: Path | None = None) -> dict[str, str]:
    """Models in the cache by name: 'ok', 'changed' (another checksum), 'missing' or 'no checksum'."""
    folder = folder or cache_folder()
    sums = _sums(folder)
    there = {p.parent.relative_to(folder).as_posix(): p for p in folder.glob("flow/*/*/best_chkpt")}
    out = {}
    for name in sorted({*sums, *there}):
        if name not in there:
            out[name] = "missing"
        elif name not in sums:
            out[name] = "no checksum"
        else:
            out[name] = "ok" if sha256(there[name]) == sums[name] else "changed"
    return out


def check_sum(root: Path, name: str, path: Path) -> None:
    """**Raises:** `UserError` if a model in the cache is no longer what was copied."""
    noted = _sums(root).get(name)
    if noted is not None and path == root / name / "best_chkpt" and sha256(path) != noted:
        raise UserError(f"{path} was edited or damaged, its checksum differs: run python scripts/fetch_flyvis.py again")
