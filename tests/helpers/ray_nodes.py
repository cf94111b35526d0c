"""A real Ray of two nodes on this machine, that also starts where the machine is busy."""

import contextlib
import os
import socket

AGENTS = ("metrics_agent_port", "metrics_export_port", "runtime_env_agent_port", "dashboard_agent_listen_port")


def ports():
    """A free port for each of a node's agents: for those that find one themselves Ray waits 30 s, which a busy machine
    exceeds."""
    with contextlib.ExitStack() as held:
        found = [held.enter_context(socket.socket()) for _ in AGENTS]
        for each in found:
            each.bind(("127.0.0.1", 0))
        return {name: each.getsockname()[1] for name, each in zip(AGENTS, found, strict=True)}


def two_nodes():
    """Two nodes of two processors each. `shutdown` ends them."""
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_agent_register_timeout_ms": "600000"}
    os.environ["RAY_raylet_start_wait_time_s"] = "600"  # noqa: SIM112  (Ray's spelling)
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 2, "include_dashboard": False, "include_log_monitor": False, "no_monitor": True, **ports()}
    there = Cluster(initialize_head=True, head_node_args=head)
    there.add_node(num_cpus=2, include_log_monitor=False, **ports())
    return there
