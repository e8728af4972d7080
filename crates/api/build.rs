//! Generates messages, clients and servers from `proto/` without protoc.

use std::path::{Path, PathBuf};

use prost::Message;

/// Every definition, relative to `proto/`.
const FILES: [&str; 22] = [
    "containerd/types.proto",
    "containerd/content.proto",
    "containerd/images.proto",
    "containerd/leases.proto",
    "containerd/namespaces.proto",
    "containerd/snapshots.proto",
    "containerd/diff.proto",
    "containerd/version.proto",
    "containerd/introspection.proto",
    "containerd/containers.proto",
    "containerd/mounts.proto",
    "containerd/events.proto",
    "containerd/event_types.proto",
    "containerd/image_events.proto",
    "containerd/streaming.proto",
    "containerd/task_types.proto",
    "containerd/tasks.proto",
    "containerd/transfer.proto",
    "containerd/transfer_types.proto",
    "cri/v1/api.proto",
    "google/rpc_status.proto",
    "orlop/v1/orlop.proto",
];

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let root = Path::new("proto");
    println!("cargo:rerun-if-changed=proto");
    let files: Vec<PathBuf> = FILES.iter().map(|file| root.join(file)).collect();
    let descriptors = protox::compile(&files, [root])?;
    let out = PathBuf::from(std::env::var("OUT_DIR")?);
    std::fs::write(out.join("descriptors.bin"), descriptors.encode_to_vec())?;
    let mut config = tonic_prost_build::Config::new();
    config.enable_type_names();
    tonic_prost_build::configure()
        .bytes(".")
        .btree_map(".")
        // Lists in one message: see src/rows.rs.
        .extern_path(".containerd.services.images.v1.ListImagesResponse", "crate::lists::ImageRecords")
        .extern_path(".runtime.v1.ListImagesResponse", "crate::lists::CriImages")
        .emit_rerun_if_changed(false)
        .include_file("protocols.rs")
        .compile_fds_with_config(descriptors, config)?;
    Ok(())
}
