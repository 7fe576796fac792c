"""Call the function that `pga.run` has stored in a folder, as one of the workers it has started.

    python -P tf_gossip_pga/launch/call.py FOLDER

The process starts as a script, not as a module of the package, because it may be able to import the
package only with the `sys.path` of the process that called `pga.run`. Until then, it imports
nothing but the standard library.
"""

from __future__ import annotations

import os
import pathlib
import pickle
import shutil
import signal
import sys
import threading
import time

_LOOK_S = 1.0  # time between two checks of whether the caller still exists


def main(folder: str) -> None:
    """Call the function, and store its result in the folder.

    Args:
      folder: path of the folder, in which `pga.run` has written the file `call`.

    Raises:
      TypeError: the result cannot be pickled.
    """
    call = pickle.loads(pathlib.Path(folder, "call").read_bytes())
    threading.Thread(target=_end_with, args=(call["caller"], folder), daemon=True).start()
    sys.path[:] = call["path"]
    from tf_gossip_pga.cluster import detect

    rank = detect.find().rank  # now, because the function may change the environment
    function, args, kwargs = pickle.loads(call["function"])
    result = function(*args, **kwargs)
    if rank == 0 or call["all_return"]:
        pathlib.Path(folder, f"{rank}.result").write_bytes(_pickled(result))


def _end_with(caller: int, folder: str) -> None:
    """Kill this process and its children once the process that called `pga.run` has ended.

    When a notebook's kernel is restarted, it is killed, so it cannot stop its workers or remove the
    folder itself.
    """
    while os.getppid() == caller:
        time.sleep(_LOOK_S)
    shutil.rmtree(folder, ignore_errors=True)
    os.killpg(0, signal.SIGKILL)  # the launcher gives each worker a process group of its own


def _pickled(result: object) -> bytes:
    import cloudpickle

    try:
        pickled = cloudpickle.dumps(result)
        pickle.loads(pickled)  # the caller must be able to do the same
        return pickled
    except Exception as error:  # classes may raise any exception when they are pickled
        raise TypeError(
            f"The result of the function, a {type(result).__name__}, cannot be sent to the process "
            f"that called pga.run: {error}. Return numbers, strings, NumPy arrays, or lists and "
            "dicts of these, such as history.history. Save models to files."
        ) from None


if __name__ == "__main__":
    main(sys.argv[1])
