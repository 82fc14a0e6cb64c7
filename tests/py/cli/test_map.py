"""malloc-arena map: the same from inside and from outside; pictures, two snapshots compared."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import select
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from browser import DOWN, END, ESCAPE, HOME, RIGHT, TAB, UP, Browser
from conftest import MAKE, SECRET, Child
from malloc_arena import HEAP_ISOLATED, HEAP_SECURE, Arena, snapshot
from malloc_arena.audit import CannotLook, Process, layout
from malloc_arena.render import map as render
from malloc_arena.render import map_svg
from malloc_arena.snapshot import Heap, Large, Slab, Snapshot

Start = Callable[..., Child]

# Arenas of each kind with live, freed, large and remotely freed blocks; it stands still at show().
PROGRAM = """
import threading
from malloc_arena import snapshot
vault = get(HEAP_SECURE)
own = Arena(HEAP_DEFAULT, name="scratch <&>", limit=1 << 20)
with vault:
    kept = [bytes(n) for n in range(10, 1500, 37)]
    elsewhere = [bytes(n) for n in (700, 800, 900)]
del kept[::3]
large = vault.buffer(20000)
alone = get(HEAP_SECURE | HEAP_ISOLATED).buffer(100)
ordinary = own.buffer(5000)
absent = Arena(HEAP_SECURE, name="absent", fork="refuse")
nowhere = absent.buffer(100), absent.buffer(20000)
thread = threading.Thread(target=elsewhere.clear)
thread.start()
thread.join()
snapshot.take().save(sys.argv[1])
show(addresses=[id(one) for one in kept], large=large.address, alone=alone.address)
with vault:
    fresh = [bytes(64 * n) for n in range(20)]
