"""Clusters: what is asked for, the workers on it, and a batch script. The engine knows only their `Client`."""

from spatialdata_segment.cluster.client import cluster_client
from spatialdata_segment.cluster.config import ClusterConfig, Jobs, read_config, template
from spatialdata_segment.cluster.script import batch_script

__all__ = ["ClusterConfig", "Jobs", "batch_script", "cluster_client", "read_config", "template"]
