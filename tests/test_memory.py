"""Memory: what a GPU's allocator held at most, and one line with the size to try when there is no more."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from vitfp8 import experiment as experiment_module
from vitfp8.errors import InputError
from vitfp8.experiment import prepare_experiment
from vitfp8.memory import is_out_of_memory, peaks, start_peaks
from vitfp8.params import RunParams
from vitfp8.record import EpochRow, RunJournal
from vitfp8.trainer import Outcome

Make = Callable[..., RunParams]

OUT_OF_MEMORY = (
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("MPS backend out of memory (MPS allocated: 9.04 GB, other allocations: 1.00 KB, max allowed: 9.07 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] err == 0. DefaultCPUAllocator: can't allocate memory"),
    MemoryError(),
)


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_every_library_is_understood_when_memory_runs_out(error: BaseException) -> None:
    assert is_out_of_memory(error)
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied (2x3 and 4x5)"))


@pytest.mark.parametrize("place", ["preparing", "training", "testing"])
@pytest.mark.parametrize("error", OUT_OF_MEMORY[:2], ids=["torch", "cuBLAS"])
def test_wherever_memory_runs_out_one_line_names_the_size_to_try(
    smoke_params: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, error: BaseException
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise error

    params = smoke_params(run_folder=str(tmp_path / "run"), epochs=1, depth=1)
    size = params.batch_size
    with pytest.raises(
        InputError, match=f"micro_batch_size: {size}: the cpu is out of memory; try micro_batch_size: {size // 2}"
    ):
        if place == "preparing":
            monkeypatch.setattr(experiment_module, "create_model", fail)
        experiment = prepare_experiment(params)
        if place == "training":
            monkeypatch.setattr(experiment.trainer, "train_step", fail)
        else:
            monkeypatch.setattr(experiment.trainer, "train", lambda on_epoch: Outcome("completed"))
            monkeypatch.setattr(experiment, "_test", fail)
        with RunJournal(experiment.folder, experiment.record(), show=False) as journal:
            experiment.run(journal, lambda history: None)


def test_a_cuda_devices_peaks_are_counted_anew_for_each_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    held = {"allocated": 7, "reserved": 9}
    monkeypatch.setattr("torch.cuda.reset_peak_memory_stats", lambda device: held.update(allocated=0, reserved=0))
    monkeypatch.setattr("torch.cuda.max_memory_allocated", lambda device: held["allocated"])
    monkeypatch.setattr("torch.cuda.max_memory_reserved", lambda device: held["reserved"])
    cuda = torch.device("cuda")
    assert peaks(cuda) == {"peak_allocated_bytes": 7, "peak_reserved_bytes": 9}
    start_peaks(cuda)
    assert peaks(cuda) == {"peak_allocated_bytes": 0, "peak_reserved_bytes": 0}
    assert peaks(torch.device("cpu")) == {}
    assert EpochRow(epoch=1, **peaks(cuda)).peak_reserved_bytes == 0


def test_a_processors_epochs_have_no_peaks(smoke_params: Make, tmp_path: Path) -> None:
    experiment = prepare_experiment(smoke_params(run_folder=str(tmp_path / "run"), epochs=1, depth=1))
    experiment.trainer.train()
    assert "peak_allocated_bytes" not in experiment.trainer.history[0]
