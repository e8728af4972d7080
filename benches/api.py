#!/usr/bin/env python3
"""containerd's API: one client (crates/api/examples/load.rs) against `orlop serve` and containerd 2.x, alternating, in one run.

Every run of a case has a new root and a new daemon; wall and server CPU seconds are the case's own, peak memory the daemon's.
"""
import argparse, json, os, pathlib, shutil, signal, statistics, subprocess, sys, tempfile, time

from procs import cpu, peak

HERE = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target")) / "release"
LOAD = TARGET / "examples/load"


class Server:
    """A daemon with a root of its own."""

    def __init__(self, at, command, socket):
        self.socket = socket
        start = time.perf_counter()
        with open(at / "log", "a") as log:
            self.child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=log)
        while not socket.exists() or subprocess.run([LOAD, socket, "list", "1"], capture_output=True).returncode != 0:
            if self.child.poll() is not None or time.perf_counter() - start > 60:
                sys.exit(f"{command} did not start, see {at}/log")
            time.sleep(0.02)

    def load(self, *words):
        """Wall seconds as the client counts them, CPU seconds of the server."""
        before = cpu(self.child.pid)
        out = subprocess.run([LOAD, self.socket, *map(str, words)], capture_output=True, text=True)
        if out.returncode != 0:
            sys.exit(f"load {words}: {out.stderr[-2000:]}")
        return float(out.stdout), cpu(self.child.pid) - before

    def stop(self):
        self.child.send_signal(signal.SIGTERM)
        self.child.wait()


def orlop(at):
    socket = at / "orlop.sock"
    return Server(at, [TARGET / "orlop", "--root", at / "root", "serve", "--socket", socket], socket)


def containerd(at, binaries):
    socket = at / "containerd.sock"
    config = at / "containerd.toml"
    config.write_text(f"version = 3\nroot = '{at}/root'\nstate = '{at}/state'\n"
                      f"[grpc]\naddress = '{socket}'\n[ttrpc]\naddress = '{socket}.ttrpc'\n"
                      f"disabled = false\n[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dir = '{at}'\nconf_dir = '{at}'\n")
    return Server(at, [binaries / "containerd", "-c", config], socket)


def measure(server, case, args):
    """One case on a fresh server: wall, CPU, peak MiB."""
    if case == "write":
        return *server.load("write", args.mib, 1), peak(server.child.pid)
    if case == "read":
        server.load("write", args.mib, 1)
        return *server.load("read", args.mib, 1), peak(server.child.pid)
    if case == "small":
        return *server.load("small", args.small, 8), peak(server.child.pid)
    if case == "snapshots":
        return *server.load("snapshots", args.snapshots, 8, "overlayfs"), peak(server.child.pid)
    server.load("fill", args.images)
    return *server.load(case, 5), peak(server.child.pid)


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--case", action="append", default=[], choices=["write", "read", "small", "snapshots", "list", "cri"])
    args.add_argument("--runs", type=int, default=3)
    args.add_argument("--mib", type=int, default=1024)
    args.add_argument("--small", type=int, default=4000)
    args.add_argument("--snapshots", type=int, default=4000)
    args.add_argument("--images", type=int, default=10_000)
    args.add_argument("--bin", type=pathlib.Path, default=pathlib.Path.home() / "go/bin", help="where containerd 2.x is")
    args.add_argument("--work", type=pathlib.Path, help="directory on the file system to measure [a temporary one]")
    args = args.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="orlop-bench-", dir=args.work))
    out = HERE / "target/bench"
    out.mkdir(parents=True, exist_ok=True)
    servers = {"orlop": orlop}
    if (args.bin / "containerd").exists():
        servers["containerd"] = lambda at: containerd(at, args.bin)
    count = 0
    try:
        for case in args.case or ["write", "read", "small", "snapshots", "list", "cri"]:
            rows = {who: [] for who in servers}
            for _ in range(args.runs):
                for who, start in servers.items():
                    count += 1
                    at = work / f"{who}-{count}"
                    at.mkdir()
                    server = start(at)
                    try:
                        rows[who].append(measure(server, case, args))
                    finally:
                        server.stop()
                    os.sync()
            report(case, rows, out)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def report(case, rows, out):
    medians = {who: [statistics.median(run[n] for run in runs) for n in range(3)] for who, runs in rows.items()}
    for who, (wall, seconds, memory) in medians.items():
        print(f"{case:10} {who:11} wall {wall:8.3f} s  server cpu {seconds:7.2f} s  peak {memory:6.1f} MiB", flush=True)
        with open(out / "api.jsonl", "a") as f:
            f.write(json.dumps({"case": case, "who": who, "wall_s": wall, "cpu_s": seconds, "peak_mib": memory}) + "\n")
    if len(medians) == 2:
        ratios = [b / a if a else float("inf") for a, b in zip(*medians.values())]
        print(f"{'':10} containerd / orlop: wall {ratios[0]:.2f}  cpu {ratios[1]:.2f}  peak {ratios[2]:.2f}", flush=True)


if __name__ == "__main__":
    main()
