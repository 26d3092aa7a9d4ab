"""The worker, which maintains a namespace in rounds."""

from __future__ import annotations

from distier.worker.rounds import ROUND_DEADLINE_S, Report, Rounds
from distier.worker.service import AsyncWorker, Worker

__all__ = [
    "ROUND_DEADLINE_S",
    "AsyncWorker",
    "Report",
    "Rounds",
    "Worker",
]
