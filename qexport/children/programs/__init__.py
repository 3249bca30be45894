"""Programs that hold something foreign in a process of their own, in whatever Python has what it needs.

``watch.py`` starts them and ends them, ``child.py`` is the program, ``engine_*.py`` what it runs. They are
started by path and in isolated mode: what lies in the current folder, or beside a model, is never imported.
The interpreter may have no qexport (``--runtime-python``): none of them imports it, nor each other.
"""
