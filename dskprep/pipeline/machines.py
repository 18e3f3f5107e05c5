"""Machines that can be rented, and prices, for the estimates of `plan`."""

from __future__ import annotations

from typing import NamedTuple


class Machine(NamedTuple):
    """A type of EC2 instance: its size, its price, and the network rate that it can sustain."""

    name: str
    n_cpus: int
    memory_gib: float
    dollars_per_hour: float
    gbit_s: float


MACHINES = (
    Machine("c4.2xlarge", 8, 15, 0.398, 1.0),
    Machine("c5.2xlarge", 8, 16, 0.34, 2.5),
    Machine("c7i.2xlarge", 8, 16, 0.357, 3.1),
    Machine("m7i.2xlarge", 8, 32, 0.403, 3.1),
    Machine("c7i.8xlarge", 32, 64, 1.428, 12.5),
)
"""Prices on demand, Linux, us-east-1, in 2025. The network rate of c4 is a cautious guess."""
DOLLARS_PER_PUT = 5e-6
"""Price of a request that writes to S3 Standard, or lists it, us-east-1."""
