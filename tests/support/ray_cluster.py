"""A Ray cluster on the loopback interface: a head without CPUs, and nodes with one each that tests may kill."""

from __future__ import annotations

import os
import shutil
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final

_ENVIRONMENT: Final = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    "RAY_DEDUP_LOGS_SKIP_REGEX": "^",
    # A lost node is noticed within a second.
    "RAY_health_check_initial_delay_ms": "0",
    "RAY_health_check_period_ms": "500",
    "RAY_health_check_failure_threshold": "10",
    "RAY_worker_niceness": "0",
}
_MEMORY: Final = 80 * 2**20


class RayCluster:
    """A cluster of ``nodes`` processes of Ray; see `ray_cluster`."""

    def __init__(self, nodes: int, gpus: int) -> None:
        from ray.cluster_utils import Cluster

        each = {"include_dashboard": False, "node_ip_address": "127.0.0.1", "object_store_memory": _MEMORY}
        self._each = each
        self._nodes, self._gpus = nodes, gpus
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, **each})
        self.complete()

    @property
    def address(self) -> str:
        """Return the address of its head."""
        return str(self._cluster.address)

    def complete(self) -> None:
        """Start nodes in place of those that were killed."""
        for node in list(self._cluster.worker_nodes):
            if not node.live_processes():
                self._cluster.remove_node(node, allow_graceful=False)
        for last in (False, False, True):
            try:
                while len(self._cluster.worker_nodes) < self._nodes:
                    self._cluster.add_node(num_cpus=1, num_gpus=self._gpus, **self._each)
            except Exception:  # Ray waits 30 s for a node, which a busy machine exceeds
                if last:
                    raise

    def kill_node(self) -> None:
        """Kill a node with -9, and start another one."""
        self._cluster.remove_node(next(iter(self._cluster.worker_nodes)), allow_graceful=False)
        self.complete()

    def workers(self) -> list[int]:
        """Return the ids of the processes that run tasks of a driver."""
        nodes = {process.pid for node in self._cluster.worker_nodes for process in _raylets(node)}
        return [int(path.name) for path in Path("/proc").glob("[0-9]*") if _works_for(path, nodes)]

    def shutdown(self) -> None:
        """End all its processes."""
        self._cluster.shutdown()


def _raylets(node: Any) -> list[Any]:
    return [each.process for each in node.all_processes.get("raylet", [])]


def _works_for(process: Path, nodes: set[int]) -> bool:
    """Return whether a process of ``/proc`` runs tasks, as a child of one of these nodes."""
    try:
        parent = int((process / "stat").read_text().rpartition(")")[2].split()[1])
        return parent in nodes and b"MapWorker" in (process / "cmdline").read_bytes()
    except (OSError, ValueError):
        return False


@contextmanager
def ray_cluster(nodes: int = 2, gpus: int = 0) -> Iterator[RayCluster]:
    """Start a cluster, with files in a folder of its own, and end it; each node says that it has so many GPUs."""
    before = dict(os.environ)
    folder = tempfile.mkdtemp(prefix="ray", dir="/tmp")  # sockets have short names
    os.environ.update(_ENVIRONMENT, RAY_TMPDIR=folder)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            cluster = RayCluster(nodes, gpus)
            try:
                yield cluster
            finally:
                cluster.shutdown()
    finally:
        os.environ.clear()
        os.environ.update(before)
        shutil.rmtree(folder, ignore_errors=True)
