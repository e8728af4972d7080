//! What is counted of a mirror, and what registries say of their limits, for Prometheus.

use std::fmt::Write as _;

use orlop_image::MirrorCounts;
use orlop_remote::Rates;

/// Adds them before the end of a page.
pub(crate) fn add(text: &mut String, rates: &Rates, mirror: Option<MirrorCounts>) {
    let end = text.trim_end().trim_end_matches("# EOF").len();
    text.truncate(end);
    if let Some(counts) = mirror {
        add_mirror(text, &counts);
    }
    let rates = rates.all();
    for (name, help, value) in [
        ("orlop_registry_requests_limit", "Requests that a registry allows in a window", 0),
        ("orlop_registry_requests_remaining", "Requests of them that are left, as it said last", 1),
    ] {
        head(text, name, "gauge", help);
        for (host, said) in &rates {
            let value = [said.limit, said.remaining][value];
            // A host as it was asked has no quotes.
            let _ = writeln!(text, "{name}{{host=\"{}\"}} {value}", host.replace(['"', '\\'], ""));
        }
    }
    text.push_str("# EOF\n");
}

fn add_mirror(text: &mut String, counts: &MirrorCounts) {
    head(text, "orlop_mirror_requests", "counter", "Requests for other registries by what they were answered");
    for (result, count) in
        [("hit", counts.hits), ("fetched", counts.misses), ("stale", counts.stale), ("failed", counts.failures)]
    {
        let _ = writeln!(text, "orlop_mirror_requests_total{{result=\"{result}\"}} {count}");
    }
    head(text, "orlop_mirror_fetching", "gauge", "Blobs that are being fetched for the mirror");
    let _ = writeln!(text, "orlop_mirror_fetching {}", counts.fetching);
}

fn head(text: &mut String, name: &str, kind: &str, help: &str) {
    let _ = write!(text, "# HELP {name} {help}.\n# TYPE {name} {kind}\n");
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_goes_on_and_ends_once() {
        let mut text = "orlop_x 1\n# EOF\n".to_owned();
        let counts = MirrorCounts { hits: 3, fetching: 2, ..MirrorCounts::default() };
        add(&mut text, &Rates::default(), Some(counts));
        assert!(text.starts_with("orlop_x 1\n# HELP orlop_mirror_requests "), "{text}");
        assert!(text.contains("\norlop_mirror_requests_total{result=\"hit\"} 3\n"), "{text}");
        assert!(text.contains("\norlop_mirror_fetching 2\n"), "{text}");
        assert!(text.ends_with("\n# EOF\n") && text.matches("# EOF").count() == 1, "{text}");
    }
}
