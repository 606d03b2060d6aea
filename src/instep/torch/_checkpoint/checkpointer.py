"""`Checkpointer`: saves and restores the state of a training."""

from __future__ import annotations

import logging
import operator
import os
import shlex
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from instep.errors import CheckpointError
from instep.names import DEFAULT_NAMESPACE
from instep.wire.documents import Manifest
from instep.worker.adoption import find_checkpoints
from instep.worker.manifest import Owners, verified
from instep.worker.run import Run

from .cleanup import CheckpointCleanup
from .parts import checked_parts, left_out, read_label
from .plain import PlainSaver
from .retention import slot_directory_named

if TYPE_CHECKING:
    from .sharded import ShardedSaver

log = logging.getLogger("instep")

RESUME_S: Final = 600.0


class Checkpointer:
    """Saves `parts`, as in `model=model, optimizer=optimizer`, in directories below `folder`, which all hosts share.

    Promise: exactly one save of a step is committed, by the current leader of the run. `restore` loads only complete
    checkpoints that were committed, and every rank loads the same one. A failed save costs that checkpoint, not the
    training: it is logged as an error, and `save` returns False.

    Limit: parts are the state that all ranks have in common. State of a single rank (its random numbers, its position
    in the data) is not saved, unless it is in a part that is the same on all ranks.

    Args:
        run: The run that was joined.
        folder: Where the checkpoints are; all hosts see the same folder.
        keep: How many committed checkpoints to keep; None keeps all.
        keep_every: Also keeps the checkpoint of every `keep_every`th step permanently; 0 keeps none.
        sharded: All ranks write, with torch.distributed.checkpoint. Needed for FSDP.
        background: `save` returns when the state is copied to the CPU. A thread writes it, and a later boundary commits
            it. Call `wait` before the end.
        weights_only: False lets torch load objects of any class, which runs code in the files.
        trusted_uids: Users whose files are loaded too, besides those of this process's user.
        parts: What to save, by name: objects with `state_dict` and `load_state_dict`.

    Create it on all ranks, after `bind`, and use it in the training thread only. Raises CheckpointError for parts that
    cannot be saved.
    """

    def __init__(
        self,
        run: Run[Any],
        folder: str | os.PathLike[str],
        *,
        keep: int | None = 3,
        keep_every: int = 0,
        sharded: bool = False,
        background: bool = False,
        weights_only: bool = True,
        trusted_uids: Collection[int] = (),
        **parts: Any,
    ) -> None:
        _check_counts(keep, keep_every)
        self._run = run
        self._registry = run.checkpoints
        self._folder = Path(folder).expanduser().absolute()
        self._owners = owners = Owners(self._folder, trusted_uids)
        cleanup = CheckpointCleanup(run.name, self._folder, self._registry, owners, keep=keep, keep_every=keep_every)
        self._names = tuple(parts)
        self._parts = parts
        self._reported: set[str] = set()
        self._saves = 0
        self._warn_of_left_out()
        self._saver = _kind_of_saver(sharded)(
            run=run,
            parts=checked_parts(parts, sharded=sharded),
            folder=self._folder,
            cleanup=cleanup,
            background=background,
            weights_only=weights_only,
            owners=owners,
        )
        self._checked = ""
        self._has_saved = False
        self._restored_step = -1
        run.on_restore(self._go_back, check=self._check)
        self._registry.in_background(cleanup.at_boundary, lambda: None)
        if background:
            self._registry.in_background(
                self._saver.background_save.commit_if_written, self._saver.background_save.finish
            )

    def __repr__(self) -> str:
        return f"<Checkpointer {self._saver.layout} {', '.join(self._names)} in {self._folder}>"

    def save(self, step: int) -> bool:
        """Saves the state. Call it on every rank after the update of `step`.

        Returns False if this rank knows of no committed checkpoint of that step afterwards (with `background`: if the
        save could not start); the log says why. Waits until the checkpoint is committed, but for etcd only a few
        seconds. If a rank dies in a plain save, another one saves the same step. Raises what a part's `state_dict`
        raises, Evicted, and CheckpointError if another Checkpointer of this run saved that step.
        """
        number = _index(step)
        self._saves += 1
        if self._saves == 1:  # may find what was created after this Checkpointer
            self._warn_of_left_out()
        if not self._registry.claim(self, number):
            raise CheckpointError(
                f"another Checkpointer has saved step {number}, and each would take the other's checkpoint for its "
                "own: pass all parts to one Checkpointer, each under its own name"
            )
        self._check_start(number)
        return self._saver.save(number)

    def _check_start(self, step: int) -> None:
        """Checks at the first save. Raises CheckpointError, on all ranks, if `restore` was not called."""
        if self._has_saved:
            return
        passed_over = self._registry.passed_over
        if passed_over is not None:
            raise CheckpointError(
                f"run {self._run.name!r} has checkpoint {passed_over.id} from before this start, and restore() was not "
                "called: a save now would replace it. Call start = checkpoints.restore() before the first step. To "
                "train from the beginning, use another run name, or remove the old checkpoints' records: instep forget "
                f"{self._run.name} --all{self._namespace_option()}"
            )
        if not self._registry.has_asked:
            self._check_folder(None)
        self._has_saved = True
        if step <= self._restored_step:
            log.warning(
                "step %d is saved although this run resumed from the checkpoint of step %d: pass the result of "
                "restore() as run.steps(..., start=...)",
                step,
                self._restored_step,
            )

    def wait(self) -> bool:
        """Waits for the background save, if there is one, and commits it. False if it failed."""
        return self._saver.background_save.finish()

    def restore(self, timeout_s: float = RESUME_S) -> int:
        """Loads the newest checkpoint that is intact on every rank. Call it on every rank before the first step.

        Returns the step to run next; 0 if the run has no checkpoint. Where live values differ from the checkpoint's,
        the live ones win, and the log names them. Raises CheckpointError if there are checkpoints and none can be used
        (nothing is loaded then), or if one does not fit the parts; BarrierTimeout, with the missing ranks, if not all
        ranks call it within `timeout_s` seconds.
        """
        manifest = self._registry.resume(self._problem, timeout_s)
        if manifest is None:
            refused = [f"{name}: {why}" for name, why in self._registry.refused.items()]
            if refused:
                raise CheckpointError(
                    f"none of the checkpoints of {self._run.name!r} can be used ({'; '.join(refused)}): bring one "
                    "back. To train from the beginning, use another run name, or remove the records of these: "
                    f"instep forget {self._run.name} --all{self._namespace_option()}"
                )
            self._check_folder(None)
            if self._run.rank == 0:
                log.info("the run has no checkpoint: it starts at step 0")
            return 0
        self._check_folder(manifest)
        with self._registry.reading(manifest):
            self._load(manifest)
        return manifest.step + 1

    def _check_folder(self, manifest: Manifest | None) -> None:
        """Raises CheckpointError, on all ranks, if the folder holds committed checkpoints of this run that are newer
        than `manifest` and unknown to etcd: its data was lost, or restored from an older backup."""
        newest = (manifest.token, manifest.step) if manifest is not None else (-1, -1)
        place = self._run.name, self._registry.namespace, self._owners

        def is_newer(step: int, token: int, is_committed: bool) -> bool:
            return is_committed and (token, step) > newest

        if not self._folder.is_dir() or not (
            found := [item for item in find_checkpoints(self._folder, *place, wanted=is_newer) if item.record]
        ):
            return
        inventory = self._registry.inventory()
        pointer = slot_directory_named(f"step-{inventory.newest}", whole=True)
        newest = max(newest, (pointer.token, pointer.step)) if pointer is not None else newest
        unknown = [item for item in found if item.id not in inventory.ids and item.age > newest]
        if unknown:
            knows = f"etcd knows of none after {pointer.id}" if pointer is not None else "etcd knows of none"
            names = ", ".join(item.path.name for item in unknown[-3:])
            raise CheckpointError(
                f"{self._folder} holds complete checkpoints of run {self._run.name!r} ({names}), and {knows}: it was "
                "lost, or restored from an older backup. No training starts beside them. To resume from them: "
                f"instep adopt {self._run.name} {shlex.quote(str(self._folder))}{self._namespace_option()}; to "
                "train without them, use another folder or run name"
            )

    def _namespace_option(self) -> str:
        namespace = self._registry.namespace
        return "" if namespace == DEFAULT_NAMESPACE else f" --namespace {namespace}"

    def _check(self, manifest: Manifest) -> str | None:
        """What is wrong with a checkpoint that the operator wants to go back to. Reads it only once, because the other
        ranks approach the gate meanwhile."""
        if self._checked == manifest.digest:
            return None
        try:
            problem = self._problem(manifest)
        except (CheckpointError, OSError) as error:
            return str(error)
        if problem is None:
            self._checked = manifest.digest
        return problem

    def _go_back(self, manifest: Manifest) -> None:
        """Goes back to an agreed checkpoint. All ranks are at the same boundary."""
        self._saver.background_save.finish()
        problem = self._saver.problem_of_any_rank(self._check(manifest))
        if problem is not None:
            raise CheckpointError(f"the run cannot go back to checkpoint {manifest.id}: {problem}")
        self._load(manifest)
        self._checked = ""

    def _problem(self, manifest: Manifest) -> str | None:
        """None if this rank can load the checkpoint. CheckpointError if an older checkpoint would not help."""
        if manifest.layout == "custom":
            return "it was saved with run.checkpoint, not by a Checkpointer"
        if manifest.layout != self._saver.layout:
            raise CheckpointError(
                f"checkpoint {manifest.id} is {manifest.layout}: pass sharded={manifest.layout == 'sharded'} to the "
                "Checkpointer"
            )
        folder = self._folder_of(manifest)
        if isinstance(folder, str):
            return folder
        found = verified(folder, manifest.digest, self._owners, only=self._saver.verifies)
        if isinstance(found, str):
            return found
        there = (read_label(folder, self._owners) or {}).get("parts", [])
        missing = [name for name in self._names if name not in there]
        if missing:
            raise CheckpointError(
                f"checkpoint {manifest.id} has no {', '.join(missing)}, it has {', '.join(there)}: leave it out of the "
                "Checkpointer until the run has resumed from this checkpoint"
            )
        mismatch = self._saver.mismatch(folder, found.files)
        if mismatch is not None:
            raise CheckpointError(f"the checkpoint in {folder} cannot be loaded by this script: {mismatch}")
        return None

    def _folder_of(self, manifest: Manifest) -> Path | str:
        """Its directory in this Checkpointer's folder, or why there is none. The saver's path to the folder does not
        matter: hosts may mount it in different places, and it may have been moved as a whole."""
        path = Path(manifest.path)
        attempt = slot_directory_named(path.name, whole=True)
        if attempt is None or (attempt.step, attempt.token) != (manifest.step, manifest.token):
            return f"its record names {manifest.path!r}, which is not a directory that a Checkpointer creates for it"
        folder = self._folder / path.name
        if not os.path.lexists(folder) and path.parent != self._folder:
            return (
                f"{folder} is missing, or cannot be seen from this host; it was saved in {path.parent}: pass that "
                "folder to the Checkpointer"
            )
        return folder

    def _load(self, manifest: Manifest) -> None:
        folder = self._folder_of(manifest)
        if isinstance(folder, str):
            raise CheckpointError(f"checkpoint {manifest.id} cannot be loaded: {folder}")
        self._saver.load(folder)
        self._restored_step = manifest.step
        if self._run.rank == 0:
            log.info("the run resumes from checkpoint %s: step %d is next", manifest.id, manifest.step + 1)
            self._log_differences(manifest)

    def _warn_of_left_out(self) -> None:
        if self._run.rank == 0:
            for sentence in left_out(self._parts):
                if sentence not in self._reported:
                    self._reported.add(sentence)
                    log.warning("%s", sentence)

    def _log_differences(self, manifest: Manifest) -> None:
        changed = _differences(dict(self._run.config), manifest.config)
        if changed:
            log.warning("the live values take precedence over those of checkpoint %s: %s", manifest.id, changed)
        if manifest.world_size != self._run.world_size:
            log.warning(
                "checkpoint %s was saved by %d ranks and %d resume from it: the parts do not depend on the number of "
                "ranks, but the batch size of a step and the data of each rank do",
                manifest.id,
                manifest.world_size,
                self._run.world_size,
            )


def _kind_of_saver(sharded: bool) -> type[PlainSaver] | type[ShardedSaver]:
    if not sharded:
        return PlainSaver
    from .sharded import ShardedSaver  # half a second of imports, needed only for sharded checkpoints

    return ShardedSaver


def _differences(live: Mapping[str, Any], saved: Mapping[str, Any]) -> str:
    """Names with live and saved values where they differ; skips names that only one of them has."""
    return ", ".join(
        f"{name} {live[name]!r} (checkpoint: {saved[name]!r})"
        for name in sorted(live.keys() & saved.keys())
        if live[name] != saved[name]
    )


def _check_counts(keep: int | None, keep_every: int) -> None:
    if keep is not None and not (type(keep) is int and keep >= 1):
        raise CheckpointError(f"keep is {keep!r}: it must be a whole number of at least 1, or None to keep all")
    if not (type(keep_every) is int and keep_every >= 0):
        raise CheckpointError(f"keep_every is {keep_every!r}: it must be a whole number, 0 to keep none for good")


def _index(step: object) -> int:
    try:
        return operator.index(step)  # type: ignore[arg-type]  # the call checks it
    except TypeError:
        raise CheckpointError(f"a step is a whole number, not {step!r}") from None
