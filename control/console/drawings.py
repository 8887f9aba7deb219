"""Charts, bars and cells as SVG. Shapes use only attributes and classes: the pages' policy allows no inline styles."""

from collections.abc import Sequence

from markupsafe import Markup

CELLS = {
    "ok": '<path class="k-ok" d="M.5.5h5v5h-5z"/>',
    "fail": '<path class="k-fail" d="M0,0h6v6h-6z"/>',
    "off": '<path class="k-syncbg" d="M0,0h6v6h-6z"/><path class="k-off" d="M1,1h4v4h-4z"/>',
    "rev": '<path class="k-syncbg" d="M0,0h6v6h-6z"/><path class="k-rev" d="M1,1l4,4M5,1l-4,4"/>',
    "sync": '<path class="k-syncbg" d="M0,0h6v6h-6z"/><path class="k-sync" d="M.3,5.7v-5.4l5.4,5.4z"/>',
    "held": '<path class="k-waitbg" d="M0,0h6v6h-6z"/><path class="k-wait" d="M1,.5h1.5v5h-1.5zM3.5,.5h1.5v5h-1.5z"/>',
    "wait": '<path class="k-waitbg" d="M0,0h6v6h-6z"/><path class="k-wait" d="M.5,3.2h5v2.3h-5z"/>',
}
LEAST = 0.35
"""The least share of a bar, in percent, that a part larger than 0 takes."""


def cell(kind: str) -> Markup:
    """Draw a node in the grid, 6 by 6. Each standing has its own shape, so color alone never tells them apart."""
    return Markup(CELLS[kind])


def key_cell(kind: str) -> Markup:
    """Return a single cell, for a key."""
    return Markup(f'<svg viewBox="0 0 6 6" aria-hidden="true">{cell(kind)}</svg>')


def bar(parts: Sequence[tuple[str, int]], label: str, cls: str = "", total: int | None = None) -> Markup:
    """Return a bar of parts, each with a kind and a count; `label` is its description."""
    total = total or sum(count for _, count in parts) or 1
    widths = [(kind, max(LEAST, count / total * 100) if count else 0.0) for kind, count in parts]
    over = sum(width for _, width in widths) - 100
    if over > 0:
        widest = max(range(len(widths)), key=lambda at: widths[at][1])
        widths[widest] = (widths[widest][0], widths[widest][1] - over)
    x, shapes = 0.0, []
    for kind, width in widths:
        if width > 0:
            shapes.append(f'<rect class="x-{kind}" stroke="none" x="{x:.2f}" width="{width:.2f}" height="8"/>')
            x += width
            if x < 99.9:
                shapes.append(f'<rect class="x-gap" x="{x - 0.1:.2f}" width=".2" height="8"/>')
    head = Markup('<svg class="bar {}" viewBox="0 0 100 8" preserveAspectRatio="none" role="img" aria-label="{}">')
    return head.format(cls, label) + Markup("".join(shapes) + "</svg>")


def plot(series: Sequence[tuple[Sequence[float], str]], label: str, *, top: float | None = None) -> Markup:
    """Draw lines of values, each with its class ('' for the first), on one scale whose top is `top`."""
    top = top or max((value for values, _ in series for value in values), default=0.0) or 1.0
    shapes = ['<line class="gl" x1="0" x2="600" y1="0" y2="0"/><line class="gl" x1="0" x2="600" y1="50" y2="50"/>']
    for values, cls in series:
        points = _points(values, 600, 100, top)
        if not cls:
            shapes.append(f'<path class="ar" d="M0,100L{points}L600,100z"/>')
        shapes.append(f'<polyline class="ln {cls}" points="{points}"/>')
    head = Markup('<svg viewBox="0 0 600 100" preserveAspectRatio="none" role="img" aria-label="{}">')
    return head.format(label) + Markup("".join(shapes) + "</svg>")


def _points(values: Sequence[float], width: int, height: int, top: float | None) -> str:
    top = top or max(values, default=0.0) or 1.0
    step = width / max(1, len(values) - 1)
    return " ".join(
        f"{at * step:.1f},{height - 1 - min(value, top) / top * (height - 2):.1f}" for at, value in enumerate(values)
    )
