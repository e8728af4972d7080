#!/usr/bin/env python3
"""What Orlop says of a store with many images, from a cold process: of a containerd 2.x that it finds, and of its own daemon.

Beside it, on the same containerd: `ctr images ls`, and the Usage calls of all snapshots, without which nobody can know what
they take (crates/api/examples/load.rs, as many at a time as Orlop asks). Each image has ten blobs, three records and a
snapshot a layer. The commands alternate; medians of their wall seconds, processor seconds of client and server, and the
client's peak memory.
"""
import argparse, json, os, pathlib, shutil, statistics, subprocess, sys, tempfile, time

from api import HERE, TARGET, begin, containerd, fill, orlop
from procs import cpu

ROW = "{:28} wall {:7.3f} s  client cpu {:6.2f} s  server cpu {:6.2f} s  peak {:6.1f} MiB  ({})"


def wall(server, command):
    """Of one process, which must succeed: wall seconds, its processor seconds and those of the server, its peak in MiB."""
    before, start = cpu(server.child.pid), time.perf_counter()
    child = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    said = child.stderr.read()
    _, status, usage = os.wait4(child.pid, 0)
    seconds = time.perf_counter() - start
    child.returncode = os.waitstatus_to_exitcode(status)
    if status != 0:
        sys.exit(f"{command} failed: {said.decode()[-2000:]}")
    return seconds, usage.ru_utime + usage.ru_stime, cpu(server.child.pid) - before, usage.ru_maxrss / 1024


def usage_calls(server):
    seconds, busy, _ = server.load("usage", "overlayfs")
    return seconds, 0.0, busy, 0.0


def measure(server, cases, runs):
    rows = {name: [] for name in cases}
    for _ in range(runs):
        for name, case in cases.items():
            rows[name].append(case() if callable(case) else wall(server, case))
    return rows


def report(who, rows, out):
    medians = {name: [statistics.median(run[n] for run in of) for n in range(4)] for name, of in rows.items()}
    for name, figures in medians.items():
        walls = " ".join(f"{run[0]:.3f}" for run in rows[name])
        print(ROW.format(f"{who}: {name}", *figures, walls), flush=True)
        with open(out / "lens.jsonl", "a") as f:
            f.write(json.dumps({"who": who, "case": name, "median": figures, "runs": rows[name]}) + "\n")
    return medians


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--images", type=int, default=10_000)
    args.add_argument("--runs", type=int, default=5)
    args.add_argument("--bin", type=pathlib.Path, default=pathlib.Path.home() / "go/bin", help="where containerd 2.x is")
    args.add_argument("--work", type=pathlib.Path, help="directory on the file system to measure, as /dev/shm [a temporary one]")
    args.add_argument("--stores", type=pathlib.Path, help="where the stores are, to be used again [they go at the end]")
    args.add_argument("--only", choices=["orlop", "containerd"], help="one of the two stores alone")
    args.add_argument("--packed", action="store_true", help="images are not unpacked: no snapshots")
    args.add_argument("--case", action="append", help="only the cases with this in their name")
    args = args.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="orlop-bench-", dir=args.work))
    stores = (args.stores or work / "stores").resolve()
    out = HERE / "target/bench"
    out.mkdir(parents=True, exist_ok=True)
    ctr = args.bin / "ctr"
    try:
        for who, start in {"containerd": containerd(args.bin), "orlop": orlop}.items():
            if args.only not in (None, who):
                continue
            at = stores / who
            fill(who, start, at, args.images, *([] if args.packed else ["overlayfs"]))
            server = begin(start, at, args.images)
            try:
                # What the filling client held everything with: no node has such a lease.
                subprocess.run([ctr, "-a", server.socket, "-n", "k8s.io", "leases", "rm", "load"], stdout=subprocess.DEVNULL)
                look = [TARGET / "orlop", "-q", "--address", server.socket]
                name = f"registry.example/team7/app{args.images // 50 // 2 * 50 + 7}:1.0"
                cases = {case: look + case.split() + [name] * (case in ["explain", "why", "resolve", "tree"])
                         for case in ["images", "images --all", "images -o json", "explain", "why", "resolve", "tree", "df"]}
                cases["usage calls"] = lambda: usage_calls(server)
                cases["ctr images ls"] = [ctr, "-a", server.socket, "-n", "k8s.io", "images", "ls"]
                if args.case:
                    cases = {name: case for name, case in cases.items() if any(word in name for word in args.case)}
                medians = report(who, measure(server, cases, args.runs), out)
                if {"df", "usage calls"} <= medians.keys():
                    print(f"{who}: df / usage calls: {medians['df'][0] / medians['usage calls'][0]:.2f}", flush=True)
                if {"images", "ctr images ls"} <= medians.keys():
                    print(f"{who}: ctr images ls / images: {medians['ctr images ls'][0] / medians['images'][0]:.1f}", flush=True)
            finally:
                server.stop()
    finally:
        shutil.rmtree(work, ignore_errors=True)


if __name__ == "__main__":
    main()
