"""Checkpoints that are whole or are not used.

The trainer writes a checkpoint file by file in its final place
(huggingface/transformers#35782): a process killed meanwhile leaves a folder
that cannot be resumed from, and one without its optimizer resumes and
silently goes another way. Here a marker is written last, with the size and
the SHA-256 of each file, and only folders that agree with theirs count.
"""

import hashlib
import json
import os
import re
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import TrainerCallback

MARKER = "COMPLETE"
# without one of these a run goes another way than it would have
NEEDED = (
    "trainer_state.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state*.pth",
    "*.safetensors",
)


def marking() -> "TrainerCallback":
    """Return a callback that marks each checkpoint once it is on the disk.

    >>> SFTTrainer(..., callbacks=[marking()])  # doctest: +SKIP
    """
    from transformers import TrainerCallback

    class Marking(TrainerCallback):
        def on_save(self, args, state, control, **kwargs):
            if state.is_world_process_zero:
                mark(f"{args.output_dir}/checkpoint-{state.global_step}")

    return Marking()


def mark(folder: str | Path) -> None:
    """Write a checkpoint's marker, when all its files are on the disk."""
    folder = Path(folder)
    unfinished = folder / f"{MARKER}.part"
    unfinished.unlink(missing_ok=True)  # of a process killed at this
    files = {
        path.relative_to(folder).as_posix(): _fingerprint(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != MARKER
    }
    with unfinished.open("w", encoding="utf-8") as file:
        json.dump(files, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    unfinished.replace(folder / MARKER)
    _sync_folder(folder)


def lacks(folder: str | Path) -> str:
    """Say what a checkpoint lacks to resume from; "" if it is whole."""
    folder = Path(folder)
    try:
        files = {
            name: (int(known["bytes"]), known["sha256"])
            for name, known in json.loads(
                (folder / MARKER).read_text("utf-8")
            ).items()
        }
    except (FileNotFoundError, NotADirectoryError):
        return f"{folder}: no file {MARKER}: it was not saved to its end"
    except (ValueError, TypeError, KeyError, AttributeError):
        return f"{folder / MARKER} is damaged"
    for pattern in NEEDED:
        if not any(Path(name).match(pattern) for name in files):
            return f"{folder}: saved without {pattern}"
    for name, (size, sha256) in files.items():
        path = folder / name
        if not path.is_file():
            return f"{path} is missing"
        if path.stat().st_size != size:
            return f"{path} has {path.stat().st_size:,} bytes of {size:,}"
        if _sha256(path) != sha256:
            return f"{path} is not the file that was saved"
    return ""


def newest(output_dir: str | Path) -> Path | None:
    """Return the last whole checkpoint of a folder; None to start anew.

    What `trainer.train(resume_from_checkpoint=...)` takes. Those passed
    over are named in a warning, and why.
    """
    steps = {}
    for path in Path(output_dir).glob("checkpoint-*"):
        if number := re.fullmatch(r"checkpoint-(\d+)", path.name):
            steps[int(number[1])] = path
    for _, path in sorted(steps.items(), reverse=True):
        fault = lacks(path)
        if not fault:
            return path
        warnings.warn(f"passed over: {fault}", stacklevel=2)
    return None


def _fingerprint(path: Path) -> dict:
    """Sync a file, and return its size in bytes and its SHA-256."""
    with path.open("rb+") as file:  # Windows syncs only what one may write
        os.fsync(file.fileno())
    return {"bytes": path.stat().st_size, "sha256": _sha256(path)}


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_folder(folder: Path) -> None:
    """Make names durable too, where the system knows how."""
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
