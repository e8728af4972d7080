//! Reading one `hosts.toml` (containerd, docs/hosts.md): which hosts stand for a registry, in which order, and how to
//! talk to each. Parsing only; files named in it are read by [`crate::hosts`].
//!
//! Keys that are not known are reported by `tracing` and otherwise ignored, as containerd does. Values of a wrong
//! type are an error: to go on without a mirror or a private CA that the administrator asked for helps nobody.

use std::path::{Path, PathBuf};
use std::time::Duration;

use http::{HeaderMap, HeaderName, HeaderValue};
use toml::Spanned;
use toml::de::{DeString, DeTable, DeValue};
use url::Url;

use crate::duration::parse_duration;
use crate::error::ConfigError;

/// What a host may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Capability {
    /// Content by digest.
    Pull,
    /// What a tag means.
    Resolve,
    /// To take content.
    Push,
    /// Who refers to a manifest.
    Referrers,
}

impl Capability {
    const ALL: [Self; 4] = [Self::Pull, Self::Resolve, Self::Push, Self::Referrers];

    /// The word in hosts.toml.
    pub(crate) const fn as_str(self) -> &'static str {
        match self {
            Self::Pull => "pull",
            Self::Resolve => "resolve",
            Self::Push => "push",
            Self::Referrers => "referrers",
        }
    }
}

/// One host as the file says it.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct HostEntry {
    /// Scheme, host, port and path; `None` for the registry itself where the file names no `server`.
    pub(crate) url: Option<Url>,
    /// All of them where the file says nothing.
    pub(crate) capabilities: Vec<Capability>,
    /// Files with CA certificates.
    pub(crate) ca: Vec<PathBuf>,
    /// Certificate and key; the key is in the certificate's file where it is `None`.
    pub(crate) clients: Vec<(PathBuf, Option<PathBuf>)>,
    /// `None` where the file says nothing.
    pub(crate) skip_verify: Option<bool>,
    /// Sent with every request to this host.
    pub(crate) headers: HeaderMap,
    /// How long to try to connect.
    pub(crate) dial_timeout: Option<Duration>,
}

impl Default for HostEntry {
    fn default() -> Self {
        Self {
            url: None,
            capabilities: Capability::ALL.to_vec(),
            ca: Vec::new(),
            clients: Vec::new(),
            skip_verify: None,
            headers: HeaderMap::new(),
            dial_timeout: None,
        }
    }
}

/// A host as a `hosts.toml` names it, for whoever looks at the file and asks nobody.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedHost {
    /// Scheme, host, port and path; `None` for the registry itself where the file names no `server`.
    pub url: Option<Url>,
    /// What it may be asked for: `pull`, `resolve`, `push`, `referrers`.
    pub capabilities: Vec<&'static str>,
    /// Files with CA certificates.
    pub ca: Vec<PathBuf>,
    /// Files with a client certificate and, unless it is in the same one, its key.
    pub clients: Vec<(PathBuf, Option<PathBuf>)>,
    /// Whether its certificate goes unchecked, if the file says so or not so.
    pub skip_verify: Option<bool>,
    /// How long to try to connect.
    pub dial_timeout: Option<Duration>,
}

/// Reads a `hosts.toml` whose relative paths start at `base`: its hosts in their order, the registry itself last. Asks
/// nobody, and opens none of the files that it names.
///
/// # Errors
/// [`ConfigError::Toml`] and [`ConfigError::Value`].
pub fn read(text: &str, base: &Path) -> Result<Vec<NamedHost>> {
    let named = |host: HostEntry| NamedHost {
        url: host.url,
        capabilities: host.capabilities.into_iter().map(Capability::as_str).collect(),
        ca: host.ca,
        clients: host.clients,
        skip_verify: host.skip_verify,
        dial_timeout: host.dial_timeout,
    };
    Ok(parse(text, base)?.into_iter().map(named).collect())
}

type Result<T> = std::result::Result<T, ConfigError>;
type Value<'a> = Spanned<DeValue<'a>>;

/// Reads the file: the hosts in the order they are written, and the registry itself (`server`) last. Relative paths
/// are taken from `base`.
pub(crate) fn parse(text: &str, base: &Path) -> Result<Vec<HostEntry>> {
    // The quick form does not look into values that nobody asks for; a file that is damaged there is damaged.
    text.parse::<toml::Table>()?;
    let root = DeTable::parse(text)?;
    let root = root.get_ref();
    let mut hosts = Vec::new();
    let mut server = None;
    if let Some(value) = root.get("host") {
        let table = table(value, "host")?;
        let mut named: Vec<(&Spanned<DeString<'_>>, &Value<'_>)> = table.iter().collect();
        named.sort_by_key(|(key, _)| key.span().start);
        for (name, value) in named {
            let key = format!("host.{:?}", name.get_ref());
            hosts.push(entry(self::table(value, &key)?, Some(name.get_ref()), &key, base)?);
        }
    }
    if let Some(value) = root.get("server") {
        server = Some(string(value, "server")?).filter(|s| !s.is_empty());
    }
    hosts.push(entry(root, server.as_deref(), "", base)?);
    Ok(hosts)
}

