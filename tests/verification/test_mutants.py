"""Damaged checkpoints with forged records: `verify` notices each of them; the whole table is slow."""

import random
import shutil

import pytest
from verification.mutants import (
    CASES,
    config_mutants,
    file_mutants,
    judge,
    judge_all,
    make_pair,
    record_mutants,
    state_mutants,
    weight_mutants,
)

from mupscale_cli.tasks.verify import verify

KINDS = {
    "weights": weight_mutants,
    "config": config_mutants,
    "state": state_mutants,
    "files": file_mutants,
    "record": record_mutants,
}


@pytest.fixture(scope="module", params=["GPT2-tied", "T5-gated"])
def wide(request, tmp_path_factory):
    return make_pair(tmp_path_factory.mktemp(request.param), request.param)


def test_a_sound_checkpoint_agrees(wide):
    found = verify(wide)
    assert found.agrees
    assert found.incomplete is None
    assert {"tokenizer.json", "scheduler.pt", "mupscale.json"} <= set(found.files.names)


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_of_mutants_is_noticed(kind, wide):
    mutants = list(KINDS[kind](wide))
    for mutant in random.Random(0).sample(mutants, min(6, len(mutants))):
        assert judge(wide, mutant, 0).noticed_by, mutant
    shutil.rmtree(wide.with_name("mutant"))


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES)
def test_every_mutant_is_noticed(case):
    assert [outcome for outcome in judge_all(case) if not outcome.noticed_by] == []
