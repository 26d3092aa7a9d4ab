"""Move modules between the tiers by hand, and pin what must stay hot."""

import distier

with distier.connect(storage_tiers__hot__max_size=2000) as store:
    for i in range(8):
        store.put(f"docs/{i}", f"Page {i}.\n" * 80, tokens=240)

    store.pin("docs/0", ttl=600)  # stays hot for ten minutes
    print(f"demote a pinned module: {store.demote('docs/0').reason}")

    print(f"demoted to {store.demote('docs/1', to='cold').tier}")  # archived first, so that nothing is lost
    module = store.get("docs/1")
    assert module is not None
    print(f"read from {module.tier}")
    print(f"promoted to {store.promote('docs/1').tier}")

    for i in range(8, 16):  # over the budget: the least recently used modules move down
        store.put(f"docs/{i}", f"Page {i}.\n" * 80, tokens=240)
    stats = store.stats()
    print(f"hot within its budget: {stats.hot.tokens <= stats.hot.max_tokens}; warm: {stats.warm.count > 0}")
    place = store.where("docs/0")
    assert place is not None
    print(f"the pinned module is {place.tier}")
    store.unpin("docs/0")
