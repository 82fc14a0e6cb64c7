"""Find the copies of a secret in a process, from outside it.

    scanner = Scanner(secret)
    with Process(pid) as process:
        print(scanner.scan(process).hits)

Every readable page that is present is searched, and the registers of every thread, for the secret
in the encodings that needles.py lists and for fragments of 8 bytes and more.
"""

from .needles import Needle, needles
from .process import CannotLook, Mapping, Process, Registers
from .scan import Hit, Scan, Scanner

__all__ = [
    "CannotLook",
    "Hit",
    "Mapping",
    "Needle",
    "Process",
    "Registers",
    "Scan",
    "Scanner",
    "needles",
]
