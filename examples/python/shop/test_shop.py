"""The gate: orders go through, and no copy of the key is left outside the arena."""

import importlib
import json
import os

import flask  # noqa: F401  so that the import in the test is of the shop alone


def test_orders_leave_no_copy_of_the_key(residue, vault, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    key = residue.secret()
    with vault:
        (tmp_path / "config.json").write_text(json.dumps({"api_key": key}))
    shop = importlib.import_module(os.environ.get("SHOP", "app"))
    for number in range(3):
        answer = shop.app.test_client().post("/orders", json={"article": number})
        assert answer.status_code == 200
