"""py-key-value, the storage of FastMCP: entries with a time to live that all processes share. Needs the extra `key-value`."""

import asyncio
import json

import distier
from distier.integrations.key_value import DistierStore


async def main() -> None:
    async with await distier.connect_async() as store:
        values = DistierStore(store)  # FastMCP(client_storage=values), or behind one of py-key-value's wrappers
        await values.put("ada", {"token": "abc"}, collection="sessions", ttl=3600)
        await values.put("bob", {"token": "def"}, collection="sessions")

        print(f"read: {await values.get('ada', collection='sessions')}")
        _, ttl = await values.ttl("ada", collection="sessions")
        print(f"with its time to live: {ttl is not None and 3500 < ttl <= 3600}")
        print(f"keys: {await values.keys('sessions')}")
        module = await store.get("key-value/sessions/ada")
        print(f"as a module: {json.loads(module.text)['value'] if module else None}")
        print(f"deleted: {await values.delete_many(['ada', 'bob', 'eve'], collection='sessions')}")


asyncio.run(main())
