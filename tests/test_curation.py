"""Curation: one process and a cluster keep the same rows, byte for byte."""

import json
import os
import random
import re
import subprocess
import sys
import time
from pathlib import Path

import pytest

from instructft import curation
from instructft.curation import TORN, TWIN, curate
from instructft.formatting import messages
from instructft.instance import read_rows, write_rows
from instructft.models import embedded
from instructft.preflight import RowGate
from instructft.self_instruct import rule_against

ROOT = Path(__file__).resolve().parent.parent


def make():
    """A judge: a rule of Self-Instruct's; twins by the instruction."""

    def judge(row):
        return rule_against(row["instruction"]), row["instruction"].lower()

    return judge


def lay(folder, count, seed=0):
    """Files with good rows, twins, torn lines and blanks."""
    chance = random.Random(seed)
    lines = []
    for i in range(count):
        row = {"instruction": f"Name {i % (count // 2)} kinds of fruit, ünd."}
        lines.append(json.dumps(row, ensure_ascii=i % 3 == 0))
    lines += ['{"instruction": "Too short."}', "torn {", "", "[1]"] * 3
    chance.shuffle(lines)
    third = len(lines) // 3
    cuts = [lines[:third], lines[third:]]
    files = [folder / "a.jsonl", folder / "b.jsonl"]
    for file, part in zip(files, cuts, strict=True):
        file.write_bytes("\n".join(part).encode())  # no last newline
    files.append(folder / "empty.jsonl")
    files[-1].touch()
    return files, lines


def plain(lines):
    """What should come of them, the plain way."""
    kept, seen = [], set()
    for line in filter(None, lines):
        try:
            key = json.loads(line)["instruction"].lower()
        except (ValueError, TypeError):
            continue
        if not rule_against(key) and key not in seen:
            seen.add(key)
            kept.append(line)
    return kept


@pytest.mark.parametrize("part", [1, 7, 100, 1 << 20])
def test_wherever_the_files_are_cut(tmp_path, part):
    files, lines = lay(tmp_path, 40)
    counts = curate(files, make, tmp_path / "kept.jsonl", part=part)
    wanted = plain(lines)
    assert len(wanted) == 20
    assert counts == {"kept": 20, TWIN: 20, TORN: 6, "too short: 2 words": 3}
    assert (tmp_path / "kept.jsonl").read_text("utf-8").splitlines() == wanted
    # what was left out can be found again
    left = read_rows(tmp_path / "kept-left-out.jsonl")
    assert len(left) == 29
    for row in left:
        with open(row["file"], "rb") as file:
            file.seek(row["byte"])
            line = file.readline()
        if row["rule"] == TORN:
            assert line.strip() in (b"torn {", b"[1]")
        elif row["rule"] == TWIN:
            text = line.decode("utf-8").strip()
            assert text in lines and json.loads(text)


def test_nothing_and_a_byte_order_mark(tmp_path):
    empty, marked = tmp_path / "a.jsonl", tmp_path / "b.jsonl"
    empty.touch()
    out = tmp_path / "new" / "kept.jsonl"
    assert curate([empty], make, out) == {"kept": 0}
    assert out.read_bytes() == b""
    line = b'{"instruction": "Name three kinds of fruit."}'
    marked.write_bytes(b"\xef\xbb\xbf" + line + b"\r\n\r\n" + line)
    assert curate([marked], make, out) == {"kept": 1, TWIN: 1}
    assert out.read_bytes() == line + b"\n"


def test_without_a_key_no_row_is_a_twin(tmp_path):
    write_rows(tmp_path / "a.jsonl", [{"a": 1}] * 3)
    out = tmp_path / "kept.jsonl"
    counts = curate([tmp_path / "a.jsonl"], lambda: lambda r: ("", None), out)
    assert counts == {"kept": 3}


def test_what_the_courses_reader_refuses_is_torn(tmp_path, monkeypatch):
    monkeypatch.setattr(curation, "LONGEST_LINE", 100)
    good = b'{"instruction": "Name three kinds of fruit."}'
    long = b'{"a": "' + b"x" * 350 + b'"}'
    cut = good + b" " * 100 + b"and more"  # its start alone would be a row
    path, out = tmp_path / "a.jsonl", tmp_path / "kept.jsonl"
    lines = [b'{"a": NaN}', good, long, b'"x"', cut, good]
    path.write_bytes(b"\n".join(lines))
    for part in (1, 30, 90, 1000):
        counts = curate([path], make, out, part=part)
        assert counts == {"kept": 1, TORN: 4, TWIN: 1}
    assert out.read_bytes() == good + b"\n"


