"""A run on AWS by dask-cloudprovider (pip install "dask-cloudprovider[aws]"), started from a machine in the same VPC.

    IMAGE=… ROLE=… python cluster/cloud.py ec2 s3://bucket/scans s3://bucket/scans-1mm
    IMAGE=… ROLE=… python cluster/cloud.py fargate s3://bucket/scans s3://bucket/scans-1mm

IMAGE is that of the Dockerfile beside this, in a registry that the machines reach; ROLE may read and write the buckets:
an instance profile's name for EC2, a role's ARN for Fargate. Between EC2 machines there is TLS, with certificates made
for this run; Fargate's have none: their security group must let in nobody else.
"""

import os
import sys

import dskprep

# The image has them in a file too; these are for the scheduler that EC2Cluster starts.
SETTINGS = {
    "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
    "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
}

if __name__ == "__main__":
    kind, source, target = sys.argv[1:]
    image, role, workers = os.environ["IMAGE"], os.environ["ROLE"], int(os.environ.get("WORKERS", "8"))
    if kind == "ec2":
        from dask_cloudprovider.aws import EC2Cluster

        opened = EC2Cluster(
            instance_type="c6i.large",
            n_workers=workers,
            docker_image=image,
            iam_instance_profile={"Name": role},
            env_vars=SETTINGS,
            worker_options={"nthreads": 3},  # one process a machine: take small ones, of one or two vCPUs
            security=True,
        )
    else:
        from dask_cloudprovider.aws import FargateCluster

        opened = FargateCluster(
            image=image,
            n_workers=workers,
            worker_cpu=1024,  # one CPU
            worker_mem=2048,
            worker_nthreads=3,
            task_role_arn=role,
            environment=SETTINGS,
        )
    with opened, opened.get_client() as client:
        summary = dskprep.run(source, target, client=client)
    print(dict(summary.account.counts))
    sys.exit(summary.exit_code)
