"""A roll call whose error texts do not depend on how late any of the workers is."""

from tf_gossip_pga.coordination.roll_call import RollCall


class PatientRollCall(RollCall):
    """Notice no error before a number of other processes have sent their reports.

    In each call both ends send their reports, so whoever has been heard has also heard this worker.

    Attributes:
      hears: how many other processes must have sent reports before this worker may fail.
    """

    hears = 0

    def _trouble(self, now: float) -> Exception | None:
        return super()._trouble(now) if len(self._calls.heard()) >= self.hears else None
