"""How the ranks that mpirun starts on a CPU become MindSpore's cluster, at an address that MPI tells them."""

import os
import socket
import sys
from collections.abc import Callable
from datetime import timedelta

from mindcv_reparam import scheduler
from mindcv_reparam.errors import UserError
from mindcv_reparam.hosts import check_folder, check_names, local_ranks, served_address

_RENDEZVOUS_TIMEOUT = timedelta(minutes=5)


def join(rank: int, size: int) -> object:
    """Build MindSpore's CPU cluster at an address of rank 0; what it has to keep, there."""
    host, port = _agree_on_address(rank, size)
    from mindcv_reparam.private import init_with_store

    by_store = init_with_store()
    return _by_scheduler(rank, size, host, port) if by_store is None else _by_store(rank, size, host, port, by_store)


def _by_scheduler(rank: int, size: int, host: str, port: int) -> scheduler.Scheduled:
    """As msrun's ranks do, with a scheduler that rank 0 starts."""
    from mindspore.communication import init

    child = scheduler.start(host, port, size) if rank == 0 else None
    place = {**scheduler.variables("MS_WORKER", host, port, size), "MS_NODE_ID": str(rank)}
    scheduler.wait_for(host, port)
    with scheduler.environment(place):
        init()
    return scheduler.Scheduled(child)


def _by_store(rank: int, size: int, host: str, port: int, by_store: Callable) -> object:
    """On a key-value store that rank 0 serves."""
    from mindspore.mint.distributed import TCPStore

    store = TCPStore(
        host_name=host,
        port=port,
        world_size=size,
        is_master=rank == 0,
        timeout=_RENDEZVOUS_TIMEOUT,
        wait_for_workers=True,
    )
    by_store("mccl", _RENDEZVOUS_TIMEOUT, size, rank, store)
    return store


def _agree_on_address(rank: int, size: int) -> tuple[str, int]:
    """An address of rank 0 that all ranks can reach, and a port free there, by MPI.

    MPI is finalized at once: left to the end of the process, it would make a rank that failed wait for the others.
    """
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise UserError(f"mpirun needs the package mpi4py, built for the same MPI: {error}") from error
    world = MPI.COMM_WORLD
    if world.size != size:
        raise UserError(
            f"mpirun started {size} processes, mpi4py sees {world.size}: they belong to two MPI installations; "
            f"use the mpirun in {os.path.join(sys.prefix, 'bin')}"
        )
    hosts = world.allgather(socket.gethostname())
    counts = world.allgather(local_ranks(os.environ, size))
    folder = world.bcast(os.getcwd())
    address, wrong = None, ""
    try:
        check_names(hosts, counts)
        check_folder(folder)
        if rank == 0:
            address = served_address(os.environ.get("MS_SCHED_HOST") or address_towards(hosts), hosts)
    except UserError as caught:
        wrong = str(caught)
    told = world.allgather((address, wrong))  # a rank that left now would have the others' MPI abort, with its status
    MPI.Finalize()
    for _, wrong in told:
        if wrong:
            raise UserError(wrong)
    return told[0][0]


def address_towards(hosts: list[str]) -> str:
    """The IPv4 address by which the other ``hosts`` reach this one, the first of them."""
    others = [host for host in hosts if host != hosts[0]]
    if not others:
        return "127.0.0.1"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect((others[0], 9))  # sends nothing: the kernel only looks up the route
            return probe.getsockname()[0]
    except OSError as error:
        raise UserError(
            f"{hosts[0]} finds no route to {others[0]} ({error}): give its address by mpirun -x MS_SCHED_HOST=ADDRESS"
        ) from error