fn entry(table: &DeTable<'_>, server: Option<&str>, prefix: &str, base: &Path) -> Result<HostEntry> {
    let mut host = HostEntry::default();
    let mut override_path = false;
    for (key, value) in table {
        let name = key.get_ref().as_ref();
        let path = if prefix.is_empty() { name.to_owned() } else { format!("{prefix}.{name}") };
        match name {
            "capabilities" => host.capabilities = capabilities(value, &path)?,
            "ca" => host.ca = one_or_more(value, &path)?.into_iter().map(|p| base.join(p)).collect(),
            "client" => host.clients = clients(value, &path, base)?,
            "skip_verify" => host.skip_verify = Some(boolean(value, &path)?),
            "header" => host.headers = headers(value, &path)?,
            "override_path" => override_path = boolean(value, &path)?,
            "dial_timeout" => host.dial_timeout = duration(value, &path)?,
            "server" | "host" if prefix.is_empty() => {}
            _ => tracing::warn!(key = %path, "unknown key in hosts.toml, ignored"),
        }
    }
    host.url = server.map(|s| url(s, override_path)).transpose()?;
    Ok(host)
}

/// A host without a scheme is reached by HTTPS. `/v2` is added to the path unless it ends so or is overridden.
fn url(server: &str, override_path: bool) -> Result<Url> {
    let wrong = || ConfigError::Value {
        key: "host or server".to_owned(),
        expected: "a host or an http or https URL",
        found: format!("{server:?}"),
    };
    let text = if server.starts_with("http://") || server.starts_with("https://") {
        server.to_owned()
    } else {
        format!("https://{server}")
    };
    let mut url = Url::parse(&text).map_err(|_| wrong())?;
    if !url.has_host() || !url.username().is_empty() || url.password().is_some() {
        return Err(wrong());
    }
    let path = url.path().trim_end_matches('/').to_owned();
    let path = if override_path || path.ends_with("/v2") { path } else { format!("{path}/v2") };
    url.set_path(&path);
    url.set_query(None);
    url.set_fragment(None);
    Ok(url)
}

fn capabilities(value: &Value<'_>, key: &str) -> Result<Vec<Capability>> {
    let words = array(value, key)?;
    if words.is_empty() {
        return Ok(Capability::ALL.to_vec());
    }
    words
        .iter()
        .map(|word| {
            let text = string(word, key)?;
            Capability::ALL
                .into_iter()
                .find(|c| c.as_str().eq_ignore_ascii_case(&text))
                .ok_or_else(|| wrong(key, "pull, resolve, push or referrers", format!("{text:?}")))
        })
        .collect()
}

/// A file with certificate and key, a list of such, or a list of pairs.
fn clients(value: &Value<'_>, key: &str, base: &Path) -> Result<Vec<(PathBuf, Option<PathBuf>)>> {
    if value.get_ref().as_str().is_some() {
        return Ok(vec![(base.join(string(value, key)?), None)]);
    }
    array(value, key)?
        .iter()
        .map(|item| match item.get_ref() {
            DeValue::Array(pair) if pair.len() == 2 => {
                Ok((base.join(string(&pair[0], key)?), Some(base.join(string(&pair[1], key)?))))
            }
            DeValue::Array(_) => Err(wrong(key, "pairs of a certificate and a key", "a list of another length")),
            _ => Ok((base.join(string(item, key)?), None)),
        })
        .collect()
}

fn headers(value: &Value<'_>, key: &str) -> Result<HeaderMap> {
    let mut headers = HeaderMap::new();
    for (name, value) in table(value, key)? {
        let key = format!("{key}.{}", name.get_ref());
        let header = HeaderName::from_bytes(name.get_ref().as_bytes())
            .map_err(|_| wrong(&key, "the name of a header", format!("{:?}", name.get_ref())))?;
        for text in one_or_more(value, &key)? {
            let mut value = HeaderValue::from_str(&text)
                .map_err(|_| wrong(&key, "a header's value without line breaks", format!("{text:?}")))?;
            value.set_sensitive(true);
            headers.append(header.clone(), value);
        }
    }
    Ok(headers)
}

fn one_or_more(value: &Value<'_>, key: &str) -> Result<Vec<String>> {
    match value.get_ref() {
        DeValue::Array(items) => items.iter().map(|item| string(item, key)).collect(),
        _ => Ok(vec![string(value, key)?]),
    }
}

fn duration(value: &Value<'_>, key: &str) -> Result<Option<Duration>> {
    let text = string(value, key)?;
    if text.is_empty() {
        return Ok(None);
    }
    parse_duration(&text).map(Some).ok_or_else(|| wrong(key, "a duration like 500ms, 3s or 1m30s", format!("{text:?}")))
}

