"""A shop that sends its orders on with an API key, and has the key where it should not be."""

import json
import os
from collections import deque
from pathlib import Path

from flask import Flask, request

app = Flask(__name__)
config = json.loads(Path("config.json").read_text())
recent = deque(maxlen=100)  # for the page that support looks at


def send(order, headers):
    """To the payment provider: here, as if."""
    return len(order) + len(headers["Authorization"])


@app.post("/orders")
def order():
    text = json.dumps(request.get_json())
    headers = {"Authorization": f"Bearer {config['api_key']}"}
    recent.append({"order": text, "headers": headers})
    return {"sent": send(text, headers)}


if __name__ == "__main__":
    app.run(port=int(os.environ.get("PORT", "5000")))
