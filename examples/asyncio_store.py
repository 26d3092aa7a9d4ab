"""The same calls on asyncio: many reads at a time, one round trip for a batch."""

import asyncio

import distier


async def main() -> None:
    async with await distier.connect_async() as store:
        await store.put_many([distier.Item(f"notes/{i}", f"Note {i}\n") for i in range(20)])

        one_by_one = await asyncio.gather(*(store.get(f"notes/{i}") for i in range(20)))
        print(f"{sum(module is not None for module in one_by_one)} read side by side")

        batch = await store.get_many([f"notes/{i}" for i in range(21)])
        print(f"missing: {[id for id, module in batch.items() if module is None]}")

        ids = [id async for id in store.list("notes/")]
        print(f"{len(ids)} ids below notes/")


asyncio.run(main())
