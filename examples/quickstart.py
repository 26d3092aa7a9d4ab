"""Store a module, read it back, and see where it is. Needs no Redis: a private server is started."""

import distier

with distier.connect() as store:
    landed = store.put("skills/pdf", "# Fill PDF forms\n", keywords=["pdf"], meta={"owner": "docs"})
    print(f"put as version {landed.version}, {landed.tokens} tokens")

    module = store.get("skills/pdf")
    assert module is not None
    print(f"got {module.text.strip()!r} from {module.tier}, keywords {module.keywords}")

    print(f"a miss is {store.get('skills/none')}")
    print(f"ids: {sorted(store.list('skills/'))}")
    print(f"deleted: {store.delete('skills/pdf')}")
