"""Start workers in wrong ways, in real processes, and show what each of them prints.

    python -m tests.support.starts

All ways are tried at the same time, since the workers mostly wait. Their processes have already
imported TensorFlow, so that times count from the call of `initialize`.
"""

import contextlib
import dataclasses
import json
import os
import pathlib
import re
import signal
import socket
import tempfile
import time
from collections.abc import Iterator

from tests.support import addresses, deadlines, gpus, nursery, product

PROGRAM = """
import functools, os, signal
if "DIES" in os.environ:
    os.kill(os.getpid(), signal.SIGKILL)
import tf_gossip_pga as pga
from tests.support import patient
from tf_gossip_pga.exchange import process, startup
from tf_gossip_pga.cluster import gpus
startup.__version__ = os.environ.get("VERSION", pga.__version__)
gpus.own_gpu = lambda: os.environ.get("GPU", "")
if "HEARS" in os.environ:
    process.RollCall = patient.PatientRollCall
    process.RollCall.hears = int(os.environ["HEARS"])
    process.Timing = functools.partial(process.Timing, ask_s=30, serve_s=30, closing_s=60)
if "SETTLE_S" in os.environ:
    process.Timing = functools.partial(process.Timing, start_settle_s=float(os.environ["SETTLE_S"]))
cluster = pga.initialize()
print("started", cluster.rank, flush=True)
"""


@dataclasses.dataclass
class Worker:
    """Describe one process, its expected output, and its outcome.

    Attributes:
      says: regular expression for the expected output.
      rank: its index in TF_CONFIG.
      given: the addresses in TF_CONFIG; None: no TF_CONFIG.
      environment: further environment variables.
      ends: whether it must end by itself; if not, it must wait, and gets SIGTERM. None: either.
      output: its output so far.
      seconds: seconds until it printed the expected output.
      ended_s: seconds until it ended by itself, or from SIGTERM until it ended.
      returncode: its exit code.
    """

    says: str
    rank: int = 0
    given: list[str] | None = None
    environment: dict[str, str] = dataclasses.field(default_factory=dict)
    ends: bool | None = True
    output: str = ""
    seconds: float | None = None
    ended_s: float | None = None
    returncode: int | None = None


@dataclasses.dataclass
class Start:
    """Describe one wrong way to start.

    Attributes:
      name: the way in words.
      workers: the workers that are started.
      taken: addresses on which other programs listen.
    """

    name: str
    workers: list[Worker]
    taken: list[str] = dataclasses.field(default_factory=list)


def waits(given: list[str], rank: int, missing: int, why: str) -> Worker:
    """Return a worker that must wait for a missing one, and say why."""
    return Worker(
        rf"Rank {rank} of \d has waited \d+ s .*rank {missing}: .*{why}", rank, given, ends=False
    )


