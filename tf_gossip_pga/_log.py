"""Write user-facing messages to standard error as plain lines, through `logging`.

By default, the logger `"tf_gossip_pga"` writes each message as one line to standard error, below
any progress bar. Configure this logger like any other::

    logger = logging.getLogger("tf_gossip_pga")
    logger.setLevel(logging.WARNING)     # hide progress reports
    logger.handlers.clear()              # use the root logger's handlers instead
    logger.propagate = True
"""

import contextlib
import logging
import sys


class _PlainLines(logging.Handler):
    """Write each message on its own line, without a prefix."""

    def emit(self, record: logging.LogRecord):
        """Write one message to the current `sys.stderr`, or nothing if `sys.stderr` is closed."""
        with contextlib.suppress(OSError, ValueError):
            line_end = "\n" if sys.stderr.isatty() else ""  # after an unfinished progress bar
            print(line_end + self.format(record), file=sys.stderr, flush=True)


logger = logging.getLogger("tf_gossip_pga")
if not logger.handlers:  # the user's configuration wins
    logger.addHandler(_PlainLines())
    logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
