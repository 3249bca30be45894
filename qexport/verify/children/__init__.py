"""Programs that hold a runtime in a process of its own, in whatever Python has that runtime.

``child.py`` is the program, ``engine_*.py`` what it runs. They may be started by an interpreter that has no
qexport (``--runtime-python``): none of them imports it, nor each other; the program loads its engine by path.
"""
