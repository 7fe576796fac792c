"""Open files of a checkpoint: regular files in a real folder, never what a link points to.

A link would lead out of the directory, and reading a FIFO would wait for ever.
"""

import contextlib
import errno
import io
import os
import pathlib
import stat
from collections.abc import Generator


@contextlib.contextmanager
def folder(path: pathlib.Path) -> Generator[int, None, None]:
    """Return a context with a descriptor of a folder, for `dir_fd`.

    Raises:
      OSError: there is none, it is a link, or it may not be opened.
    """
    descriptor = _open(path, os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def opened(path: pathlib.Path) -> io.BufferedReader:
    """Open a regular file of a folder for reading.

    Raises:
      OSError: there is none, it or the folder is a link, it is not a regular file, or it may not be
        opened.
    """
    # Not blocking: else the open itself waits for somebody to write to a FIFO.
    with folder(path.parent) as parent:
        descriptor = _open(path, os.O_NONBLOCK, parent)
    if not stat.S_ISREG(os.fstat(descriptor).st_mode):
        os.close(descriptor)
        raise OSError(errno.EINVAL, "it is not a regular file")
    return os.fdopen(descriptor, "rb")


def _open(path: pathlib.Path, flags: int, parent: int | None = None) -> int:
    name = path if parent is None else path.name
    try:
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC | flags, dir_fd=parent)
    except OSError as error:
        if path.is_symlink():
            raise OSError(errno.ELOOP, "it is a link, and links are not followed") from None
        raise OSError(error.errno, error.strerror, str(path)) from None
