"""How the nodes of a cluster agree: one module for each kind of coordinator (`ijitsu.ICoordinator`)."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from jitsu_tw.cluster.coordinator.local import LocalCoordinator

if TYPE_CHECKING:
    from jitsu_tw.ijitsu import ICoordinator
    from jitsu_tw.settings import Cluster


def coordinator_for(cluster: Cluster | None, reactor: Any) -> ICoordinator:
    """
    Return the coordinator of *cluster*, or one for a single node if there is none. Nothing is connected yet.

    Raises:
        ConfigError: a certificate or a key of *cluster*'s cannot be read.
        ImportError: treq, which only a cluster needs, is not installed.
    """
    if cluster is None:
        alone: ICoordinator = LocalCoordinator()
        return alone
    module = import_module("jitsu_tw.cluster.coordinator.etcd")
    found: ICoordinator = module.EtcdCoordinator(cluster, reactor)
    return found
