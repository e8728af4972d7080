#!/usr/bin/env python3
"""Makes an OCI layout of directories of this machine, or of noise: `make_layout.py NAME DIR`."""
import gzip, hashlib, io, json, os, pathlib, sys, tarfile

CAP = 400 << 20
NOISE_LAYERS, NOISE_FILES, NOISE_BYTES = 4, 16, 32 << 20
OCI = "application/vnd.oci.image"


def of_directories(*layers):
    """Layers, each of the files below its directories, with gzip."""
    return lambda: ((gzip.compress(tar, 6, mtime=0), tar, "layer.v1.tar+gzip") for tar in map(tar_of, layers))


def of_parts():
    parts = sorted(p for p in pathlib.Path("/usr/share").iterdir() if p.is_dir())[:40]
    return of_directories(*([part] for part in parts))()


def of_noise():
    """2 GiB that nobody has to inflate."""
    for layer in range(NOISE_LAYERS):
        buffer = io.BytesIO()
        with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
            for n in range(NOISE_FILES):
                entry = tarfile.TarInfo(f"noise/{layer}-{n}")
                entry.size = NOISE_BYTES
                tar.addfile(entry, io.BytesIO(os.urandom(NOISE_BYTES)))
        yield buffer.getvalue(), buffer.getvalue(), "layer.v1.tar"


IMAGES = {
    "files": of_directories(["/usr/share", "/etc"], ["/usr/include", "/usr/lib/python3"]),
    "large": of_directories(["/usr/lib/x86_64-linux-gnu", "/usr/lib/aarch64-linux-gnu"]),
    "layers": of_parts,
}
EVERY = dict(IMAGES, noise=of_noise)


def tar_of(directories):
    buffer, size = io.BytesIO(), 0
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for directory in directories:
            for path, dirs, files in os.walk(directory):
                dirs.sort()
                for name in sorted(files):
                    full = os.path.join(path, name)
                    if size > CAP or not os.access(full, os.R_OK):
                        continue
                    if os.path.isfile(full) or os.path.islink(full):
                        size += os.lstat(full).st_size
                        tar.add(full, recursive=False)
    return buffer.getvalue()


def write(layout, layers):
    """A layout of layers: the bytes of each blob, those of its tar, and the end of its media type."""
    blobs = layout / "blobs/sha256"
    blobs.mkdir(parents=True)

    def put(data, media_type):
        name = hashlib.sha256(data).hexdigest()
        (blobs / name).write_bytes(data)
        return {"mediaType": f"{OCI}.{media_type}", "digest": f"sha256:{name}", "size": len(data)}

    diff_ids, descriptors = [], []
    for blob, tar, media_type in layers:
        diff_ids.append("sha256:" + hashlib.sha256(tar).hexdigest())
        descriptors.append(put(blob, media_type))
    arch = {"x86_64": "amd64", "aarch64": "arm64"}.get(os.uname().machine, os.uname().machine)
    config = {"architecture": arch, "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    config = put(json.dumps(config).encode(), "config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": f"{OCI}.manifest.v1+json", "config": config, "layers": descriptors}
    manifest = put(json.dumps(manifest).encode(), "manifest.v1+json")
    manifest["annotations"] = {"org.opencontainers.image.ref.name": "latest"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [manifest]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


if __name__ == "__main__":
    write(pathlib.Path(sys.argv[2]), EVERY[sys.argv[1]]())
