"""How the node itself is, as control is told in polls."""

import asyncio
import os

from control.protocol import version, wire
from edge_runtime.dispatch.pool import Pool
from edge_runtime.logs import dropped
from edge_runtime.release.checkpoint_schedule import CheckpointSchedule
from edge_runtime.sync.node_agent import NodeAgent
from edge_runtime.telemetry import process_memory
from edge_runtime.web.tls_files import TlsFiles


class NodeHealth:
    def __init__(
        self, pool: Pool, checkpoints: CheckpointSchedule, agent: NodeAgent, tls_files: TlsFiles | None
    ) -> None:
        self._pool = pool
        self._checkpoints = checkpoints
        self._agent = agent
        self._tls_files = tls_files

    async def measure(self) -> wire.NodeNumbers:
        """Return how the node is now, with what was counted since the start."""
        memory = await asyncio.to_thread(process_memory.total, os.getpid())
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
        )
