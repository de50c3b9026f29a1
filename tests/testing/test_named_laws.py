"""Laws with names: each check tries all of them, and the tables of exceptions speak of laws that exist."""

from __future__ import annotations

import math

import pytest
from cases import EXCEPTIONS

import sdegen as sg
from sdegen import testing
from sdegen.testing import models, processes, solvers
from sdegen.testing.doubles import NormalModel

TABLES = {
    "processes": processes.LAWS,
    "models": models.LAWS,
    "solvers": {**solvers.LAWS, **solvers.LAWS_OF_FLOWS, **solvers.LAWS_OF_NOISE, **solvers.LAWS_OF_TOLERANCES},
}


@pytest.mark.parametrize(
    ("check", "instance", "room", "table"),
    [
        (testing.check_sde, sg.VPSDE(), processes, "LAWS"),
        (testing.check_model, sg.MixtureModel(sg.GaussianMixture([[0.0]], std=1.0), sg.VPSDE()), models, "LAWS"),
        *(
            (testing.check_solver, sg.make_solver(name), solvers, table)
            for name, table in (
                ("euler", "LAWS"),
                ("heun", "LAWS_OF_FLOWS"),
                ("ancestral", "LAWS_OF_NOISE"),
                ("bosh3", "LAWS_OF_TOLERANCES"),
            )
        ),
    ],
    ids=lambda v: v if isinstance(v, str) else "",
)
def test_a_check_tries_every_law_of_its_table(monkeypatch, check, instance, room, table):
    tried = []
    for other in [name for name in vars(room) if name.startswith("LAWS")]:
        noted = {name: lambda _, name=(other, name): tried.append(name) for name in getattr(room, other)}
        monkeypatch.setattr(room, other, noted)
    check(instance)
    assert [name for of, name in tried if of == table] == list(getattr(room, table))


def test_laws_apply_by_kind():
    def names(name):
        return [law for law, _ in testing.solver_laws(sg.make_solver(name))]

    assert "order" in names("heun") and "seeds" not in names("heun") and "tolerance" not in names("heun")
    assert "seeds" in names("langevin") and "order" not in names("langevin")
    assert "tolerance" in names("bosh3")
    assert set(names("bosh3")) - set(names("torchdiffeq:bosh3")) == set(solvers.OUTSIDE)
    assert "density" not in [law for law, _ in testing.model_laws(NormalModel(sg.VPSDE(), 0.0, 1.0), event_shape=(2,))]


@pytest.mark.parametrize("kind", TABLES)
def test_every_law_says_what_it_asks(kind):
    assert all(law.__doc__ for law in TABLES[kind].values())


def test_exceptions_are_of_laws_and_solvers_that_exist():
    known = {row.name for row in sg.solvers()}
    assert set(solvers.OUTSIDE) <= set(TABLES["solvers"])
    assert all(name in known and law in TABLES["solvers"] for name, law in EXCEPTIONS)


def test_a_model_is_in_eval_mode_for_its_laws_and_trains_again_after_them():
    class Moody(NormalModel):
        asked: set[bool] = set()

        def forward(self, x, t):
            self.asked.add(self.training)
            return super().forward(x, t)

    model = Moody(sg.VPSDE(), 0.5, 2.0).train()
    testing.check_model(model, event_shape=(2,))
    assert model.training and model.asked == {False}

    model.std = math.nan
    with pytest.raises(testing.LawError, match="finite"):
        dict(testing.model_laws(model, event_shape=(2,)))["views"]()
    assert model.training
