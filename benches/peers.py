"""Who is measured: each pulls an image into an empty place of its own, and unpacks it.

A daemon is started before what is measured begins, and its part of the work is counted to its client's.
"""
import contextlib, os, shutil, tempfile

from procs import run, served

SKOPEO = ["skopeo", "--insecure-policy"]


class Orlop:
    """`orlop` as a process of its own, without a daemon."""
    name = "orlop"

    def __init__(self, program):
        self.program = program

    def missing(self):
        return None if self.program.exists() else f"{self.program} is not built"

    def command(self, at, *words):
        return [self.program, "--root", at / "root", "-q", *words]

    @contextlib.contextmanager
    def store(self, at):
        yield OrlopStore(self, at)


class OrlopStore:
    def __init__(self, peer, at):
        self.peer, self.at = peer, at

    def pull(self, image):
        return run(self.peer.command(self.at, "pull", "--plain-http", image))

    def load(self, archive):
        return run(self.peer.command(self.at, "import", archive))

    def save(self, image, archive):
        return run(self.peer.command(self.at, "export", image, "-O", archive))


class Containerd:
    """containerd 2.x with so many layers unpacked at once, its own gzip or igzip from PATH."""

    def __init__(self, binaries, unpacks=1, igzip=False, sync_fs=False):
        self.bin, self.unpacks, self.igzip, self.sync_fs = binaries, unpacks, igzip, sync_fs
        self.name = "-".join(["containerd"] + ["igzip"] * igzip + [str(unpacks)] * (unpacks > 1) + ["sync"] * sync_fs)

    def missing(self):
        if not (self.bin / "containerd").exists():
            return f"no containerd in {self.bin}"
        if self.igzip and not shutil.which("igzip"):
            return "no igzip in PATH (Debian package isal)"
        return None

    def config(self, at):
        off = "" if self.sync_fs else "'io.containerd.grpc.v1.cri', 'io.containerd.cri.v1.images', 'io.containerd.cri.v1.runtime'"
        return (config(at, off) + f"[plugins.'io.containerd.transfer.v1.local']\nmax_concurrent_unpacks = {self.unpacks}\n"
                f"[plugins.'io.containerd.cri.v1.images']\nimage_pull_with_sync_fs = {str(self.sync_fs).lower()}\n")

    @contextlib.contextmanager
    def store(self, at):
        with containerd(self.bin, at, self.config(at), self.igzip) as daemon:
            store = ContainerdStore(self, at / "containerd.sock", daemon)
            run(store.ctr("images", "ls"))
            yield store


def config(at, disabled):
    """What every containerd here is told: all of it is in a place of its own."""
    (at / "cni").mkdir(exist_ok=True)
    return (f"version = 3\nroot = '{at}/root'\nstate = '{at}/state'\ndisabled_plugins = [{disabled}]\n"
            f"[grpc]\naddress = '{at}/containerd.sock'\n[ttrpc]\naddress = '{at}/containerd.sock.ttrpc'\n"
            f"[plugins.'io.containerd.cri.v1.runtime'.cni]\nbin_dirs = ['{at}/cni']\nconf_dir = '{at}/cni'\n")


def containerd(binaries, at, config, igzip=False):
    """A containerd 2.x that listens at `containerd.sock`, its shim beside it, without unpigz and unless wanted igzip; its pid."""
    (at / "containerd.toml").write_text(config)
    env = dict(os.environ, CONTAINERD_DISABLE_PIGZ="1", PATH=f"{binaries}:{os.environ.get('PATH', '')}")
    if not igzip:
        env["CONTAINERD_DISABLE_IGZIP"] = "1"
    return served([binaries / "containerd", "-c", at / "containerd.toml"], at / "containerd.log", at / "containerd.sock", env)


class ContainerdStore:
    def __init__(self, peer, socket, daemon):
        self.peer, self.socket, self.daemon = peer, socket, daemon

    def ctr(self, *words):
        return [self.peer.bin / "ctr", "--address", self.socket, *words]

    def pull(self, image):
        """With `sync_fs` over CRI, which alone has that setting."""
        if self.peer.sync_fs:
            crictl = [self.peer.bin / "crictl", "--timeout", "10m", "--image-endpoint", f"unix://{self.socket}"]
            return run([*crictl, "--runtime-endpoint", f"unix://{self.socket}", "pull", image], daemon=self.daemon)
        return run(self.ctr("images", "pull", "--plain-http", image), daemon=self.daemon)

    def load(self, archive):
        return run(self.ctr("images", "import", archive), daemon=self.daemon)

    def save(self, image, archive):
        return run(self.ctr("images", "export", archive, image), daemon=self.daemon)


class Podman:
    name = "podman"

    def missing(self):
        return None if shutil.which("podman") else "no podman in PATH"

    @contextlib.contextmanager
    def store(self, at):
        # It refuses a path of more than 50 characters here.
        with tempfile.TemporaryDirectory(prefix="podman-", dir="/tmp") as short:
            yield PodmanStore(at, short)


class PodmanStore:
    def __init__(self, at, run_root):
        self.at, self.run_root = at, run_root

    def pull(self, image):
        roots = ["--root", self.at / "root", "--runroot", self.run_root, "--storage-driver", "overlay"]
        return run(["podman", *roots, "pull", "-q", "--tls-verify=false", f"docker://{image}"])


class Umoci:
    """`skopeo copy` to a layout, then `umoci unpack`."""
    name = "skopeo+umoci"

    def missing(self):
        gone = [program for program in ("skopeo", "umoci") if not shutil.which(program)]
        return f"no {' and '.join(gone)} in PATH" if gone else None

    @contextlib.contextmanager
    def store(self, at):
        yield UmociStore(at)


class UmociStore:
    def __init__(self, at):
        self.at = at

    def pull(self, image):
        layout = self.at / "layout"
        fetched = run([*SKOPEO, "copy", "-q", "--src-tls-verify=false", f"docker://{image}", f"oci:{layout}:it"])
        return fetched + run(["umoci", "unpack", "--image", f"{layout}:it", self.at / "bundle"])


def of(names, program, binaries):
    """The peers of these names, and why others are not among them."""
    every = [Orlop(program), *(Containerd(binaries, unpacks, igzip) for unpacks in (1, 4) for igzip in (False, True)),
             Containerd(binaries, sync_fs=True), Podman(), Umoci()]
    known = {peer.name: peer for peer in every}
    for name in names:
        if name not in known:
            raise SystemExit(f"no peer is called {name}: {', '.join(known)}")
    chosen = [known[name] for name in names]
    return [peer for peer in chosen if not peer.missing()], {peer.name: peer.missing() for peer in chosen if peer.missing()}
