"""LangChain: a cache of LLM calls and a byte store that all processes share. Needs the extra `langchain`."""

from langchain_core.language_models import GenericFakeChatModel
from langchain_core.messages import AIMessage

import distier
from distier.integrations.langchain import DistierByteStore, DistierCache

with distier.connect() as store:
    cache = DistierCache(store)  # set_llm_cache(cache) is for all models
    cache.clear()
    one = GenericFakeChatModel(messages=iter([AIMessage("Figs.")]), cache=cache)
    other = GenericFakeChatModel(messages=iter([]), cache=cache)  # would fail if it were asked
    print(f"the model answers {one.invoke('What does Ada like?').content}")
    print(f"the cache answers {other.invoke('What does Ada like?').content}")

    values = DistierByteStore(store)  # CacheBackedEmbeddings.from_bytes_store(model, values)
    values.mset([("vectors/a", b"\x00\x01"), ("vectors/b", b"\x02")])
    print(f"keys: {list(values.yield_keys(prefix='vectors/'))}, values: {values.mget(['vectors/b', 'vectors/c'])}")
