"""What a secret leaves behind in everyday jobs: in plain Python, in an arena, and preloaded.

jobs.py is what runs in the watched process, peers.py what it talks to, measure.py watches.

budget.py is the other demo: a part of a program that is given a memory budget.
"""
