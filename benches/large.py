#!/usr/bin/env python3
"""A store of very many images, Orlop beside containerd 2.x in one run: until it serves CRI, listing with sizes, removing one
image with its space given back, removing very many records, memory, and very many names on one image.

Stores are filled once for each server through its API (crates/api/examples/load.rs), on an ext4 made anew or in a directory
(--stores, where they stay). What removes works on a copy. Both servers are asked by the same clients where there is one for
both; the tools stand beside each other too, as people use them: `orlop rm` with names, `ctr images rm --sync` with all of
their records. CPU is that of the server, and of its tool where that is used; memory too. Disk is what the server caused to be
written (/proc/PID/io).
"""
import argparse, contextlib, pathlib, shutil, signal, statistics, subprocess, sys, tempfile

import disks
from api import LOAD, begin, containerd, fill, orlop
from common import OUT, TARGET, keep
from procs import Took, cpu, forget_peak, peak, run, written

NAMESPACE = "k8s.io"


class Side:
    """A server with its tool, and where its stores are."""

    def __init__(self, name, start, at):
        self.name, self.start, self.at = name, start, at

    @contextlib.contextmanager
    def serving(self, at, images=0, tags=0):
        server = begin(self.start, at, images, tags=tags)
        try:
            # What the filling client held everything with: no node has such a lease.
            subprocess.run([CTR, "-a", server.socket, "-n", NAMESPACE, "leases", "rm", "load"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
            yield server
        finally:
            server.stop()

    @contextlib.contextmanager
    def copy(self):
        """A copy of the store, which goes."""
        at = self.at.with_name(f"{self.name}-copy")
        shutil.rmtree(at, ignore_errors=True)
        subprocess.run(["cp", "-a", "--sparse=always", self.at, at], check=True)
        try:
            yield at
        finally:
            shutil.rmtree(at)

    def tool(self, server, *words):
        """A command of the server's own tool, with what it took of both."""
        before = written(server.child.pid)
        took = run([*self.command(server), *words], daemon=server.child.pid)
        took.disk = written(server.child.pid) - before
        return took

    def command(self, server):
        if self.name == "orlop":
            return [TARGET / "orlop", "-q", "--address", server.socket, "-n", NAMESPACE]
        return [CTR, "-a", server.socket, "-n", NAMESPACE, "images"]

    def asked(self, server, *words):
        """The same of a client that is the same for both; its own processor time is not counted."""
        before = written(server.child.pid)
        wall, busy, memory = server.load(*words)
        return Took(wall, busy, memory, written(server.child.pid) - before)


def records(server, first, count):
    """The names of all records of so many images, the tag of each first."""
    out = subprocess.run([LOAD, server.socket, "records", str(first), str(count)], check=True, capture_output=True, text=True)
    return out.stdout.split()


def tag(n):
    return f"registry.example/team{n % 50}/app{n}:1.0"


def start_and_look(side, images):
    """Until CRI lists all, then what a tool says with sizes, and the most memory of the server over both."""
    with side.serving(side.at, images) as server:
        start = Took(server.ready, cpu(server.child.pid), peak(server.child.pid))
        looked = side.tool(server, *(["images", "--all"] if side.name == "orlop" else ["ls"]))
        cri = side.asked(server, "cri", 5)
        return {"ready to serve CRI": start, "list with sizes": looked, "CRI ListImages": cri, "memory of the server": Took(0, 0, peak(server.child.pid))}


def remove_one(side, images, rounds):
    """One image after the other on the same store, as the tool does it and as a client does; each has been collected before."""
    rows = {"remove one image (tool)": [], "remove one image (API)": []}
    with side.copy() as at, side.serving(at, images) as server:
        side.asked(server, "remove", 0, 1, 1)
        for n in range(1, rounds + 1):
            names = [tag(n)] if side.name == "orlop" else records(server, n, 1)
            words = ["rm", "--no-trash"] if side.name == "orlop" else ["rm", "--sync"]
            rows["remove one image (tool)"].append(side.tool(server, *words, *names))
            rows["remove one image (API)"].append(side.asked(server, "remove", rounds + n, 1, 1))
    return rows


def remove_many(side, images, many):
    rows = {}
    with side.copy() as at, side.serving(at, images) as server:
        if side.name == "orlop":
            words = ["rm", "--no-trash", *map(tag, range(many))]
        else:
            words = ["rm", "--sync", *records(server, 0, many)]
        rows[f"remove {many * 3} records (tool)"] = side.tool(server, *words)
    for clients in (1, 16):
        with side.copy() as at, side.serving(at, images) as server:
            rows[f"remove {many * 3} records (API, {clients} at a time)"] = side.asked(server, "remove", 0, many, clients)
    return rows


def names_on_one(side, at, count):
    """Until CRI lists an image with so many names."""
    if not (at / "filled").exists():
        at.mkdir(parents=True, exist_ok=True)
        with side.serving(at) as server:
            server.load("names", count)
        (at / "filled").touch()
    with side.serving(at, 1, count) as server:
        return Took(server.ready, cpu(server.child.pid), peak(server.child.pid))


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--images", type=int, default=10_000)
    args.add_argument("--many", type=int, default=6_667, help="images whose three records are removed at once [6667]")
    args.add_argument("--names", type=int, default=2_000)
    args.add_argument("--runs", type=int, default=5)
    args.add_argument("--removals", type=int, default=1, help="how often the many records are removed [1: containerd takes minutes]")
    args.add_argument("--bin", type=pathlib.Path, default=pathlib.Path.home() / "go/bin", help="where containerd and ctr 2.x are")
    args.add_argument("--work", type=pathlib.Path, help="directory for the file below ext4 [a temporary one]")
    args.add_argument("--size", type=int, default=12, help="GiB of that [12]")
    args.add_argument("--stores", type=pathlib.Path, help="a directory for the stores instead, where they stay")
    args.add_argument("--only", choices=["orlop", "containerd"], help="one of the two alone")
    args.add_argument("--case", action="append", choices=["look", "one", "many", "names"], help="some cases alone; several")
    args = args.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    global CTR
    CTR = args.bin / "ctr"
    OUT.mkdir(parents=True, exist_ok=True)
    with stores(args) as at:
        sides = [Side("orlop", orlop, at / "orlop"), Side("containerd", containerd(args.bin), at / "containerd")]
        measure(args, [side for side in sides if args.only in (None, side.name)], args.case or ["look", "one", "many", "names"])


@contextlib.contextmanager
def stores(args):
    if args.stores:
        args.stores.mkdir(parents=True, exist_ok=True)
        yield args.stores.resolve()
        return
    work = pathlib.Path(tempfile.mkdtemp(prefix="orlop-bench-", dir=args.work)).resolve()
    try:
        disks.check_room(work, args.size)
        with disks.new("ext4", work, args.size) as disk:
            yield disk.at
    finally:
        shutil.rmtree(work, ignore_errors=True)


def measure(args, sides, cases):
    rows = {}

    def note(side, case, took):
        rows.setdefault(case, {}).setdefault(side.name, []).append(took)

    if cases != ["names"]:
        for side in sides:
            fill(side.name, side.start, side.at, args.images)
    for _ in range(args.runs if "look" in cases else 0):
        for side in sides:
            for case, took in start_and_look(side, args.images).items():
                note(side, case, took)
    for side in sides if "one" in cases else []:
        for case, runs in remove_one(side, args.images, args.runs).items():
            rows.setdefault(case, {})[side.name] = runs
    for _ in range(args.removals if "many" in cases else 0):
        for side in sides:
            for case, took in remove_many(side, args.images, args.many).items():
                note(side, case, took)
    for _ in range(args.runs if "names" in cases else 0):
        for count in (args.names // 4, args.names // 2, args.names):
            for side in sides:
                note(side, f"ready with {count} names on one image", names_on_one(side, side.at.with_name(f"{side.name}-names-{count}"), count))
    show(rows)


def show(rows):
    print("| case | who | wall s | CPU s | peak MiB | disk MiB | wall / CPU / peak / disk in Orlop's |\n|---|---|---|---|---|---|---|")
    for case, sides in rows.items():
        medians = {name: Took(*(statistics.median(getattr(run, field) for run in runs) for field in ("wall", "cpu", "peak", "disk"))) for name, runs in sides.items()}
        ours = medians.get("orlop")
        for name, took in medians.items():
            fields = ("wall", "cpu", "peak", "disk")
            ratios = "" if name == "orlop" or not ours else " / ".join(f"{getattr(took, f) / getattr(ours, f):.1f}" if getattr(ours, f) else "-" for f in fields)
            print(f"| {case} | {name} | {took.wall:.3f} | {took.cpu:.2f} | {took.peak:.0f} | {took.disk:.1f} | {ratios} |", flush=True)
            keep("large", case=case, who=name, median=vars(took), runs=[vars(run) for run in sides[name]])


if __name__ == "__main__":
    main()
