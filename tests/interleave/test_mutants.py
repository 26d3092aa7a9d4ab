"""Each mutant is caught, within a bounded number of runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest

from tests.model.test_manifest import KILLED_BY as KILLED_BY_MANIFEST
from tests.model.test_model import KILLED_BY
from tests.servers import KINDS, running_server

from .explorer import Lab
from .mutants import MUTANTS, Mutant
from .scenarios import BY_NAME
from .wire import Wire, wire_to

SEEDS = 8_000


@pytest.fixture(scope="module")
def wire() -> Iterator[Wire]:
    with running_server(KINDS[0], args=("--appendonly", "no")) as server, wire_to(server.socket) as wire:
        yield wire


@pytest.mark.timeout(300)
@pytest.mark.parametrize("mutant", MUTANTS, ids=lambda m: m.name)
def test_explorer_catches_the_mutant(wire: Wire, mutant: Mutant, report: Callable[[str], None]) -> None:
    lab, runs = Lab(wire, mutant.patches), 0
    with mutant.applied():
        for name in mutant.scenarios:
            first = mutant.first_seed
            seeds = [*range(first, max(SEEDS, first + 1000)), *range(first)]
            tally, failures = lab.explore(BY_NAME[name], seeds)
            runs += failures[0].after_runs if failures else tally.runs
            if failures:
                break
        else:
            pytest.fail(f"{mutant.name} survived {runs} runs of {mutant.scenarios}")
    report(f"{mutant.name:26} after {runs:5} runs of {name:32} {failures[0].problem[:110]}")


def test_mutants_of_the_model_exist_there() -> None:
    """The mutants that exist in the model have a test there too."""
    assert {m.model for m in MUTANTS if m.model} <= {*KILLED_BY, *KILLED_BY_MANIFEST}
    assert len(MUTANTS) >= 15
