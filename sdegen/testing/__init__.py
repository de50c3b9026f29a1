"""The project's own laws, for anyone's classes.

Each check takes an instance and raises `LawError` where a law fails. `sde_laws`, `model_laws` and `solver_laws` give
the same laws one by one with their names, so that a test can report each apart:

    @pytest.mark.parametrize(("name", "law"), sdegen.testing.solver_laws(MySolver()))
    def test_my_solver(name, law):
        law()
"""

from .affine import affine_law
from .checks import LawError
from .models import check_model, model_laws
from .processes import check_sde, sde_laws
from .solvers import check_solver, solver_laws
from .wrappers import check_wrapper

__all__ = [
    "LawError",
    "affine_law",
    "check_model",
    "check_sde",
    "check_solver",
    "check_wrapper",
    "model_laws",
    "sde_laws",
    "solver_laws",
]
