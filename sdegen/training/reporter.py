"""What is done between the steps: the progress bar, the metrics, the callback, the checkpoints.

The first process does it for all. Where weights are sharded the others take part in what has to be gathered.
"""

from __future__ import annotations

import time
from contextlib import ExitStack
from typing import Any, Self

from .. import storage
from ..core.progress import progress_bar
from .folder import RunFolder
from .logs import Logs
from .trainer import Trainer


class Reporter:
    """Writes and shows what is due. Use it in a `with` statement.

    Args:
        trainer: of the run.
        folder: where to write, in the first process.
        keeps: whether there is one.
    """

    def __init__(self, trainer: Trainer, folder: RunFolder | None, *, keeps: bool) -> None:
        self.trainer, self.folder, self.options, self.keeps = trainer, folder, trainer.options, keeps

    def __enter__(self) -> Self:
        options, trainer = self.options, self.trainer
        self.saved = self.started = time.monotonic()
        with ExitStack() as stack:
            about: dict[str, Any] = {"total": options.steps, "initial": trainer.step, "desc": "fit", "unit": "step"}
            self.bar = stack.enter_context(progress_bar(options.progress if trainer.team.leads else False, **about))
            if self.folder is not None:
                self.folder.rewind(trainer.step)
                self.logs = stack.enter_context(Logs(self.folder.path, trainer.step, tensorboard=options.tensorboard))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: Any) -> None:
        self._stack.close()

    def saves(self) -> bool:
        """Whether a checkpoint is due."""
        return self.folder is not None and self.options.saves(self.trainer.step, time.monotonic() - self.saved)

    def act(self, *, saves: bool) -> None:
        """Whatever is due after this step, all steps having been evaluated."""
        trainer, folder = self.trainer, self.folder
        self.bar.update(trainer.step - self.bar.n)
        self.bar.set_postfix(loss=f"{trainer.recent_loss():.4g}", refresh=False)
        rows = trainer.rows(time.monotonic() - self.started)
        if folder is not None:
            self.logs.write(rows, trainer.recorder.levels())
        if self.options.logger is not None and trainer.team.leads:
            for row in rows:
                self.options.logger.log({name: value for name, value in row.items() if name != "step"}, row["step"])
        if self.options.shows(trainer.step):
            shown = trainer.show()
            if folder is not None:
                self.logs.show(shown, trainer.step)
        if self.keeps and self.options.keeps_averages(trainer.step):
            averages = trainer.snapshot()
            if folder is not None:
                folder.keep_averages(trainer.step, *averages)
        if self.keeps and saves:
            self._save()
            self.saved = time.monotonic()

    def _save(self) -> None:
        """Write a checkpoint, together where every process has a part of it."""
        trainer, folder = self.trainer, self.folder
        if not trainer.engine.sharded:
            if folder is not None:
                folder.save(trainer.step, *trainer.checkpoint())
            return
        place = trainer.team.from_leader(lambda: folder.place_for(trainer.step) if folder else None)
        storage.write_together(place or "", *trainer.checkpoint(), trainer.team, in_parts=("training",))
        if folder is not None:
            folder.drop_old()
