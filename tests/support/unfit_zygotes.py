"""A zygote that can't import what it needs as long as the file exists that SKERRY_UNFIT names: memory is short.

It is run in place of `edge_runtime.children.zygote`.
"""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

from edge_runtime.children import zygote

_imports = zygote._imports


def imports(step: Callable[[], object]) -> dict[str, ModuleType]:
    """Fail as an import does when memory is short, while the file is there; else import what the zygote needs."""
    if Path(os.environ["SKERRY_UNFIT"]).exists():
        raise ImportError("libgcc_s.so.1: failed to map segment from shared object")
    return _imports(step)


if __name__ == "__main__":
    zygote._imports = imports
    zygote.main(sys.argv[1])
