#!/usr/bin/env python3
"""Cold pull + unpack from a registry, side by side: Orlop, containerd 2.x, podman, skopeo with umoci, alternating in one run.

Every run has a file system made anew (an ext4 without a journal, as some machines have, does not give out inodes that were
deleted within the last minutes and searches past them; this one has a journal, and nothing was deleted on it). Blobs are in the
page cache before anything is measured. `disk` is what reached the device until all had, also after the program's end; on tmpfs
what is there at the end. The last column is the wall time in units of the lower bound of bounds.py, measured in the same run.
"""
import bounds
from common import alternating, arguments, chosen, head, show, with_disk, workplace

PEERS = ["orlop", "containerd", "containerd-igzip-4", "podman", "skopeo+umoci"]


def main():
    args = arguments(__doc__, PEERS, no_bounds={"action": "store_true", "help": "without the lower bounds"})
    able = chosen(args)
    with workplace(args) as (work, registry, images):
        blobs = bounds.Blobs(work, registry)
        layers = {image: blobs.layers(image) for image in images}
        for kind in args.fs:
            rates = None if args.no_bounds else bounds.measure(kind, work, args.size, registry, blobs.largest())
            if rates:
                print(rates, flush=True)
            head()
            for image in images:
                def pull(peer, place, disk):
                    with peer.store(place) as store:
                        return with_disk(disk, lambda: store.pull(f"{registry.address}/{image}"))
                rows = alternating(args, work, kind, able, pull)
                show("pull", image, kind, rows, rates and bounds.bound(rates, layers[image]))


if __name__ == "__main__":
    main()
