"""Ray: the connection, worker groups and where they are placed, jobs that are sent to a cluster."""

from mvray.cluster import placement, ray_internals
from mvray.cluster.code_archive import LIMIT_MIB, CodeArchive, pack
from mvray.cluster.connection import HEADROOM_CPUS
from mvray.cluster.job_client import ENDED, JobClient, SubmittedJob, beside, environment, use_token
from mvray.cluster.node_reports import NodeReport, joined, node_reports, versions_here
from mvray.cluster.node_versions import check_here
from mvray.cluster.placement import NODE_ID
from mvray.cluster.session import Cluster
from mvray.cluster.trial_reports import TrialReports
from mvray.cluster.worker_group import WorkerGroup

__all__ = [
    "ENDED",
    "HEADROOM_CPUS",
    "LIMIT_MIB",
    "NODE_ID",
    "Cluster",
    "CodeArchive",
    "JobClient",
    "NodeReport",
    "SubmittedJob",
    "TrialReports",
    "WorkerGroup",
    "beside",
    "check_here",
    "environment",
    "joined",
    "node_reports",
    "pack",
    "placement",
    "ray_internals",
    "use_token",
    "versions_here",
]
