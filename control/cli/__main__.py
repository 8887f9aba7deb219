"""The program `skerry`, also ``python -m control.cli``: it says which extra to install if one is missing."""

import gc
import signal
import sys


def main() -> None:
    """Run the command line and exit with its code, 2 if the extra `control` isn't installed."""
    # Imported objects stay alive: scanning them for garbage repeatedly took a tenth of the start.
    gc.set_threshold(50_000)
    try:
        from control.cli.main import run

        status = run(sys.argv[1:])
        # Python's own shutdown would answer another Ctrl-C with a traceback.
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        sys.exit(status)
    except KeyboardInterrupt:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        print("interrupted", file=sys.stderr)
        sys.exit(130)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("control", "edge_runtime"):
            raise
        install = "install Skerry with its extra `control`: pip install 'skerry[control]'"
        print(f"skerry: the Python module {error.name} is missing; {install}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
