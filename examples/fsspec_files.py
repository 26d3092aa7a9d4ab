"""fsspec: modules as files, for any library that opens URLs. Needs the extra `fsspec`."""

import json

import fsspec

import distier

fs = fsspec.filesystem("distier")  # the embedded server; source="redis://host", settings={"namespace": "team"}
fs.pipe({"docs/a.md": b"# A\n", "docs/sub/b.json": b'{"b": 2}'})
print(f"found: {fs.find('docs')}")

with fsspec.open("distier://docs/sub/b.json") as file:
    print(f"read: {json.load(file)}")
with distier.connect() as store:
    module = store.get("docs/a.md")  # the path is the id
    print(f"module: {module.text.strip() if module else None}")
print(f"1 byte range: {fs.cat_file('docs/a.md', start=2, end=3).decode()}")

with fs.open("docs/a.md", "ab") as file:
    file.write(b"the second line")
print(fs.tail("docs/a.md", 15))
try:
    fs.pipe_file("docs/a.md", b"", mode="create")  # atomic: only one of several writers creates a file
except FileExistsError as e:
    print(f"a second create: {type(e).__name__}")
fs.rm("docs", recursive=True)
fs.close()