del kept[:5]
snapshot.take().save(sys.argv[2])
show()
"""


def run(*arguments: str | Path, **options: Any) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "malloc_arena", "map", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=120,
        env=os.environ | {"COLUMNS": "80"} | options.pop("env", {}),
        **options,
    )


def started(child: Start, tmp_path: Path) -> tuple[Child, dict[str, Any]]:
    script = PROGRAM.replace("sys.argv[1]", repr(str(tmp_path / "a.json")))
    one = child(script.replace("sys.argv[2]", repr(str(tmp_path / "b.json"))))
    return one, one.shown()


def test_inside_and_outside_see_the_same(child: Start, tmp_path: Path) -> None:
    one, shown = started(child, tmp_path)
    outside = layout.of(one.pid)
    inside = snapshot.load(tmp_path / "a.json")
    assert outside.arenas == inside.arenas
    assert outside.region == inside.region
    assert {arena.name for arena in outside.arenas} >= {"secure", "isolated", "scratch <&>"}
    assert {state for a in outside.arenas for slab in a.slabs for state in slab.states} >= set(
        "lfq"
    )
    for address in shown["addresses"]:
        found = outside.find(address + 8)
        assert found
        assert (found.state, found.arena) == (snapshot.LIVE, "secure")
        assert found.address <= address < found.address + found.size
    large = outside.find(shown["large"])
    assert large == snapshot.Block("secure", snapshot.LIVE, shown["large"], 20000)
    assert outside.find(one.region[0] + one.region[1] - 1) is None
    for arena in outside.arenas:  # the kernel's flags, not the library's accounts
        secure = bool(arena.kind & HEAP_SECURE)
        assert arena.kernel_undumped == (arena.mapped if secure else 0)
        if "locked" in arena.flags:
            assert arena.kernel_locked == arena.mapped
    absent = next(arena for arena in outside.arenas if arena.name == "absent")
    assert [flag for flag in absent.flags if flag.startswith("fork")] == ["fork_refused"]


def test_text_is_readable_at_80_columns_without_colour(child: Start, tmp_path: Path) -> None:
    one, _ = started(child, tmp_path)
    done = run("--pid", one.pid)
    assert (done.returncode, done.stderr) == (0, "")
    assert max(map(len, done.stdout.splitlines())) <= 80
    assert done.stdout.isascii()
    assert f"process {one.pid}  python\n" in done.stdout
    assert re.search(
        r'arena "secure"  HEAP_SECURE\n  locked, not dumped, kept at fork', done.stdout
    )
    assert "\n  locked, not dumped, guards, absent at fork\n" in done.stdout
    assert re.search(r"by the kernel's flags: (\S+ \S+) locked, \1 not dumped", done.stdout)
    assert re.search(r"0x[0-9a-f]+ +\d+ B [#+.q]+\| \d+/\d+\n", done.stdout)
    assert re.search(r"large   \|?#\| 20,000 bytes, 20 KiB\n", done.stdout)
    assert "# live  . free  q quarantined" in done.stdout


def test_no_byte_of_a_secret_is_in_it(child: Start, tmp_path: Path) -> None:
    one = child(MAKE + "vault = get(HEAP_SECURE)\nwith vault:\n    secret = make()\nshow()\n")
    one.shown()
    for arguments in (("--json",), ("--all",), ("--svg", tmp_path / "a.svg")):
        done = run("--pid", one.pid, *arguments)
        assert done.returncode == 0
        assert SECRET.decode() not in done.stdout
    assert SECRET.decode() not in (tmp_path / "a.svg").read_text()


def test_two_snapshots_compared(child: Start, tmp_path: Path) -> None:
    one, _ = started(child, tmp_path)
    one.go_on()
    one.shown()
    a, b = tmp_path / "a.json", tmp_path / "b.json"
    before, after = snapshot.load(a), snapshot.load(b)
    done = run("--compare", a, b, "--json", "--svg", tmp_path / "c.svg")
    assert done.returncode == 0, done.stderr
    data = json.loads(done.stdout)
    assert data["schema"] == "malloc-arena/map-compare/1"
    for change, was, is_now in zip(data["changes"], before.arenas, after.arenas, strict=True):
        assert change["live_blocks"] == [was.live_blocks, is_now.live_blocks]
        assert change["kept"] + change["gone"] >= was.live_blocks
        assert change["kept"] + change["new"] == is_now.live_blocks
        assert sum(change["new_sizes"].values()) == change["new"]
    secure = data["changes"][[a["name"] for a in data["changes"]].index("secure")]
    assert secure["new"] >= 20
    assert secure["gone"] >= 5
    same = snapshot.compare(before, before)
    assert [(c.new, c.gone) for c in same.changes] == [(0, 0)] * len(before.arenas)
    text = run("--compare", a, b, "--all").stdout
    assert re.search(r"blocks: \d+ new, \d+ gone, \d+ kept\n  new:    \d+ of \d+ bytes", text)
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r"B [#.nxq+]*n[#.nxq+]*\|", text)
    assert 'class="n"' in (tmp_path / "c.svg").read_text()


def test_many_slabs_are_shown_by_their_size() -> None:
    slabs = tuple(
        Slab(0x10000 * n, 1024, 15 * 4096, ("locked", "undumped"), 4096, "l" * n + "f" * (60 - n),
             (1000,) * n)
        for n in range(1, 61)
    )  # fmt: skip
    arena = snapshot.make_arena("many", 1, 60 * 15 * 4096, 0, [Heap(0, 1 << 22, slabs)], [])
    found = Snapshot(1, "x", (0, 1 << 30), (arena,))
    text = render.as_text(found).plain
    assert max(map(len, text.splitlines())) <= 80
    assert re.search(r" 60 slabs of  1024 B [1-9#]+ 1,830/3,600\n", text)
    assert len(render.as_text(found, in_full=True).plain.splitlines()) > 60
    weak = Slab(0, 64, 4096, (), 0, "l", (9,))
    unlocked = snapshot.make_arena("weak", 1, 4096, 0, [Heap(0, 1, (weak,))], [])
    text = render.as_text(Snapshot(1, "x", (0, 1), (unlocked,))).plain
    assert "NOT LOCKED DUMPED" in text


def test_usage_and_what_cannot_be_looked_at(tmp_path: Path) -> None:
    other = tmp_path / "other.json"
    other.write_text('{"schema": "malloc-arena/audit/1"}')
    for arguments in (("--watch",), ("--pid", "x"), ("--compare", other), (other, "--pid", "1")):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (2, ""), arguments
    for arguments, said in (
        (("--pid", str(2**22 - 1)), f"there is no process {2**22 - 1}: "),
        ((tmp_path / "none",), "No such file"),
        ((other,), "is no snapshot"),
    ):
        done = run(*arguments)
        assert (done.returncode, done.stdout) == (3, ""), arguments
        assert said in done.stderr
    with subprocess.Popen(["sleep", "60"]) as plain:
        time.sleep(0.2)
        done = run("--pid", plain.pid)
        plain.kill()
    assert "no arena has been made in it" in done.stdout


def test_the_own_process(tmp_path: Path) -> None:
    assert "no arena has been made in it" in run().stdout
    environment = os.environ | {"MALLOC_ARENA_OPTIONS": "active=default"}
    done = subprocess.run(
        [sys.executable, "-m", "malloc_arena", "run", "--", sys.executable, "-m", "malloc_arena",
         "map", "--json"],
        capture_output=True, text=True, env=environment,
    )  # fmt: skip
    (arena,) = json.loads(done.stdout)["arenas"]
    assert sum(len(slab["sizes"]) for heap in arena["heaps"] for slab in heap["slabs"]) > 1000


def test_watch_shows_what_changes_until_the_process_ends(child: Start, tmp_path: Path) -> None:
    one, _ = started(child, tmp_path)
    command = [sys.executable, "-m", "malloc_arena", "map", "--pid", str(one.pid)]
    with subprocess.Popen(
        [*command, "--watch", "0.2", "--json"], stdout=subprocess.PIPE, text=True
    ) as lines:
        assert lines.stdout
        first = json.loads(lines.stdout.readline())
        one.go_on()
        one.shown()
        for line in lines.stdout:
            if json.loads(line)["arenas"] != first["arenas"]:
                break
        terminal, device = pty.openpty()
        with subprocess.Popen([*command, "--watch"], stdout=device, stderr=device) as watching:
            os.close(device)
            said = b""
            until = time.monotonic() + 60
            while b"Ctrl-C ends" not in said and time.monotonic() < until:
                if select.select([terminal], [], [], 1)[0]:
                    said += os.read(terminal, 65536)
            assert b"every 1 s, Ctrl-C ends" in said
            one.close()
            try:
                while piece := os.read(terminal, 65536):
                    said += piece
            except OSError:  # EIO: it ended
                pass
            os.close(terminal)
            assert watching.wait(timeout=60) == 0
        assert b"has ended" in said
        lines.stdout.read()
        assert lines.wait(timeout=60) == 0


@contextlib.contextmanager
def traced(pid: int) -> Iterator[None]:
    """As by a debugger that comes, between two looks of another."""
    until = time.monotonic() + 60
    with contextlib.ExitStack() as stack:
        while True:
            try:
                stack.enter_context(Process(pid))
                break
            except CannotLook:
                assert time.monotonic() < until
                time.sleep(0.01)
        yield


def test_watch_says_why_it_cannot_look_any_more(child: Start, tmp_path: Path) -> None:
    one, _ = started(child, tmp_path)
    command = [sys.executable, "-m", "malloc_arena", "map", "--pid", str(one.pid)]
    with subprocess.Popen(
        [*command, "--watch", "0.2", "--json"],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    ) as watching:  # fmt: skip
        assert watching.stdout
        watching.stdout.readline()
        with traced(one.pid):
            _, said = watching.communicate(timeout=60)
    assert watching.returncode == 3
    assert f"process {os.getpid()} traces it already" in said


# ---- the SVG, in a browser ----


def picture() -> Snapshot:
    slab = Slab(
        0x7F0000010000, 64, 4096, ("locked", "undumped", "guarded"), 4096,
        "llq" + "f" * 20 + "r" * 41, (50, 17),
    )  # fmt: skip
    weak = Slab(0x7F0000020000, 2048, 4096, ("undumped",), 4096, "lf", (1500,))
    large = Large(0x7F0000035000, 8192, "l", ("locked", "undumped"), 0, 4096, 0x7F0000035C78, 5000)
    arena = snapshot.make_arena(
        "keys <b>&", 1, 16384, 1 << 20, [Heap(0x7F0000000000, 1 << 20, (slab, weak))], [large]
    )
    return Snapshot(4711, 'python "app".py <x>', (0x7F0000000000, 1 << 30), (arena,))


TIP = """
const tip = document.getElementById("tip");
return tip.getAttribute("visibility") === "visible"
  ? [...tip.querySelectorAll("tspan")].map(line => line.textContent) : null;
