"""Mutations: they can be made and compiled, one that matters is seen, and the list of survivors is about this code."""

import ast
import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from cluster.sim import mutants
from cluster.sim.mutation import Mutation, _changes, _source, mutations_of


def test_mutations_change_their_modules_and_compile() -> None:
    for module in mutants.machine_modules():
        source = _source(module)
        before = ast.unparse(ast.parse(source))
        for place, mutation in list(enumerate(mutations_of(module)))[::20]:
            tree = ast.parse(source)
            change = next(change for at, (_, change) in enumerate(_changes(tree)) if at == place)
            change.apply()
            after = ast.fix_missing_locations(tree)
            assert ast.unparse(after) != before, mutation.name
            compile(after, module, "exec")
        names = [mutation.name for mutation in mutations_of(module)]
        assert len(names) == len(set(names)), f"two mutations of {module} have one name"


def test_a_drawing_depends_on_its_seed_alone() -> None:
    assert mutants.draw(20, 1) == mutants.draw(20, 1)
    assert mutants.draw(20, 1) != mutants.draw(20, 2)


def _find(part: str) -> Mutation:
    every = (mutation for module in mutants.machine_modules() for mutation in mutations_of(module))
    return next(mutation for mutation in every if part in mutation.name)


@pytest.mark.timeout(300)
def test_what_matters_is_seen_and_remembered(tmp_path: Path) -> None:
    results = tmp_path / "results.jsonl"
    mutation = _find("Batcher.add: without `self.lease_end")
    told: list[mutants.MutantFound] = []
    (found,) = mutants.run_mutations([mutation], 20, 1, results, told.append)
    assert found.history and found.failure
    # It is not run again as long as its source is the same.
    (again,) = mutants.run_mutations([mutation], 20, 1, results, told.append)
    assert again == found and len(told) == 1


@pytest.mark.timeout(300)
def test_code_without_a_change_is_not_accused() -> None:
    mutation = Mutation("cluster.centre.ledger", "none", -1)
    command = [sys.executable, "-m", "cluster.sim.mutants", json.dumps(asdict(mutation)), "2"]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    assert json.loads(ran.stdout) == [0, ""]


def test_survivors_are_mutations_of_this_code() -> None:
    possible = {mutation.name for module in mutants.machine_modules() for mutation in mutations_of(module)}
    gone = [name for name in mutants.known_survivors() if name not in possible]
    assert not gone, f"survivors.json names what can no longer be changed so: {gone}"
