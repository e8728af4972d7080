#!/usr/bin/env python3
"""Cold pull + unpack, Orlop beside containerd 2.x, alternating in one run, from a registry on loopback.

Every run has a root of its own, and nothing is deleted before the end: an ext4 without a journal does not give out inodes
that were deleted within the last minutes and searches past them, which would cost whoever comes next seconds.
"""
import argparse, concurrent.futures, json, os, pathlib, shutil, signal, socket, statistics, subprocess, sys, tempfile, time

from procs import cpu, peak

HERE = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target")) / "release"


def free_port():
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


def wait_for(check, what, seconds=20):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if check():
            return
        time.sleep(0.05)
    sys.exit(f"{what} did not start")


def listens(port):
    with socket.socket() as s:
        return s.connect_ex(("127.0.0.1", port)) == 0


def run(command, env=None):
    """Wall seconds, CPU seconds and peak MiB of one process; it must succeed."""
    start = time.perf_counter()
    with tempfile.TemporaryFile() as err:
        child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=err, env=env)
        _, status, usage = os.wait4(child.pid, 0)
        seconds = time.perf_counter() - start
        if status != 0:
            err.seek(0)
            sys.exit(f"{command} failed: {err.read().decode(errors='replace')[-2000:]}")
    return seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss / 1024


class Registry:
    """docker-registry on a free port, or one that is there."""

    def __init__(self, work, address):
        self.child = None
        self.address = address
        if address:
            return
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        config = work / "registry.yml"
        config.write_text(f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
                          f"storage: {{filesystem: {{rootdirectory: {work}/registry}}}}\nhttp: {{addr: '{self.address}'}}\n")
        self.child = subprocess.Popen(["docker-registry", "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: listens(port), "docker-registry")

    def stop(self):
        if self.child:
            self.child.terminate()
            self.child.wait()


class Containerd:
    """containerd on the same file system as Orlop's root, a new one with an empty root for every pull."""

    def __init__(self, work, binaries):
        self.work = work
        self.bin = binaries
        self.pulls = 0

    def pull(self, image):
        """Wall seconds and CPU seconds of one pull, daemon and client, and the daemon's peak MiB."""
        self.pulls += 1
        at = self.work / f"containerd-{self.pulls}"
        at.mkdir()
        socket = at / "containerd.sock"
        config = at / "containerd.toml"
        config.write_text(f"version = 2\nroot = '{at}/root'\nstate = '{at}/state'\n"
                          f"disabled_plugins = ['io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime']\n"
                          f"[grpc]\naddress = '{socket}'\n")
        env = dict(os.environ, CONTAINERD_DISABLE_PIGZ="1", CONTAINERD_DISABLE_IGZIP="1")
        with open(at / "log", "w") as log:
            daemon = subprocess.Popen([self.bin / "containerd", "-c", config], stdout=subprocess.DEVNULL, stderr=log, env=env)
        try:
            wait_for(socket.exists, "containerd")
            ctr = [str(self.bin / "ctr"), "--address", str(socket)]
            run(ctr + ["images", "ls"])
            before = cpu(daemon.pid)
            wall, client, _ = run(ctr + ["images", "pull", "--plain-http", image])
            return wall, cpu(daemon.pid) - before + client, peak(daemon.pid)
        finally:
            daemon.send_signal(signal.SIGTERM)
            daemon.wait()


def make_images(work, registry):
    """Three images from this machine: many small files, few large ones, and many layers."""
    sys.path.insert(0, str(HERE / "benches"))
    import make_layout
    names = []
    for name, layers in make_layout.default_images().items():
        layout = work / f"layout-{name}"
        make_layout.write(layout, layers)
        ref = f"{registry}/bench/{name}:gz"
        run(["skopeo", "--insecure-policy", "copy", "-q", "--dest-tls-verify=false", f"oci:{layout}:latest", f"docker://{ref}"])
        shutil.rmtree(layout)
        names.append(ref)
    return names


def main():
    args = argparse.ArgumentParser(description=__doc__)
    args.add_argument("--registry", help="HOST:PORT that has the images")
    args.add_argument("--image", action="append", default=[], help="NAME:TAG in that registry; several")
    args.add_argument("--runs", type=int, default=5)
    args.add_argument("--bin", type=pathlib.Path, default=pathlib.Path.home() / "go/bin", help="where containerd and ctr 2.x are")
    args.add_argument("--work", type=pathlib.Path, help="directory on the file system to measure [a temporary one]")
    args = args.parse_args()
    work = pathlib.Path(tempfile.mkdtemp(prefix="orlop-bench-", dir=args.work))
    out = HERE / "target/bench"
    out.mkdir(parents=True, exist_ok=True)
    registry = Registry(work, args.registry)
    peer = Containerd(work, args.bin) if (args.bin / "containerd").exists() else None
    pulls = 0
    try:
        images = [f"{registry.address}/{i}" for i in args.image] if args.image else apart(make_images, work, registry.address)
        for image in images:
            rows = {"orlop": [], "containerd": []}
            for _ in range(args.runs):
                pulls += 1
                root = work / f"orlop-{pulls}"
                rows["orlop"].append(run([str(TARGET / "orlop"), "--root", str(root), "-q", "pull", image]))
                os.sync()
                if peer:
                    rows["containerd"].append(peer.pull(image))
                    os.sync()
            report(image, rows, out)
    finally:
        registry.stop()
        shutil.rmtree(work, ignore_errors=True)


def apart(make, *args):
    """Runs something in a process of its own: what this one takes at most would count as the peak of those it starts."""
    with concurrent.futures.ProcessPoolExecutor(max_workers=1) as pool:
        return pool.submit(make, *args).result()


def report(image, rows, out):
    medians = {}
    for who, runs in rows.items():
        if not runs:
            continue
        wall, cpu, peak = (statistics.median(r[n] for r in runs) for n in range(3))
        medians[who] = wall
        row = {"image": image, "who": who, "runs": len(runs), "wall_s": round(wall, 3), "cpu_s": round(cpu, 3), "peak_mib": round(peak, 1)}
        print(f"{image.split('/', 1)[1]:28} {who:11} wall {wall:7.2f} s  cpu {cpu:7.2f} s  peak {peak:6.1f} MiB")
        with open(out / "pull.jsonl", "a") as f:
            f.write(json.dumps(row) + "\n")
    if len(medians) == 2:
        print(f"{'':28} ratio       {medians['containerd'] / medians['orlop']:.2f} (containerd / orlop)")


if __name__ == "__main__":
    main()
