"""Promises to C programs. Each story is told in ordinary memory, where the secret must be seen, and
in an arena, where it must not."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path

import pytest
from programs import (
    NEEDLE,
    WAYS,
    Story,
    build,
    files_with,
    gcore,
    kernel_dump,
    need_kernel_dumps,
)

from conftest import Mapping, copies, mappings
from promises import Evidence

KINDS = ["secure", "isolated", "secretmem"]
SIZES = (16, 32, 100, 500, 1500, 5000, 40000, 300000)
Tell = Callable[..., Story]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("program"))


@pytest.fixture
def tell(program: Path, tmp_path: Path) -> Tell:
    def start(kind: str, *story: str) -> Story:
        return Story(program, kind, *story, cwd=tmp_path)

    return start


def left(
    tell: Tell, evidence: Evidence, kind: str, story: str, stop: str, stack: bool = False
) -> None:
    """What is left of the secret when the story stops. The stack is a promise of its own."""
    with tell("plain", story) as plain:
        plain.said(stop)
        found = plain.copies(stack=stack)
        evidence.control(f"{found} copies", found)
    with tell(kind, story) as arena:
        arena.said(stop)
        assert arena.copies(stack=stack) == 0
        evidence.result("0 copies")


# ---- freed memory ----


@pytest.mark.promise("wipe-free")
@pytest.mark.parametrize("kind", KINDS)
def test_nothing_is_left_of_freed_blocks(tell: Tell, evidence: Evidence, kind: str) -> None:
    left(tell, evidence, kind, "freed", "freed")


@pytest.mark.promise("wipe-free")
@pytest.mark.parametrize("kind", KINDS)
def test_another_thread_frees(tell: Tell, evidence: Evidence, kind: str) -> None:
    left(tell, evidence, kind, "freed-elsewhere", "freed")


@pytest.mark.promise("wipe-realloc")
@pytest.mark.parametrize("kind", KINDS)
def test_realloc_leaves_nothing_behind(tell: Tell, evidence: Evidence, kind: str) -> None:
    left(tell, evidence, kind, "resized", "resized")


@pytest.mark.promise("wipe-error")
@pytest.mark.parametrize("kind", KINDS)
def test_errors_leave_nothing_behind(tell: Tell, evidence: Evidence, kind: str) -> None:
    for memory in ("plain", kind):
        with tell(memory, "errors") as story:
            # Three refusals for each block, which is there as before; getline; asprintf.
            assert story.said("refused") == 8 * 4 + 2
            story.said("errors")
            found = story.copies(stack=False)
            evidence.copies(memory, found, " after 26 calls that failed")


@pytest.mark.promise("wipe-reuse")
@pytest.mark.parametrize("kind", KINDS)
def test_a_new_block_has_nothing_of_an_old_one(tell: Tell, evidence: Evidence, kind: str) -> None:
    with tell("plain", "reused") as plain:
        found = plain.said("reused")
        evidence.control(f"{found} of 400 new blocks show an old one", found)
    with tell(kind, "reused") as arena:
        assert arena.said("reused") == 0
        evidence.result("0 of 400 new blocks")


@pytest.mark.promise("wipe-stack")
@pytest.mark.parametrize(
    ("story", "stop"), [("scrubbed", "scrubbed"), ("dead-thread", "ended")], ids=["own", "thread"]
)
def test_dead_stack(tell: Tell, evidence: Evidence, story: str, stop: str) -> None:
    left(tell, evidence, "secure", story, stop, stack=True)


@pytest.mark.promise("wipe-signal")
@pytest.mark.parametrize("kind", KINDS)
def test_a_signal_in_the_middle_of_a_wipe(tell: Tell, evidence: Evidence, kind: str) -> None:
    with tell("plain", "interrupted") as plain:
        plain.said("interrupted")
        found = plain.copies()
        evidence.control(f"{found} copies", found)
    with tell(kind, "interrupted") as arena:
        times = arena.said("interrupted")
        if times == 0:
            pytest.skip("no signal fell into a wipe on this machine")
        assert arena.copies(stack=False) == 0
        evidence.result(f"{times} wipes were interrupted, 0 copies")


# ---- dumps ----


@pytest.mark.promise("dump-kernel")
@pytest.mark.parametrize("story", ["alive", "killed-in-a-wipe"])
@pytest.mark.parametrize("kind", KINDS)
def test_kernel_core(tell: Tell, evidence: Evidence, tmp_path: Path, kind: str, story: str) -> None:
    """Of a program that aborts while blocks live, or in the middle of a wipe."""
    need_kernel_dumps()
    for memory in ("plain", kind):
        with tell(memory, story) as process:
            if story == "alive":
                process.said("alive")
                os.kill(process.pid, signal.SIGABRT)
            code, out, _ = process.ends()
            if out.startswith("interrupted 0"):
                pytest.skip("no signal fell into a wipe on this machine")
            assert code == -signal.SIGABRT
        found = kernel_dump(tmp_path).count(NEEDLE)
        evidence.copies(memory, found)


@pytest.mark.promise("dump-gcore")
@pytest.mark.parametrize("kind", ["secure", "isolated"])
def test_gcore(tell: Tell, evidence: Evidence, tmp_path: Path, kind: str) -> None:
    for memory in ("plain", kind):
        with tell(memory, "alive") as process:
            process.said("alive")
            found = gcore(process.pid, tmp_path).count(NEEDLE)
        evidence.copies(memory, found)


@pytest.mark.promise("dump-gcore-all")
def test_gcore_all(tell: Tell, evidence: Evidence, tmp_path: Path) -> None:
    """With the mappings that are marked as not to be dumped: there HEAP_SECURE leaks too."""
    for memory in ("plain", "secure", "secretmem"):
        with tell(memory, "alive") as process:
            process.said("alive")
            found = gcore(process.pid, tmp_path, "-a").count(NEEDLE)
        if memory == "secretmem":
            assert found == 0
            evidence.result("0 copies")
        else:
            evidence.control(f"{memory}: {found} copies", found)


# ---- another process that may trace this one ----


@pytest.mark.promise("ptrace-live")
@pytest.mark.parametrize("way", ["mem", "process_vm_readv", "ptrace"])
def test_a_tracer_reads_live_memory(tell: Tell, evidence: Evidence, way: str) -> None:
    for memory in ("plain", "secure", "secretmem"):
        with tell(memory, "alive") as process:
            address = process.said("alive")
            seen = WAYS[way](process.pid, address, 32)
        if memory == "secretmem":
            assert seen is None
            evidence.result("refused by the kernel")
        else:
            evidence.control(f"{memory}: read", seen is not None and seen.startswith(NEEDLE))


# ---- children ----


@pytest.mark.promise("fork-wipe")
@pytest.mark.parametrize("kind", KINDS)
def test_a_forked_child_finds_zeros(tell: Tell, evidence: Evidence, kind: str) -> None:
    for memory in ("plain", kind):
        with tell(memory, "forked") as story:
            inside = story.said("child")
            copies = story.copies(child := story.said("pid"))
            # The parent has it all the while.
            assert memory == "secretmem" or story.copies() > 0
            story.go_on()
            assert story.said("status") == 0
            assert story.said("parent") == sum(SIZES)
        assert child != story.pid
        if memory == "plain":
            evidence.control(f"{inside} bytes, {copies} copies", inside == sum(SIZES) and copies)
        else:
            assert (inside, copies) == (0, 0)
            evidence.result("0 bytes, 0 copies")


@pytest.mark.promise("fork-keep")
def test_what_a_child_keeps_is_protected_again(tell: Tell, evidence: Evidence) -> None:
    for memory in ("plain", "keep"):
        with tell(memory, "forked") as story:
            assert story.said("child") == sum(SIZES)
            pid = story.said("pid")
            held = [mapping_of(pid, at) for at in copies(pid, NEEDLE)]
            assert held
            flags = {flag: all(flag in each.flags for each in held) for flag in ("lo", "dd")}
            story.go_on()
            assert story.said("status") == 0
        if memory == "plain":
            evidence.control(f"{flags}", not any(flags.values()))
        else:
            assert all(flags.values())
            evidence.result(f"{flags}")


def mapping_of(pid: int, address: int) -> Mapping:
    return next(each for each in mappings(pid) if each.start <= address < each.end)


@pytest.mark.promise("fork-refuse")
def test_a_child_cannot_touch_what_it_is_refused(tell: Tell, evidence: Evidence) -> None:
    with tell("plain", "forked-touch") as plain:
        found = plain.said("touched")
        evidence.control(f"{found} of 8 blocks can be read", found == 8)
    with tell("refuse", "forked-touch") as arena:
        assert arena.said("touched") == 0
        evidence.result("8 of 8 fault")


@pytest.mark.promise("fork-not-shared")
def test_secret_memory_is_not_shared_with_a_child(tell: Tell, evidence: Evidence) -> None:
    with tell("plain", "forked-shared") as plain:
        found = plain.said("intact")
        evidence.control(f"shared mapping: {5000 - found} of 5000 bytes changed", found < 5000)
    with tell("secretmem", "forked-shared") as arena:
        assert arena.said("intact") == 5000
        evidence.result("0 of 5000 bytes changed")


@pytest.mark.promise("exec")
@pytest.mark.parametrize("how", ["exec", "vfork", "spawn"])
@pytest.mark.parametrize("kind", KINDS)
def test_a_started_program_has_no_way_to_it(
    tell: Tell, evidence: Evidence, kind: str, how: str
) -> None:
    for memory in ("plain", kind):
        with tell(memory, "started", how) as story:
            if how == "exec":
                story.said("pid")
                # It is there before.
                assert memory == "secretmem" or story.copies() > 0
                story.go_on()
            pid = story.said("idle")
            assert (pid == story.pid) == (how == "exec")
            copies = story.copies(pid)
            files = files_with(pid, NEEDLE)
        assert copies == 0
        if memory == "plain":
            evidence.control(f"an inherited memfd: {files} descriptors", files)
        else:
            assert files == 0
            evidence.result("0 copies, 0 descriptors")


# ---- bugs in the same process ----


def crime(tell: Tell, evidence: Evidence, kind: str, what: str, words: str | None) -> None:
    with tell("plain", "crime", what) as plain:
        code, out, _ = plain.ends()
        evidence.control("not noticed", code == 0 and out.startswith("survived"))
    with tell(kind, "crime", what) as arena:
        code, out, err = arena.ends()
    assert out == ""
    if words is None or (kind == "isolated" and "freed" in what):
        assert code == -signal.SIGSEGV
        evidence.result("SIGSEGV at the touch")
    else:
        assert code == -signal.SIGABRT
        assert err.startswith(f"malloc_arena: {words}: 0x")
        evidence.result(f"SIGABRT, {words!r}")


@pytest.mark.promise("canary-overwrite")
@pytest.mark.parametrize("kind", KINDS)
def test_a_byte_after_the_block(tell: Tell, evidence: Evidence, kind: str) -> None:
    crime(tell, evidence, kind, "overflow", "canary overwritten")


@pytest.mark.promise("guard-page")
@pytest.mark.parametrize("what", ["overflow-large", "read-behind"])
@pytest.mark.parametrize("kind", KINDS)
def test_the_page_after_a_large_block(tell: Tell, evidence: Evidence, kind: str, what: str) -> None:
    crime(tell, evidence, kind, what, None)


@pytest.mark.promise("guard-isolated")
def test_the_page_after_any_isolated_block(tell: Tell, evidence: Evidence) -> None:
    crime(tell, evidence, "isolated", "read-behind-small", None)


@pytest.mark.promise("free-check")
@pytest.mark.parametrize(
    ("what", "words"), [("free-twice", "double free"), ("free-inside", "interior pointer")]
)
@pytest.mark.parametrize("kind", KINDS)
def test_wrong_frees(tell: Tell, evidence: Evidence, kind: str, what: str, words: str) -> None:
    crime(tell, evidence, kind, what, words)


@pytest.mark.promise("write-after-free")
@pytest.mark.parametrize("kind", KINDS)
def test_writes_after_free(tell: Tell, evidence: Evidence, kind: str) -> None:
    crime(tell, evidence, kind, "write-freed", "use after wipe")


@pytest.mark.promise("read-after-free")
@pytest.mark.parametrize("kind", KINDS)
def test_reads_after_free(tell: Tell, evidence: Evidence, kind: str) -> None:
    with tell("plain", "crime", "read-freed") as plain:
        out = plain.ends()[1]
        evidence.control("the freed secret is read", out == "survived 1\n")
    with tell(kind, "crime", "read-freed") as arena:
        code, out, _ = arena.ends()
    if kind == "isolated":
        assert (code, out) == (-signal.SIGSEGV, "")
        evidence.result("SIGSEGV at the touch")
    else:
        assert (code, out) == (0, "survived 0\n")
        evidence.result("zeros")


@pytest.mark.promise("metadata-apart")
@pytest.mark.parametrize("kind", KINDS)
def test_no_bookkeeping_beside_the_blocks(tell: Tell, evidence: Evidence, kind: str) -> None:
    with tell("plain", "before-the-block") as plain:
        found = plain.said("bookkeeping")
        evidence.control(f"a size before {found} of 39 blocks", found)
    with tell(kind, "before-the-block") as arena:
        assert arena.said("bookkeeping") == 0
        evidence.result("before 0 of 39 blocks")
