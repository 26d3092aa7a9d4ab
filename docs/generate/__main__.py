"""Write each generated page whose text has changed, and name it."""

from __future__ import annotations

from . import DOCS, PAGES


def main() -> None:
    for name, render in PAGES.items():
        page, text = DOCS / name, render()
        if not page.exists() or page.read_text("utf-8") != text:
            page.write_text(text, "utf-8")
            print(f"wrote docs/{name}")


if __name__ == "__main__":
    main()
