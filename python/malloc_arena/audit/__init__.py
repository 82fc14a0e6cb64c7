"""Find the copies of a secret in a process, from outside it.

    malloc_arena.audit.scan(secret)               # in this process, by a helper

    scanner = Scanner(secret)                     # in another one
    with Process(pid) as process:
        print(scanner.scan(process).hits)

Every readable page that is present is searched, and the registers of every thread, for the secret
in the encodings that needles.py lists and for fragments of 8 bytes and more.
"""

from .core import Dump
from .needles import Needle, needles
from .own import scan
from .owner import Place
from .process import CannotLook, Process
from .scanner import Finding, Frame, Hit, Scan, Scanner
from .source import Mapping, Registers, Source, Thread

__all__ = [
    "CannotLook",
    "Dump",
    "Finding",
    "Frame",
    "Hit",
    "Mapping",
    "Needle",
    "Place",
    "Process",
    "Registers",
    "Scan",
    "Scanner",
    "Source",
    "Thread",
    "needles",
    "scan",
]
