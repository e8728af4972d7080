"""A registry: docker-registry on a free port, or one that is there; what an image in it consists of; a proxy that counts."""
import http.client, json, os, pathlib, re, shutil, socket, subprocess, threading, urllib.request

from procs import free_port, listens, wait_for

ACCEPT = ", ".join(["application/vnd.oci.image.index.v1+json", "application/vnd.oci.image.manifest.v1+json",
                    "application/vnd.docker.distribution.manifest.list.v2+json", "application/vnd.docker.distribution.manifest.v2+json"])
TLS = b"\x16\x03"
ARCH = {"x86_64": "amd64", "aarch64": "arm64"}


class Registry:
    def __init__(self, work, address=None):
        self.child = None
        self.address = address
        if address:
            return
        port = free_port()
        self.address = f"127.0.0.1:{port}"
        config = pathlib.Path(work) / "registry.yml"
        config.write_text(f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\n"
                          f"storage: {{filesystem: {{rootdirectory: {work}/registry}}}}\nhttp: {{addr: '{self.address}'}}\n")
        self.child = subprocess.Popen(["docker-registry", "serve", config], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        wait_for(lambda: listens(port), "docker-registry")

    def stop(self):
        if self.child:
            self.child.terminate()
            self.child.wait()

    def pid(self):
        """The process that listens there, if it is one of this machine."""
        if self.child:
            return self.child.pid
        port = self.address.rsplit(":", 1)[1]
        found = subprocess.run(["ss", "-Hltnp", f"sport = :{port}"], capture_output=True, text=True) if shutil.which("ss") else None
        pids = re.findall(r"pid=(\d+)", found.stdout) if found else []
        return int(pids[0]) if pids else None

    def blob_url(self, image, digest):
        return f"http://{self.address}/v2/{image.rsplit(':', 1)[0]}/blobs/{digest}"

    def manifest(self, image, reference=None):
        """The manifest of this machine's platform of `NAME:TAG`."""
        name, tag = image.rsplit(":", 1)
        url = f"http://{self.address}/v2/{name}/manifests/{reference or tag}"
        document = json.load(urllib.request.urlopen(urllib.request.Request(url, headers={"Accept": ACCEPT})))
        if "manifests" not in document:
            return document
        arch = ARCH.get(os.uname().machine, os.uname().machine)
        ours = [m for m in document["manifests"] if m.get("platform", {}).get("architecture") == arch]
        return self.manifest(image, (ours or document["manifests"])[0]["digest"])


class Counter(threading.Thread):
    """Passes connections on to a registry and counts what is asked over them. HTTP/1.1 without TLS."""

    def __init__(self, registry):
        super().__init__(daemon=True)
        self.registry, self.asked = registry, []
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self.listener.getsockname()[1]}"
        self.start()

    def run(self):
        while True:
            client, _ = self.listener.accept()
            threading.Thread(target=self.serve, args=[client], daemon=True).start()

    def serve(self, client):
        """Requests without a body, one after the other; answers are passed on as they are read."""
        with client, client.makefile("rb") as lines:
            while line := lines.readline():
                if line.startswith(TLS):
                    # Who tries TLS first learns that it is not spoken here.
                    self.asked.append("TLS")
                    return
                method, path, _ = line.decode().split(" ", 2)
                headers = {}
                while (header := lines.readline().decode().strip()):
                    name, value = header.split(":", 1)
                    headers[name.lower()] = value.strip()
                self.asked.append(f"{method} {path}")
                self.answer(client, method, path, headers)

    def answer(self, client, method, path, headers):
        upstream = http.client.HTTPConnection(self.registry)
        kept = {name: value for name, value in headers.items() if name not in ("connection", "host")}
        upstream.request(method, path, headers=dict(kept, host=headers.get("host", self.registry)))
        answer = upstream.getresponse()
        head = [f"HTTP/1.1 {answer.status} {answer.reason}"] + [f"{k}: {v}" for k, v in answer.getheaders() if k.lower() != "connection"]
        client.sendall(("\r\n".join(head) + "\r\n\r\n").encode())
        while piece := answer.read(1 << 20):
            client.sendall(piece)
        upstream.close()
