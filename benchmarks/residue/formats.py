"""Operations that write a secret in some format and read it back; search, URLs, digests."""

from __future__ import annotations

from operation import Inputs, Secret, operation, raw, text

# ---- formats ----


@operation("formats", "json")
def json_loads(inputs: Inputs) -> Secret:
    import json

    config = json.loads('{"database": {"user": "ada", "password": "%s"}}' % text(inputs))
    return str(config["database"]["password"])


@operation("formats", "json")
def json_dumps(inputs: Inputs) -> Secret:
    import json

    written = json.dumps({"users": [{"password": text(inputs)}] * 3}, indent=2)
    return str(json.loads(written)["users"][2]["password"])


@operation("formats", "csv", "io")
def csv_rows(inputs: Inputs) -> Secret:
    import csv
    import io

    stream = io.StringIO()
    csv.writer(stream).writerows([["user", "password"], ["ada", text(inputs)]])
    stream.seek(0)
    return list(csv.DictReader(stream))[0]["password"]


@operation("formats", "tomllib")
def toml(inputs: Inputs) -> Secret:
    import tomllib

    settings = tomllib.loads(f'[service]\nname = "billing"\nkey = "{text(inputs)}"\n')
    return str(settings["service"]["key"])


@operation("formats", "configparser", "io")
def ini_file(inputs: Inputs) -> Secret:
    import configparser
    import io

    parser = configparser.RawConfigParser()
    parser.read_string(f"[service]\nname = billing\nkey = {text(inputs)}\n")
    stream = io.StringIO()
    parser.write(stream)
    assert parser["service"]["key"] in stream.getvalue()
    return parser["service"]["key"]


@operation("formats", "xml.etree.ElementTree", "encodings.ascii")
def xml_tree(inputs: Inputs) -> Secret:
    from xml.etree import ElementTree

    root = ElementTree.Element("users")
    ElementTree.SubElement(root, "user", password=text(inputs)).text = text(inputs)
    user = ElementTree.fromstring(ElementTree.tostring(root)).find("user")
    assert user is not None
    assert user.text == user.attrib["password"]
    return user.attrib["password"]


@operation("formats", "xml.dom.minidom", "xml.sax.saxutils", "xml.dom.expatbuilder")
def xml_dom(inputs: Inputs) -> Secret:
    from xml.dom import minidom
    from xml.sax import saxutils

    document = minidom.parseString(f"<a><b>{saxutils.escape(text(inputs))}</b></a>")
    node = document.getElementsByTagName("b")[0]
    value = "".join(str(getattr(child, "data")) for child in node.childNodes)  # noqa: B009
    document.unlink()
    return value


@operation("formats", "html", "html.parser")
def html_page(inputs: Inputs) -> Secret:
    import html
    import html.parser

    found: list[str] = []

    class Reader(html.parser.HTMLParser):
        def handle_data(self, data: str) -> None:
            found.append(data)

    reader = Reader()
    reader.feed(f"<p>{html.escape(text(inputs))}</p>")
    reader.close()
    return "".join(found)


@operation("formats", "email.message", "email.policy", "email.generator", "email.parser")
def email_message(inputs: Inputs) -> Secret:
    import email
    import email.message
    import email.policy

    message = email.message.EmailMessage(policy=email.policy.default)
    message["Subject"] = "reset"
    message.set_content("Your new password:\n" + text(inputs) + "\n")
    message.add_attachment(raw(inputs), maintype="application", subtype="octet-stream")
    parsed = email.message_from_bytes(bytes(message), policy=email.policy.default)
    body = parsed.get_body()
    assert body is not None
    return str(body.get_content().splitlines()[1])


@operation("formats", "http.cookies")
def cookie(inputs: Inputs) -> Secret:
    import http.cookies

    jar: http.cookies.SimpleCookie = http.cookies.SimpleCookie()
    jar["session"] = text(inputs)
    back: http.cookies.SimpleCookie = http.cookies.SimpleCookie()
    back.load(jar.output(header=""))
    return back["session"].value


@operation("formats", "pickle")
def pickle_objects(inputs: Inputs) -> Secret:
    import pickle

    data = pickle.dumps([{"password": text(inputs), "key": raw(inputs)}] * 2)
    return str(pickle.loads(data)[1]["password"])


@operation("formats", "pickle", "io")
def pickle_stream(inputs: Inputs) -> Secret:
    import io
    import pickle

    stream = io.BytesIO()
    pickle.Pickler(stream, protocol=4).dump(["x" * 70_000, text(inputs)])
    stream.seek(0)
    return str(pickle.Unpickler(stream).load()[1])


@operation("formats", "marshal")
def marshal_objects(inputs: Inputs) -> Secret:
    import marshal

    return bytes(marshal.loads(marshal.dumps({"key": raw(inputs)}))["key"])


@operation("formats", "plistlib", "xml.parsers.expat")
def plist(inputs: Inputs) -> Secret:
    import plistlib

    written = plistlib.dumps({"key": raw(inputs), "text": text(inputs)})
    binary = plistlib.dumps(plistlib.loads(written), fmt=plistlib.FMT_BINARY)
    return bytes(plistlib.loads(binary)["key"])


