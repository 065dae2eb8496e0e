"""The recipe as a script: two processes learn what one learns."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from test_notebook_runs import lay_course

from instructft import course
from instructft.models import embedded

ROOT = Path(__file__).resolve().parent.parent
[NOTEBOOK] = (ROOT / "notebooks").glob("07_*.ipynb")
VALUES = {"RATED": "ours", "SOURCE": "mixture", "TOKENS": 1600, "HELD_OUT": 4}
AFTER = """
if trainer.is_world_process_zero():
    with open(os.environ["LOSSES"], "w") as file:
        json.dump(trainer.state.log_history, file)
"""


def changed(text, old, new):
    assert text.count(old) == 1, old
    return text.replace(old, new)


def losses(folder, processes, accumulate):
    """Run the script; return its loss by step, and its gradients' norm."""
    shutil.rmtree(folder / "data" / "work", ignore_errors=True)
    text = course.script_text(NOTEBOOK, VALUES)
    # what is drawn in each process differs; and each step is compared
    text = changed(text, "lora_dropout=0.05", "lora_dropout=0.0")
    text = changed(text, "logging_steps=5", "logging_steps=1")
    text = changed(
        text,
        '"accumulate": 1,\n    "max_length": 256',
        f'"accumulate": {accumulate},\n    "max_length": 256',
    )
    script = folder / "data" / "work" / f"{processes}.py"
    script.parent.mkdir(parents=True, exist_ok=True)
    script.write_text(text + AFTER, "utf-8")
    said = script.with_suffix(".json")
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    words += ["--nproc_per_node", str(processes), str(script)]
    env = os.environ | {
        "PYTHONPATH": str(ROOT),
        "LOSSES": str(said),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "passive",
    }
    done = subprocess.run(
        words,
        cwd=folder / "notebooks",
        env=env,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert (folder / "data/work/07/adapter/adapter_config.json").is_file()
    logged = [line for line in json.loads(said.read_text()) if "loss" in line]
    return [(line["loss"], line["grad_norm"]) for line in logged]


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="gloo is tried on POSIX alone")
def test_two_processes_learn_what_one_learns(tmp_path, capsys):
    """The same packs in a step: the same loss to 1e-4, gradients too."""
    embedded()
    lay_course(tmp_path)
    one = losses(tmp_path, processes=1, accumulate=2)
    two = losses(tmp_path, processes=2, accumulate=1)
    with capsys.disabled():
        print("\nstep, loss and norm of one process, of two")
        for step, (a, b) in enumerate(zip(one, two, strict=True)):
            print(step, *a, *b)
    assert len(one) >= 3
    for a, b in zip(one, two, strict=True):
        assert a[0] == pytest.approx(b[0], abs=1e-4)
        assert a[1] == pytest.approx(b[1], rel=1e-3)


@pytest.mark.parametrize("name", ["multi_gpu", "fsdp2", "zero2", "zero3"])
def test_the_launchers_settings_are_there_and_known(name, tmp_path):
    """TRL ships them; accelerate knows each key."""
    import trl
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.commands.launch import launch_command_parser

    folder = Path(trl.__file__).parent / "accelerate_configs"
    found = load_config_from_file(str(folder / f"{name}.yaml"))
    assert found.num_processes > 1 and not found.use_cpu
    # a key that nobody knows is refused
    wrong = yaml.safe_load((folder / f"{name}.yaml").read_text())
    path = tmp_path / "wrong.yaml"
    path.write_text(yaml.safe_dump(wrong | {"no_such_key": 1}))
    with pytest.raises(ValueError, match="no_such_key"):
        load_config_from_file(str(path))
    options = {action.dest for action in launch_command_parser()._actions}
    for part in ("fsdp_config", "deepspeed_config"):
        assert set(wrong.get(part, {})) <= options
