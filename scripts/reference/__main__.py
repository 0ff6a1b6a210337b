"""``python -m scripts.reference``: write the pages that are stale."""

from __future__ import annotations

from scripts.reference import stale

for path, text in stale().items():
    path.write_text(text)
    print(f"wrote {path.name}")
