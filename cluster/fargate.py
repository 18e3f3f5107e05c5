"""A run on Fargate by dask-cloudprovider (pip install "dask-cloudprovider[aws]"), started from a machine in its VPC.

    export CLUSTER=… IMAGE=… ROLE=… EXECUTION_ROLE=… SUBNET=… GROUP=…
    python cluster/fargate.py s3://bucket/scans s3://bucket/scans-1mm

CLUSTER is an ECS cluster, by its ARN; an empty one costs nothing. IMAGE is that of the Dockerfile beside this, in a
registry that the tasks reach; it has the dask-scheduler and dask-worker that dask-cloudprovider starts. ROLE, the
tasks' own, may read and write the buckets; by EXECUTION_ROLE ECS fetches the image and writes the logs; both are ARNs.
The tasks have private addresses only: SUBNET has a way out (NAT), by which the image is fetched. GROUP, a security
group that this machine is in too, lets its members reach each other and nobody else in.

Connections are by TLS, with certificates made for this run. They are in the tasks' environment: who may describe the
tasks (ecs:DescribeTasks) reads them, and can run code with ROLE from within GROUP. Your AWS credentials and your Dask
configuration stay here.
"""

import os
import sys
import warnings

import botocore.session
from dask_cloudprovider.aws import FargateCluster
from distributed import Security

import dskprep

if __name__ == "__main__":
    source, target = sys.argv[1:]
    security = Security.temporary()
    # It looks for certificates in the commands only.
    warnings.filterwarnings("ignore", "the cluster was instructed to connect to the scheduler using tls")
    tasks = FargateCluster(
        n_workers=int(os.environ.get("WORKERS", "8")),
        cluster_arn=os.environ["CLUSTER"],
        image=os.environ["IMAGE"],
        task_role_arn=os.environ["ROLE"],
        execution_role_arn=os.environ["EXECUTION_ROLE"],
        vpc="",  # that of SUBNET: nobody looks for the account's default one
        subnets=[os.environ["SUBNET"]],
        security_groups=[os.environ["GROUP"]],
        fargate_use_private_ip=True,
        worker_cpu=1024,  # one vCPU
        worker_mem=2048,  # MiB, of which the worker has 2 GB; with one vCPU up to 8192
        worker_nthreads=3,
        scheduler_timeout="30 minutes",  # without anything to do, as when this machine was lost
        skip_cleanup=True,  # what others have started is left alone
        environment={
            # The image has them in a file too.
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
            "DASK_DISTRIBUTED__COMM__REQUIRE_ENCRYPTION": "True",
            "DASK_DISTRIBUTED__COMM__TLS__CA_FILE": security.tls_ca_file,
            "DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__CERT": security.tls_scheduler_cert,
            "DASK_DISTRIBUTED__COMM__TLS__SCHEDULER__KEY": security.tls_scheduler_key,
            "DASK_DISTRIBUTED__COMM__TLS__WORKER__CERT": security.tls_worker_cert,
            "DASK_DISTRIBUTED__COMM__TLS__WORKER__KEY": security.tls_worker_key,
        },
        security=security,
    )
    try:
        with tasks, tasks.get_client() as client:
            summary = dskprep.run(source, target, client=client)
    finally:
        # It leaves this to the end of Python, when it can no longer ask anything of AWS and says so with tracebacks.
        ecs = botocore.session.get_session().create_client("ecs")
        for definition in (tasks.scheduler_task_definition_arn, tasks.worker_task_definition_arn):
            ecs.deregister_task_definition(taskDefinition=definition)
    print(dict(summary.account.counts), flush=True)
    os._exit(summary.exit_code)  # without its tracebacks
