"""Reads that cost no network: each process keeps what it reads, and Redis notifies it of changes."""

import time

import distier

with distier.connect() as reader, distier.connect() as writer:
    reader.put("skills/pdf", "first\n")
    while reader.stats().hits.get("near", 0) < 100:  # it begins when its connection to Redis is up
        reader.get("skills/pdf")
    print("100 reads needed no network")

    writer.put("skills/pdf", "second\n")  # another client, as in another process
    while (module := reader.get("skills/pdf")) is None or module.text != "second\n":
        time.sleep(0.001)
    print("the change was seen")
    print(f"near cache: {reader.stats().near.status}")
