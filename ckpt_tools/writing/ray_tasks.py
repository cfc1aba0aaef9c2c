"""Tasks on a Ray cluster, each of which fills a file, and the number that tells how far all of them are.

The package `ray` is handed in.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ckpt_tools.progress import Progress
from ckpt_tools.tensors.sources import watched_paths
from ckpt_tools.writing.atomic import Workspace
from ckpt_tools.writing.memory import Budget
from ckpt_tools.writing.plan import OutputFile, Plan
from ckpt_tools.writing.remote import Order
from surgery.errors import Problem, ResourceError
from surgery.version import __version__

__all__ = ["Attempt", "Crew", "Lost", "Tally", "first_line"]

# Tasks that wait for a free worker, so that none has to wait for a task.
_QUEUED_TASKS = 4

_POLL_SECONDS = 0.2

# What a cancelled task may take to end by itself; then its process is killed.
_GRACE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class Attempt:
    """A file that is given to a worker.

    Attributes:
        file: The file.
        number: Counts how often it was given away.
        part: Where the worker writes it.
    """

    file: OutputFile
    number: int
    part: Path


@dataclass(frozen=True, slots=True)
class Lost:
    """A worker or its node ended before it answered.

    Attributes:
        reason: What Ray says of it.
    """

    reason: str


class Crew:
    """The tasks under way."""

    def __init__(
        self,
        ray: Any,
        workspace: Workspace,
        budget: Budget,
        tally: Tally | None,
        *,
        owns_processes: bool,
        with_digests: bool,
    ) -> None:
        self._ray = ray
        self._workspace = workspace
        self._budget = budget
        self._tally = tally
        self._owns_processes = owns_processes
        self._with_digests = with_digests
        self._fill = ray.remote(_make_task())
        self.running: dict[Any, Attempt] = {}

    def has_room(self) -> bool:
        """Whether another task would find a worker now or soon; orders are not piled up in the cluster's memory."""
        return len(self.running) < sum(count // self._cpus() for count in self._nodes()) + _QUEUED_TASKS

    def give(self, attempt: Attempt) -> None:
        """Hand a file to the cluster."""
        cpus = self._cpus()
        budget = replace(self._budget, threads=cpus)
        watched = watched_paths()
        if watched:
            plan = Plan(self._workspace.output, True, (attempt.file,))
            watched &= {source.path for source in plan.sources()}
        order = Order(
            self._workspace, attempt.part, budget, attempt.file, self._owns_processes, watched, self._with_digests
        )
        report = None if self._tally is None else self._tally.reporter(attempt.file.name)
        # A lost task is given away again here, not by Ray: each attempt has a place of its own.
        task = self._fill.options(
            num_cpus=cpus, max_retries=0, scheduling_strategy="SPREAD", name=f"pet-surgery {attempt.file.name}"
        )
        self.running[task.remote(__version__, order.to_bytes(), report)] = attempt

    def answers(self) -> Iterator[tuple[Attempt, Any]]:
        """What came back within a moment: a `Written`, a `Lost`, or what is to be raised."""
        done, _ = self._ray.wait(list(self.running), timeout=_POLL_SECONDS)
        for task in done:
            yield self.running.pop(task), self._answer(task)

    def dismiss(self) -> None:
        """End what is still under way; none of it writes any more when this returns."""
        for force in (False, True):
            if not self.running:
                return
            # What goes wrong here comes behind what called for it, and must not take its place.
            with suppress(Exception):
                for task in self.running:
                    self._ray.cancel(task, force=force)
                tasks = list(self.running)
                done, _ = self._ray.wait(tasks, num_returns=len(tasks), timeout=_GRACE_SECONDS)
                for task in done:
                    del self.running[task]

    def _answer(self, task: Any) -> Any:
        errors = self._ray.exceptions
        try:
            host, answer = self._ray.get(task)
        except errors.RayTaskError as error:
            if isinstance(error.cause, ImportError):
                return _other_installation("a Ray node", str(error.cause))
            return error
        except errors.RayError as error:
            return Lost(first_line(error))
        if isinstance(answer, str):
            return _other_installation(f"the Ray node {host}", f"pet-surgery {answer}")
        return answer

    def _cpus(self) -> int:
        """The CPUs of a task: as many as it has threads, and no more than any node can give."""
        return min(self._budget.threads, *self._nodes())

    def _nodes(self) -> list[int]:
        """The CPUs of the nodes that have some."""
        nodes = [int(node["Resources"].get("CPU", 0)) for node in self._ray.nodes() if node["Alive"]]
        if not any(nodes):
            raise ResourceError(Problem("the Ray cluster", "no node with a CPU", "one or more", "Ask `ray status`"))
        return [count for count in nodes if count]


class Tally:
    """The progress of all workers, in one number: they tell an actor, which is asked now and then."""

    def __init__(self, ray: Any, progress: Progress) -> None:
        self._ray = ray
        self._progress = progress
        # On this machine: a node that is lost must not take it along.
        here = ray.get_runtime_context().get_node_id()
        strategy = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(here, soft=True)
        self._actor = ray.remote(_make_tally()).options(num_cpus=0, scheduling_strategy=strategy).remote()
        self._question: Any = None
        self._shown: dict[str, int] = {}

    def reporter(self, name: str) -> tuple[Any, str]:
        """What a worker needs to tell how far a file is."""
        return self._actor, name

    def show(self) -> None:
        """Show what the workers told; the number never falls, though a lost file begins anew."""
        # Progress that gets lost is no reason to fail: what is complete is counted without it.
        with suppress(self._ray.exceptions.RayError):
            if self._question is None:
                self._question = self._actor.all.remote()
            done, _ = self._ray.wait([self._question], timeout=0)
            if not done:
                return
            question, self._question = self._question, None
            for name, count in self._ray.get(question).items():
                self._advance(name, count)

    def complete(self, name: str, size: int) -> None:
        """A file is complete."""
        self._advance(name, size)

    def close(self) -> None:
        """End the actor."""
        with suppress(Exception):
            self._ray.kill(self._actor)

    def _advance(self, name: str, count: int) -> None:
        shown = self._shown.get(name, 0)
        if count > shown:
            self._shown[name] = count
            self._progress.advance(count - shown)


def first_line(error: Exception) -> str:
    """What an error of Ray's, which may be a page, says at its beginning; without the full stop."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(".") if lines else type(error).__name__


def _other_installation(where: str, found: str) -> ResourceError:
    remedy = "Install the same version on all nodes, or use --executor local"
    return ResourceError(Problem(where, found, f"pet-surgery {__version__}, as on this machine", remedy))


# What follows is nested, as Ray then sends its code: a node without this package can still say so.


def _make_task() -> Callable[..., tuple[str, Any]]:
    def fill(version: str, order: bytes, report: tuple[Any, str] | None) -> tuple[str, Any]:
        import socket

        from surgery.version import __version__ as here

        if here != version:
            return socket.gethostname(), here
        from ckpt_tools.writing.remote import fill_order

        def tell(done_bytes: int) -> None:
            if report is not None:
                actor, name = report
                actor.tell.remote(name, done_bytes)

        return socket.gethostname(), fill_order(order, tell)

    return fill


def _make_tally() -> type:
    class Tally:
        def __init__(self) -> None:
            self.done: dict[str, int] = {}

        def tell(self, name: str, done_bytes: int) -> None:
            self.done[name] = max(done_bytes, self.done.get(name, 0))

        def all(self) -> dict[str, int]:
            return self.done

    return Tally
