#!/usr/bin/env python3
"""Import (with unpacking) and export of an OCI archive: Orlop beside `ctr images import` and `ctr images export`.

Each run has a file system made anew: the archive is read from elsewhere, out of the page cache, and written to the same
file system as the store. The columns are those of pull.py.
"""
import peers
from common import alternating, arguments, chosen, head, show, with_disk, workplace
from procs import run

PEERS = ["orlop", "containerd", "containerd-igzip-4"]


def main():
    args = arguments(__doc__, PEERS)
    able = chosen(args)
    with workplace(args) as (work, registry, images):
        for kind in args.fs:
            head()
            for image in images:
                name, archive = f"docker.io/library/{image.replace('/', '-')}", work / "archive.tar"
                run([*peers.SKOPEO, "copy", "-q", "--src-tls-verify=false", f"docker://{registry.address}/{image}", f"oci-archive:{archive}:{name}"])
                run(["cat", archive])
                exports = {peer.name: [] for peer in able}

                def there_and_back(peer, place, disk):
                    with peer.store(place) as store:
                        loaded = with_disk(disk, lambda: store.load(archive))
                        exports[peer.name].append(with_disk(disk, lambda: store.save(name, place / "out.tar")))
                        return loaded
                show("archive", f"import {image}", kind, alternating(args, work, kind, able, there_and_back))
                show("archive", f"export {image}", kind, {name: runs for name, runs in exports.items() if runs})
                archive.unlink()


if __name__ == "__main__":
    main()
