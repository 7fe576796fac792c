"""Define every deadline and interval of the control plane in one place.

The timeouts that users choose (`GossipPGA(timeout_s=…)`) are in `training.settings`.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Timing:
    """Deadlines and intervals, in seconds unless the name says otherwise.

    Everything that waits receives a `Timing` object. Only tests and the protocol simulation pass
    values other than the defaults.

    Attributes:
      start_s: how long a starting worker waits for the others: in the roll call, while TensorFlow
        starts, and in its first exchange.
      start_report_s: how long a starting worker waits for others before it first reports the wait.
      start_call_s: shortest interval between a starting worker's calls to another worker.
      start_settle_s: how long a worker that cannot start listens for further reports about the
        cause. Also how long a worker keeps trying to listen on its port.
      start_tell_s: how long a worker that cannot start tries to send the cause to the others.
      between_work_factor: factor by which `timeout_s` is extended when workers wait for one another
        after unequal work, such as reading data, compiling, validating, or writing a checkpoint.
      restore_s: how long workers wait for one another while checkpoints are read.
      ask_s: how long a request to another worker may take. This is ample for a live process, but
        short compared with any exchange's timeout.
      reachable_s: how long a request may take that only checks whether a worker is reachable.
      serve_s: how long an unknown peer may hold a connection.
      watch_every_s: how often the watchdog checks the exchange in progress.
      patience_s: minimum duration of an exchange before the watchdog, a thread of each worker, asks
        the other workers about it and reports it.
      nccl_patience_s: minimum duration of an exchange over NCCL before the watchdog asks about it.
        NCCL, unlike gRPC, does not report that another worker's process has ended.
      patience_steps: another minimum duration of an exchange before the watchdog asks about it.
        It is this number times the worker's median step time, but at most a tenth of the exchange's
        timeout. If it is larger than `patience_s` (over NCCL, `nccl_patience_s`), it applies
        instead.
      suspect_s: how long a worker may be silent before the watchdog aborts an exchange with it.
      linger_s: how long a worker keeps answering before it ends after a loss, so that the others do
        not blame it.
      closing_s: how long to wait for an ending worker to close its sockets before asking it again.
      closing_checks: how many times to ask again a worker that may be ending.
      poll_s: how often workers ask one another while they form a view.
      silent_s: how long a worker may be silent, after the exchange was aborted, before a view is
        formed without it. A silent worker is lost after `suspect_s + silent_s`.
      ping_every_s: how often a worker asks the other members whether they are alive, unless recent
        exchanges have shown that they are. This interval plus the time of an answer must be far
        below `silent_s`.
      report_s: how long a worker waits for others to form a view before it first reports the wait.
      attempts: how many views in a row may be abandoned before a worker gives up.
      futile_regroups: how often the same exchange may fail, although no worker is lost, before a
        worker gives up.
      probe_every_s: how often the chief probes the ports of lost workers.
      announce_every_s: how often a joining worker announces itself.
      announced_s: how long an announcement of a joining worker remains valid.
      admit_s: how long the members wait for joining workers that they have invited.
      join_report_s: how long a joining worker waits before it first reports the wait.
      job_check_every_s: how often a worker that waits for a probe checks whether there is still a
        job to join.
      job_checks: how many of these checks in a row may find no sign of a job before the worker
        gives up.
      unannounced_probe_s: how long a worker that was started without `TF_GOSSIP_PGA_JOIN=1` listens
        for a probe.
    """

    start_s: float = 300.0
    start_report_s: float = 5.0
    start_call_s: float = 0.3
    start_settle_s: float = 1.0
    start_tell_s: float = 5.0
    between_work_factor: float = 10.0
    restore_s: float = 3000.0
    ask_s: float = 2.0
    reachable_s: float = 20.0
    serve_s: float = 2.0
    watch_every_s: float = 0.5
    patience_s: float = 5.0
    nccl_patience_s: float = 1.0
    patience_steps: int = 20
    suspect_s: float = 60.0
    linger_s: float = 4.0
    closing_s: float = 1.0
    closing_checks: int = 3
    poll_s: float = 0.1
    silent_s: float = 15.0
    ping_every_s: float = 4.0
    report_s: float = 5.0
    attempts: int = 20
    futile_regroups: int = 3
    probe_every_s: float = 0.25
    announce_every_s: float = 0.5
    announced_s: float = 5.0
    admit_s: float = 120.0
    join_report_s: float = 10.0
    job_check_every_s: float = 5.0
    job_checks: int = 4
    unannounced_probe_s: float = 0.8