fn table<'a, 'i>(value: &'a Value<'i>, key: &str) -> Result<&'a DeTable<'i>> {
    value.get_ref().as_table().ok_or_else(|| wrong(key, "a table", value.get_ref().type_str()))
}

fn array<'a, 'i>(value: &'a Value<'i>, key: &str) -> Result<&'a [Value<'i>]> {
    value.get_ref().as_array().map(|a| a.as_ref()).ok_or_else(|| wrong(key, "a list", value.get_ref().type_str()))
}

fn string(value: &Value<'_>, key: &str) -> Result<String> {
    value.get_ref().as_str().map(str::to_owned).ok_or_else(|| wrong(key, "a string", value.get_ref().type_str()))
}

fn boolean(value: &Value<'_>, key: &str) -> Result<bool> {
    value.get_ref().as_bool().ok_or_else(|| wrong(key, "true or false", value.get_ref().type_str()))
}

fn wrong(key: &str, expected: &'static str, found: impl Into<String>) -> ConfigError {
    ConfigError::Value { key: key.to_owned(), expected, found: found.into() }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn urls(hosts: &[HostEntry]) -> Vec<Option<&str>> {
        hosts.iter().map(|h| h.url.as_ref().map(Url::as_str)).collect()
    }

    #[test]
    fn keeps_the_order_of_the_file_and_puts_the_server_last() {
        let hosts = parse(
            r#"
            server = "https://registry-1.docker.io"
            [host."https://z.example"]
              capabilities = ["pull", "Resolve"]
            [host."http://a.example:5000/cache"]
              capabilities = []
            [host."m.example/v2"]
            [host."https://o.example/api/docker"]
              override_path = true
            "#,
            Path::new("/etc"),
        )
        .unwrap();
        assert_eq!(
            urls(&hosts),
            [
                Some("https://z.example/v2"),
                Some("http://a.example:5000/cache/v2"),
                Some("https://m.example/v2"),
                Some("https://o.example/api/docker"),
                Some("https://registry-1.docker.io/v2"),
            ]
        );
        assert_eq!(hosts[0].capabilities, [Capability::Pull, Capability::Resolve]);
        assert_eq!(hosts[1].capabilities, Capability::ALL);
    }

    /// A number that no integer has, in a key that is not known, went unnoticed.
    #[test]
    fn what_is_no_toml_is_refused_wherever_it_is() {
        let text = "unknown = 1777777777777777777000";
        assert!(matches!(parse(text, Path::new("/")), Err(ConfigError::Toml(_))));
        assert_eq!(read("", Path::new("/")).unwrap().len(), 1);
    }

    #[test]
    fn reads_every_form_of_certificates_and_headers() {
        let hosts = parse(
            r#"
            ca = "ca.pem"
            skip_verify = false
            dial_timeout = "1m0.5s"
            [host."https://a"]
              ca = ["/x/1.pem", "2.pem"]
              client = "both.pem"
            [host."https://b"]
              client = ["1.pem", "2.pem"]
            [host."https://c"]
              client = [["c.cert", "/k/c.key"], ["d.cert", "d.key"]]
              [host."https://c".header]
                x-one = "1"
                x-two = ["2", "3"]
            "#,
            Path::new("/etc/certs.d/r"),
        )
        .unwrap();
        let root = &hosts[3];
        assert_eq!((root.url.as_ref(), root.skip_verify), (None, Some(false)));
        assert_eq!(root.ca, [Path::new("/etc/certs.d/r/ca.pem")]);
        assert_eq!(root.dial_timeout, Some(Duration::from_millis(60_500)));
        assert_eq!(hosts[0].ca, [Path::new("/x/1.pem"), Path::new("/etc/certs.d/r/2.pem")]);
        assert_eq!(hosts[0].clients, [("/etc/certs.d/r/both.pem".into(), None)]);
        assert_eq!(hosts[1].clients.len(), 2);
        assert_eq!(hosts[2].clients[0], ("/etc/certs.d/r/c.cert".into(), Some("/k/c.key".into())));
        assert_eq!(hosts[2].headers.get_all("x-two").iter().count(), 2);
    }

    #[test]
    fn tolerates_unknown_keys_and_refuses_wrong_values() {
        assert!(parse("colour = 'red'\n[host.'https://a']\nshape = 1", Path::new("/")).is_ok());
        for text in [
            "capabilities = ['fly']",
            "ca = 3",
            "client = [['one']]",
            "skip_verify = 'yes'",
            "dial_timeout = '3 parsecs'",
            "header = { 'a b' = 'c' }",
            "[host.'https://u:p@a']",
            "host = 3",
            "server = ",
        ] {
            assert!(parse(text, Path::new("/")).is_err(), "{text}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(text in "\\PC*", value in "[a-z0-9.\"'\\[\\]{}= ]*") {
            let _ = parse(&text, Path::new("/"));
            let _ = parse(&format!("ca = {value}\n[host.\"{value}\"]\nclient = {value}"), Path::new("/"));
            parse_duration(&text);
        }
    }
}
