"""A run on EC2 by dask-cloudprovider (pip install "dask-cloudprovider[aws]"), started from a machine in the same VPC.

    export IMAGE=… AMI=… PROFILE=… SUBNET=… GROUP=…
    python cluster/cloud.py s3://bucket/scans s3://bucket/scans-1mm

IMAGE is that of the Dockerfile beside this, in a registry that the machines reach. AMI is an Ubuntu; Docker is put on
it at the start. PROFILE, an instance profile, may read and write the buckets. The machines have private addresses only:
SUBNET has a way out (NAT), by which they fetch Docker and the image. GROUP, a security group that this machine is in
too, lets its members reach each other and nobody else in. DASK_CLOUDPROVIDER__EC2__VPC names a VPC that is not the
account's default.

Connections are by TLS, with certificates made for this run; they and your own Dask configuration are in the user data
of the machines, your AWS credentials are not.
"""

import os
import sys

from dask_cloudprovider.aws import EC2Cluster

import dskprep

if __name__ == "__main__":
    source, target = sys.argv[1:]
    machines = EC2Cluster(
        instance_type="c6i.large",
        n_workers=int(os.environ.get("WORKERS", "8")),
        docker_image=os.environ["IMAGE"],
        ami=os.environ["AMI"],
        iam_instance_profile={"Name": os.environ["PROFILE"]},
        subnet_id=os.environ["SUBNET"],
        security_groups=[os.environ["GROUP"]],
        use_private_ip=True,
        # One process a machine: take small ones, of one or two vCPUs.
        worker_options={"nthreads": 3, "memory_limit": 0.9},
        # The image has them in a file too.
        env_vars={
            "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
            "DASK_DISTRIBUTED__SCHEDULER__WORKER_SATURATION": "1.0",
        },
        security=True,
    )
    with machines, machines.get_client() as client:
        summary = dskprep.run(source, target, client=client)
    print(dict(summary.account.counts))
    sys.exit(summary.exit_code)
