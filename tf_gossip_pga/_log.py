"""Write what users should read, as plain lines on standard error, through `logging`.

By default each message of the logger `"tf_gossip_pga"` is one line on standard error, below a
progress bar where there is one. Configure it as any other logger:

    logger = logging.getLogger("tf_gossip_pga")
    logger.setLevel(logging.WARNING)     # leave reports of progress out
    logger.handlers.clear()              # use the handlers of the root logger instead
    logger.propagate = True
"""

import contextlib
import logging
import sys


class _PlainLines(logging.Handler):
    """Write each message as a line of its own, without a prefix."""

    def emit(self, record: logging.LogRecord):
        """Write one message to the present `sys.stderr`, which may be closed."""
        with contextlib.suppress(OSError, ValueError):
            line_end = "\n" if sys.stderr.isatty() else ""  # after an unfinished progress bar
            print(line_end + self.format(record), file=sys.stderr, flush=True)


logger = logging.getLogger("tf_gossip_pga")
if not logger.handlers:  # the user's configuration wins
    logger.addHandler(_PlainLines())
    logger.propagate = False
    if logger.level == logging.NOTSET:
        logger.setLevel(logging.INFO)
