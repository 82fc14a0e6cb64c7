"""Operations with SQLite, cryptography, numpy and pandas."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from operation import Inputs, Secret, operation, raw, text


@operation("sqlite", "sqlite3")
def sqlite_memory(inputs: Inputs) -> Secret:
    import sqlite3

    database = sqlite3.connect(":memory:")
    database.execute("CREATE TABLE login (name TEXT, secret TEXT)")
    database.execute("INSERT INTO login VALUES (?, ?)", ("ada", text(inputs)))
    row = database.execute("SELECT upper(name), secret FROM login ORDER BY secret").fetchone()
    database.close()
    return str(row[1])


@operation("sqlite", "sqlite3")
def sqlite_file(inputs: Inputs) -> Secret:
    import sqlite3

    path = Path(inputs["directory"], "logins.sqlite")
    for statement in ("CREATE TABLE login (secret BLOB)", "INSERT INTO login VALUES (?)"):
        database = sqlite3.connect(path)
        with database:
            database.execute(statement, (raw(inputs),) if "?" in statement else ())
        database.close()
    database = sqlite3.connect(path)
    row = database.execute("SELECT secret FROM login").fetchone()
    database.close()
    return bytes(row[0])


@operation("sqlite", "sqlite3")
def sqlite_literal(inputs: Inputs) -> Secret:
    import sqlite3

    database = sqlite3.connect(":memory:")
    database.create_function("same", 1, lambda value: value)
    row = database.execute(f"SELECT same('{text(inputs)}')").fetchone()
    database.close()
    return str(row[0])


_HAZMAT = "cryptography.hazmat.primitives"


@operation("cryptography", "cryptography.fernet", "base64", needs="cryptography")
def fernet(inputs: Inputs) -> Secret:
    import base64

    from cryptography.fernet import Fernet

    box = Fernet(base64.urlsafe_b64encode(raw(inputs)))
    return box.decrypt(box.encrypt(raw(inputs)))


@operation("cryptography", f"{_HAZMAT}.ciphers.aead", needs="cryptography")
def aes_gcm(inputs: Inputs) -> Secret:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

    cipher = AESGCM(raw(inputs))
    return cipher.decrypt(bytes(12), cipher.encrypt(bytes(12), raw(inputs), None), None)


@operation("cryptography", f"{_HAZMAT}.ciphers", needs="cryptography")
def aes_cbc(inputs: Inputs) -> Secret:
    from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes

    cipher = Cipher(algorithms.AES(raw(inputs)), modes.CBC(bytes(16)))
    encryptor, decryptor = cipher.encryptor(), cipher.decryptor()
    sealed = encryptor.update(raw(inputs)) + encryptor.finalize()
    return decryptor.update(sealed) + decryptor.finalize()


@operation("cryptography", f"{_HAZMAT}.kdf.hkdf", f"{_HAZMAT}.hmac", needs="cryptography")
def key_derivation(inputs: Inputs) -> Secret:
    from cryptography.hazmat.primitives import hashes, hmac
    from cryptography.hazmat.primitives.kdf.hkdf import HKDF

    secret = raw(inputs)
    signer = hmac.HMAC(secret, hashes.SHA256())
    signer.update(b"a message")
    assert signer.finalize().hex() == inputs["hmac"]
    assert len(HKDF(hashes.SHA256(), 32, salt=b"salt", info=b"").derive(secret)) == 32
    return secret


@operation(
    "cryptography",
    f"{_HAZMAT}.asymmetric.ec",
    f"{_HAZMAT}.serialization",
    "cryptography.hazmat.backends.openssl.backend",
    needs="cryptography",
)
def private_key(inputs: Inputs) -> Secret:
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.derive_private_key(int.from_bytes(raw(inputs), "big"), ec.SECP256R1())
    pem = key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )
    loaded = serialization.load_pem_private_key(pem, password=None)
    assert isinstance(loaded, ec.EllipticCurvePrivateKey)
    loaded.sign(b"a message", ec.ECDSA(hashes.SHA256()))
    return loaded.private_numbers().private_value.to_bytes(32, "big")


@operation("cryptography", f"{_HAZMAT}.asymmetric.ed25519", needs="cryptography")
def signing_key(inputs: Inputs) -> Secret:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

    key = Ed25519PrivateKey.from_private_bytes(raw(inputs))
    key.public_key().verify(key.sign(b"a message"), b"a message")
    return key.private_bytes_raw()


@operation("numpy", "numpy", needs="numpy")
def numpy_bytes(inputs: Inputs) -> Secret:
    import numpy as np

    data = np.frombuffer(raw(inputs), dtype=np.uint8).copy()
    masked = data ^ np.uint8(0x55)
    return (masked ^ np.uint8(0x55)).tobytes()


@operation("numpy", "numpy", needs="numpy")
def numpy_sort(inputs: Inputs) -> Secret:
    import numpy as np

    data = np.frombuffer(raw(inputs), dtype=np.uint8).astype(np.int64)
    order = np.argsort(data)
    back: Any = np.empty_like(data)
    back[order] = np.sort(data)
    large = np.concatenate([back.astype(np.uint8)] * 4000).reshape(-1, 32)
    return bytes(np.ascontiguousarray(large[::7]).copy()[3].tobytes())


@operation("numpy", "numpy", "numpy.char", needs="numpy")
def numpy_strings(inputs: Inputs) -> Secret:
    import numpy as np

    names = np.array(["ada", text(inputs), "grace"])
    return str(np.char.add(names, "x")[names.tolist().index(names[1])])[:-1]


@operation("numpy", "numpy", "numpy.lib.format", "zipfile", "encodings.cp437", needs="numpy")
def numpy_saved(inputs: Inputs) -> Secret:
    import io

    import numpy as np

    stream = io.BytesIO()
    np.savez(stream, key=np.frombuffer(raw(inputs), dtype=np.float64) * 1.0)
    stream.seek(0)
    with np.load(stream) as saved:
        return bytes(saved["key"].tobytes())


@operation("pandas", "pandas", needs="pandas")
def pandas_frame(inputs: Inputs) -> Secret:
    import pandas as pd

    frame = pd.DataFrame({"user": ["ada", "grace"], "password": [text(inputs), "x"]})
    frame = frame.merge(pd.DataFrame({"user": ["ada"], "uid": [1]}), on="user")
    return str(frame.loc[frame["uid"] == 1, "password"].iloc[0])


@operation("pandas", "pandas", "pandas.io.formats.csvs", needs="pandas")
def pandas_csv(inputs: Inputs) -> Secret:
    import io

    import pandas as pd

    frame = pd.read_csv(io.StringIO(f"user,password\nada,{text(inputs)}\n"))
    stream = io.StringIO()
    frame.to_csv(stream, index=False)
    return stream.getvalue().splitlines()[1].partition(",")[2]


@operation("pandas", "pandas", needs="pandas")
def pandas_json(inputs: Inputs) -> Secret:
    import io

    import pandas as pd

    written = pd.DataFrame({"password": [text(inputs)]}).to_json(orient="records")
    return str(pd.read_json(io.StringIO(written))["password"][0])
