"""What every test relies on: one thread, no screen, a fixed global seed, and no gpu test without a GPU."""

from __future__ import annotations

import os

# Read when the libraries are first imported, so these stand before the imports.
os.environ.setdefault("MPLBACKEND", "Agg")
for _variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(_variable, "1")

import pytest  # noqa: E402
import torch  # noqa: E402
from hypothesis import settings  # noqa: E402

torch.set_num_threads(1)

# A first call that compiles or loads something is no failure; in CI the examples are the same on every run.
settings.register_profile("sdegen", deadline=None, derandomize=bool(os.environ.get("CI")))
settings.load_profile("sdegen")


def pytest_runtest_setup(item: pytest.Item) -> None:
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")


@pytest.fixture(autouse=True)
def _global_seed() -> None:
    """The same random numbers for a test whichever worker runs it, and whatever ran before it."""
    torch.manual_seed(0)