def wrong_starts() -> list[Start]:
    """Return all wrong ways, each with separate addresses."""
    nobody = "nothing listens at .*was it started"
    either = "Rank 1 cannot listen on .*: address in use|Rank 1 of 3 has waited .*rank 2: {}"
    lists = r"different lists of addresses(.|\n)*rank 0 .*: {}\n.*rank 2 .*: {}\n"
    starts = []

    def add(name, make, taken=()):
        given = addresses.free(4)
        workers = make(given[:3], given)
        if all(worker.ends for worker in workers):
            # None may fail before it has heard all others, so that all give the same reason.
            for worker in workers:
                worker.environment.update(HEARS=str(len(workers) - 1))
        starts.append(Start(name, workers, [given[rank] for rank in taken]))

    add(
        "rank 1 never starts",
        lambda a, _: [waits(a, 0, 1, nobody), waits(a, 2, 1, nobody)],
    )
    add(
        "rank 0 never starts",
        lambda a, _: [waits(a, 1, 0, nobody), waits(a, 2, 0, nobody)],
    )
    add(
        "rank 1 dies before initialize",
        lambda a, _: [
            waits(a, 0, 1, nobody),
            Worker("", 1, a, {"DIES": "1"}),
            waits(a, 2, 1, nobody),
        ],
    )
    add(
        "another program listens at the port of rank 1",
        lambda a, _: [
            Worker(f"Rank 0 of 3 cannot start: rank 1 cannot listen on {a[1]}: addr", 0, a),
            Worker(f"Rank 1 cannot listen on {a[1]}: address in use. Is rank 1 already", 1, a),
            Worker(f"Rank 2 of 3 cannot start: rank 1 cannot listen on {a[1]}: addr", 2, a),
        ],
        taken=[1],
    )
    add(
        "another program answers in place of rank 0",
        lambda a, _: [
            waits(a, 1, 0, f"something listens at {a[0]} but does not answer as rank 0"),
            waits(a, 2, 0, f"something listens at {a[0]} but does not answer as rank 0"),
        ],
        taken=[0],
    )

    def waits_beside_twins(given: list[str]) -> Worker:
        worker = waits(given, 0, 2, nobody)
        spare = "A second process of rank 1 .* has ended, which does not affect this job"
        # It must not take the end of one process of rank 1 for an error before it has met the
        # other, however late that one is.
        patience = {"SETTLE_S": "600"}
        return dataclasses.replace(
            worker, says=rf"{spare}(.|\n)*{worker.says}", environment=patience
        )

    add(
        "index 1 is started twice, and index 2 never",
        lambda a, _: [
            waits_beside_twins(a),
            Worker(either.format(nobody), 1, a, ends=None),
            Worker(either.format(nobody), 1, a, ends=None),
        ],
    )
    add(
        "the name of rank 2 does not resolve",
        lambda a, _: [
            waits([*a[:2], "no-such-host.invalid:2222"], rank, 2, "the name 'no-such-host.invalid'")
            for rank in (0, 1)
        ],
    )

    def differing(odd):
        return lambda a, all4: [
            Worker(lists.format(", ".join(a), ", ".join(odd(all4))), rank, given)
            for rank, given in enumerate([a, a, odd(all4)])
        ]

    def requesting(says, variables):
        return lambda a, _: [Worker(says, rank, a, each) for rank, each in enumerate(variables)]

    add("lists of three and of four addresses", differing(lambda all4: all4))
    add("lists that differ in one address", differing(lambda a: [a[0], a[3], a[2]]))
    add("lists in different orders", differing(lambda a: [a[1], a[0], a[2]]))
    add(
        "another version on rank 1",
        lambda a, _: [
            Worker(
                "differ in the version of tf_gossip_pga.*0.0.1 on rank 1 ",
                rank,
                a,
                {"VERSION": "0.0.1"} if rank == 1 else {},
            )
            for rank in range(3)
        ],
    )
    for name, ranks_gpus, says in [
        ("NCCL without GPUs", ("", "", ""), "rank 0 has no GPU that NCCL can use"),
        ("NCCL with a GPU on all but rank 1", ("0", "", "1"), "rank 1 has no GPU that NCCL can"),
        ("NCCL with two workers on one GPU", ("0", "1", "0"), "rank 0 and rank 2 share GPU 0"),
    ]:
        variables = [{"GPU": gpu, "TF_GOSSIP_PGA_COMMUNICATION": "nccl"} for gpu in ranks_gpus]
        add(name, requesting(f"ValueError: communication is 'nccl', but {says}", variables))
    differing_requests = [
        {"TF_GOSSIP_PGA_COMMUNICATION": each} for each in ("ring", "auto", "ring")
    ]
    says = "differ in the requested communication.*ring on rank 0 .* and rank 2 .*auto on rank 1 "
    add("another transport requested on rank 1", requesting(says, differing_requests))
    for name, variable in [("srun", "SLURM_STEP_NUM_TASKS"), ("mpirun", "OMPI_COMM_WORLD_SIZE")]:
        says = rf"one of several \({variable}=2\).*_(PROCID|RANK) must be(.|\n)*_CLUSTER=none"
        starts.append(
            Start(f"{name} with too few variables", [Worker(says, 0, None, {variable: "2"})] * 1)
        )
    return starts