"""


def test_svg_needs_nothing_else_and_is_well_formed() -> None:
    text = map_svg.as_svg(picture())
    root = ET.fromstring(text)
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert re.findall(r"https?://[^\s\"']+", text) == ["http://www.w3.org/2000/svg"]
    assert not re.search(r"\bhref=|@import|url\((?!#)", text)
    cells = root.findall(".//{*}g[@class='row']/{*}rect[@tabindex]")
    titles = [cell.findtext("{*}title") or "" for cell in cells]
    assert sum(title.startswith("live: slot of 64 bytes, block of") for title in titles) == 2
    assert any("quarantined" in title for title in titles)


def test_hovering_and_focusing_a_slot_tells_of_it(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "map.svg"
    page.write_text(map_svg.as_svg(picture()))
    browser.open(page)
    assert browser.run("return performance.getEntriesByType('resource').length") == 0
    assert browser.run(TIP) is None
    x, y = browser.run(
        "const box = document.querySelectorAll('g.row rect')[1].getBoundingClientRect();"
        "return [box.x + box.width / 2, box.y + box.height / 2];"
    )
    browser.point(x, y)
    assert browser.run(TIP) == [
        "live: slot of 64 bytes, block of 17 bytes",
        "arena “keys <b>&”, locked, not dumped",
        "0x7f0000010040, slot 1 of 64",
    ]
    browser.point(3, 3)
    assert browser.run(TIP) is None

    browser.press(TAB, TAB)  # the document itself, then the first slab
    assert browser.run(TIP)[0] == "live: slot of 64 bytes, block of 50 bytes"
    browser.press(RIGHT, RIGHT)
    assert browser.run(TIP)[0] == "quarantined: slot of 64 bytes"
    browser.press(END)
    assert browser.run(TIP)[0] == "4,096 bytes guard: a touch faults"
    browser.press(HOME, DOWN)
    assert browser.run(TIP)[:2] == [
        "live: slot of 2,048 bytes, block of 1,500 bytes",
        "arena “keys <b>&”, not locked, not dumped",
    ]
    browser.press(DOWN)
    assert browser.run(TIP)[0] == "live: 8,192 bytes of pages, block of 5,000 bytes"
    browser.press(UP, UP, ESCAPE)
    assert browser.run(TIP) is None
    browser.press(TAB, TAB)  # a stop for each row
    assert browser.run(TIP)[0].startswith("live: 8,192 bytes")
    inside = browser.run(
        "const box = document.querySelector('#tip').getBoundingClientRect();"
        "return box.left >= 0 && box.right <= innerWidth && box.top >= 0;"
    )
    assert inside


def test_a_full_arena_is_still_a_picture(tmp_path: Path) -> None:
    slabs = tuple(
        Slab(n << 16, 32, 61440, ("locked",), 4096, "l" * 960 + "f" * 960, (20,) * 960)
        for n in range(100)
    )
    arena = snapshot.make_arena("full", 1, 100 * 61440, 0, [Heap(0, 100 << 16, slabs)], [])
    text = map_svg.as_svg(Snapshot(1, "x", (0, 1 << 30), (arena,)))
    assert len(text) < 1 << 20
    assert "960 of 1,920 slots live, 32 bytes each" in text


def test_snapshot_of_this_process() -> None:
    own = Arena(HEAP_SECURE | HEAP_ISOLATED, name="here")
    buffer = own.buffer(4000)
    (arena,) = (one for one in snapshot.take().arenas if one.name == "here")
    (large,) = (one for one in arena.larges if one.state == snapshot.LIVE)
    assert (large.block, large.size) == (buffer.address, 4000)
    assert "isolated" in large.flags
    buffer.close()
    own.close()
    assert all(one.name != "here" for one in snapshot.take().arenas)
