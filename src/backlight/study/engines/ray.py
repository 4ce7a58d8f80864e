"""The engine of a Ray cluster: a local one that it starts and ends, or one that is there.

A worker is an actor with one GPU or its share of the cores; it loads models by name and stores results on the disk that all
nodes share.  Only names, settings and small outcomes travel.  Ray restarts and retries nothing here: the pool does.
"""

from __future__ import annotations

import os
import secrets
import signal
import socket
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from typing import Any

from backlight.errors import Unavailable, first_line
from backlight.progress import Progress, quiet
from backlight.study.engines.child import portable, warnings_to
from backlight.study.engines.messages import Died, Finished, Message, Raised, Ready
from backlight.study.engines.pool import Pool
from backlight.study.engines.resources import VISIBLE, threads_of, usable_cores, usable_gpus, workers_by_default
from backlight.study.how import How
from backlight.study.tasks import Task

CORES = 4  # of a worker in a cluster without GPUs, if there are so many
#: Read by Ray when it is imported or starts a cluster.
ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",  # else `uv run` makes every worker run uv
    "RAY_AUTH_MODE": "token",
}
#: Set to 0, Ray listens on the loopback address only, on any system.
LOOPBACK = "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"


def ray_engine(count: int | None, address: str | None, timeout: float | None) -> Pool:
    """The pool of a cluster; with an address, of the one that listens there.  Errors: Unavailable."""
    for name, value in ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if address is None:
        os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
        os.environ[LOOPBACK] = "0"
    try:
        import ray
    except ImportError as error:
        raise Unavailable("the engine ray needs Ray: pip install 'backlight[ray]'") from error
    cluster = Cluster(ray, count, address)
    return Pool(cluster, cluster.count, timeout)


class Cluster:
    """Actors by number; see `Workers`."""

    def __init__(self, ray: Any, count: int | None, address: str | None) -> None:
        self.ray = ray
        self.folder = None if address else tempfile.TemporaryDirectory(prefix="ray-", dir="/tmp")  # sockets need short names
        own = count or workers_by_default()
        with signals_kept():
            try:
                refuse_silent(address)
                connect(ray, own, address, self.folder.name if self.folder else None)
            except (OSError, RuntimeError, ValueError) as error:
                where = f"at {address} " if address else ""
                raise Unavailable(f"Ray's cluster {where}does not answer: {first_line(error)}") from error
        self.local, self.on_gpus = address is None, "GPU" in ray.cluster_resources()
        self.cores = max(1, len(usable_cores()) // own) if self.local else cores_of_a_worker(nodes(ray))
        self.count = count or (own if self.local else max(1, self.places()))
        self.actors: dict[int, Any] = {}
        self.running: dict[Any, int] = {}  # what a call will return -> worker

    def start(self, number: int, how: How) -> None:
        """Ask for an actor, which Ray starts when there is room."""
        environment = {**threads_of(self.cores), **({} if self.on_gpus else {VISIBLE: ""})}
        kind = self.ray.remote(Actor).options(
            num_cpus=1 if self.local or self.on_gpus else self.cores, num_gpus=1 if self.on_gpus else 0,
            max_restarts=0, max_task_retries=0, runtime_env={"env_vars": environment},
        )  # fmt: skip
        self.actors[number] = actor = kind.remote(replace(how, show=quiet), os.getcwd(), list(sys.path))
        self.running[actor.ready.remote()] = number

    def places(self) -> int:
        """How many workers the nodes that are alive have room for."""
        own = nodes(self.ray)
        return sum(int(node.get("GPU", 0)) if self.on_gpus else int(node.get("CPU", 0)) // self.cores for node in own)

    def give(self, number: int, task: Task) -> None:
        """Give a task to an actor."""
        self.running[self.actors[number].run.remote(task)] = number

    def messages(self, seconds: float) -> list[tuple[int, Message]]:
        """The messages of tasks that are done."""
        ready, _ = self.ray.wait(list(self.running), num_returns=1, timeout=seconds)
        received: list[tuple[int, Message]] = []
        for reference in ready:
            number = self.running.pop(reference)
            try:
                received += [(number, message) for message in self.ray.get(reference)]
            except self.ray.exceptions.RayError as error:
                self.actors.pop(number, None)
                received.append((number, Died(f"the worker that measured it died: {first_line(error)}", again=True)))
        return received

    def end(self, number: int) -> None:
        """Kill an actor."""
        self.running = {reference: other for reference, other in self.running.items() if other != number}
        with suppress(self.ray.exceptions.RayError):
            self.ray.kill(self.actors.pop(number), no_restart=True)

    def close(self) -> None:
        """Kill the actors, and end the cluster if it was started here."""
        for number in list(self.actors):
            self.end(number)
        self.ray.shutdown()
        if self.folder:
            self.folder.cleanup()


def nodes(ray: Any) -> list[dict[str, float]]:
    """What each node that is alive has."""
    return [node["Resources"] for node in ray.nodes() if node["Alive"]]


def cores_of_a_worker(each: list[dict[str, float]]) -> int:
    """The cores of a worker that has no GPU: `CORES`, or those of the smallest node.

    >>> cores_of_a_worker([{"CPU": 16.0}, {"CPU": 3.0}, {"memory": 1.0}])
    3
    """
    return max(1, min([CORES, *(int(node["CPU"]) for node in each if node.get("CPU"))]))


def refuse_silent(address: str | None) -> None:
    """Errors: OSError if nothing listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdecimal() and "//" not in host:
        socket.create_connection((host, int(port)), timeout=5).close()


def connect(ray: Any, count: int, address: str | None, folder: str | None) -> None:
    """Join a cluster, or start one that only this machine reaches."""
    common = {"log_to_driver": False, "logging_level": "error", "configure_logging": False}
    if address:
        ray.init(address=address, **common)
    else:
        ray.init(
            address="local", num_cpus=count, num_gpus=len(usable_gpus()), include_dashboard=False,
            _temp_dir=folder, **common,
        )  # fmt: skip


@contextmanager
def signals_kept() -> Iterator[None]:
    """Within the block handlers of signals may be replaced; afterwards they are what they were."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            with suppress(ValueError):  # not the main thread
                signal.signal(number, handler)


class Actor:
    """A worker in a process of Ray."""

    def __init__(self, how: How, folder: str, path: list[str]) -> None:
        from backlight.study.worker import Worker

        with suppress(OSError):  # the folder in which files of models are looked up
            os.chdir(folder)
        sys.path[:] = [*sys.path, *(entry for entry in path if entry not in sys.path)]
        self.said: list[Message] = []
        warnings_to(self.say)
        self.worker = Worker(replace(how, show=self.say))

    def say(self, event: Progress | str) -> None:
        """Keep a line; progress would arrive with the end of the task."""
        if isinstance(event, str):
            self.said.append(event)

    def ready(self) -> list[Message]:
        """That it has started."""
        return [Ready()]

    def run(self, task: Task) -> list[Message]:
        """The outcomes of a task, what was said, and its end."""
        self.said.clear()
        outcomes: list[Message] = []
        try:
            outcomes += [outcome.without_result() for outcome in self.worker.run(task)]
        except Exception as error:
            return [*self.said, *outcomes, Raised(portable(error))]
        return [*self.said, *outcomes, Finished()]
