"""A run on SLURM by dask-jobqueue (pip install dask-jobqueue): the scheduler here, each job a node's workers.

    cluster/make-certificates /shared/dask; cp cluster/{dask,tls}.yaml /shared/dask; edit the paths in its tls.yaml
    DASK_CONFIG=/shared/dask python cluster/slurm.py s3://bucket/scans s3://bucket/scans-1mm

Put your partition and account in; /shared and python, the one with dskprep, are on a file system that the nodes share.
"""

import os
import sys
import tempfile

import dask
import dask_jobqueue
from distributed import Security

import dskprep

CPUS = int(os.environ.get("CPUS", "8"))
"""Of a node, for one job."""

JOBS = int(os.environ.get("JOBS", "20"))

OWN_FOLDER = [
    "export DASK_TEMPORARY_DIRECTORY=$(mktemp -d)",
    "trap 'rm -rf \"$DASK_TEMPORARY_DIRECTORY\"' EXIT",
]
"""In /tmp itself another user of the node could put modules in the workers' way: Dask imports from a folder in it."""

if __name__ == "__main__":
    source, target = sys.argv[1:]
    scratch = tempfile.TemporaryDirectory()  # the same for the scheduler here
    dask.config.set({"temporary-directory": scratch.name})
    slurm = dask_jobqueue.SLURMCluster(
        queue="compute",
        cores=3 * CPUS,  # threads: three a worker
        processes=CPUS,
        job_cpu=CPUS,  # what is asked of SLURM: one CPU a worker
        memory=f"{1.8 * CPUS:.1f}GB",
        walltime="04:00:00",
        # workers end by themselves, staggered, before SLURM ends them; what they held is done again by others
        # (and their own pages, which TLS does not cover, stay on their node)
        worker_extra_args=[
            "--lifetime=225m",
            "--lifetime-stagger=10m",
            "--death-timeout=120",
            "--dashboard-address=127.0.0.1:0",
        ],
        job_script_prologue=OWN_FOLDER,
        security=Security(),  # the certificates of tls.yaml
        scheduler_options={"dashboard_address": "127.0.0.1:8787"},
    )
    slurm.adapt(minimum_jobs=1, maximum_jobs=JOBS)
    with slurm, slurm.get_client() as client:
        summary = dskprep.run(source, target, client=client)
    scratch.cleanup()
    print(dict(summary.account.counts))
    sys.exit(summary.exit_code)
