"""How fast a pull can be on this machine: a lower bound of its wall time, from rates measured here.

Each byte and file has to be worked on once: received from the registry (which runs here too), written as a blob, hashed as a
blob, inflated, hashed as a tar, and written as files. All rates are in processor seconds. With all processors busy all the time
that takes the sum divided by their number; and never less than inflating the largest layer takes, which one processor does.
Optimistic: no sync, no database, no waiting.
"""
import dataclasses, hashlib, os, resource, shutil, subprocess, tarfile, time, urllib.request

import disks
from procs import cpu, run

SMALL, SMALL_BYTES = 20_000, 4096
LARGE, LARGE_BYTES = 8, 64 << 20
PIECE = 1 << 20
HASHED = 1 << 30


@dataclasses.dataclass
class Layer:
    """One layer: bytes as a blob and as a tar, entries, bytes in files, processor seconds of inflating it."""
    size: int
    tar: int
    entries: int
    bytes: int
    inflate: float


@dataclasses.dataclass
class Rates:
    """Processor seconds a byte or a file, and of how many processors."""
    sha256: float
    receive: float
    serve: float
    file: float
    byte: float
    cores: int

    def __str__(self):
        served = f"{self.serve * 1e9:.2f}" if self.serve else "not known (not on this machine)"
        return (f"rates: SHA-256 {1e-9 / self.sha256:.2f} GB/s a core, receive {self.receive * 1e9:.2f} s/GB, registry {served} s/GB, "
                f"a file {self.file * 1e6:.1f} us, bytes in files {self.byte * 1e9:.2f} s/GB, {self.cores} processors")


def bound(rates, layers):
    blobs, tars = sum(layer.size for layer in layers), sum(layer.tar for layer in layers)
    files, inside = sum(layer.entries for layer in layers), sum(layer.bytes for layer in layers)
    busy = (blobs * (rates.receive + rates.serve + rates.byte + rates.sha256) + sum(layer.inflate for layer in layers)
            + tars * rates.sha256 + files * rates.file + inside * rates.byte)
    return max(busy / rates.cores, max(layer.inflate for layer in layers))


class Blobs:
    """The layers of images, fetched once each, which puts them into the page cache for the registry too."""

    def __init__(self, work, registry):
        self.at, self.registry, self.known, self.most = work / "blobs", registry, {}, (0, None)
        self.at.mkdir()

    def layers(self, image):
        return [self.layer(image, layer) for layer in self.registry.manifest(image)["layers"]]

    def layer(self, image, descriptor):
        digest = descriptor["digest"]
        if digest not in self.known:
            url, file = self.registry.blob_url(image, digest), self.at / "blob"
            with urllib.request.urlopen(url) as blob, open(file, "wb") as out:
                shutil.copyfileobj(blob, out, PIECE)
            self.most = max(self.most, (descriptor["size"], url))
            self.known[digest] = looked_at(file, descriptor["mediaType"])
            file.unlink()
        return self.known[digest]

    def largest(self):
        return self.most[1]


def inflater(media_type):
    if media_type.endswith("zstd"):
        return ["zstd", "-dcq", "-T1"]
    return ["igzip", "-dc"] if shutil.which("igzip") else ["gzip", "-dc"]


def looked_at(file, media_type):
    plain = not media_type.endswith(("gzip", "zstd"))
    command = ["cat"] if plain else inflater(media_type)
    with open(file, "rb") as blob:
        process = subprocess.Popen(command, stdin=blob, stdout=subprocess.PIPE)
        counted = Counted(process.stdout)
        with tarfile.open(fileobj=counted, mode="r|") as tar:
            sizes = [entry.size if entry.isreg() else 0 for entry in tar]
        counted.drain()
        process.wait()
    return Layer(os.path.getsize(file), counted.count, len(sizes), sum(sizes), 0.0 if plain else inflating(command, file))


def least(of):
    """The least of three: whoever is faster once can be that fast."""
    return min(of(n) for n in range(3))


def inflating(command, file):
    """Processor seconds."""
    def once(_):
        with open(file, "rb") as blob:
            before = resource.getrusage(resource.RUSAGE_CHILDREN)
            subprocess.run(command, stdin=blob, stdout=subprocess.DEVNULL, check=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
        return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return least(once)


class Counted:
    """A stream that counts what is read of it."""

    def __init__(self, stream):
        self.stream, self.count = stream, 0

    def read(self, size):
        piece = self.stream.read(size)
        self.count += len(piece)
        return piece

    def drain(self):
        while self.read(PIECE):
            pass


def measure(kind, work, gib, registry, url):
    file, byte = creating(kind, work, gib)
    receive, serve = receiving(registry, url)
    return Rates(hashing(), receive, serve, file, byte, os.cpu_count())


def hashing():
    piece, sha256 = os.urandom(PIECE), hashlib.sha256()
    start = time.thread_time()
    for _ in range(HASHED // PIECE):
        sha256.update(piece)
    return (time.thread_time() - start) / HASHED


def receiving(registry, url):
    """Of the client (curl, to nowhere) and of the registry, if it is on this machine."""
    pid = registry.pid()
    size = int(urllib.request.urlopen(urllib.request.Request(url, method="HEAD")).headers["Content-Length"])
    times = max(1, HASHED // size)

    def once(_):
        before = cpu(pid) if pid else 0
        client = sum(run(["curl", "-sfL", "-o", "/dev/null", url]).cpu for _ in range(times))
        return client / times / size, (cpu(pid) - before if pid else 0) / times / size
    return least(once)


def creating(kind, work, gib):
    """Of each file and of each byte in files, by what GNU tar takes to unpack many small ones and few large ones."""
    small, large = work / "small.tar", work / "large.tar"
    pack(small, SMALL, SMALL_BYTES)
    pack(large, LARGE, LARGE_BYTES)
    def once(tar):
        with disks.new(kind, work, gib) as disk:
            return unpack(tar, disk.at / "tree")
    for_small, for_large = (least(lambda _: once(tar)) for tar in (small, large))
    small.unlink()
    large.unlink()
    byte = for_large / (LARGE * LARGE_BYTES)
    return max(for_small / SMALL - byte * SMALL_BYTES, 0), byte


def pack(file, count, size):
    noise = os.urandom(PIECE)
    with tarfile.open(file, "w") as tar:
        for n in range(count):
            entry = tarfile.TarInfo(f"d{n // 32}/file-{n}")
            entry.size = size
            tar.addfile(entry, Repeated(noise, size))


class Repeated:
    def __init__(self, piece, size):
        self.piece, self.left = piece, size

    def read(self, size):
        piece = self.piece[:min(size, self.left)]
        self.left -= len(piece)
        return piece


def unpack(tar, at):
    at.mkdir()
    return run(["tar", "-xpf", tar, "-C", at]).cpu
