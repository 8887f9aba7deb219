"""``python -m control.cli``, the same as `skerry`."""

from control.cli import main

main()
