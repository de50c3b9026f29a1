"""Processes that run a function together, as torchrun starts them."""

from __future__ import annotations

import multiprocessing
import os
import socket
import time

import torch

from sdegen.core.errors import SdegenError


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Crew:
    """Processes that run a function together, with the environment that torchrun gives them."""

    def __init__(self, size: int, work, *arguments) -> None:
        context = multiprocessing.get_context("fork")
        self.told = context.SimpleQueue()
        self.step = context.Value("q", 0)
        port = free_port()
        self.processes = [
            context.Process(target=self._run, args=(rank, size, port, work, arguments)) for rank in range(size)
        ]
        for process in self.processes:
            process.start()

    def _run(self, rank: int, size: int, port: int, work, arguments) -> None:
        os.environ |= {"RANK": str(rank), "WORLD_SIZE": str(size), "LOCAL_RANK": str(rank)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        torch.set_num_threads(1)
        try:
            self.told.put((rank, work(rank, self.step, *arguments)))
        except SdegenError as error:
            self.told.put((rank, f"{type(error).__name__}: {error}"))
            raise SystemExit(3) from None

    def results(self, seconds: float = 60.0) -> list:
        """What each has told, in the order of ranks; they have ended."""
        end = time.monotonic() + seconds
        found: dict = {}
        while any(p.is_alive() for p in self.processes) and time.monotonic() < end:
            while not self.told.empty():
                rank, value = self.told.get()
                found[rank] = value
            time.sleep(0.01)
        while not self.told.empty():
            rank, value = self.told.get()
            found[rank] = value
        alive = [p for p in self.processes if p.is_alive()]
        for process in alive:
            process.kill()
        assert not alive, "the processes ended by themselves"
        return [found.get(rank) for rank in range(len(self.processes))]
