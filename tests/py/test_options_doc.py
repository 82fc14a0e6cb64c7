"""docs/options.md is the table of src/core/options.def, in its words."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def unquote(text: str) -> str:
    return "".join(re.findall(r'"([^"]*)"', text))


def expected_rows() -> list[str]:
    source = (ROOT / "src/core/options.def").read_text()
    source = re.sub(r"/\*.*?\*/", "", source, flags=re.S)
    rows = []
    for kind, body in re.findall(r"^(WORD|SIZE) \((.*?)\)\n(?=WORD|SIZE|\Z)", source, re.S | re.M):
        fields = re.split(r",\s*(?=(?:[^\"]*\"[^\"]*\")*[^\"]*$)", body)
        key = fields[0].strip()
        if kind == "WORD":
            default, allowed = unquote(fields[1]), unquote(fields[2]).replace("|", ", ")
        else:
            default, least, most = (size(field) for field in fields[1:4])
            allowed = f"{least} to {most}"
        rows.append(f"| `{key}` | {default} | {allowed} | {unquote(fields[-1])} |")
    return rows


def size(text: str) -> str:
    text = text.strip().replace("(size_t)", "")
    if text == "SIZE_MAX":
        return "no bound"
    match = re.fullmatch(r"(\d+) << (\d+)", text)
    value = int(match[1]) << int(match[2]) if match else int(text)
    for shift, unit in ((40, "T"), (30, "G"), (20, "M"), (10, "K")):
        if value and value % (1 << shift) == 0:
            return f"{value >> shift}{unit}"
    return str(value)


def test_table_is_that_of_the_source() -> None:
    rows = expected_rows()
    assert len(rows) >= 9
    page = (ROOT / "docs/options.md").read_text().splitlines()
    assert [line for line in page if line.startswith("| `")] == rows
