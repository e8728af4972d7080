#!/usr/bin/env python3
"""A pull of what is there already: wall time, and what is asked of the registry, counted by a proxy before it.

What is asked is counted in pulls of their own, under the proxy's address; the time is of pulls that go to the registry itself. The
proxy speaks no TLS: who tries that first, as nobody does who has been told that it is a plain registry, is seen to.
"""
import statistics

import disks
from common import arguments, chosen, keep, workplace
from registry import Counter

PEERS = ["orlop", "containerd"]


def main():
    args = arguments(__doc__, PEERS, times={"type": int, "default": 21, "help": "warm pulls that are timed [21]"})
    able = chosen(args)
    with workplace(args) as (work, registry, images):
        print("| image | file system | who | asked | wall ms | from / to | CPU ms |\n|---|---|---|---|---|---|---|")
        for kind in args.fs:
            for image in images:
                for peer in able:
                    with disks.new(kind, work, args.size) as disk, peer.store(disk.at) as store:
                        asked = requests(store, registry, image)
                        store.pull(f"{registry.address}/{image}")
                        runs = [store.pull(f"{registry.address}/{image}") for _ in range(args.times)]
                    walls = sorted(run.wall * 1000 for run in runs)
                    busy = statistics.median(run.cpu * 1000 for run in runs)
                    print(f"| {image} | {kind} | {peer.name} | {', '.join(asked)} | {statistics.median(walls):.1f} | {walls[0]:.1f} / {walls[-1]:.1f} | {busy:.0f} |", flush=True)
                    keep("warm", image=image, fs=kind, who=peer.name, asked=asked, wall_ms=walls, cpu_ms=busy)


def requests(store, registry, image):
    """What a second pull through the proxy asks."""
    counter = Counter(registry.address)
    store.pull(f"{counter.address}/{image}")
    counter.asked.clear()
    store.pull(f"{counter.address}/{image}")
    return list(counter.asked)


if __name__ == "__main__":
    main()
