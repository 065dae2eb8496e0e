"""What this machine is and can do.

The facts a recipe depends on (device, dtype, memory, bitsandbytes backend)
and the doctor, who says what to do about what is missing:
`python -m instructft.machine`.
"""

import importlib.util
import os
import platform
import shutil
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

PACKAGES = (
    "torch",
    "transformers",
    "trl",
    "peft",
    "bitsandbytes",
    "datasets",
    "accelerate",
    "openai",
    "jupyterlab",
)


def cache_folder() -> Path:
    """Return the folder, outside git, for converted models and archives.

    `INSTRUCTFT_CACHE` if set, else the system's cache folder for users.
    """
    if os.environ.get("INSTRUCTFT_CACHE"):
        return Path(os.environ["INSTRUCTFT_CACHE"]).expanduser()
    from platformdirs import user_cache_path

    return user_cache_path("instructft", appauthor=False)


def versions() -> dict[str, str]:
    """Return the installed version of each package the course leans on.

    >>> set(versions()) <= set(PACKAGES)
    True
    """
    found = {}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def device() -> str:
    """Return "cuda", "mps" or "cpu": where torch will compute."""
    import torch

    if torch.cuda.is_available():
        return "cuda"
    return "mps" if torch.backends.mps.is_available() else "cpu"


def dtype() -> "torch.dtype":
    """Return the torch dtype to compute in on this machine.

    bfloat16 where the GPU has it (compute capability 8.0 and up), float16
    on older cards such as a T4 (7.5), float32 on a CPU: a CPU without
    bfloat16 instructions would be many times slower in bfloat16, and
    float32 gives the same result on each run.
    """
    import torch

    if device() != "cuda":
        return torch.float32
    major, _ = torch.cuda.get_device_capability()
    return torch.bfloat16 if major >= 8 else torch.float16


def memory_gb() -> float:
    """Return this machine's main memory in GB (10^9 bytes).

    A container's own limit counts where it is lower than the machine's.
    """
    import psutil

    total = psutil.virtual_memory().total
    limit = Path("/sys/fs/cgroup/memory.max")
    if limit.exists() and limit.read_text().strip().isdigit():
        total = min(total, int(limit.read_text()))
    return round(total / 1e9, 1)


def peak_memory_gb() -> float:
    """Return the most main memory this process ever held, in GB.

    The operating system's own count where there is one (Linux, macOS,
    Windows).
    """
    if sys.platform == "win32":
        import psutil

        return psutil.Process().memory_info().peak_wset / 1e9
    import resource

    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 1e9 if sys.platform == "darwin" else peak * 1024 / 1e9


def four_bit() -> str:
    """Return where bitsandbytes can run 4-bit layers, or "" if nowhere.

    >>> four_bit() in ("cuda", "cpu", "")
    True
    """
    if importlib.util.find_spec("bitsandbytes") is None:
        return ""
    try:
        import bitsandbytes  # noqa: F401
    except Exception:  # a broken native library raises many kinds
        return ""
    return "cuda" if device() == "cuda" else "cpu"


def facts() -> dict[str, object]:
    """Return what matters of this machine, in a flat dict."""
    import torch

    found = {
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "device": device(),
        "dtype": str(dtype()).removeprefix("torch."),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "memory_gb": memory_gb(),
        "free_disk_gb": round(shutil.disk_usage(Path.cwd()).free / 1e9, 1),
        "four_bit": four_bit() or "no",
    }
    if found["device"] == "cuda":
        card = torch.cuda.get_device_properties(0)
        found["gpu"] = card.name
        found["gpu_memory_gb"] = round(card.total_memory / 1e9, 1)
    else:
        found["cpu_instructions"] = torch.backends.cpu.get_cpu_capability()
    return found


def remedies(found: dict[str, object]) -> list[str]:
    """Say what this machine lacks, and what to do about each lack.

    `found` is what `facts()` returned; an empty list means nothing lacks.

    >>> good = {"device": "cpu", "four_bit": "cpu", "memory_gb": 16.0,
    ...         "free_disk_gb": 50.0, "cores": 4}
    >>> remedies(good)
    []
    >>> remedies(good | {"four_bit": "no"})[0].split(":")[0]
    '4-bit layers do not load'
    """
    said = []
    if found["four_bit"] == "no":
        said.append(
            "4-bit layers do not load: notebook 07 needs bitsandbytes; "
            "reinstall it in this environment with "
            "`python -m pip install --force-reinstall --no-deps "
            "bitsandbytes`"
        )
    if found["memory_gb"] < 8:
        said.append(
            f"only {found['memory_gb']} GB of memory: the embedded run "
            "peaks near 5 GB; close other programs, or run one notebook "
            "at a time with `python -m instructft run 07`"
        )
    if found["free_disk_gb"] < 2:
        said.append(
            f"only {found['free_disk_gb']} GB free on this disk: the "
            "converted model and a run's results take about 2 GB; make "
            "room, or point INSTRUCTFT_CACHE at another disk"
        )
    if found["device"] == "cpu" and shutil.which("nvidia-smi"):
        said.append(
            "an NVIDIA driver is here but this torch cannot use it (a "
            "CPU-only build, the usual one on Windows): install the CUDA "
            "build of torch that torch's own start page names for your "
            "system, then run doctor again"
        )
    if found["device"] == "mps":
        said.append(
            "an Apple GPU is here: the embedded run stays on the CPU, "
            "since bitsandbytes has no 4-bit layers for it"
        )
    if found.get("gpu_memory_gb", 99) < 7.5:
        said.append(
            f"{found['gpu_memory_gb']} GB of GPU memory: too little for "
            "a 7B model in 4 bit; choose a smaller one in notebook 07"
        )
    if found["cores"] == 1:
        said.append("one core: expect about twice the minutes stated")
    return said


def doctor() -> str:
    """Return a page on this machine: facts, versions, remedies."""
    found = facts()
    lines = ["this machine"]
    lines += [f"  {name:17}{value}" for name, value in found.items()]
    lines += ["versions"]
    lines += [f"  {name:17}{value}" for name, value in versions().items()]
    said = remedies(found)
    lines += ["to do" if said else "nothing to do: every notebook runs here"]
    lines += [f"  - {sentence}" for sentence in said]
    embedded = "yes" if found["four_bit"] != "no" else "no, see above"
    big = found.get("gpu_memory_gb", 0) >= 7.5
    lines += [
        f"embedded run: {embedded}",
        "gpu run: " + ("yes" if big else "no, it needs an NVIDIA GPU (8 GB)"),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    print(doctor())
