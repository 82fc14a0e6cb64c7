"""Operations with other processes, the environment, threads, coroutines, errors and logs."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from operation import Inputs, Secret, operation, raw, text

# ---- processes ----


@operation("processes", "subprocess")
def subprocess_input(inputs: Inputs) -> Secret:
    import subprocess

    done = subprocess.run(["cat"], input=text(inputs), capture_output=True, text=True, check=True)
    return done.stdout


@operation("processes", "subprocess")
def subprocess_argument(inputs: Inputs) -> Secret:
    import subprocess

    return subprocess.run(["printf", "%s", text(inputs)], stdout=subprocess.PIPE, check=True).stdout


@operation("processes", "subprocess")
def subprocess_environment(inputs: Inputs) -> Secret:
    import subprocess

    environment = {**os.environ, "TOKEN": text(inputs)}
    return subprocess.check_output(["sh", "-c", 'printf %s "$TOKEN"'], env=environment)


@operation("processes")
def environment(inputs: Inputs) -> Secret:
    os.environ["TOKEN"] = text(inputs)
    value = os.environ.pop("TOKEN")
    assert os.getenv("TOKEN") is None
    return value


@operation("processes", "argparse", "shutil", "locale")
def arguments(inputs: Inputs) -> Secret:
    import argparse

    parser = argparse.ArgumentParser()
    parser.add_argument("--password")
    parser.add_argument("words", nargs="*")
    parsed = parser.parse_args(["--password", text(inputs), "a", "b"])
    return str(parsed.password)


def _echo(connection: Any) -> None:
    connection.send({"password": connection.recv()})
    connection.close()


def _reverse(value: Any) -> Any:
    return value[::-1]


def _process(method: Any, inputs: Inputs) -> Secret:
    import multiprocessing

    context: Any = multiprocessing.get_context(method)
    near, far = context.Pipe()
    child = context.Process(target=_echo, args=(far,))
    child.start()
    far.close()
    near.send(text(inputs))
    answer = near.recv()["password"]
    near.close()
    child.join()
    child.close()
    return str(answer)


_MULTIPROCESSING = (
    "multiprocessing",
    "multiprocessing.connection",
    "multiprocessing.pool",
    "multiprocessing.popen_fork",
    "multiprocessing.popen_spawn_posix",
    "multiprocessing.queues",
    "multiprocessing.synchronize",
    "multiprocessing.resource_tracker",
    "multiprocessing.shared_memory",
    "multiprocessing.sharedctypes",
    "multiprocessing.managers",
    "multiprocessing.util",
    "multiprocessing.dummy",
)


@operation("processes", *_MULTIPROCESSING)
def process_fork(inputs: Inputs) -> Secret:
    return _process("fork", inputs)


@operation("processes", *_MULTIPROCESSING)
def process_array(inputs: Inputs) -> Secret:
    import multiprocessing

    array = multiprocessing.Array("c", raw(inputs))
    return bytes(array.raw)


@operation("processes", *_MULTIPROCESSING)
def process_spawn(inputs: Inputs) -> Secret:
    return _process("spawn", inputs)


@operation("processes", *_MULTIPROCESSING)
def process_argument(inputs: Inputs) -> Secret:
    import multiprocessing

    context = multiprocessing.get_context("fork")
    queue = context.SimpleQueue()
    child = context.Process(target=queue.put, args=(text(inputs),))
    child.start()
    answer = queue.get()
    child.join()
    queue.close()
    return str(answer)


@operation("processes", *_MULTIPROCESSING)
def process_pool(inputs: Inputs) -> Secret:
    import multiprocessing

    with multiprocessing.get_context("fork").Pool(2) as pool:
        answers = pool.map(_reverse, [text(inputs)] * 3)
        pool.close()
        pool.join()
    return str(answers[2][::-1])


@operation("processes", *_MULTIPROCESSING)
def process_queue(inputs: Inputs) -> Secret:
    import multiprocessing

    queue = multiprocessing.get_context("fork").Queue()
    queue.put(raw(inputs))
    answer = queue.get()
    queue.close()
    queue.join_thread()
    return bytes(answer)


@operation("processes", *_MULTIPROCESSING, "concurrent.futures.process")
def process_executor(inputs: Inputs) -> Secret:
    import concurrent.futures
    import multiprocessing

    with concurrent.futures.ProcessPoolExecutor(1, multiprocessing.get_context("fork")) as executor:
        return str(executor.submit(_reverse, text(inputs)).result()[::-1])


@operation("processes", *_MULTIPROCESSING)
def shared_memory(inputs: Inputs) -> Secret:
    from multiprocessing import shared_memory

    block = shared_memory.SharedMemory(create=True, size=64)
    assert block.buf is not None
    block.buf[:32] = raw(inputs)
    value = bytes(block.buf[:32])
    block.close()
    block.unlink()
    return value


# ---- threads ----


@operation("threads", "threading")
def thread(inputs: Inputs) -> Secret:
    import threading

    found: list[str] = []
    worker = threading.Thread(
        target=lambda secret: found.append(secret[::-1]), args=(text(inputs),)
    )
    worker.start()
    worker.join()
    return found[0][::-1]


@operation("threads", "threading", "json")
def thread_reads(inputs: Inputs) -> Secret:
    import json
    import threading

    found: list[str] = []

    def work() -> None:
        config = json.loads('{"password": "%s"}' % text(inputs))
        found.append(config["password"])

    worker = threading.Thread(target=work)
    worker.start()
    worker.join()
    return found[0]


@operation("threads", "threading", "queue")
def thread_queue(inputs: Inputs) -> Secret:
    import queue
    import threading

    asked: queue.Queue[str | None] = queue.Queue()
    answered: queue.SimpleQueue[str] = queue.SimpleQueue()

    def serve() -> None:
        while (item := asked.get()) is not None:
            answered.put(f"<{item}>")

    worker = threading.Thread(target=serve)
    worker.start()
    asked.put(text(inputs))
    asked.put(None)
    worker.join()
    return answered.get()[1:-1]


@operation("threads", "threading")
def thread_local(inputs: Inputs) -> Secret:
    import threading

    local = threading.local()
    local.password = text(inputs)
    return str(local.password + "x")[:-1]


@operation("threads", "concurrent.futures.thread")
def thread_pool(inputs: Inputs) -> Secret:
    import concurrent.futures

    with concurrent.futures.ThreadPoolExecutor(2) as executor:
        parts = list(executor.map(_reverse, [text(inputs)] * 4))
    return str(parts[3][::-1])


@operation("threads", "concurrent.futures.thread", "json", "hashlib")
def thread_pool_reads(inputs: Inputs) -> Secret:
    import concurrent.futures
    import hashlib

    def load() -> str:
        assert hashlib.sha256(raw(inputs)).hexdigest() == inputs["sha256"]
        with Path(inputs["path"]).open() as file:
            return file.read()

    with concurrent.futures.ThreadPoolExecutor(1) as executor:
        return executor.submit(load).result()


@operation("threads", "threading")
def timer(inputs: Inputs) -> Secret:
    import threading

    found: list[str] = []
    clock = threading.Timer(0.01, found.append, (text(inputs),))
    clock.start()
    clock.join()
    return found[0]


# ---- coroutines ----

_ASYNCIO = (
    "asyncio",
    "concurrent.futures.thread",
    "asyncio.subprocess",
    "asyncio.streams",
    "asyncio.taskgroups",
    "encodings.idna",
)


@operation("coroutines", *_ASYNCIO)
def coroutine_tasks(inputs: Inputs) -> Secret:
    import asyncio

    async def part(secret: str, start: int) -> str:
        await asyncio.sleep(0.001 * start)
        return secret[start : start + 4]

    async def main() -> str:
        secret = text(inputs)
        parts = await asyncio.gather(*(part(secret, start) for start in range(0, 32, 4)))
        return "".join(parts)

    return asyncio.run(main())


@operation("coroutines", *_ASYNCIO)
def coroutine_queue(inputs: Inputs) -> Secret:
    import asyncio

    async def main() -> str:
        queue: asyncio.Queue[str] = asyncio.Queue()
        async with asyncio.TaskGroup() as group:
            group.create_task(queue.put(text(inputs)))
            task = group.create_task(queue.get())
        return task.result()

    return asyncio.run(main())


@operation("coroutines", *_ASYNCIO)
def coroutine_thread(inputs: Inputs) -> Secret:
    import asyncio

    return asyncio.run(asyncio.to_thread(text, inputs))


@operation("coroutines", *_ASYNCIO, peer="echo")
def coroutine_stream(inputs: Inputs) -> Secret:
    import asyncio

    async def main() -> bytes:
        reader, writer = await asyncio.open_connection(inputs["host"], inputs["port"])
        writer.write(raw(inputs) + b"\n")
        await writer.drain()
        line = await reader.readuntil(b"\n")
        writer.close()
        await writer.wait_closed()
        return line.strip()

    return asyncio.run(main())


@operation("coroutines", *_ASYNCIO)
def coroutine_process(inputs: Inputs) -> Secret:
    import asyncio

    async def main() -> bytes:
        child = await asyncio.create_subprocess_exec("cat", stdin=-1, stdout=-1)
        output, _ = await child.communicate(raw(inputs))
        return output

    return asyncio.run(main())


# ---- errors and logs ----


@operation("errors")
def exception_caught(inputs: Inputs) -> Secret:
    def refuse(secret: str) -> None:
        local = {"secret": secret}
        raise ValueError(f"bad password {local['secret']}")

    try:
        refuse(text(inputs))
    except ValueError as error:
        return str(error).rpartition(" ")[2]
    return ""


@operation("errors", "traceback", "linecache")
def exception_printed(inputs: Inputs) -> Secret:
    import traceback

    known: dict[str, int] = {}
    try:
        try:
            known[text(inputs)]
        except KeyError as error:
            raise RuntimeError("no such key") from error
    except RuntimeError:
        printed = traceback.format_exc()
    return next(line for line in printed.splitlines() if line.startswith("KeyError"))[11:-1]


@operation("errors", "traceback", "linecache")
def exception_summary(inputs: Inputs) -> Secret:
    import traceback

    def fail() -> None:
        password = text(inputs)
        raise LookupError(password)

    try:
        fail()
    except LookupError as error:
        summary = traceback.TracebackException.from_exception(error, capture_locals=True)
        frames = summary.stack[1].locals
        assert frames
        value = frames["password"].strip("'")
        summary.print(file=None)
    return value


@operation("errors", "threading", "traceback")
def exception_in_thread(inputs: Inputs) -> Secret:
    import threading

    def fail(secret: str) -> None:
        raise ValueError(secret)

    secret = text(inputs)
    worker = threading.Thread(target=fail, args=(secret,))
    worker.start()
    worker.join()
    return secret


@operation("errors", "code", "codeop", "traceback")
def exception_interactive(inputs: Inputs) -> Secret:
    import code

    console = code.InteractiveInterpreter({"secret": text(inputs)})
    console.runsource("raise ValueError(secret)")
    return str(sys.last_value)


@operation("errors", "warnings")
def warning_shown(inputs: Inputs) -> Secret:
    import warnings

    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.warn(text(inputs), stacklevel=2)
    return str(caught[0].message)


@operation("logs", "logging", "linecache")
def log_file(inputs: Inputs) -> Secret:
    import logging

    path = Path(inputs["directory"], "log")
    handler = logging.FileHandler(path)
    log = logging.getLogger("service")
    log.addHandler(handler)
    log.warning("login with %s", text(inputs))
    log.removeHandler(handler)
    handler.close()
    return path.read_text().split()[-1]


@operation("logs", "logging", "linecache", "traceback")
def log_stderr(inputs: Inputs) -> Secret:
    import logging

    secret = text(inputs)
    try:
        raise PermissionError(secret)
    except PermissionError:
        logging.getLogger("service").exception("refused")
    return secret


@operation("logs", "logging", "logging.handlers")
def log_in_memory(inputs: Inputs) -> Secret:
    import logging
    import logging.handlers

    handler = logging.handlers.MemoryHandler(10)
    log = logging.getLogger("service")
    log.addHandler(handler)
    log.warning("login with %s", text(inputs))
    log.removeHandler(handler)
    message = handler.buffer[0].getMessage()
    handler.buffer.clear()
    handler.close()
    return message.rpartition(" ")[2]
