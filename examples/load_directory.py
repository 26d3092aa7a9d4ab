"""Load a directory: each file becomes a module. Usage: load_directory.py DIR"""

import sys
from pathlib import Path

import distier

root = Path(sys.argv[1])
items = [
    distier.Item(f"{root.name}/{path.relative_to(root).as_posix()}", path.read_bytes())
    for path in sorted(root.rglob("*"))
    if path.is_file()
]
with distier.connect() as store:
    results = store.put_many(items)  # a result for each: where it landed, or its error
    failed = [result for result in results if isinstance(result, distier.DistierError)]
    landed = [result for result in results if isinstance(result, distier.Landed)]
    for result in landed:
        print(f"{result.id}: {result.tokens} tokens, {result.tier}")
    print(f"{len(landed)} loaded, {len(failed)} failed")
sys.exit(1 if failed else 0)
