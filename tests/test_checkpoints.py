"""Checkpoints: a run that was killed ends as if it had not been."""

import hashlib
import json
import multiprocessing
import os
import random
import shutil
import sys
import threading
import time
import warnings
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from tqdm import tqdm
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    TrainerCallback,
)
from trl import SFTConfig, SFTTrainer

from instructft.checkpoints import MARKER, lacks, mark, marking, newest

HERE = Path(__file__).resolve().parent
NEEDED = [
    "trainer_state.json",
    "optimizer.pt",
    "scheduler.pt",
    "rng_state.pth",
    "model.safetensors",
]
FILES = [*NEEDED, "config.json", "more/part.bin"]


@pytest.fixture
def make(tmp_path):
    """Return a maker of small checkpoints, marked unless told otherwise."""

    def make(step, without="", marked=True):
        folder = tmp_path / f"checkpoint-{step}"
        for name in FILES:
            if name != without:
                path = folder / name
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(f"{name} of step {step}".encode())
        if marked:
            mark(folder)
        return folder

    return make


def passing_over(output_dir):
    """Return the newest whole checkpoint, and what is said of others."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = newest(output_dir)
    return found, [str(warning.message) for warning in caught]


def change(path, at=0, bit=1):
    """Change one bit of a file: its size stays."""
    content = bytearray(path.read_bytes())
    content[at] ^= bit
    path.write_bytes(content)


# --- what a checkpoint lacks ----------------------------------------------


def test_whole(make, tmp_path):
    folder = make(2)
    assert lacks(folder) == lacks(str(folder)) == ""
    assert passing_over(tmp_path) == (folder, [])
    assert passing_over(str(tmp_path)) == (folder, [])
    assert sorted(json.loads((folder / MARKER).read_text())) == sorted(FILES)
    assert not list(folder.glob("*.part"))


@pytest.mark.parametrize(
    "name, known",
    [
        *zip(NEEDED[:3], NEEDED[:3], strict=True),
        ("rng_state.pth", "rng_state*.pth"),
        ("model.safetensors", "*.safetensors"),
    ],
)
def test_saved_without_a_needed_file(make, name, known):
    folder = make(2, without=name)
    assert lacks(folder) == f"{folder}: saved without {known}"


@pytest.mark.parametrize(
    "name, other",
    [
        ("rng_state.pth", ["rng_state_0.pth", "rng_state_1.pth"]),
        ("model.safetensors", ["adapter_model.safetensors"]),
        (
            "model.safetensors",
            [f"model-0000{i}-of-00002.safetensors" for i in (1, 2)],
        ),
    ],
    ids=["processes", "adapter", "shards"],
)
def test_needed_files_of_other_names(make, name, other):
    folder = make(2, without=name, marked=False)
    for path in other:
        (folder / path).write_bytes(b"x")
    mark(folder)
    assert lacks(folder) == ""
    (folder / other[-1]).unlink()
    assert lacks(folder) == f"{folder / other[-1]} is missing"


@pytest.mark.parametrize("name", FILES)
def test_each_fault_of_a_file_is_named(make, name):
    folder = make(2)
    path = folder / name
    sound = path.read_bytes()
    path.write_bytes(sound[:-1])
    size = len(sound)
    assert lacks(folder) == f"{path} has {size - 1} bytes of {size}"
    path.write_bytes(b"")
    assert lacks(folder) == f"{path} has 0 bytes of {size}"
    path.write_bytes(sound + b"x")
    assert lacks(folder) == f"{path} has {size + 1} bytes of {size}"
    for at in range(size):
        path.write_bytes(sound)
        change(path, at)
        assert lacks(folder) == f"{path} is not the file that was saved"
    path.unlink()
    assert lacks(folder) == f"{path} is missing"
    path.mkdir()
    assert lacks(folder) == f"{path} is missing"
    path.rmdir()
    path.write_bytes(sound)
    assert lacks(folder) == ""


def test_no_marker(make, tmp_path):
    torn = make(2, marked=False)
    (tmp_path / "file").write_bytes(b"x")
    for path in (torn, tmp_path / "nowhere", tmp_path / "file"):
        unfinished = f"{path}: no file {MARKER}: it was not saved to its end"
        assert lacks(path) == unfinished


def test_a_damaged_marker_is_refused_at_each_byte(make):
    folder = make(2)
    marker = folder / MARKER
    sound = marker.read_bytes()
    for end in range(len(sound)):
        marker.write_bytes(sound[:end])
        assert lacks(folder) == f"{marker} is damaged"
    for at in range(len(sound)):
        for bit in (1, 2, 128):
            marker.write_bytes(sound)
            change(marker, at, bit)
            assert str(folder) in lacks(folder), marker.read_bytes()


@pytest.mark.parametrize(
    "content", ["null", "1", "[]", '["optimizer.pt"]', '{"a": 1}', '{"a": {}}']
)
def test_a_marker_of_another_shape_is_refused(make, content):
    marker = make(2) / MARKER
    marker.write_text(content)
    assert lacks(marker.parent) == f"{marker} is damaged"


def test_marked_again_after_a_kill_while_marking(make):
    folder = make(2, marked=False)
    (folder / f"{MARKER}.part").write_bytes(b'{"optimizer')
    assert lacks(folder).endswith("it was not saved to its end")
    mark(folder)
    assert lacks(folder) == ""
    mark(folder)
    assert lacks(folder) == ""


def test_saved_again_over_an_old_marker(make):
    folder = make(2)
    (folder / "optimizer.pt").write_bytes(b"of another run")
    assert "optimizer.pt has 14 bytes" in lacks(folder)
    mark(folder)
    assert lacks(folder) == ""


# --- the newest -----------------------------------------------------------


def test_newest_passes_over_the_faulty_and_names_them(make, tmp_path):
    whole = [make(2), make(4)]
    cut, unmarked, missing, bare = make(6), make(8), make(9), make(10)
    (cut / "optimizer.pt").write_bytes(b"")
    (unmarked / MARKER).unlink()
    (missing / "rng_state.pth").unlink()
    change(bare / MARKER)
    found, said = passing_over(tmp_path)
    assert found == whole[1]
    assert said == [
        f"passed over: {bare / MARKER} is damaged",
        f"passed over: {missing / 'rng_state.pth'} is missing",
        f"passed over: {lacks(unmarked)}",
        f"passed over: {lacks(cut)}",
    ]
    assert all(folder.is_dir() for folder in (cut, unmarked, missing, bare))


def test_newest_of_nothing_whole(make, tmp_path):
    assert passing_over(tmp_path / "nowhere") == (None, [])
    assert passing_over(tmp_path) == (None, [])
    torn = [make(4, marked=False), make(2, marked=False)]
    said = [f"passed over: {lacks(folder)}" for folder in torn]
    assert passing_over(tmp_path) == (None, said)


def test_newest_counts_in_numbers(make, tmp_path):
    made = {step: make(step) for step in (9, 10, 2, 100, 11)}
    for step in sorted(made, reverse=True):
        assert passing_over(tmp_path) == (made[step], [])
        shutil.rmtree(made[step])


def test_other_names_are_no_checkpoints(make, tmp_path):
    folder = make(2)
    for name in ("best", "checkpoint", "checkpoint-", "checkpoint-x"):
        shutil.copytree(folder, tmp_path / name)
    for name in ("checkpoint-3-old", "checkpoint--3", "old-checkpoint-3"):
        shutil.copytree(folder, tmp_path / name)
    assert passing_over(tmp_path) == (folder, [])
    (tmp_path / "checkpoint-9").write_bytes(b"a file")
    found, said = passing_over(tmp_path)
    assert found == folder and len(said) == 1 and "checkpoint-9" in said[0]


# --- the trainer ----------------------------------------------------------

LORA = {
    "r": 4,
    "lora_dropout": 0.2,
    "target_modules": "all-linear",
    "task_type": "CAUSAL_LM",
}


class Killed(Exception):
    """What stops a run in the midst."""


def killing(event, step):
    """Return a callback that stops a run when an event comes at a step."""

    class Killing(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            if (event, step) == ("on_step_end", state.global_step):
                raise Killed

        def on_save(self, args, state, control, **kwargs):
            if (event, step) == ("on_save", state.global_step):
                raise Killed

    return Killing()


TINY = {"hidden_size": 16, "attention_dropout": 0.2}  # by random state


def trainer_of(model, tokenizer, output_dir, callbacks=(), lora=None, **more):
    """Return a trainer of eight steps, three an epoch, saved at each two."""
    rows = [
        {
            "messages": [
                {"role": "user", "content": f"Say number {i}."},
                {"role": "assistant", "content": f"It is {i}, surely."},
            ]
        }
        for i in range(3)
    ]
    known = {
        "max_steps": 8,
        "save_strategy": "steps",
        "save_steps": 2,
        "logging_steps": 1,
        "per_device_train_batch_size": 1,
        "learning_rate": 1e-3,
        "assistant_only_loss": True,
        "bf16": False,
        "use_cpu": True,
        "report_to": "none",
        "disable_tqdm": True,
    }
    return SFTTrainer(
        model=model,
        args=SFTConfig(str(output_dir), **known | more),
        train_dataset=Dataset.from_list(rows),
        processing_class=tokenizer,
        peft_config=lora,
        callbacks=[*callbacks, marking()],
    )


@pytest.fixture(scope="module")
def build(make_tiny, tokenizer):
    """Return a maker of trainers; keywords go to SFTConfig."""

    def make(output_dir, callbacks=(), lora=False, **more):
        config = LoraConfig(**LORA) if lora else None
        model = make_tiny(**TINY)
        return trainer_of(
            model, tokenizer, output_dir, callbacks, config, **more
        )

    return make


def result(trainer):
    """Return the weights, and the losses by their step."""
    weights = {
        name: weight.clone()
        for name, weight in trainer.model.state_dict().items()
    }
    history = trainer.state.log_history
    return weights, {e["step"]: e["loss"] for e in history if "loss" in e}


def same(one, other):
    """Say whether two results agree to the bit."""
    weights, losses = one
    return losses == other[1] and all(
        torch.equal(weight.view(torch.uint8), other[0][name].view(torch.uint8))
        for name, weight in weights.items()
    )


@pytest.fixture(scope="module")
def uninterrupted(build, tmp_path_factory):
    """Return the results of both kinds of run, and their folders."""
    known = {}
    for lora in (False, True):
        folder = tmp_path_factory.mktemp("uninterrupted")
        trainer = build(folder, lora=lora)
        trainer.train()
        known[lora] = result(trainer), folder
        assert sorted(known[lora][0][1]) == list(range(1, 9))
    yield known
    for _, folder in known.values():
        shutil.rmtree(folder)


def test_each_save_is_marked(uninterrupted):
    for lora, (_, folder) in uninterrupted.items():
        saved = sorted(folder.glob("checkpoint-*"))
        assert [path.name[-1] for path in saved] == list("2468")
        assert [lacks(path) for path in saved] == [""] * 4
        weights = "adapter_model" if lora else "model"
        assert all((p / f"{weights}.safetensors").exists() for p in saved)
        assert newest(folder) == folder / "checkpoint-8"


@pytest.mark.parametrize(
    "event, step, resumed, lora",
    [
        ("on_step_end", 2, None, False),  # before the first save
        ("on_step_end", 5, 4, False),  # within an epoch
        ("on_step_end", 5, 4, True),
        ("on_step_end", 8, 6, False),  # at an epoch's end
        ("on_save", 6, 4, False),  # all its files are there, no marker is
        ("on_save", 2, None, True),
    ],
)
def test_interrupted_and_resumed(
    build, uninterrupted, tmp_path, event, step, resumed, lora
):
    stopped = build(tmp_path, [killing(event, step)], lora)
    with pytest.raises(Killed):
        stopped.train(resume_from_checkpoint=newest(tmp_path))
    found, said = passing_over(tmp_path)
    assert found == (resumed and tmp_path / f"checkpoint-{resumed}")
    assert len(said) == (event == "on_save")
    trainer = build(tmp_path, lora=lora)
    trainer.train(resume_from_checkpoint=found)
    assert same(result(trainer), uninterrupted[lora][0])
    # also what was torn is whole now
    assert passing_over(tmp_path) == (tmp_path / "checkpoint-8", [])
    assert all(lacks(path) == "" for path in tmp_path.glob("checkpoint-*"))


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state"])
def test_what_a_resumed_run_must_not_lack(
    build, uninterrupted, tmp_path, name
):
    """The trainer itself says nothing, and goes another way."""
    known, folder = uninterrupted[False]
    folder = folder / "checkpoint-4"
    folder = shutil.copytree(folder, tmp_path / folder.name)
    [path] = folder.glob(f"{name}*")
    path.unlink()
    trainer = build(tmp_path)
    trainer.train(resume_from_checkpoint=folder)
    assert not same(result(trainer), known)
    assert lacks(folder) == f"{path} is missing"


def test_weights_alone_are_refused(build, tmp_path):
    build(tmp_path, save_only_model=True, max_steps=2).train()
    folder = tmp_path / "checkpoint-2"
    without = f"passed over: {folder}: saved without optimizer.pt"
    assert passing_over(tmp_path) == (None, [without])


# --- killed at any moment -------------------------------------------------

STEPS = 24


def run(start, output_dir, log, report):
    """Train to the end from the newest checkpoint, in a process apart."""
    with open(log, "wb") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    tqdm.set_lock(threading.RLock())  # no semaphore that a kill would leak
    trainer = trainer_of(
        AutoModelForCausalLM.from_pretrained(start),
        AutoTokenizer.from_pretrained(start),
        output_dir,
        max_steps=STEPS,
        save_total_limit=3,
    )
    folder = newest(output_dir)
    print("starts from", folder, flush=True)
    trainer.train(resume_from_checkpoint=folder)
    trainer.save_model(output_dir)
    weights = Path(output_dir, "model.safetensors").read_bytes()
    history = trainer.state.log_history
    final = {
        "sha256": hashlib.sha256(weights).hexdigest(),
        "losses": [entry["loss"] for entry in history if "loss" in entry],
    }
    Path(report).write_text(json.dumps(final))


def changed(folder):
    """Return when a folder was last changed; None if it is not there."""
    return folder.stat().st_mtime_ns if folder.exists() else None


def marked(output_dir):
    """Return the last step that was saved to its end, 0 if none was."""
    paths = output_dir.glob(f"checkpoint-*/{MARKER}")
    return max((int(p.parent.name.split("-")[1]) for p in paths), default=0)


@pytest.fixture
def launch(make_tiny, tokenizer, tmp_path, monkeypatch):
    """Return a launcher of runs; no process outlives the test."""
    make_tiny(**TINY).save_pretrained(tmp_path / "start")
    tokenizer.save_pretrained(tmp_path / "start")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    paths = [str(HERE), str(HERE.parent), os.environ.get("PYTHONPATH", "")]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, paths)))
    # where it can, a process starts with torch and trl already imported
    context = multiprocessing.get_context(
        "forkserver" if sys.platform == "linux" else "spawn"
    )
    context.set_forkserver_preload([__name__])
    children = []

    def launch(output_dir):
        files = [output_dir.with_suffix(end) for end in (".log", ".json")]
        words = [str(path) for path in (tmp_path / "start", output_dir)]
        child = context.Process(target=run, args=(*words, *map(str, files)))
        child.start()
        children.append(child)
        return child

    yield launch
    for child in children:
        child.kill()
        child.join()
    if sys.platform == "linux":
        multiprocessing.forkserver._forkserver._stop()
    for path in tmp_path.iterdir():
        if path.is_dir():
            shutil.rmtree(path)


def test_killed_at_any_moment_it_ends_the_same(launch, tmp_path):
    """RESUMES=50 makes it long."""
    kills = int(os.environ.get("RESUMES", 3))
    chance = random.Random(0)
    reference = launch(tmp_path / "reference")  # beside the others
    done = inside = resumed = runs = 0
    finals = []
    while done < kills:
        output_dir = tmp_path / f"run-{runs}"
        log = output_dir.with_suffix(".log")
        torn = None
        while True:
            step = marked(output_dir)
            saves = chance.randrange(1, 4)
            target = output_dir / f"checkpoint-{step + saves * 2}"
            before = {p: changed(p) for p in output_dir.glob("checkpoint-*")}
            # half of them as a save begins, half as one has ended
            at_save = done % 2 == 0
            child = launch(output_dir)
            while done < kills and child.exitcode is None:
                if at_save and changed(target) != before.get(target):
                    break
                if not at_save and (target / MARKER).exists():
                    break
                time.sleep(0.001)
            if done < kills:
                time.sleep(10 ** chance.uniform(-3, -0.7))  # 1 to 200 ms
            if done < kills and child.exitcode is None:
                child.kill()
                done += 1
            child.join()
            said = log.read_text("utf-8", "replace")
            begun = f"starts from {output_dir}" in said
            resumed += begun
            assert begun == (step > 0), said
            if torn:
                assert f"passed over: {torn}: no file {MARKER}" in said
            if child.exitcode == 0:
                break
            assert "Traceback" not in said, said
            step = marked(output_dir)
            torn = output_dir / f"checkpoint-{step + 2}"
            if changed(torn) is None:
                torn = None
            elif changed(torn) != before.get(torn):
                inside += 1
        finals.append(json.loads(log.with_suffix(".json").read_text()))
        shutil.rmtree(output_dir)
        runs += 1
        print(f"{done} kills, {inside} inside a save, {resumed} resumed")
    reference.join()
    assert reference.exitcode == 0, (tmp_path / "reference.log").read_text()
    known = json.loads((tmp_path / "reference.json").read_text())
    assert len(known["losses"]) == STEPS
    identical = sum(final == known for final in finals)
    print(
        f"{done} kills, {inside} of them inside a save; {resumed} resumed; "
        f"{identical} of {runs} runs end identical"
    )
    assert identical == runs
    assert inside, "no kill landed inside a save"
