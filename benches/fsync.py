#!/usr/bin/env python3
"""What a pull does to its neighbours: how long another process's fsync takes on the same ext4 while an image is pulled.

Beside Orlop, which syncs what it answers for, stands a containerd that does too (image_pull_with_sync_fs, over CRI). The
neighbour (neighbour.py) is first alone, then there during each pull. Without --registry an image is made of 2 GiB of noise.
"""
import statistics, subprocess, sys, time

import bounds, disks
from common import HERE, alternating, arguments, chosen, keep, workplace

PEERS = ["orlop", "containerd-sync"]
ALONE_SECONDS = 5


def beside(path, work):
    """The syncs of a neighbour during some work, and what the work took."""
    child = subprocess.Popen([sys.executable, HERE / "benches/neighbour.py", path], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        took = work()
    finally:
        out = child.communicate()[0]
    return [float(ms) for ms in out.split()], took


def p99(samples):
    return sorted(samples)[max(0, -(-len(samples) * 99 // 100) - 1)]


def main():
    args = arguments(__doc__, PEERS)
    args.fs = ["ext4"]
    able = chosen(args)
    with workplace(args, made_of=["noise"]) as (work, registry, images):
        print("| image | who | syncs | p50 ms | p99 ms | most ms | wall s of the pull |\n|---|---|---|---|---|---|---|")
        with disks.new("ext4", work, args.size) as disk:
            alone, _ = beside(disk.at / "log", lambda: time.sleep(ALONE_SECONDS))
            row("-", "nobody", [alone], [])
        for image in images:
            bounds.Blobs(work, registry).layers(image)
            seen = {peer.name: [] for peer in able}

            def pull(peer, place, disk):
                with peer.store(place) as store:
                    samples, took = beside(disk.at / "log", lambda: store.pull(f"{registry.address}/{image}"))
                seen[peer.name].append(samples)
                return took
            for who, runs in alternating(args, work, "ext4", able, pull).items():
                row(image, who, seen[who], runs)


def row(image, who, seen, runs):
    """Medians over the runs of each run's figures."""
    middle = lambda of: statistics.median(of(samples) for samples in seen)
    wall = statistics.median(run.wall for run in runs) if runs else 0
    print(f"| {image} | {who} | {middle(len):.0f} | {middle(statistics.median):.2f} | {middle(p99):.2f} | {max(map(max, seen)):.1f} | {wall:.2f} |", flush=True)
    keep("fsync", image=image, who=who, p99_ms=[p99(samples) for samples in seen], p50_ms=[statistics.median(s) for s in seen], wall_s=wall)


if __name__ == "__main__":
    main()
