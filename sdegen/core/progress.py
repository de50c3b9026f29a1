"""Progress bars: on terminals and in notebooks, not in files."""

from __future__ import annotations

import sys
from typing import Any


def progress_bar(progress: bool | None, *args: Any, **about: Any) -> Any:
    """A tqdm bar, made for where it is shown: text on a terminal, a widget in a notebook that has widgets.

    Args:
        progress: whether to show it; None: on a terminal and in a notebook.
        *args, **about: as `tqdm` takes them.
    """
    return _tqdm()(*args, disable=not is_shown(progress), **about)


def is_shown(progress: bool | None) -> bool:
    """Whether there is to be a bar."""
    return sys.stderr.isatty() or _in_notebook() if progress is None else progress


def _in_notebook() -> bool:
    """Whether this runs in a Jupyter kernel."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return shell is not None and hasattr(shell, "kernel")


def _tqdm() -> Any:
    """Imported where it is needed, since that takes time."""
    if _in_notebook():
        from tqdm.autonotebook import tqdm
    else:
        from tqdm import tqdm
    return tqdm
