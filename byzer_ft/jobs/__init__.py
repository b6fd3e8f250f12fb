"""A training request -> a named, detached Ray actor that trains, and a job directory that remembers everything.

    cluster.py    finds, joins or starts Ray
    sizing.py     what was asked and what the nodes have -> workers, or a refusal
    job.py        starts jobs, follows them, stops them, tells which of them are lost
    actor.py      the job itself: the only writer of its directory and of its catalog row
    worker.py     what one Ray Train worker does: join the others, call the entry point, report
    directory.py  the files of a job directory

Importing this package loads neither ray nor torch. Knows nothing of SQL, engines or Delta.
"""

from byzer_ft.jobs.cluster import Cluster
from byzer_ft.jobs.directory import DEFAULT_ENTRY, JobSpec
from byzer_ft.jobs.job import JobHandle, default_name, job_handle, reconcile, start_job
from byzer_ft.jobs.sizing import NodeResources, WorkerPlan, plan_workers

__all__ = [
    "DEFAULT_ENTRY",
    "Cluster",
    "JobHandle",
    "JobSpec",
    "NodeResources",
    "WorkerPlan",
    "default_name",
    "job_handle",
    "plan_workers",
    "reconcile",
    "start_job",
]
