//! `hosts.toml`. The bytes are the file.
//!
//! What is understood has as many hosts as a plain TOML reader finds, and the registry last; their URLs are ones that may be
//! asked; and written again in the simplest way it is understood the same.

use std::path::Path;

use orlop_remote::{NamedHost, read_hosts_toml};

use super::Target;
use crate::seeds::texts;

/// See the module.
pub const TARGET: Target = Target {
    name: "hosts_toml",
    run,
    seeds,
    words: &[
        b"[host.\"https://a.example\"]\n",
        b"capabilities = [\"pull\"]\n",
        b"override_path = true\n",
        b"skip_verify = true\n",
        b"dial_timeout = \"1e9h\"\n",
        b"client = [[\"a\", \"b\"]]\n",
        b"server = \"",
        b"\"\"\"",
        b"[[host]]\n",
        b"user:secret@",
    ],
    limit: 4 << 10,
    isolated: false,
};

const BASE: &str = "/etc/containerd/certs.d/registry.example";

fn run(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let hosts = match read_hosts_toml(text, Path::new(BASE)) {
        Ok(hosts) => hosts,
        Err(error) => return assert!(!error.to_string().is_empty()),
    };
    let plain: toml::Table = text.parse().expect("what is understood is TOML");
    let named = plain.get("host").and_then(toml::Value::as_table).map_or(0, toml::Table::len);
    assert_eq!(hosts.len(), named + 1);
    for (at, host) in hosts.iter().enumerate() {
        assert!(host.url.is_some() || at == named, "only the registry itself may have no URL");
        assert!(!host.capabilities.is_empty());
        let Some(url) = &host.url else { continue };
        assert!(matches!(url.scheme(), "http" | "https") && url.has_host(), "{url}");
        assert!(url.username().is_empty() && url.password().is_none(), "{url}");
        assert!(url.query().is_none() && url.fragment().is_none(), "{url}");
    }
    // One host under two keys cannot be written under one.
    let mirrors = hosts[..named].iter().map(|host| &host.url);
    if mirrors.collect::<std::collections::BTreeSet<_>>().len() < named {
        return;
    }
    let again = read_hosts_toml(&written(&hosts), Path::new(BASE)).expect("what is written is read");
    assert_eq!(again, hosts, "{}", written(&hosts));
}

/// The same hosts in the simplest form.
fn written(hosts: &[NamedHost]) -> String {
    let (registry, mirrors) = hosts.split_last().expect("the registry is always there");
    let mut text = String::new();
    if let Some(url) = &registry.url {
        text += &format!("server = {}\n", toml::Value::from(url.as_str()));
    }
    text += &body(registry);
    for mirror in mirrors {
        let url = mirror.url.as_ref().expect("a mirror has a URL");
        text += &format!("[host.{}]\n{}", toml::Value::from(url.as_str()), body(mirror));
    }
    text
}

fn body(host: &NamedHost) -> String {
    let mut table = toml::Table::new();
    table.insert("capabilities".into(), host.capabilities.clone().into());
    table.insert("override_path".into(), true.into());
    let files =
        |paths: &[std::path::PathBuf]| -> Vec<String> { paths.iter().map(|p| p.display().to_string()).collect() };
    table.insert("ca".into(), files(&host.ca).into());
    let clients = host.clients.iter().map(|(certificate, key)| {
        let both: Vec<_> = std::iter::once(certificate).chain(key).map(|p| p.display().to_string()).collect();
        if both.len() == 2 { toml::Value::from(both) } else { both[0].clone().into() }
    });
    table.insert("client".into(), clients.collect::<Vec<_>>().into());
    if let Some(skip) = host.skip_verify {
        table.insert("skip_verify".into(), skip.into());
    }
    if let Some(time) = host.dial_timeout {
        table.insert("dial_timeout".into(), format!("{}ns", time.as_nanos()).into());
    }
    table.to_string()
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    texts([
        "server = \"https://registry-1.docker.io\"\n[host.\"https://z.example\"]\n  capabilities = [\"pull\", \"Resolve\"]\n\
         [host.\"http://a.example:5000/cache\"]\n  capabilities = []\n"
            .to_owned(),
        "ca = \"ca.pem\"\nskip_verify = false\ndial_timeout = \"1m0.5s\"\n[host.\"https://a\"]\n  ca = [\"/x/1.pem\", \"2.pem\"]\n\
         client = \"both.pem\"\n[host.\"c\"]\n  client = [[\"c.cert\", \"/k/c.key\"], [\"d.cert\", \"d.key\"]]\n\
         [host.\"c\".header]\n    x-one = \"1\"\n    x-two = [\"2\", \"3\"]\n"
            .to_owned(),
        "[host.\"https://o.example/api/docker\"]\n override_path = true\n".to_owned(),
        "server = \"\"\nunknown = 1\n".to_owned(),
        "server = 5\n".to_owned(),
        "[host]\n".to_owned(),
        "[host.\"https://user:secret@h\"]\n".to_owned(),
        "dial_timeout = \"99999999999999999999h\"\n".to_owned(),
    ])
}
