"""Add the callbacks that the launcher requests to every `fit` of this process.

`observe` is above `training`, so `GossipPGA` cannot import these callbacks. The top level of the
package calls `connect` when a script first uses `pga.GossipPGA`, and so does Horovod's API.
"""

from __future__ import annotations

import functools
import os

from tf_gossip_pga.observe.report import Report
from tf_gossip_pga.observe.timeline import Timeline
from tf_gossip_pga.tools import report_request, timeline_request
from tf_gossip_pga.training import callback_list


@functools.cache  # only once in a process
def connect():
    """Let every `fit` with a `GossipPGA` do what environment variables request.

    They may request a timeline and a report.

    Raises:
      ValueError: the variables request invalid steps.
    """
    requested = timeline_request.requested(os.environ)
    if requested is not None:
        callback_list.companions.append(lambda: Timeline(*requested))
    path = report_request.requested(os.environ)
    if path is not None:
        callback_list.companions.append(lambda: Report(path))