@operation("formats", "zlib")
def zlib_bytes(inputs: Inputs) -> Secret:
    import zlib

    return zlib.decompress(zlib.compress(raw(inputs)))


@operation("formats", "zlib")
def zlib_stream(inputs: Inputs) -> Secret:
    import zlib

    deflate = zlib.compressobj(0)
    packed = deflate.compress(raw(inputs)) + deflate.flush()
    inflate = zlib.decompressobj()
    return inflate.decompress(packed, 16) + inflate.decompress(inflate.unconsumed_tail)


@operation("formats", "gzip")
def gzip_bytes(inputs: Inputs) -> Secret:
    import gzip

    return gzip.decompress(gzip.compress(raw(inputs), compresslevel=0))


@operation("formats", "bz2")
def bz2_bytes(inputs: Inputs) -> Secret:
    import bz2

    return bz2.decompress(bz2.compress(raw(inputs)))


@operation("formats", "lzma")
def lzma_bytes(inputs: Inputs) -> Secret:
    import lzma

    return lzma.decompress(lzma.compress(raw(inputs), preset=0))


# ---- search and words ----


@operation("search", "re")
def regex_search(inputs: Inputs) -> Secret:
    import re

    line = f"Authorization: Bearer {text(inputs)}\r\nHost: example\r\n"
    found = re.search(r"^authorization:\s*bearer\s+(?P<token>\S+)", line, re.IGNORECASE)
    assert found
    return found["token"]


@operation("search", "re")
def regex_substitute(inputs: Inputs) -> Secret:
    import re

    marked = re.sub(r"[A-Z]", lambda match: f"<{match[0]}>", text(inputs))
    return "".join(re.split(r"[<>]", marked))


@operation("search", "re")
def regex_of_secret(inputs: Inputs) -> Secret:
    import re

    secret = text(inputs)
    found = re.search(re.escape(secret), f"a log line with {secret} in it")
    assert found
    return found[0]


@operation("search", "fnmatch")
def file_pattern(inputs: Inputs) -> Secret:
    import fnmatch

    secret = text(inputs)
    return fnmatch.filter([f"{secret}.txt", "other"], f"{secret}.*")[0].removesuffix(".txt")


@operation("search", "difflib")
def diff_lines(inputs: Inputs) -> Secret:
    import difflib

    secret = text(inputs)
    lines = list(difflib.unified_diff(["old\n", "a\n"], [f"{secret}\n", "a\n"]))
    return next(line for line in lines if len(line) == 34)[1:-1]


@operation("search", "shlex")
def shell_words(inputs: Inputs) -> Secret:
    import shlex

    return shlex.split(shlex.join(["login", "--password", text(inputs)]))[2]


# ---- URLs ----


@operation("urls", "urllib.parse")
def url_encode(inputs: Inputs) -> Secret:
    import urllib.parse

    query = urllib.parse.urlencode({"user": "ada", "password": text(inputs)})
    return urllib.parse.parse_qs(query)["password"][0]


@operation("urls", "urllib.parse")
def url_split(inputs: Inputs) -> Secret:
    import urllib.parse

    quoted = urllib.parse.quote(text(inputs), safe="")
    parts = urllib.parse.urlsplit(f"postgres://ada:{quoted}@db.internal:5432/app")
    assert parts.password is not None
    return urllib.parse.unquote(parts.password)


# ---- digests ----


@operation("digests", "hashlib")
def hash_digests(inputs: Inputs) -> Secret:
    import hashlib

    secret = raw(inputs)
    running = hashlib.sha256()
    running.update(secret[:10])
    running.copy().update(secret)
    running.update(secret[10:])
    assert running.hexdigest() == inputs["sha256"]
    for name in ("md5", "sha1", "sha512", "sha3_256", "blake2b"):
        hashlib.new(name, secret).digest()
    return secret


@operation("digests", "hmac", "hashlib")
def hmac_sign(inputs: Inputs) -> Secret:
    import hmac

    secret = raw(inputs)
    signer = hmac.new(secret, digestmod="sha256")
    signer.update(b"a message")
    assert hmac.compare_digest(signer.hexdigest(), inputs["hmac"])
    assert hmac.digest(secret, b"a message", "sha256").hex() == inputs["hmac"]
    return secret


@operation("digests", "hashlib")
def derive_key(inputs: Inputs) -> Secret:
    import hashlib

    secret = raw(inputs)
    derived = hashlib.pbkdf2_hmac("sha256", secret, b"salt", 1000)
    assert derived.hex() == inputs["pbkdf2"]
    hashlib.scrypt(secret, salt=b"salt", n=16, r=8, p=1)
    return secret


@operation("digests", "hashlib")
def hash_keyed(inputs: Inputs) -> Secret:
    import hashlib

    secret = raw(inputs)
    hashlib.blake2b(b"a message", key=secret).digest()
    assert hashlib.blake2s(b"a message", key=secret).hexdigest() == inputs["blake2s"]
    return secret