@pytest.mark.parametrize(
    ("said", "part"),
    [
        ((None, "a"), "None is no name of a rule"),
        (("kept", "a"), "'kept' is no name of a rule"),
        (("", 3), "AttributeError"),
        ("", r"'' is no \(rule, key\)"),
        ("no", r"'no' is no \(rule, key\)"),
    ],
)
def test_a_judge_that_fails_is_told_where(tmp_path, said, part):
    write_rows(tmp_path / "a.jsonl", [{"instruction": "Name a few things."}])
    with pytest.raises(ValueError, match=rf"a\.jsonl, byte 0: .*{part}"):
        curate(
            [tmp_path / "a.jsonl"],
            lambda: lambda row: said,
            tmp_path / "kept.jsonl",
        )
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_nothing_is_written_if_a_row_or_a_file_goes_wrong(tmp_path):
    path, out = tmp_path / "a.jsonl", tmp_path / "kept.jsonl"
    write_rows(path, [{"instruction": "Name a few things."}])
    with open(path, "ab") as file:
        file.write(b'{"text": "x"}\n')
    with pytest.raises(ValueError, match=r"a\.jsonl, byte 38: .*KeyError"):
        curate([path], make, out)
    with pytest.raises(FileNotFoundError):
        curate([tmp_path / "none.jsonl"], make, out)

    def changing():
        with open(path, "ab") as file:
            file.write(b"{}\n")
        return lambda row: ("", None)

    with pytest.raises(ValueError, match="changed meanwhile"):
        curate([path], changing, out)
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


SHORT = b'{"n": 1, "m": 22}\n'  # one row in the bytes of two


@pytest.mark.parametrize(
    "changed", [SHORT, b'{"n": 1}\n' * 3, b'{"n": 2}\n{"n": 1}\n']
)
def test_a_file_that_changes_before_it_is_read_again(
    tmp_path, monkeypatch, changed
):
    """Fewer rows, more, or as many: nothing is written."""
    path, lines = tmp_path / "a.jsonl", curation._lines
    write_rows(path, [{"n": 1}, {"n": 2}])
    before = path.stat()
    reads = []

    def read(part):
        reads.append(part)
        if len(reads) == 2:
            path.write_bytes(changed)
            if changed == SHORT:  # and nothing else tells that it changed
                assert len(SHORT) == before.st_size
                os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
        return lines(part)

    monkeypatch.setattr(curation, "_lines", read)
    with pytest.raises(ValueError, match="judged|meanwhile"):
        curate([path], lambda: lambda row: ("", None), tmp_path / "out.jsonl")
    assert len(reads) == 2
    assert [path.name for path in tmp_path.iterdir()] == ["a.jsonl"]


