"""What each benchmark leaves behind."""

import json
from pathlib import Path
from typing import Any

from lib import paths


def write(out: Path, record: dict[str, Any]) -> None:
    """Write what was measured as JSON, and say where it is."""
    out.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(record, indent=1) + "\n"
    paths.write(out, lambda beside: beside.write_text(text))
    print(f"written to {out}")
