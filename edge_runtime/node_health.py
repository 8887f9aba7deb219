"""Measures the node's state (memory, disk, certificates, worker deaths), which polls report to control."""

import asyncio
import contextlib
import os
from pathlib import Path

from control.protocol import version, wire
from edge_runtime.backup.uploader import Uploader
from edge_runtime.dispatch.pool import Pool
from edge_runtime.logs import dropped
from edge_runtime.release.checkpoint_schedule import CheckpointSchedule
from edge_runtime.schedules.scheduler import Scheduler
from edge_runtime.sync.node_agent import NodeAgent
from edge_runtime.web.tls_files import TlsFiles

_PROC = Path("/proc")


class NodeHealth:
    def __init__(
        self,
        pool: Pool,
        checkpoints: CheckpointSchedule,
        agent: NodeAgent,
        tls_files: TlsFiles | None,
        backup: Uploader | None = None,
        scheduler: Scheduler | None = None,
    ) -> None:
        self._pool = pool
        self._checkpoints = checkpoints
        self._agent = agent
        self._tls_files = tls_files
        self._backup = backup
        self._scheduler = scheduler

    async def measure(self) -> wire.NodeNumbers:
        """Return the node's state now, with the counts since the start."""
        memory = await asyncio.to_thread(memory_of, os.getpid())
        sizes, facts = self._checkpoints.sizes(), self._agent.facts()
        certificate = self._tls_files.expires if self._tls_files is not None else None
        return wire.NodeNumbers(
            database=sizes.file,
            wal=self._checkpoints.size,
            disk_free=sizes.disk_free,
            memory=memory,
            certificate_ends=max(0, int(certificate or 0)),
            credential_ends=max(0, int(facts.credential_ends or 0)),
            edge=version.running().short[:32],
            worker_deaths=self._pool.deaths,
            log_dropped=dropped(),
            failed_syncs=facts.failed_syncs,
            trust=facts.trust,
            trust_ends=max(0, int(facts.trust_ends or 0)),
            backup=self._backup.state() if self._backup is not None else None,
            schedules=self._scheduler.numbers() if self._scheduler is not None else [],
        )


def memory_of(pid: int) -> int:
    """Return the bytes of memory of a process and its descendants, with shared memory counted once.

    This is the sum of their proportional shares. It takes about a millisecond per process: call it in a thread.
    """
    found, todo, seen = 0, [pid], set[int]()
    while todo:
        one = todo.pop()
        if one in seen:
            continue
        seen.add(one)
        found += _share(one)
        # A process that has just exited has no memory.
        with contextlib.suppress(OSError, ValueError):
            for task in (_PROC / str(one) / "task").iterdir():
                todo += map(int, (task / "children").read_text().split())
    return found


def _share(pid: int) -> int:
    with contextlib.suppress(OSError, ValueError):
        for line in (_PROC / str(pid) / "smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                return int(line.split()[1]) * 1024
    return 0
