"""The logger: plain lines on standard error by default, and configurable as any other."""

import logging
import subprocess
import sys

from tests.support import deadlines

PRINTS = (
    "from tf_gossip_pga._log import logger; logger.info('rank 1 waits'); logger.warning('lost')"
)


def _stderr_of(program: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", program],
        capture_output=True,
        text=True,
        check=True,
        timeout=deadlines.long(),
    )
    assert done.stdout == ""
    return done.stderr


def test_messages_are_plain_lines_by_default():
    assert _stderr_of(PRINTS) == "rank 1 waits\nlost\n"


def test_the_users_level_and_handlers_win():
    quiet = "import logging; logging.getLogger('tf_gossip_pga').setLevel(logging.WARNING);"
    own = (
        "import logging; logging.getLogger('tf_gossip_pga').addHandler(logging.NullHandler());"
        "logging.basicConfig(format='%(levelname)s %(message)s', level=logging.INFO);"
    )
    assert _stderr_of(f"import tf_gossip_pga._log; {quiet}{PRINTS}") == "lost\n"
    before = "import logging; logging.getLogger('tf_gossip_pga').setLevel(logging.WARNING);"
    assert _stderr_of(f"{before}{PRINTS}") == "lost\n"
    assert _stderr_of(f"{own}{PRINTS}") == "INFO rank 1 waits\nWARNING lost\n"


def test_a_closed_standard_error_is_no_error(monkeypatch):
    from tf_gossip_pga._log import logger

    class Closed:
        def isatty(self):
            return False

        def write(self, text):
            raise ValueError("I/O operation on closed file")

    monkeypatch.setattr(sys, "stderr", Closed())
    logger.info("nobody reads this")


def test_a_message_ends_an_unfinished_progress_bar(monkeypatch):
    import io

    from tf_gossip_pga._log import logger

    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True)
    monkeypatch.setattr(sys, "stderr", terminal)
    logger.log(logging.INFO, "rank 1 waits")
    assert terminal.getvalue() == "\nrank 1 waits\n"
