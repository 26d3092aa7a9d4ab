"""Add a line to a module that other writers change too, and return only when no loss of Redis can undo it."""

import distier

ID = "memories/decisions"


def add_line(store: distier.Store, line: str) -> distier.Landed:
    while True:
        module = store.get(ID)
        text = module.text if module else ""
        expected = module.version if module else 0  # 0: only if there is no such module
        try:
            return store.put(ID, f"{text}{line}\n", if_version=expected, durability="archived")
        except distier.Conflict:
            continue  # somebody else was faster: read again


with distier.connect() as store:
    for line in ("We use SI units.", "Dates are ISO 8601."):
        add_line(store, line)
    try:
        store.put(ID, "overwritten\n", if_version=0)
    except distier.Conflict:
        print("a write that expects no module is refused")
    place = store.where(ID)
    assert place is not None
    print(f"archived: {place.clean}")
    module = store.get(ID)
    print(module.text if module else "", end="")
