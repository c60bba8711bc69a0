"""Compiled blocks learn what others do."""

import runpy
from dataclasses import replace
from pathlib import Path

import pytest

from worldmodel.train.loop import LoopConfig, fit

core_task = runpy.run_path(str(Path(__file__).with_name("train_toy.py")))["core_task"]


@pytest.mark.slow
@pytest.mark.parametrize("checkpointing", [False, True])
def test_compiled_blocks_learn_what_others_do(tmp_path, checkpointing):
    loop = LoopConfig(3, lr=1e-3, warmup=2, muon=False, checkpointing=checkpointing)
    start = core_task().module.state_dict()
    task = core_task()
    wanted = fit(core_task(), loop, tmp_path / "plain").state_dict()
    found = fit(task, replace(loop, compile=True), tmp_path / "compiled").state_dict()
    for name, value in wanted.items():
        moved = (value - start[name]).norm()
        assert (found[name] - value).norm() <= 1e-3 * moved + 1e-6, name
    assert not any("forward" in vars(module) for module in task.module.modules())
