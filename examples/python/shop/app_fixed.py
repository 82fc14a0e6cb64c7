"""The same shop with its key in an arena."""

import json
import os
from collections import deque
from pathlib import Path

from flask import Flask, request

import malloc_arena

app = Flask(__name__)
vault = malloc_arena.get(malloc_arena.HEAP_SECURE)
with vault:
    config = json.loads(Path("config.json").read_text())
recent = deque(maxlen=100)  # for the page that support looks at


def send(order, headers):
    """To the payment provider: here, as if."""
    return len(order) + len(headers["Authorization"])


@app.post("/orders")
def order():
    text = json.dumps(request.get_json())
    recent.append({"order": text})
    with vault:
        headers = {"Authorization": f"Bearer {config['api_key']}"}
        sent = send(text, headers)
    return {"sent": sent}


if __name__ == "__main__":
    app.run(port=int(os.environ.get("PORT", "5000")))
