"""``python -m qexport`` and the ``qexport`` command: Ctrl-C is no defect, even while modules are loaded."""

from __future__ import annotations

import signal
import sys

from qexport.search_path import without_current_folder


def main() -> None:
    """Run the command line; whatever comes after its end is ended silently."""
    without_current_folder()  # before anything else is imported
    try:
        from qexport.cli.main import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)
    finally:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)


if __name__ == "__main__":
    main()
