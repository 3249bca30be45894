"""``python -m qexport``: the same program as the ``qexport`` command."""

from qexport.cli.main import main

if __name__ == "__main__":
    main()
