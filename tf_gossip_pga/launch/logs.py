"""Write each rank's output to a file of its own."""

from __future__ import annotations

import pathlib
from typing import BinaryIO


class Logs:
    """Append the output of each rank to `DIR/rank-N.log`, as the worker wrote it.

    Args:
      folder: the directory, which is created if it does not exist. None: write no files.
      ranks: number of ranks.

    Raises:
      ValueError: a file cannot be opened for writing.
    """

    def __init__(self, folder: str | None, ranks: int):
        self._files: dict[int, BinaryIO] = {}
        if folder is None:
            return
        try:
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            for rank in range(ranks):
                self._files[rank] = open(  # noqa: SIM115 (`close` closes it)
                    pathlib.Path(folder, f"rank-{rank}.log"), "ab", buffering=0
                )
        except OSError as error:
            self.close()
            raise ValueError(f"--log-dir {folder!r} cannot be written to: {error}") from None

    def write(self, rank: int, data: bytes) -> OSError | None:
        """Append a piece of a rank's output.

        Returns:
          The error if the file cannot be written to, for example because the disk is full. Further
          output of this rank is then not written.
        """
        if rank in self._files:
            try:
                self._files[rank].write(data)
            except OSError as error:
                self._files.pop(rank).close()
                return error
        return None

    def close(self) -> None:
        """Close the files."""
        for file in self._files.values():
            file.close()
        self._files.clear()
