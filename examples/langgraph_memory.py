"""LangGraph's long-term memory in distier: what one agent learns, another reads. Needs the extra `langgraph`."""

import asyncio

import distier
from distier.integrations.langgraph import DistierStore


async def other_agent() -> None:
    async with await distier.connect_async() as store:
        memory = DistierStore(store)  # with an AsyncStore: aget, aput, asearch
        item = await memory.aget(("users", "ada"), "food")
        print(f"the other agent reads {item.value if item else None}")


with distier.connect() as store:
    memory = DistierStore(store)  # builder.compile(store=memory)
    memory.put(("users", "ada"), "food", {"likes": "figs", "rating": 5})
    memory.put(("users", "ada"), "music", {"likes": "fado", "rating": 3})
    memory.put(("users", "bob"), "food", {"likes": "kimchi", "rating": 4})

    asyncio.run(other_agent())
    print(f"namespaces: {memory.list_namespaces(prefix=('users',))}")
    best = memory.search(("users",), filter={"rating": {"$gte": 4}})
    print(f"best: {[(item.namespace[1], item.value['likes']) for item in best]}")
    print(f"as a module: {store.get('langgraph/users/ada/food')!r:.34}...")
