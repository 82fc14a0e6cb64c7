"""The audit's HTML page in a real browser, by keyboard."""

from __future__ import annotations

import time
from pathlib import Path

from browser import DOWN, ENTER, TAB, UP, Browser
from malloc_arena.audit import Finding, Frame, Hit, Place, Scan
from malloc_arena.render import audit as render

SHOWN = """
return [...document.querySelectorAll("tbody.finding")].filter(one => !one.hidden)
  .map(one => [...one.rows[0].cells].map(cell => cell.textContent));
"""


def report() -> render.Report:
    frames = (Frame("/app/<service>.py", 7, 'request = f"{********}"'),)
    findings = (
        Finding(
            Hit(0x7F0010, 32, "raw", True, "pymalloc", "[anonymous]"),
            Place("pymalloc", "live", "str", 0x7F0000, 96),
            '{"key": "',
            '"}</script><script>',
            frames,
        ),
        Finding(
            Hit(0x100, 12, "hex", False, "heap", "[heap]"), Place("heap", "freed", "", 0xF0, 40)
        ),
        Finding(
            Hit(0x7FFF00, 32, "raw", True, "stack", "[stack]"),
            Place("stack", "freed", "thread 12"),
        ),
    )
    look = render.Look("exit", Scan(findings, 5 << 20, 0, 1, 0.01))
    return render.Report("python <b>app.py</b>", (look,), 1.0, True, 0)


def test_sorted_filtered_and_unfolded_by_keyboard(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render.as_html(report()))
    browser.open(page)
    assert browser.call("/title") == "malloc-arena audit: python <b>app.py</b>"
    assert [row[1] for row in browser.run(SHOWN)] == ["pymalloc", "heap", "stack"]
    assert browser.run("return document.scripts.length") == 1
    assert browser.run("return performance.getEntriesByType('resource').length") == 0

    browser.press(TAB)  # the filter
    assert browser.run("return document.activeElement.id") == "owner"
    browser.press(DOWN)
    assert [row[1] for row in browser.run(SHOWN)] == ["heap"]
    assert browser.run("return document.getElementById('shown').textContent") == "1 of 3 shown"
    browser.press(UP)
    assert len(browser.run(SHOWN)) == 3

    browser.press(TAB, TAB, ENTER)  # the heading "owner"
    assert [row[1] for row in browser.run(SHOWN)] == ["heap", "pymalloc", "stack"]
    browser.press(ENTER)
    assert [row[1] for row in browser.run(SHOWN)] == ["stack", "pymalloc", "heap"]
    assert browser.run("return document.activeElement.closest('th').ariaSort") == "descending"
    browser.press(TAB, TAB, TAB, TAB, TAB, ENTER)  # address
    assert [row[6] for row in browser.run(SHOWN)] == ["0x100", "0x7f0010", "0x7fff00"]

    browser.press(TAB, TAB, ENTER)  # the second finding's lines
    opened = browser.run("return [...document.querySelectorAll('details')].map(one => one.open)")
    assert opened == [False, True, False]
    text = browser.run("return document.querySelector('details[open] pre').innerText")
    assert text == '/app/<service>.py:7  request = f"{********}"'


def test_narrow_screens_need_no_sideways_scrolling(browser: Browser, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(render.as_html(report()))
    browser.open(page, 600, 800)
    time.sleep(0.2)
    wide = browser.run("return document.documentElement.scrollWidth - innerWidth")
    assert wide <= 0
