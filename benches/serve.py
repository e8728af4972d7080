#!/usr/bin/env python3
"""A node's registry beside nginx and docker-registry: what each sends of the same blobs, what it takes of pushes, and a thousand
clients at once.

- `get`: eight connections read blobs of 64 MiB from the page cache; `small`: blobs of 4 KiB, whole requests a second.
- `push`: four connections push blobs of 64 MiB that nobody has yet, then their manifest. Orlop acknowledges what is on the disk,
  docker-registry what is in the page cache.
- `many`: a thousand connections read 16 MiB each; the daemon alone is in a cgroup of 256 MiB (page cache counts, as the kernel counts it).

The client is the same for all (this file, a process of its own), plain HTTP/1.1 on loopback, servers in turn. CPU seconds are the
server's. Needs root, python3, nginx and docker-registry (Debian packages nginx-light and docker-registry).
"""
import argparse, contextlib, hashlib, http.client, json, os, pathlib, selectors, shutil, signal, socket, statistics, subprocess, sys
import tempfile, threading, time

from procs import MIB, cpu, forget_peak, free_port, listens, peak, wait_for
from registry import Registry

HERE = pathlib.Path(__file__).resolve().parent.parent
TARGET = pathlib.Path(os.environ.get("CARGO_TARGET_DIR", HERE / "target")) / "release"
CASES = ["get", "small", "push", "many"]
BIG, SMALL, BLOBS, PUSHERS, CLIENTS, PULLERS, PULLED = 64 * MIB, 4096, 8, 4, 8, 1000, 16 * MIB
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
LIMIT = 256 * MIB


def read(address, paths, connections, seconds):
    """Asks for the paths again and again over so many connections, for so long or, without an end, once each; bytes and answers."""
    host, port = address.split(":")
    room, selector, got, answers, end = bytearray(MIB), selectors.DefaultSelector(), 0, 0, time.monotonic() + (seconds or 3600)

    def ask(sock, number):
        sock.sendall(f"GET {paths[number % len(paths)]} HTTP/1.1\r\nHost: {address}\r\n\r\n".encode())
        return [number, b"", None]

    for number in range(connections):
        sock = socket.create_connection((host, int(port)))
        selector.register(sock, selectors.EVENT_READ, ask(sock, number))
        sock.setblocking(False)
    while selector.get_map() and time.monotonic() < end:
        for key, _ in selector.select(1):
            state, count = key.data, key.fileobj.recv_into(room)
            if count == 0:
                sys.exit(f"{address} closed a connection: {state[1]!r}, {state[2]} bytes are missing")
            if state[2] is None:
                state[1] += room[:count]
                if b"\r\n\r\n" not in state[1]:
                    continue
                head, body = state[1].split(b"\r\n\r\n", 1)
                lines = head.decode().lower().split("\r\n")
                if " 200 " not in lines[0] + " ":
                    sys.exit(f"{address}: {head.decode()}\n{body.decode(errors='replace')}")
                length = [int(line.split(":")[1]) for line in lines if line.startswith("content-length:")][0]
                state[2], count = length, len(body)
            state[2] -= count
            got += count
            if state[2] == 0:
                answers += 1
                if seconds:
                    selector.modify(key.fileobj, selectors.EVENT_READ, ask(key.fileobj, state[0] + connections))
                else:
                    selector.unregister(key.fileobj)
                    key.fileobj.close()
    return got, answers


def push_blob(connection, name, digest, data):
    connection.request("POST", f"/v2/{name}/blobs/uploads/", headers={"Content-Length": "0"})
    answer = connection.getresponse()
    answer.read()
    where = answer.getheader("location").split("//", 1)[-1]
    path = where[where.index("/"):]
    path += ("&" if "?" in path else "?") + "digest=" + digest
    connection.request("PUT", path, body=data, headers={"Content-Type": "application/octet-stream"})
    expect(connection.getresponse(), 201)


def expect(answer, status):
    body = answer.read()
    if answer.status != status:
        raise RuntimeError(f"{answer.status}, not {status}: {body.decode(errors='replace')}")


def connect(address):
    connection = http.client.HTTPConnection(address, blocksize=MIB)
    connection.connect()
    connection.sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return connection