def run(starts: list[Start], deadline_s: float = 60) -> None:
    """Start the workers of all ways, and record what they print and how they end.

    Args:
      starts: the ways.
      deadline_s: the deadline in seconds on an idle machine; all workers are killed then.

    Raises:
      TimeoutError: a worker did not print the expected output, or did not end as expected.
    """
    with contextlib.ExitStack() as stack:
        folder = pathlib.Path(stack.enter_context(tempfile.TemporaryDirectory()))
        for start in starts:
            for address in start.taken:
                _, port = address.split(":")
                stack.enter_context(socket.create_server(("", int(port))))
        running = [
            _Running(worker, folder / f"{place}.{index}", stack)
            for place, start in enumerate(starts)
            for index, worker in enumerate(start.workers)
        ]
        deadline = deadlines.Deadline(deadline_s)
        deadline.until(
            lambda: not [each for each in running if not each.has_spoken()],
            lambda: "\n".join(f"{each.worker}" for each in running if not each.has_spoken()),
        )
        for each in running:
            each.terminate()
        deadline.until(lambda: not [each for each in running if not each.has_ended()])


class _Running:
    """Run the process of a worker."""

    def __init__(self, worker: Worker, output: pathlib.Path, stack: contextlib.ExitStack):
        self.worker, self._output = worker, output
        environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", **worker.environment}
        environment.pop("TF_CONFIG", None)
        if worker.given:
            environment["TF_CONFIG"] = product.tf_config(worker.given, worker.rank)
        with output.open("wb") as file:
            self._process = nursery.start(["-c", PROGRAM], environment, file)
        stack.callback(self._process.kill)
        self._since = time.monotonic()

    def has_spoken(self) -> bool:
        """Return whether it has printed the expected output, and has ended if it must end."""
        worker, ended = self.worker, self.has_ended()
        worker.output = self._output.read_text(errors="replace")
        if worker.seconds is None and re.search(worker.says, worker.output):
            worker.seconds = time.monotonic() - self._since
        if worker.seconds is None:
            return False
        waits = worker.ends is not True and "has waited" in worker.output
        return waits or (ended and worker.ends is not False)

    def has_ended(self) -> bool:
        if self.worker.ended_s is None and self._process.poll() is not None:
            self.worker.ended_s = time.monotonic() - self._since
            self.worker.returncode = self._process.returncode
        return self.worker.ended_s is not None

    def terminate(self) -> None:
        if not self.has_ended():
            os.kill(self._process.pid, signal.SIGTERM)
            self._since = time.monotonic()


def lines(start: Start) -> Iterator[str]:
    """Yield the lines of a report of one way: what each worker printed, and when."""
    yield f"== {start.name}"
    for worker in start.workers:
        ended = f"exit code {worker.returncode} after {worker.ended_s:.1f} s"
        if worker.returncode == -signal.SIGTERM:
            ended = f"waits; ended {worker.ended_s:.1f} s after SIGTERM"
        yield f"   index {worker.rank}: said after {worker.seconds:.1f} s; {ended}"
        said = re.search(r"^(?:\w+\.)*(?:\w+Error|WorkerLost): ((.|\n)*)", worker.output, re.M)
        text = said[1] if said else worker.output
        yield from (f"      {line}" for line in text.splitlines())


def main() -> None:
    """Try all ways, and print them."""
    gpus.hide()
    starts = wrong_starts()
    run(starts, deadline_s=120)
    for start in starts:
        print("\n".join(lines(start)))
    print(json.dumps({"ways": len(starts)}))


if __name__ == "__main__":
    main()
