"""Prometheus' text format, written by hand: its client library takes ten times as long for many series. Pure."""

from collections.abc import Iterable

Labels = tuple[tuple[str, str], ...]


def labels(**values: str) -> str:
    """Labels as they are written: ``group="shops",code="disk_full"``. Whatever the values have in them."""
    return ",".join(f'{name}="{_escaped(value)}"' for name, value in values.items())


def family(name: str, kind: str, about: str, samples: Iterable[tuple[str, float]]) -> str:
    """A metric of the kind `gauge` or `counter`, by its samples' labels and values; '' where it has no samples.

    A counter's name has no `_total`.
    """
    suffix = "_total" if kind == "counter" else ""
    lines = [f"{name}{suffix}{{{of}}} {value}\n" if of else f"{name}{suffix} {value}\n" for of, value in samples]
    return head(f"{name}{suffix}", kind, about) + "".join(lines) if lines else ""


def head(name: str, kind: str, about: str) -> str:
    """What stands above a metric's samples."""
    return f"# HELP {name} {about}\n# TYPE {name} {kind}\n"


def _escaped(value: str) -> str:
    return value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
