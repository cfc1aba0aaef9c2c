"""A Ray cluster of several nodes, all on this machine.

Ray is imported when a test runs, never when tests are collected: MindSpore cannot be imported behind it, as it has to
choose an implementation of protobuf first.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

_ROOT = Path(__file__).parents[2]
_NODE = {"num_cpus": 1, "object_store_memory": 80 * 2**20}


@pytest.fixture(scope="session")
def cluster() -> Iterator[Cluster]:
    """Two nodes of one CPU; their workers find the sources and `tests/support`. This process is connected."""
    import ray
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as patch:
        path = os.pathsep.join([str(_ROOT), str(_ROOT / "tests" / "support"), os.environ.get("PYTHONPATH", "")])
        patch.setenv("PYTHONPATH", path.rstrip(os.pathsep))
        patch.setenv("RAY_USAGE_STATS_ENABLED", "0")
        patch.delenv("RAY_ADDRESS", raising=False)
        # The server's processes for clients take the ports behind it.
        head = {**_NODE, "include_dashboard": False, "ray_client_server_port": _free_port()}
        cluster = Cluster(initialize_head=True, head_node_args=head)
        cluster.add_node(**_NODE)
        handler = signal.getsignal(signal.SIGTERM)
        ray.init(cluster.address, log_to_driver=False, logging_level=logging.ERROR)
        signal.signal(signal.SIGTERM, handler)
        yield cluster
        ray.shutdown()
        cluster.shutdown()


@pytest.fixture
def client_address(cluster: Cluster) -> str:
    """Where the cluster answers clients."""
    return f"ray://127.0.0.1:{cluster.head_node._ray_params.ray_client_server_port}"


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
