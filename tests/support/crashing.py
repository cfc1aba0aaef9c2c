"""One run of a command that is killed or failed at one call, and what must hold then and after the next run."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable
from functools import cache
from pathlib import Path

from crash_cases import Case, write_inputs
from durable import Durable, Tree, put_tree, take_times, take_tree
from tracing import Action, Call, Ended, Fail, Kill, in_process, run_traced

__all__ = ["Bench"]

_RANDOM = re.compile(r"[0-9a-f]{16,}")  # times of files, too
_TEMPORARY = "tmp"


class Bench:
    """A case on a disk of its own.

    Args:
        folder: An empty folder.
        case: The case.
        with_reading: Whether calls that change nothing count too.

    Attributes:
        calls: The calls of an undisturbed run.
        states: How many different states a next run has begun with.
        wrong: What did not hold.
    """

    def __init__(self, folder: Path, case: Case, *, with_reading: bool = False) -> None:
        self.case = case
        self._disk, self._log, self._with_reading = folder / "disk", folder / "log", with_reading
        self._inputs, self._second_log = folder / "in", folder / "second log"
        self._given = _inputs()
        put_tree(self._inputs, self._given)
        put_tree(self._disk, {_TEMPORARY: None})
        *self._before_runs, self._call = [self._here(call) for call in case.calls()]
        for call in self._before_runs:
            assert self._run(call) == 0, self._log.read_text()
        self._old, self._old_times = take_tree(self._disk), take_times(self._disk)
        ended = self._traced(lambda call: None)
        assert ended.code == 0, ended.err
        self._new = take_tree(self._disk)
        assert self._leftovers(self._new) == []
        self.calls = ended.calls
        self._seen: set[object] = set()
        self.states = 0
        self.wrong: list[str] = []

    def kill(self, number: int, *, loses: bool = True) -> None:
        """Kill a run at a call; the next run is tried on what lies there, and on what a loss of power makes of it.

        Args:
            number: Which call; one more than there are: the run ends by itself.
            loses: Whether power is lost too.
        """
        self._reset()
        durable = Durable(self._disk)

        def act(call: Call) -> Action:
            durable.before(call)
            return Kill() if call.number == number else self._without_exchange(call)

        ended = self._traced(act, durable.after)
        hit = next((call for call in ended.calls if call.number == number), None)
        where = "after its end" if hit is None else f"at {_told(hit)}"
        states, times = {"killed": take_tree(self._disk)}, take_times(self._disk)
        if loses:
            states["killed, unsynced names and bytes lost"] = durable.forgetful()
            states["killed, unsynced files empty"] = durable.orderly(lambda size: b"")
            states["killed, unsynced files zeros"] = durable.orderly(lambda size: b"\0" * size)
        if hit is None:
            for label, tree in states.items():
                if not all(self._is_new(tree, output) for output in self.case.outputs):
                    self.wrong.append(f"{label} {where}: the output is not there")
        for label, tree in states.items():
            if _key(tree) in self._seen:
                continue
            if label != "killed":
                put_tree(self._disk, tree, times)
            self._check_next(f"{label} {where}", tree)

    def fail(self, number: int, code: int, *, ever_after: bool = False) -> Ended:
        """Let a call fail, and maybe every later one that takes room; what is left must be whole, and explained."""
        self._reset()

        def act(call: Call) -> Action:
            if call.number == number or (ever_after and call.number > number and takes_room(call)):
                return Fail(code)
            return self._without_exchange(call)

        ended = self._traced(act)
        call = ended.calls[number - 1] if len(ended.calls) >= number else None
        told = "no call" if call is None else _told(call)
        where = f"{errno.errorcode[code]}{' from then on' if ever_after else ''} at {told}"
        self._check_ended(where, ended, call)
        return ended

    def alter(self, where: str, act: Callable[[Call], Action]) -> Ended:
        """Run with calls that are cut short: it must succeed as ever."""
        self._reset()
        ended = self._traced(act)
        if ended.code or take_tree(self._disk) != self._new:
            self.wrong.append(f"{where}: exit {ended.code}, {ended.err.strip()[-300:]}")
        return ended

    def meet(self, number: int) -> None:
        """Stop a run at a call, let another one of the same command run to its end, and let the first go on."""
        self._reset()
        second: list[int] = []

        def act(call: Call) -> Action:
            if call.number == number:
                second.append(self._run(self._call, self._second_log))
            return None

        ended = self._traced(act)
        where = f"two runs, the first at {_told(ended.calls[number - 1])}: exits {ended.code} and {second[0]}"
        told = f"{where}, {ended.err.strip()[-200:]}, {self._second_log.read_text().strip()[-200:]}"
        codes = {ended.code, second[0]}
        # Of two that replace, one after the other may; and the second may come when all is done.
        if codes != {0, 8} and not (self.case.is_forced and codes == {0}):
            self.wrong.append(told)
        if take_tree(self._disk) != self._new:
            self.wrong.append(f"{told}: leaves {self._differences(take_tree(self._disk))}")

    def watch(self) -> int:
        """Look at the outputs at every call of a run, as a reader would; how often that was."""
        self._reset()

        def act(call: Call) -> Action:
            tree = take_tree(self._disk)
            for output in self.case.outputs:
                is_between = self.case.without_exchange and not _part(tree, output)
                if not (is_between or self._is_old(tree, output) or self._is_new(tree, output)):
                    self.wrong.append(f"at {_told(call)}: {output} is neither the old nor the new one")
            return None

        return len(self._traced(act).calls)

    def disturb(self, number: int) -> bool:
        """Let an input be written to at a call of a run; whether the run was called off."""
        self._reset()
        before = {name: data for name, data in self._given.items() if data is not None}
        times = {name: (self._inputs / name).stat().st_mtime_ns for name in before}

        def act(call: Call) -> Action:
            if call.number == number:
                for name, data in before.items():
                    if name.endswith((".ckpt", ".safetensors")):
                        (self._inputs / name).write_bytes(data[:-1] + bytes([data[-1] ^ 1]))
            return None

        ended = self._traced(act)
        for name, data in before.items():
            (self._inputs / name).write_bytes(data)
            os.utime(self._inputs / name, ns=(times[name], times[name]))
        tree = take_tree(self._disk)
        is_right = self._is_all(tree, self._is_new) if ended.code == 0 else self._is_one(tree)
        # A patch has digests of its own, which may notice it first.
        if ended.code not in (0, 4, 6, 7) or not is_right or self._leftovers(tree):
            where = "nothing" if len(ended.calls) < number else _told(ended.calls[number - 1])
            self.wrong.append(f"inputs changed at {where}: exit {ended.code}, {ended.err.strip()[-300:]}")
        return ended.code == 7 and "changed while it was being read" in ended.err

    def check_inputs(self) -> None:
        """Nothing that was tried may have touched the inputs."""
        if take_tree(self._inputs) != self._given:
            self.wrong.append("the inputs were changed")

    def _reset(self) -> None:
        put_tree(self._disk, self._old, self._old_times)

    def _check_ended(self, where: str, ended: Ended, call: Call | None) -> None:
        tree = take_tree(self._disk)
        found = f"{where}: exit {ended.code}, {ended.err.strip()[-300:]}"
        if ended.code not in (0, 7, 8):
            self.wrong.append(found)
        if ended.code == 0 and not all(self._is_new(tree, output) for output in self.case.outputs):
            self.wrong.append(f"{found}: and the output is not there")
        if ended.code and "error: " not in ended.err:
            self.wrong.append(f"{found}: without a reason")
        # What may not be removed stays, for the next run to remove.
        is_removal = call is not None and call.name in ("unlink", "unlinkat", "rmdir", "openat")
        if not is_removal and (left := self._leftovers(tree)):
            self.wrong.append(f"{found}: left behind {left}")
        if ended.code and not is_removal and not self._is_one(tree):
            self.wrong.append(f"{found}: neither the old state nor the new one: {self._differences(tree)}")
        self._check_next(where, tree)

    def _check_next(self, where: str, tree: Tree) -> None:
        """Whatever happened, each output is whole, and the next run leaves the new state and nothing else."""
        for output in self.case.outputs:
            # Where names are not exchanged, there is a moment without either.
            is_between = self.case.without_exchange and not _part(tree, output)
            if not (is_between or self._is_old(tree, output) or self._is_new(tree, output)):
                self.wrong.append(f"{where}: {output} is neither the old nor the new one")
        if _key(tree) in self._seen:
            return
        self._seen.add(_key(tree))
        self.states += 1
        is_done = all(self._is_new(tree, output) for output in self.case.outputs)
        code = self._run(self._call)
        allowed = (0, 8) if is_done and not self.case.is_forced else (0,)
        if code not in allowed:
            self.wrong.append(f"{where}: the next run ends with {code}, {self._log.read_text().strip()[-300:]}")
        after = take_tree(self._disk)
        if after != self._new:
            self.wrong.append(f"{where}: the next run leaves {self._differences(after)}")

    def _differences(self, tree: Tree) -> list[str]:
        """Names of what differs from the new state."""
        names = sorted(tree.keys() | self._new.keys())
        return [name for name in names if tree.get(name, b"-") != self._new.get(name, b"-")]

    def _is_one(self, tree: Tree) -> bool:
        """Whether all outputs are old, or all are new; of two outputs with a report each, each by itself."""
        apart = "--remainder" in self.case.arguments
        groups = {output.split(".")[0] if apart else "": None for output in self.case.outputs}
        return all(
            any(
                all(is_it(tree, output) for output in self.case.outputs if output.startswith(group))
                for is_it in (self._is_old, self._is_new)
            )
            for group in groups
        )

    def _is_all(self, tree: Tree, is_it: Callable[[Tree, str], bool]) -> bool:
        return all(is_it(tree, output) for output in self.case.outputs)

    def _is_old(self, tree: Tree, output: str) -> bool:
        return _part(tree, output) == _part(self._old, output)

    def _is_new(self, tree: Tree, output: str) -> bool:
        return _part(tree, output) == _part(self._new, output)

    def _leftovers(self, tree: Tree) -> list[str]:
        """What is neither an output nor what runs of parts completed, which waits for the run that publishes it."""
        outputs = (*self.case.outputs, _TEMPORARY)
        left = [name for name in tree if name.split("/")[0] not in outputs and name not in self._old]
        is_waiting = self.case.before and not self.case.is_forced
        return [name for name in left if not (is_waiting and "/content/" in name and any("kept" in n for n in tree))]

    def _here(self, call: Callable[[], object]) -> Callable[[], object]:
        def run() -> object:
            os.chdir(self._disk)
            tempfile.tempdir = str(self._disk / _TEMPORARY)
            return call()

        return run

    def _run(self, call: Callable[[], object], log: Path | None = None) -> int:
        return os.waitstatus_to_exitcode(os.waitpid(in_process(call, log or self._log), 0)[1])

    def _traced(self, act: Callable[[Call], Action], after: Callable[[Call], None] = lambda call: None) -> Ended:
        return run_traced(
            self._call,
            self._disk,
            self._log,
            lambda call: act(call) or self._without_exchange(call),
            after=after,
            with_reading=self._with_reading,
        )

    def _without_exchange(self, call: Call) -> Action:
        return Fail(errno.EINVAL) if self.case.without_exchange and call.name == "renameat2" else None


@cache
def _inputs() -> Tree:
    """The inputs of all cases, which are made once."""
    with tempfile.TemporaryDirectory() as folder:
        write_inputs(Path(folder) / "in")
        return take_tree(Path(folder) / "in")


def takes_room(call: Call) -> bool:
    """Whether a call needs room on the disk."""
    if call.name == "openat":
        return bool(call.flags & os.O_CREAT)
    return call.name in ("write", "pwrite64", "fallocate", "ftruncate", "copy_file_range", "mkdir", "link")


def _part(tree: Tree, output: str) -> Tree:
    return {name: data for name, data in tree.items() if name == output or name.startswith(f"{output}/")}


def _key(tree: Tree) -> object:
    """What tells a state from others: not what is random, nor the bytes of unfinished parts, which are never read."""
    known = {name: b"" if data is None or "/parts/" in name else data for name, data in tree.items()}
    return frozenset(
        (_RANDOM.sub("*", name), _RANDOM.sub("*", data.decode("latin-1")), tree[name] is None)
        for name, data in known.items()
    )


def _told(call: Call) -> str:
    return f"call {call.number}, {call.name} {' '.join(path.rpartition('/disk/')[2] for path in call.paths)}"
