"""What an error line advises is what helps."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.analysis.records import make_record, write_study
from vitfp8.errors import InputError
from vitfp8.params import Layer, RunParams, read_layer, validate
from vitfp8.record import best_weights, code_digest, read_record, read_source_run
from vitfp8.record.deciding_code import CODE_DIGEST_RULE
from vitfp8.run.plan import decide

TOP = Path(__file__).resolve().parents[1]


@pytest.fixture
def params() -> RunParams:
    """The parameters of the run that `finished` holds."""
    return validate([read_layer(TOP / "params" / "BaseFP32.yaml"), Layer("test", {"run_folder": None})])


@pytest.fixture
def finished(tmp_path: Path, params: RunParams) -> Path:
    """A finished run without checkpoints; its notebook."""
    record = make_record("BaseFP32", 0, parameters=params.model_dump(), parameters_digest=params.digest)
    record.checkpoints = {}
    record.provenance |= {"code_digest": code_digest(), "code_digest_rule": CODE_DIGEST_RULE}
    write_study(tmp_path, [record])
    return tmp_path / "BaseFP32-s0.ipynb"


def test_a_finished_source_without_weights_is_run_again_with_force(finished: Path, params: RunParams) -> None:
    with pytest.raises(InputError, match="run it again: `vitfp8 run BaseFP32 --force`"):
        read_source_run(finished, experiment="BaseFP32", seed=0, command="`vitfp8 run BaseFP32`")
    with pytest.raises(InputError, match="run it again with --force"):
        best_weights(finished, read_record(finished))
    assert decide(finished, params)[0] == "keep", "the command alone would do nothing"
    assert decide(finished, params, force=True)[0] == "replace"