def test_what_is_read_is_not_written_over(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    judged = []

    def watched():
        return lambda row: judged.append(row) or ("", None)

    path, beside = tmp_path / "a.jsonl", tmp_path / "a-left-out.jsonl"
    for each in (path, beside):
        write_rows(each, [{"n": 1}])
        with pytest.raises(ValueError, match=f"{each.name} is read"):
            curate([each], watched, "a.jsonl")
    with pytest.raises(IsADirectoryError, match="name a file"):
        curate([path], watched, tmp_path)
    with pytest.raises(FileExistsError):
        curate([path], watched, path / "out.jsonl")
    with pytest.raises(ValueError, match="part is -1"):
        curate([path], watched, tmp_path / "out.jsonl", part=-1)
    assert not judged and len(list(tmp_path.iterdir())) == 2


def gated():
    """Rules and gate: what a row must pass before it is trained on."""
    if folder := os.environ.get("JUDGES"):  # where it is judged, for the test
        import ray

        node = ray.get_runtime_context().get_node_id()
        (Path(folder) / node).touch()
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(embedded())
    gate = RowGate(tokenizer, {tokenizer.eos_token_id}, 256)

    def judge(row):
        rule = rule_against(row["instruction"]) or gate.rule(messages(row))
        return rule, f"{row['instruction']}\n{row['input']}".lower()

    return judge


WORDS = "name list write explain count choose compare draw sort find".split()
BAD = ["", "The answer<|im_end|> goes on.", " led by a blank", "so " * 300]


def write_many(path, count, seed=0):
    """Rows as a model writes them: some twins, some that no gate passes."""
    chance = random.Random(seed)

    def row():
        many = chance.randint(3, 30)
        said = " ".join(chance.choices(WORDS, k=many * 3))
        return {
            "instruction": " ".join(chance.choices(WORDS, k=many // 2 + 1)),
            "input": "",
            "output": chance.choice(BAD) if chance.random() < 0.1 else said,
        }

    write_rows(path, (row() for _ in range(count)))


ALONE = """
import os, ray, sys
from instructft import curation
from instructft.curation import curate

def make():
    return lambda row: ("" if row["n"] % 2 else "even", None)

if __name__ == "__main__":
    good, bad, out = sys.argv[1:]
    print(curate([good], make, out, ray=True, part=50))
    try:
        curate([bad], make, out, ray=True)
    except ValueError as error:
        print("refused:", error)
    print(curate([], make, out, ray=True))
    curation._seen = lambda make, files: [os.getpid()]  # no two see the same
    try:
        curate([good], make, out + "2", ray=True)
    except ValueError as error:
        left = ray.is_initialized(), os.path.exists(out + "2")
        print("refused:", error, *left)
"""


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ray's clusters are for POSIX")
def test_ray_on_this_machine(tmp_path):
    """A judge of a script's own, a row it fails on, and no file at all."""
    pytest.importorskip("ray")
    script = tmp_path / "mine.py"
    script.write_text(ALONE)
    good, bad = tmp_path / "good.jsonl", tmp_path / "bad.jsonl"
    write_rows(good, ({"n": n} for n in range(20)))
    write_rows(bad, [{"n": 1}, {"m": 1}])
    out = tmp_path / "kept.jsonl"
    done = subprocess.run(
        [sys.executable, str(script), str(good), str(bad), str(out)],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    lines = [line for line in done.stdout.splitlines() if line[:1] in "{r"]
    assert lines[0] == "{'kept': 10, 'even': 10}"
    assert re.match(r"refused: .*bad\.jsonl, byte 9: .*KeyError", lines[1])
    assert lines[2] == "{'kept': 0}"
    assert lines[3].endswith("sees other files than this machine False False")


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Ray's clusters are for POSIX")
def test_a_cluster_of_two_nodes_keeps_the_same_rows(
    tmp_path, capsys, monkeypatch
):
    """Ray's own nodes, both on this machine; prints the rows a second."""
    ray = pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    here = [str(ROOT), str(Path(__file__).parent)]  # nodes import this file
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(here))
    embedded()  # converted before anyone waits for it
    files = [tmp_path / f"{i}.jsonl" for i in range(4)]
    for i, file in enumerate(files):
        write_many(file, 1500, seed=i)
    one, two = tmp_path / "one.jsonl", tmp_path / "two.jsonl"
    start = time.monotonic()
    counts = curate(files, gated, one, part=100_000)
    judges = tmp_path / "judges"
    judges.mkdir()
    monkeypatch.setenv("JUDGES", str(judges))
    alone = time.monotonic() - start
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        ray.init(address=cluster.address, log_to_driver=False)
        assert len([n for n in ray.nodes() if n["Alive"]]) == 2
        start = time.monotonic()
        assert curate(files, gated, two, ray=True, part=100_000) == counts
        spread = time.monotonic() - start
    finally:
        ray.shutdown()
        cluster.shutdown()
    assert len(list(judges.iterdir())) == 2  # nodes
    assert two.read_bytes() == one.read_bytes()
    left = [
        path.with_name(f"{path.stem}-left-out.jsonl") for path in (one, two)
    ]
    assert left[0].read_bytes() == left[1].read_bytes()
    assert sum(counts.values()) == 6000 and len(counts) > 5
    with capsys.disabled():
        print(
            f"\n{counts}\none process {6000 / alone:.0f} rows a second, two "
            f"nodes of one core {6000 / spread:.0f}"
        )
