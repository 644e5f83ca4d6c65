"""Checkpoints of a running training (orbax): atomic; the newest two remain."""

import logging
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from flyjax.utils import distributed
from flyjax.utils.errors import UserError, as_user_errors, user_message

log = logging.getLogger(__name__)


class Store:
    """A folder of numbered checkpoints of one training."""

    @as_user_errors()
    def __init__(self, folder: Path):
        # Orbax fails late, in a background thread, on a relative path.
        self._folder = Path(folder).absolute()
        self._open()

    def _open(self) -> None:
        # Not asynchronous: after an error orbax' threads wait for each other and keep the process for five minutes.
        self._manager = ocp.CheckpointManager(
            self._folder,
            options=ocp.CheckpointManagerOptions(max_to_keep=2, create=True, enable_async_checkpointing=False),
        )

    @as_user_errors()
    def save(self, number: int, tree: Any) -> None:
        """Write a checkpoint; a complete one is never changed.

        **Raises:** `UserError` where the disk is full.
        """
        self._manager.save(number, args=ocp.args.StandardSave(tree))

    def restore_latest(self, like: Any) -> tuple[int, Any] | None:
        """The newest checkpoint that can be read, in the shapes and places of `like`."""
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        numbers = sorted(self._manager.all_steps(), reverse=True)
        for number in numbers:
            try:
                return number, self._manager.restore(number, args=ocp.args.StandardRestore(abstract))
            except Exception as error:  # orbax raises a dozen kinds for a damaged checkpoint
                if (message := user_message(error)) is not None:
                    raise UserError(message) from None  # this one is not damaged
                log.warning(
                    "checkpoint %d in %s cannot be read (%s): %s",
                    number,
                    self._folder,
                    type(error).__name__,
                    "going back to the one before"
                    if number != numbers[-1]
                    else "there is none before it, beginning anew",
                )
                self._manager.delete(number)
                self._manager.close()
                self._open()
        return None

    def close(self) -> None:
        """End the use of the folder."""
        self._manager.close()


@as_user_errors()
def save_params(folder: Path, params: Any) -> None:
    """Write trained parameters, replacing what is there; in one process, also where there are several.

    **Raises:** `UserError` where the disk is full.
    """
    alone = ocp.options.MultiprocessingOptions()
    if distributed.count() > 1:
        alone = ocp.options.MultiprocessingOptions(0, active_processes={0}, barrier_sync_key_prefix="params")
    handler = ocp.StandardCheckpointHandler(multiprocessing_options=alone)
    # Not asynchronous, see `Store`.
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as checkpointer:
        checkpointer.save(Path(folder).absolute(), params, force=True)


def load_params(folder: Path, like: Any) -> Any:
    """Parameters written by `save_params`.

    **Raises:** `UserError` if they are missing, damaged or of another model's shapes.
    """
    folder = Path(folder).absolute()
    if not folder.is_dir():
        raise UserError(f"no trained parameters in {folder}")
    abstract = jax.tree.map(lambda x: jax.ShapeDtypeStruct(np.shape(x), x.dtype), like)
    try:
        with ocp.StandardCheckpointer() as checkpointer:
            return checkpointer.restore(folder, abstract)
    except Exception as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"the parameters in {folder} cannot be read ({type(error).__name__}: {reason})") from None
