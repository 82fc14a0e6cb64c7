"""Operations that send a secret through files, descriptors, sockets and servers."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

from operation import Inputs, Secret, operation, raw, text

# ---- files ----


@operation("files")
def file_text(inputs: Inputs) -> Secret:
    with Path(inputs["path"]).open() as file:
        return file.read()


@operation("files")
def file_binary(inputs: Inputs) -> Secret:
    with Path(inputs["path"]).open("rb") as file:
        return file.read(8) + file.read()


@operation("files")
def file_unbuffered(inputs: Inputs) -> Secret:
    buffer = bytearray(64)
    with open(inputs["path"], "rb", buffering=0) as file:  # noqa: PTH123
        return bytes(buffer[: file.readinto(buffer)])


@operation("files")
def file_write(inputs: Inputs) -> Secret:
    path = Path(inputs["directory"], "out.txt")
    with path.open("w") as file:
        print("password:", text(inputs), file=file)
    with path.open("a") as file:
        file.write("more\n")
    with path.open() as file:
        return file.readline().split()[1]


@operation("files")
def file_update(inputs: Inputs) -> Secret:
    path = Path(inputs["directory"], "out.bin")
    with path.open("wb+") as file:
        file.write(bytes(10_000))
        file.seek(500)
        file.write(raw(inputs))
        file.seek(490)
        return file.read(60)[10:42]


@operation("files")
def file_lines(inputs: Inputs) -> Secret:
    path = Path(inputs["directory"], "lines.txt")
    path.write_text("".join(f"{i:04}={text(inputs)}\n" for i in range(500)), encoding="utf-8")
    with path.open(encoding="utf-8", newline="") as file:
        return [line.partition("=")[2].strip() for line in file][-1]


@operation("files")
def file_path(inputs: Inputs) -> Secret:
    path = Path(inputs["directory"], "copy")
    path.write_bytes(Path(inputs["path"]).read_bytes())
    return path.read_text()


@operation("files")
def file_named(inputs: Inputs) -> Secret:
    # The secret in a path; "/" cannot be in a name.
    path = Path(inputs["directory"], raw(inputs).hex())
    path.touch()
    assert path.exists()
    found = next(name for name in os.listdir(inputs["directory"]) if len(name) == 64)  # noqa: PTH208
    path.unlink()
    return bytes.fromhex(found)


@operation("files")
def descriptor_io(inputs: Inputs) -> Secret:
    read, write = os.pipe()
    os.write(write, raw(inputs))
    os.writev(write, [b"x", raw(inputs)])
    os.close(write)
    data = os.read(read, 33) + os.read(read, 100)
    os.close(read)
    return data[33:]


@operation("files", "mmap")
def file_mapped(inputs: Inputs) -> Secret:
    import mmap

    with (
        Path(inputs["path"]).open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as view,
    ):
        assert view.find(b"%") >= 0
        return view[:]


@operation("files", "tempfile")
def temporary_file(inputs: Inputs) -> Secret:
    import tempfile

    with tempfile.SpooledTemporaryFile(max_size=16, dir=inputs["directory"]) as spooled:
        spooled.write(raw(inputs))
        spooled.seek(0)
        with tempfile.NamedTemporaryFile(dir=inputs["directory"]) as named:
            named.write(spooled.read())
            named.flush()
            return Path(named.name).read_bytes()


@operation("files", "shutil")
def file_copied(inputs: Inputs) -> Secret:
    import shutil

    path = Path(inputs["directory"], "copied")
    with Path(inputs["path"]).open("rb") as source, path.open("wb") as sink:
        shutil.copyfileobj(source, sink)
    shutil.copyfile(path, str(path) + "2")
    return Path(str(path) + "2").read_bytes()


@operation("files", "zipfile", "encodings.cp437")
def zip_archive(inputs: Inputs) -> Secret:
    import zipfile

    path = Path(inputs["directory"], "a.zip")
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("secret", raw(inputs))
    with zipfile.ZipFile(path) as archive:
        return archive.read("secret")


@operation("files", "tarfile", "io", "encodings.ascii", "bz2", "lzma", "gzip")
def tar_archive(inputs: Inputs) -> Secret:
    import io
    import tarfile

    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        member = tarfile.TarInfo("secret")
        member.size = 32
        archive.addfile(member, io.BytesIO(raw(inputs)))
    stream.seek(0)
    with tarfile.open(fileobj=stream) as archive:
        file = archive.extractfile("secret")
        assert file
        return file.read()


@operation("files", "linecache")
def line_cache(inputs: Inputs) -> Secret:
    import linecache

    return linecache.getline(inputs["path"], 1).strip()


@operation("files", "dbm.dumb", "shelve", "encodings.latin_1")
def shelf(inputs: Inputs) -> Secret:
    import dbm.dumb
    import shelve

    path = str(Path(inputs["directory"], "shelf"))
    database: Any = dbm.dumb.open(path)
    store: Any
    with shelve.Shelf(database) as store:
        store["password"] = text(inputs)
    database = dbm.dumb.open(path)
    with shelve.Shelf(database) as store:
        return str(store["password"])


@operation("files")
def standard_input(inputs: Inputs) -> Secret:
    descriptor = os.open(inputs["path"], os.O_RDONLY)
    os.dup2(descriptor, 0)
    os.close(descriptor)
    return sys.stdin.readline()


@operation("files")
def standard_output(inputs: Inputs) -> Secret:
    path = Path(inputs["directory"], "stdout")
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    os.dup2(descriptor, 1)
    os.close(descriptor)
    print(text(inputs), flush=True)
    return path.read_text().strip()


@operation("files", "getpass", "termios", peer="terminal")
def typed_password(inputs: Inputs) -> Secret:
    import getpass

    return getpass.getpass("Password: ")


# ---- sockets ----


@operation("sockets", "socket")
def socket_pair(inputs: Inputs) -> Secret:
    import socket

    left, right = socket.socketpair()
    with left, right:
        left.sendall(raw(inputs))
        buffer = bytearray(16)
        right.recv_into(buffer)
        return bytes(buffer) + right.recv(4096)


@operation("sockets", "socket", "encodings.idna", peer="echo")
def tcp_client(inputs: Inputs) -> Secret:
    import socket

    with socket.create_connection((inputs["host"], inputs["port"])) as channel:
        channel.sendmsg([raw(inputs)[:5], raw(inputs)[5:]])
        channel.shutdown(socket.SHUT_WR)
        answer = b""
        while piece := channel.recv(7):
            answer += piece
    return answer


@operation("sockets", "socket", "encodings.idna", peer="echo")
def tcp_file(inputs: Inputs) -> Secret:
    import socket

    with (
        socket.create_connection((inputs["host"], inputs["port"])) as channel,
        channel.makefile("rw", newline="\n") as file,
    ):
        file.write(text(inputs) + "\n")
        file.flush()
        return file.readline().strip()


@operation("sockets", "socket")
def udp_datagram(inputs: Inputs) -> Secret:
    import socket

    with (
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as receiver,
        socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender,
    ):
        receiver.bind(("127.0.0.1", 0))
        sender.sendto(raw(inputs), receiver.getsockname())
        return receiver.recvfrom(2048)[0]


@operation("sockets", "ssl", "socket", "encodings.idna", peer="tls_server", needs="cryptography")
def tls_client(inputs: Inputs) -> Secret:
    import socket
    import ssl

    context = ssl.create_default_context(cafile=inputs["certificate"])
    with (
        socket.create_connection((inputs["host"], inputs["port"])) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as channel,
    ):
        channel.sendall(b"TOKEN\n")
        token = channel.recv(4096).strip()
        channel.sendall(b"USE " + token + b"\n")
        assert channel.recv(4096) == b"OK\n"
    return token


@operation("sockets", "ssl", "encodings.idna", peer="tls_files", needs="cryptography")
def tls_in_memory(inputs: Inputs) -> Secret:
    import ssl

    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(inputs["certificate"], inputs["key"])
    client = ssl.create_default_context(cafile=inputs["certificate"])
    up, down = ssl.MemoryBIO(), ssl.MemoryBIO()
    near = client.wrap_bio(down, up, server_hostname="localhost")
    far = server.wrap_bio(up, down, server_side=True)
    for _ in range(4):
        for side in (near, far):
            try:
                side.do_handshake()
            except ssl.SSLWantReadError:
                pass
    near.write(raw(inputs))
    return far.read()


@operation("sockets", "http.client", "encodings.idna", peer="http_server")
def http_client(inputs: Inputs) -> Secret:
    import http.client
    import json

    connection = http.client.HTTPConnection(inputs["url"].removeprefix("http://"))
    connection.request("POST", "/token", body="grant_type=client_credentials")
    token = str(json.loads(connection.getresponse().read())["access_token"])
    connection.request("GET", "/me", headers={"Authorization": f"Bearer {token}"})
    answer = connection.getresponse()
    assert (answer.status, answer.read()) == (200, b'{"name": "ada"}')
    connection.close()
    return token


@operation("sockets", "urllib.request", "urllib.parse", "encodings.idna", peer="http_server")
def url_open(inputs: Inputs) -> Secret:
    import urllib.parse
    import urllib.request

    password = text(inputs)
    form = urllib.parse.urlencode({"user": "ada", "password": password}).encode()
    with urllib.request.urlopen(inputs["url"] + "/login", data=form) as answer:
        assert answer.read() == b"welcome"
    return password


@operation("sockets", "requests", "netrc", "encodings.idna", peer="http_server", needs="requests")
def requests_token(inputs: Inputs) -> Secret:
    import requests

    with requests.Session() as session:
        answer = session.post(inputs["url"] + "/token", data={"grant_type": "client_credentials"})
        token = str(answer.json()["access_token"])
        answer = session.get(inputs["url"] + "/me", headers={"Authorization": f"Bearer {token}"})
        answer.raise_for_status()
    return token


@operation("sockets", "requests", "netrc", "encodings.idna", peer="http_server", needs="requests")
def requests_form(inputs: Inputs) -> Secret:
    import requests

    password = text(inputs)
    answer = requests.post(inputs["url"] + "/login", data={"password": password}, timeout=30)
    assert answer.text == "welcome"
    return password
