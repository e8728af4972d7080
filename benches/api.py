#!/usr/bin/env python3
"""containerd's API: one client (crates/api/examples/load.rs) against `orlop serve` and containerd 2.x, alternating, in one run.

The client says where its timed part begins and ends; server CPU seconds and peak memory are those of that part. Every run of
write, read, small and snapshots has a new root; list, cri and start have one root for each server, which is filled once
through the API (and kept with --stores), and a new daemon (with --together one for all three). The time of `start` runs from
exec until CRI's ListImages answers with every image; its CPU and memory are the daemon's from its beginning to there.

Beside write and read a third server takes part, `sink` (crates/api/examples/sink.rs), which keeps and hashes nothing: what it
takes is the client's share and the transport's.
"""
import argparse, json, os, pathlib, shutil, signal, statistics, subprocess, sys, tempfile, time

from procs import cpu, forget_peak, peak, wait_for

HERE = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target")) / "release"
LOAD = TARGET / "examples/load"
SINK = TARGET / "examples/sink"
ON_LARGE_STORES = ["list", "cri", "start"]
CASES = ["write", "read", "small", "snapshots"] + ON_LARGE_STORES


class Client:
    """The load client, which waits for us at the steps of its work."""

    def __init__(self, socket, *words):
        self.words = words
        self.child = subprocess.Popen([LOAD, socket, *map(str, words)], stdin=subprocess.PIPE, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE, text=True)

    def hear(self, word=None):
        line = self.child.stdout.readline().strip()
        if not line or word not in (None, line):
            sys.exit(f"load {self.words}: expected {word}, heard {line!r}: {self.child.communicate()[1][-2000:]}")
        return line

    def go_on(self):
        self.child.stdin.write("\n")
        self.child.stdin.flush()


class Server:
    """A daemon, from its start on."""

    def __init__(self, at, command, socket):
        self.socket, self.started = socket, time.perf_counter()
        with open(at / "log", "a") as log:
            self.child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)

    def load(self, *words):
        """Of the timed part: wall seconds as the client counts them, CPU seconds of the server, its peak in MiB."""
        client = Client(self.socket, *words)
        client.hear("begin")
        forget_peak(self.child.pid)
        before = cpu(self.child.pid)
        client.go_on()
        client.hear("end")
        seconds, memory = cpu(self.child.pid) - before, peak(self.child.pid)
        client.go_on()
        wall = float(client.hear())
        client.child.communicate()
        return wall, seconds, memory

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        self.child.wait()


def orlop(at, quick):
    socket = at / "daemon.sock"
    return Server(at, [TARGET / "orlop", "--root", at / "root", "serve", "--socket", socket], socket)


def sink(at, quick):
    socket = at / "daemon.sock"
    server = Server(at, [SINK, socket], socket)
    wait_for(socket.exists, "the sink's socket")
    return server


def containerd(binaries):
    def start(at, quick):
        socket = at / "daemon.sock"
        config = at / "containerd.toml"
        # Watched by containerd: in a directory where its log grows, each line of it would be an error in the next.
        (at / "cni").mkdir(exist_ok=True)
        config.write_text(f"version = 3\nroot = '{at}/root'\nstate = '{at}/state'\n"
                          f"[grpc]\naddress = '{socket}'\n[ttrpc]\naddress = '{socket}.ttrpc'\n"
                          f"[plugins.'io.containerd.metadata.v1.bolt']\nno_sync = {str(quick).lower()}\n"
                          f"[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dir = '{at}/cni'\nconf_dir = '{at}/cni'\n")
        return Server(at, [binaries / "containerd", "-c", config], socket)

    return start


def begin(start, at, images=0, quick=False, tags=0):
    """A daemon that lists its images by CRI: with the seconds that took."""
    (at / "daemon.sock").unlink(missing_ok=True)
    if start is sink:
        return start(at, quick)
    client = Client(at / "daemon.sock", "ready", images, tags)
    client.hear("waiting")
    server = start(at, quick)
    client.hear("ready")
    server.ready = time.perf_counter() - server.started
    client.child.communicate()
    return server


def fill(who, start, at, images, *snapshotter):
    """A root with so many images, unpacked if a snapshotter is named, unless it is there."""
    done = at / "-".join(["filled", str(images), *snapshotter])
    if done.exists():
        return
    shutil.rmtree(at, ignore_errors=True)
    at.mkdir(parents=True)
    server = begin(start, at, quick=True)
    wall, _, _ = server.load("fill", images, *snapshotter)
    server.stop()
    # What a first start has to look through once is not the start of a node's daemon.
    begin(start, at, images).stop()
    done.touch()
    print(f"filled {who} with {images} images in {wall:.1f} s", flush=True)