def push(address, name, blobs):
    """Blobs by so many threads, then their manifest."""
    waiting, failed = list(blobs.items()), []

    def work():
        connection = connect(address)
        try:
            while waiting:
                push_blob(connection, name, *waiting.pop())
        except Exception as error:
            failed.append(error)

    threads = [threading.Thread(target=work) for _ in range(PUSHERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    if failed:
        sys.exit(f"{address}: {failed[0]}")
    parts = [{"mediaType": "application/octet-stream", "digest": digest, "size": len(data)} for digest, data in blobs.items()]
    document = json.dumps({"schemaVersion": 2, "mediaType": MANIFEST, "config": parts[0], "layers": parts[1:]})
    connection = connect(address)
    connection.request("PUT", f"/v2/{name}/manifests/1", body=document, headers={"Content-Type": MANIFEST})
    expect(connection.getresponse(), 201)


def noise(count, size):
    made = [os.urandom(size) for _ in range(count)]
    return {"sha256:" + hashlib.sha256(data).hexdigest(): data for data in made}


class Nginx:
    def __init__(self, work, files):
        port = free_port()
        self.address, work = f"127.0.0.1:{port}", work / "nginx"
        work.mkdir()
        (work / "nginx.conf").write_text(
            f"daemon off; worker_processes 2; pid {work}/pid; error_log {work}/error.log; user root;\nevents {{ worker_connections 4096; }}\n"
            f"http {{ access_log off; sendfile on; tcp_nopush on; tcp_nodelay on; keepalive_requests 1000000; client_body_temp_path {work}/body;\n"
            f"open_file_cache max=1000; server {{ listen {self.address}; root {files}; }} }}\n")
        self.child = subprocess.Popen(["/usr/sbin/nginx", "-p", work, "-c", work / "nginx.conf"], stderr=subprocess.DEVNULL)
        wait_for(lambda: listens(port), "nginx")

    def cpu(self):
        workers = pathlib.Path(f"/proc/{self.child.pid}/task/{self.child.pid}/children").read_text().split()
        return sum(map(cpu, workers))

    def path(self, name, digest):
        return "/" + digest.split(":")[1]

    def stop(self):
        self.child.terminate()
        self.child.wait()


class Docker(Registry):
    def cpu(self):
        return cpu(self.child.pid)

    def path(self, name, digest):
        return f"/v2/{name}/blobs/{digest}"


class Orlop:
    def __init__(self, work, program, cgroup=None):
        port, self.at = free_port(), work / f"orlop-{free_port()}"
        self.address, self.blobs = f"127.0.0.1:{port}", self.at / "root/content/blobs/sha256"
        self.at.mkdir()
        join = (lambda: cgroup.joinpath("cgroup.procs").write_text(str(os.getpid()))) if cgroup else None
        with open(self.at / "log", "w") as log:
            self.child = subprocess.Popen([program, "--root", self.at / "root", "serve", "--address", self.at / "orlop.sock",
                                           "--registry", self.address], stdout=log, stderr=log, preexec_fn=join)
        wait_for(lambda: listens(port), "orlop serve --registry")

    def cpu(self):
        return cpu(self.child.pid)

    def path(self, name, digest):
        return f"/v2/{name}/blobs/{digest}"

    def stop(self):
        self.child.terminate()
        self.child.wait()


def reading(server, name, blobs, connections, seconds):
    """One client process; bytes and answers a second, and CPU seconds of the server for each GiB and each thousand answers."""
    paths = [server.path(name, digest) for digest in blobs]
    before, start = server.cpu(), time.perf_counter()
    done = subprocess.run([sys.executable, __file__, "--client", json.dumps([server.address, paths, connections, seconds])],
                          stdout=subprocess.PIPE, check=True)
    wall, took = time.perf_counter() - start, server.cpu() - before
    got, answers, client = json.loads(done.stdout)
    return {"MiB/s": got / MIB / client, "answers/s": answers / client, "cpu/GiB": took / (got / MIB / 1024), "wall": wall}


def pushing(server, name):
    blobs = noise(BLOBS, BIG)
    before, start = server.cpu(), time.perf_counter()
    push(server.address, name, blobs)
    wall = time.perf_counter() - start
    return {"MiB/s": BLOBS * BIG / MIB / wall, "cpu/GiB": (server.cpu() - before) / (BLOBS * BIG / MIB / 1024), "wall": wall}


@contextlib.contextmanager
def limited():
    """A cgroup (version 1 or 2) of its own with the limit, and how its peak is told."""
    first = pathlib.Path("/sys/fs/cgroup/memory")
    base, limit, most = (first, "memory.limit_in_bytes", "memory.max_usage_in_bytes") if first.is_dir() else \
        (pathlib.Path("/sys/fs/cgroup"), "memory.max", "memory.peak")
    group = base / f"orlop-bench-{os.getpid()}"
    group.mkdir()
    try:
        group.joinpath(limit).write_text(str(LIMIT))
        yield group, most
    finally:
        group.rmdir()


def many(args, work):
    with limited() as (group, most):
        server = Orlop(work, args.orlop, group)
        try:
            blobs = noise(4, PULLED)
            push(server.address, "many", blobs)
            forget_peak(server.child.pid)
            row = reading(server, "many", blobs, PULLERS, None)
            row.update({"peak MiB": peak(server.child.pid), "cgroup MiB": int(group.joinpath(most).read_text()) / MIB})
        finally:
            server.stop()
    return row


def measured(args, work):
    rows, servers = [], {}
    with contextlib.ExitStack() as ends:
        def started(name, server):
            servers[name] = server
            ends.callback(server.stop)

        started("orlop", Orlop(work, args.orlop))
        started("docker-registry", Docker(work))
        kinds = {"get": (noise(BLOBS, BIG), CLIENTS, args.seconds), "small": (noise(64, SMALL), CLIENTS, args.seconds)}
        for kind, (blobs, _, _) in kinds.items():
            for server in servers.values():
                push(server.address, kind, blobs)
        started("nginx", Nginx(work, servers["orlop"].blobs))
        for turn in range(args.runs):
            for kind in [kind for kind in kinds if kind in args.case]:
                rows += [{"case": kind, "server": who, **reading(server, kind, *kinds[kind])} for who, server in servers.items()]
            if "push" in args.case:
                rows += [{"case": "push", "server": who, **pushing(servers[who], f"push{turn}")} for who in ("orlop", "docker-registry")]
    return rows


def show(rows):
    for case in dict.fromkeys(row["case"] for row in rows):
        of = lambda who, what: statistics.median(row[what] for row in rows if (row["case"], row["server"]) == (case, who))
        what = "answers/s" if case == "small" else "MiB/s"
        own = of("orlop", what)
        for who in dict.fromkeys(row["server"] for row in rows if row["case"] == case):
            print(f"{case:6} {who:16} {of(who, what):10.0f} {what}, {of(who, 'cpu/GiB'):6.2f} CPU s/GiB; orlop has {own / of(who, what):.2f} of it")


def main():
    args = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    args.add_argument("--orlop", type=pathlib.Path, default=TARGET / "orlop")
    args.add_argument("--runs", type=int, default=5)
    args.add_argument("--seconds", type=float, default=3)
    args.add_argument("--case", action="append", choices=CASES)
    args.add_argument("--work", type=pathlib.Path, help="where stores are [a temporary directory]")
    args.add_argument("--client", help=argparse.SUPPRESS)
    args = args.parse_args()
    if args.client:
        start = time.perf_counter()
        return print(json.dumps([*read(*json.loads(args.client)), time.perf_counter() - start]))
    args.case = args.case or CASES
    signal.signal(signal.SIGTERM, lambda *_: sys.exit("ended"))
    work = pathlib.Path(tempfile.mkdtemp(prefix="orlop-bench-", dir=args.work)).resolve()
    try:
        rows = measured(args, work) if set(args.case) - {"many"} else []
        show(rows)
        if "many" in args.case:
            row = many(args, work)
            rows.append({"case": "many", "server": "orlop", **row})
            print("many   orlop           ", ", ".join(f"{what} {value:.1f}" for what, value in row.items()))
    finally:
        shutil.rmtree(work, ignore_errors=True)
    out = HERE / "target/bench/serve.jsonl"
    out.parent.mkdir(parents=True, exist_ok=True)
    with out.open("a") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)


if __name__ == "__main__":
    main()
