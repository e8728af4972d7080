//! The targets. Each module says what its bytes are, and what must hold.

pub mod archives;
pub mod bolt;
pub mod calls;
pub mod compressed;
pub mod credentials;
pub mod deflate;
pub mod documents;
pub mod filters;
pub mod graphs;
pub mod headers;
pub mod hosts_toml;
pub mod references;
pub mod registry;
pub mod tar_apply;

/// Something that is given any bytes.
#[derive(Clone, Copy)]
pub struct Target {
    /// Its name: of its corpus' directory, of cargo-fuzz's target and of the test.
    pub name: &'static str,
    /// Panics where a promise is broken.
    pub run: fn(&[u8]),
    /// What a corpus begins with: something of every known kind.
    pub seeds: fn() -> Vec<(String, Vec<u8>)>,
    /// What is put into inputs here and there.
    pub words: &'static [&'static [u8]],
    /// Bytes of an input at most.
    pub limit: usize,
    /// Whether it could reach other hosts, and so runs only where it can be kept from that.
    pub isolated: bool,
}

/// All of them.
pub const TARGETS: [Target; 14] = [
    references::TARGET,
    documents::TARGET,
    graphs::TARGET,
    tar_apply::TARGET,
    compressed::TARGET,
    deflate::TARGET,
    archives::TARGET,
    hosts_toml::TARGET,
    filters::TARGET,
    bolt::TARGET,
    headers::TARGET,
    calls::TARGET,
    credentials::TARGET,
    registry::TARGET,
];
