//! The smallest image that can be run: two layers, the upper one with a program of a few bytes that ends with [`ANSWER`].
//!
//! It is made here so that a node without a network can be tried, and without a file of the node's.

use orlop_oci::{DiffId, Digest, Platform, chain_ids};
use serde_json::json;

/// What the program ends with: nothing else on the way to it does.
pub(super) const ANSWER: u32 = 73;

/// Where the program lies.
pub(super) const PATH: &str = "/ends";

/// A blob of the image.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    pub(super) media_type: &'static str,
    pub(super) digest: Digest,
    pub(super) bytes: Vec<u8>,
}

/// The image.
#[derive(Debug, Clone)]
pub(super) struct Image {
    /// The lowest first.
    pub(super) layers: Vec<Blob>,
    /// Of each layer, with those below it.
    pub(super) chain: Vec<String>,
    pub(super) config: Blob,
    pub(super) manifest: Blob,
}

impl Blob {
    fn new(media_type: &'static str, bytes: Vec<u8>) -> Self {
        Self { media_type, digest: Digest::of(&bytes), bytes }
    }
}

impl Image {
    /// Makes it; `None` for a processor that nobody has written the program for.
    pub(super) fn new() -> Option<Self> {
        let program = elf(std::env::consts::ARCH)?;
        // What the kernel mounts on must be there, for the root may be mounted read-only.
        let below = tar(&[("proc/", 0o755, None), ("dev/", 0o755, None)]);
        let above = tar(&[(&PATH[1..], 0o755, Some(&program))]);
        let layers = [below, above].map(|bytes| Blob::new("application/vnd.oci.image.layer.v1.tar", bytes));
        let diff_ids: Vec<DiffId> = layers.iter().map(|layer| DiffId::new(layer.digest.clone())).collect();
        let host = Platform::host();
        let config = json!({
            "architecture": host.architecture, "os": host.os,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
        });
        let config = Blob::new("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
        let descriptor =
            |blob: &Blob| json!({"mediaType": blob.media_type, "digest": blob.digest, "size": blob.bytes.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": descriptor(&config), "layers": layers.iter().map(descriptor).collect::<Vec<_>>(),
        });
        let manifest = Blob::new("application/vnd.oci.image.manifest.v1+json", manifest.to_string().into_bytes());
        let chain = chain_ids(&diff_ids).iter().map(ToString::to_string).collect();
        Some(Self { layers: layers.to_vec(), chain, config, manifest })
    }
}

/// An ELF file without sections whose one segment asks the kernel to end the process.
fn elf(architecture: &str) -> Option<Vec<u8>> {
    const BASE: u64 = 0x40_0000;
    const HEADERS: u64 = 64 + 56;
    let (machine, code): (u16, Vec<u8>) = match architecture {
        // mov edi, ANSWER; mov eax, 60 (exit); syscall
        "x86_64" => {
            let mut code = vec![0xbf];
            code.extend(ANSWER.to_le_bytes());
            code.extend([0xb8, 60, 0, 0, 0, 0x0f, 0x05]);
            (62, code)
        }
        // movz x0, #ANSWER; movz x8, #93 (exit); svc #0
        "aarch64" => {
            let movz = |register: u32, value: u32| 0xd280_0000 | (value << 5) | register;
            (183, [movz(0, ANSWER), movz(8, 93), 0xd400_0001].iter().flat_map(|word| word.to_le_bytes()).collect())
        }
        _ => return None,
    };
    let size = HEADERS + code.len() as u64;
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1];
    file.resize(16, 0);
    let half = |file: &mut Vec<u8>, values: &[u16]| values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    let word = |file: &mut Vec<u8>, values: &[u32]| values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    let long = |file: &mut Vec<u8>, values: &[u64]| values.iter().for_each(|value| file.extend(value.to_le_bytes()));
    // An executable; its version; where it begins, where its program headers are, no sections; sizes and numbers of headers.
    half(&mut file, &[2, machine]);
    word(&mut file, &[1]);
    long(&mut file, &[BASE + HEADERS, 64, 0]);
    word(&mut file, &[0]);
    half(&mut file, &[64, 56, 1, 64, 0, 0]);
    // One segment: loaded, to be read and executed; the whole file.
    word(&mut file, &[1, 5]);
    long(&mut file, &[0, BASE, BASE, size, size, 0x1000]);
    file.extend(code);
    Some(file)
}

/// A tar of directories and files, of root and of no time.
fn tar(entries: &[(&str, u32, Option<&[u8]>)]) -> Vec<u8> {
    const BLOCK: usize = 512;
    let mut tar = Vec::new();
    for (name, mode, content) in entries {
        let mut header = [0u8; BLOCK];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, name);
        put(100, &format!("{mode:07o}"));
        put(108, "0000000");
        put(116, "0000000");
        put(124, &format!("{:011o}", content.map_or(0, <[u8]>::len)));
        put(136, "00000000000");
        put(148, "        ");
        put(156, if content.is_some() { "0" } else { "5" });
        put(257, "ustar\u{0}00");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        tar.extend(header);
        tar.extend(content.unwrap_or_default());
        tar.resize(tar.len().next_multiple_of(BLOCK), 0);
    }
    tar.resize(tar.len() + 2 * BLOCK, 0);
    tar
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_program_ends_with_the_answer() {
        let program = elf(std::env::consts::ARCH).unwrap();
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ends");
        std::fs::write(&path, program).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        // Another test's child may hold the file open for writing for an instant after it forked.
        let ended = loop {
            match std::process::Command::new(&path).status() {
                Err(error) if error.kind() == std::io::ErrorKind::ExecutableFileBusy => {}
                other => break other.unwrap(),
            }
        };
        assert_eq!(ended.code(), Some(ANSWER as i32));
    }

    #[test]
    fn programs_of_both_processors_have_their_code_at_the_entry() {
        for (architecture, machine) in [("x86_64", 62u16), ("aarch64", 183)] {
            let file = elf(architecture).unwrap();
            assert_eq!(file[18..20], machine.to_le_bytes());
            let entry = u64::from_le_bytes(file[24..32].try_into().unwrap()) - 0x40_0000;
            assert!(file.len() > entry as usize && entry == 120, "{entry}");
        }
        assert_eq!(elf("mips"), None);
    }

    #[test]
    fn the_layers_are_tars_that_other_programs_read() {
        let image = Image::new().unwrap();
        let listed = |bytes: &[u8]| {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("tar"), bytes).unwrap();
            let done = std::process::Command::new("tar").arg("tvf").arg(dir.path().join("tar")).output().unwrap();
            assert!(done.status.success(), "{}", String::from_utf8_lossy(&done.stderr));
            String::from_utf8(done.stdout).unwrap()
        };
        assert!(listed(&image.layers[0].bytes).contains("proc/"));
        let above = listed(&image.layers[1].bytes);
        assert!(above.starts_with("-rwxr-xr-x 0/0") && above.trim_end().ends_with("ends"), "{above}");
        assert_eq!(image.chain.len(), 2);
        assert_eq!(image.chain[0], image.layers[0].digest.to_string());
    }
}
