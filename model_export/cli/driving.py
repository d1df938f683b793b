"""Options for the driver of a command, and the driver that they name."""

from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from model_export.drivers.driver import Driver


class DriverName(StrEnum):
    """Drivers by their names on the command line."""

    LOCAL = "local"
    RAY = "ray"


Workers = Annotated[
    int | None,
    typer.Option(min=1, help="Processes; their number changes no byte. \\[default: 1; with ray, the cluster's CPUs]"),
]
DriverChoice = Annotated[
    DriverName, typer.Option("--driver", help="Run in processes of this machine, or on a cluster.")
]
RayAddress = Annotated[
    str | None,
    typer.Option(
        metavar="HOST:PORT",
        help="Ray cluster, with --driver ray. \\[default: RAY_ADDRESS, or the one on this machine, or a new one]",
    ),
]


@contextmanager
def driving(
    name: DriverName, workers: int | None, address: str | None, *, cpus: float = 1.0, gpus: float = 0.0
) -> Iterator["Driver"]:
    """Yield the driver that options name, and end its connection.

    Args:
        name: of the driver.
        workers: most tasks at a time.
        address: of a Ray cluster.
        cpus: of a cluster, for each task.
        gpus: of a cluster, for each task.

    Raises:
        DriverError: an address is given without ``--driver ray``.
    """
    from model_export.drivers.local import LocalDriver
    from model_export.errors import DriverError

    if name is DriverName.RAY:
        from model_export.drivers.ray_data import RayDriver

        with RayDriver(workers, address, cpus=cpus, gpus=gpus) as cluster:
            yield cluster
        return
    if address:
        raise DriverError("--ray-address needs --driver ray")
    yield LocalDriver(workers or 1)


def threads_of(name: DriverName, workers: int | None) -> int:
    """Return the threads of one task: its share of this machine's cores, or the one core that a cluster gives it."""
    from service.model.engine.cpus import available_cpus

    return 1 if name is DriverName.RAY else max(1, available_cpus() // (workers or 1))
