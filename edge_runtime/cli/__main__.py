"""The program `skerry-edge`, also ``python -m edge_runtime.cli``: says which extra to install if one is missing."""

import gc
import sys


def main() -> None:
    """Run the command line and exit with its code, 2 if the extra `edge` isn't installed."""
    # Imports create lasting objects: repeated garbage collection of them took a fifth of the startup time.
    gc.set_threshold(50_000)
    try:
        from control.protocol.command_line import output_failure, prepare_output
        from edge_runtime.cli.main import main as skerry_edge

        prepare_output()
        status: str | int | None = 0
        failed: OSError | None = None
        try:
            skerry_edge(prog_name="skerry-edge")
        except SystemExit as end:
            status = end.code
        except OSError as error:
            failed = error
        broken = output_failure(failed)
        if failed is not None and broken is None:
            raise failed
        if isinstance(broken, BrokenPipeError):
            # The reader of stdout, such as `head`, has closed it.
            sys.exit(status or 1)
        sys.exit(status if broken is None else f"Error: the output can't be written: {broken.strerror}")
    except ModuleNotFoundError as error:
        if error.name is None or error.name.partition(".")[0] in ("control", "edge_runtime"):
            raise
        install = "install Skerry with its extra `edge`: pip install 'skerry[edge]'"
        print(f"skerry-edge: the Python module {error.name} is missing; {install}", file=sys.stderr)
        sys.exit(2)


if __name__ == "__main__":
    main()
