"""Python runs this at the start of SGLang's processes, since its folder is on their PYTHONPATH.

Only on machines without a GPU. It mends two things:

1. torchvision's wheel is built for CUDA. Its operators cannot load here, and registering shapes for operators
   that do not exist raises, so `torchvision._meta_registrations` becomes an empty module.
2. SGLang's scheduler and detokenizer tie themselves to their parent only after 10 s of imports; a parent that
   is killed meanwhile would leave them behind. Here they do it first of all.
"""

import ctypes
import importlib.abc
import importlib.machinery
import signal
import sys
import types
from collections.abc import Sequence

_PR_SET_PDEATHSIG = 1
EMPTY_MODULES = frozenset({"torchvision._meta_registrations"})


class EmptyModules(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds the modules named above, and finds them empty."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        return importlib.machinery.ModuleSpec(fullname, self) if fullname in EMPTY_MODULES else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> None:
        """None: Python makes an ordinary module."""

    def exec_module(self, module: types.ModuleType) -> None:
        """Nothing to execute."""


def is_spawned_by_multiprocessing(command_line: Sequence[str]) -> bool:
    """Whether this is a process that `multiprocessing` started with its method "spawn"."""
    return "--multiprocessing-fork" in command_line


sys.meta_path.insert(0, EmptyModules())
if is_spawned_by_multiprocessing(sys.orig_argv):
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
