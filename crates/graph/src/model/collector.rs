//! Which labels a store's garbage collection knows.

/// A generation of containerd's collector: an older one knows fewer labels (`core/metadata/gc.go` of each version).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Collector {
    /// containerd 1: labels refer to content and snapshots, and records do not expire.
    V1,
    /// containerd 2.0: labels refer to records too (`gc.ref.image`), and records expire.
    V2,
    /// containerd 2.2: labels refer back (`gc.bref.…`).
    V2_2,
    /// containerd 2.3 and Orlop: labels refer while a condition holds (`gc.cond.…`).
    #[default]
    V2_3,
}

impl Collector {
    /// The collector of a containerd that calls its version so: `v2.4.2`, `1.6.20~ds1`. One that cannot be read is taken for
    /// new.
    pub fn of_version(version: &str) -> Self {
        let mut numbers = version.trim_start_matches('v').split(|c: char| !c.is_ascii_digit()).map(str::parse::<u32>);
        match (numbers.next(), numbers.next()) {
            (Some(Ok(1)), _) => Self::V1,
            (Some(Ok(2)), Some(Ok(0 | 1))) => Self::V2,
            (Some(Ok(2)), Some(Ok(2))) => Self::V2_2,
            _ => Self::V2_3,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::Collector;

    #[test]
    fn the_version_tells_the_generation() {
        for (version, collector) in [
            ("1.6.20~ds1", Collector::V1),
            ("v1.7.22", Collector::V1),
            ("2.0.0-rc.1", Collector::V2),
            ("v2.1.4", Collector::V2),
            ("v2.2.0", Collector::V2_2),
            ("v2.3.0", Collector::V2_3),
            ("v2.10.1", Collector::V2_3),
            ("v3.0.0", Collector::V2_3),
            ("dev", Collector::V2_3),
            ("", Collector::V2_3),
        ] {
            assert_eq!(Collector::of_version(version), collector, "{version}");
        }
    }
}
