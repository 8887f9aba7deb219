"""States of nodes' databases, as people say and read them."""

from control.cli.support import options, output


def wire_target(text: str) -> str:
    """Return a state as control takes it: a time of this machine, or how long ago it was, becomes one in UTC."""
    if text == "latest" or text.startswith("before:") or "/" in text:
        return text
    return output.rfc3339(options.TIME.convert(text, None, None))


def second(time: str) -> str:
    """Return a time from control to the second, in UTC."""
    return f"{output.when(time):%Y-%m-%d %H:%M:%S} UTC"
