"""Open a checkpoint's regular files without ever following a link.

A link could lead outside the directory, and reading a FIFO could block forever.
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
    """Open a folder, and yield its descriptor for use as `dir_fd`.

    Raises:
      OSError: the folder does not exist, is a link, or cannot be opened.
    """
    descriptor = _open(path, os.O_DIRECTORY)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def opened(path: pathlib.Path) -> io.BufferedReader:
    """Open a regular file of a folder for reading.

    Raises:
      OSError: the file does not exist, is not regular or cannot be opened, or the file or its
        folder is a link.
    """
    # Non-blocking: otherwise, opening a FIFO waits until another process opens it for writing.
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