def measure(server, case, args):
    """One case: wall, CPU, peak MiB."""
    if case == "start":
        return server.ready, cpu(server.child.pid), peak(server.child.pid)
    if case == "write":
        return server.load("write", args.mib, 1)
    if case == "read":
        server.load("write", args.mib, 1)
        return server.load("read", args.mib, 1)
    if case == "small":
        return server.load("small", args.small, 8)
    if case == "snapshots":
        return server.load("snapshots", args.snapshots, 8, "overlayfs")
    return server.load(case, 5)


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--case", action="append", default=[], choices=CASES)
    args.add_argument("--runs", type=int, default=5)
    args.add_argument("--mib", type=int, default=1024)
    args.add_argument("--small", type=int, default=2000)
    args.add_argument("--snapshots", type=int, default=2000)
    args.add_argument("--images", type=int, default=10_000)
    args.add_argument("--bin", type=pathlib.Path, default=pathlib.Path.home() / "go/bin", help="where containerd 2.x is")
    args.add_argument("--work", type=pathlib.Path, help="directory on the file system to measure, as /dev/shm [a temporary one]")
    args.add_argument("--stores", type=pathlib.Path, help="where large stores are, to be used again [they go at the end]")
    args.add_argument("--together", action="store_true", help="start, list and cri on the same daemon of a run")
    args.add_argument("--only", choices=["orlop", "containerd"], help="one of the two alone")
    args = args.parse_args()
    cases = args.case or CASES
    work = pathlib.Path(tempfile.mkdtemp(prefix="orlop-bench-", dir=args.work))
    stores = (args.stores or work / "stores").resolve()
    out = HERE / "target/bench"
    out.mkdir(parents=True, exist_ok=True)
    servers = {"orlop": orlop}
    if (args.bin / "containerd").exists():
        servers["containerd"] = containerd(args.bin)
    servers = {who: start for who, start in servers.items() if args.only in (None, who)}
    count = 0
    try:
        if any(case in ON_LARGE_STORES for case in cases):
            for who, start in servers.items():
                fill(who, start, stores / who, args.images)
        if args.together:
            together(servers, stores, args, out)
            cases = [case for case in cases if case not in ON_LARGE_STORES]
        for case in cases:
            beside = dict(servers, sink=sink) if case in ("write", "read") and not args.only else servers
            rows = {who: [] for who in beside}
            for _ in range(args.runs):
                for who, start in beside.items():
                    count += 1
                    large = case in ON_LARGE_STORES
                    at = stores / who if large else work / f"{who}-{count}"
                    at.mkdir(exist_ok=True)
                    server = begin(start, at, args.images if large else 0)
                    try:
                        rows[who].append(measure(server, case, args))
                    finally:
                        server.stop()
                    os.sync()
            report(case, rows, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def together(servers, stores, args, out):
    """The cases on large stores, one after the other on the same daemon: starting containerd there takes longest."""
    rows = {case: {who: [] for who in servers} for case in ["start", "list", "cri"]}
    for _ in range(args.runs):
        for who, start in servers.items():
            server = begin(start, stores / who, args.images)
            try:
                for case, of in rows.items():
                    of[who].append(measure(server, case, args))
            finally:
                server.stop()
            os.sync()
    for case, of in rows.items():
        report(case, of, out)


def report(case, rows, out):
    if not all(rows.values()):
        return
    medians = {who: [statistics.median(run[n] for run in runs) for n in range(3)] for who, runs in rows.items()}
    for who, (wall, seconds, memory) in medians.items():
        walls = " ".join(f"{run[0]:.3f}" for run in rows[who])
        print(f"{case:10} {who:11} wall {wall:8.3f} s  server cpu {seconds:7.2f} s  peak {memory:6.1f} MiB  ({walls})", flush=True)
        with open(out / "api.jsonl", "a") as f:
            f.write(json.dumps({"case": case, "who": who, "wall_s": wall, "cpu_s": seconds, "peak_mib": memory,
                                "runs": rows[who]}) + "\n")
    if {"orlop", "containerd"} <= set(medians):
        ratios = [b / a if a else float("inf") for a, b in zip(medians["orlop"], medians["containerd"])]
        print(f"{'':10} containerd / orlop: wall {ratios[0]:.2f}  cpu {ratios[1]:.2f}  peak {ratios[2]:.2f}", flush=True)


if __name__ == "__main__":
    main()
