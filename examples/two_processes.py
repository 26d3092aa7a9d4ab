"""Two processes share one cache: a child writes, and its parent hears of it and reads."""

import multiprocessing
import queue

import distier


def write() -> None:
    with distier.connect() as store:
        store.put("skills/shared", "Written by another process.\n")


if __name__ == "__main__":
    events: queue.Queue[distier.Event] = queue.Queue()
    with distier.connect() as store:
        store.on("tier_change", events.put)
        child = multiprocessing.get_context("spawn").Process(target=write)
        child.start()
        event = events.get(timeout=60)
        child.join()
        print(f"heard: {event.id} {event.from_} > {event.to}")

        module = store.get(event.id)
        assert module is not None
        print(module.text, end="")
