"""Run a command that dies with its parent: `python -I -S tether.py PARENT_PID SIGNAL COMMAND...`

The kernel sends SIGNAL to this process when the thread that started it ends, however it ends
(PR_SET_PDEATHSIG, which survives the exec below). Done in a wrapper and not in `preexec_fn`, which is not
safe in a parent with threads. Imports little: it is in the way of every engine's start.
"""

import ctypes
import os
import sys

_PR_SET_PDEATHSIG = 1


def main() -> None:
    parent, number, *command = sys.argv[1:]
    if ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, int(number)) != 0:
        sys.exit(f"prctl failed: {os.strerror(ctypes.get_errno())}")
    if os.getppid() != int(parent):  # it ended before the line above
        sys.exit("the parent is gone")
    os.execv(command[0], command)


if __name__ == "__main__":
    main()
