//! Reading and checking a file.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::{Config, DEFAULT};
use crate::error::{Class, CliError, Result};

/// Read if it is there and nothing else is said.
pub(crate) const DEFAULT_FILE: &str = "/etc/orlop/config.toml";

/// Reads a file.
///
/// # Errors
/// [`Class::Usage`] with file, line and key, if it is not right.
pub(crate) fn read(path: &Path) -> Result<Config> {
    let text = std::fs::read_to_string(path).map_err(CliError::at("read configuration", path))?;
    parse(&text, &path.display().to_string())
}

fn parse(text: &str, file: &str) -> Result<Config> {
    let wrong = |offset: Option<usize>, message: &str| {
        let line = offset.map_or(1, |offset| text[..offset.min(text.len())].matches('\n').count() + 1);
        CliError::new(Class::Usage, format!("{file}:{line}: {message}"))
    };
    let at = |error: &toml::de::Error| wrong(error.span().map(|span| span.start), error.message());
    let table = DeTable::parse(text).map_err(|e| at(&e))?;
    if let Some((key, offset)) = unknown(table.get_ref(), "") {
        let refused = wrong(Some(offset), &format!("unknown key {key}"));
        return Err(match nearest(&key) {
            Some(near) => refused.hint(format!("is {near} meant? `orlop config default` shows all keys")),
            None => refused.hint("`orlop config default` shows all keys"),
        });
    }
    let config: Config = toml::from_str(text).map_err(|e| at(&e))?;
    let place = |key: &str| offset(table.get_ref(), key);
    check(&config).map_err(|(key, message)| wrong(place(key), &format!("{key}: {message}")))?;
    Ok(config)
}

/// The first key that no [`Config`] has, and where it is.
fn unknown(table: &DeTable<'_>, section: &str) -> Option<(String, usize)> {
    let mut found: Option<(String, usize)> = None;
    for (key, value) in table {
        let name = format!("{section}{}", key.get_ref());
        let inner = match value.get_ref() {
            DeValue::Table(inner) if is_section(&name) => unknown(inner, &format!("{name}.")),
            _ if is_key(&name) || is_section(&name) => None,
            _ => Some((name, key.span().start)),
        };
        found = [found, inner].into_iter().flatten().min_by_key(|(_, offset)| *offset);
    }
    found
}

/// Where a key's value is.
fn offset(table: &DeTable<'_>, key: &str) -> Option<usize> {
    let (section, name) = key.split_once('.').map_or((None, key), |(section, name)| (Some(section), name));
    let table = match section {
        None => table,
        Some(section) => match table.get(section)?.get_ref() {
            DeValue::Table(inner) => inner,
            _ => return None,
        },
    };
    table.get(name).map(|value| value.span().start)
}

/// All keys, as `default.toml` has them: `section.key`.
pub(crate) fn keys() -> impl Iterator<Item = String> {
    let mut section = String::new();
    DEFAULT.lines().filter_map(move |line| {
        if let Some(name) = line.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
            section = format!("{name}.");
            return None;
        }
        let (name, _) = line.trim_start_matches('#').split_once(" = ")?;
        let plain = name.bytes().all(|b| b.is_ascii_lowercase() || b == b'_');
        plain.then(|| format!("{section}{name}"))
    })
}

fn is_key(name: &str) -> bool {
    keys().any(|key| key == name)
}

fn is_section(name: &str) -> bool {
    keys().any(|key| key.strip_prefix(name).is_some_and(|rest| rest.starts_with('.')))
}

/// The key that looks most like it, if one does; its own name counts even in another section.
fn nearest(name: &str) -> Option<String> {
    let last = |key: &str| key.rsplit('.').next().unwrap_or_default().to_owned();
    let likeness = |key: &str| strsim::jaro_winkler(name, key).max(strsim::jaro_winkler(&last(name), &last(key)));
    let best = keys().max_by(|a, b| likeness(a).total_cmp(&likeness(b)))?;
    (likeness(&best) > 0.8).then_some(best)
}

/// What types do not say; the key and what is wrong with it.
fn check(config: &Config) -> std::result::Result<(), (&'static str, String)> {
    if mode(&config.serve.socket_mode).is_none() {
        let found = &config.serve.socket_mode;
        return Err(("serve.socket_mode", format!("expected an octal mode like \"0660\", found {found:?}")));
    }
    let serve = &config.serve;
    for (key, value) in [
        ("serve.max_connections", serve.max_connections as u64),
        ("serve.max_calls", serve.max_calls as u64),
        ("serve.keepalive_seconds", serve.keepalive_seconds),
        ("serve.keepalive_timeout_seconds", serve.keepalive_timeout_seconds),
    ] {
        if value == 0 {
            return Err((key, "expected at least 1, found 0".into()));
        }
    }
    for owner in serve.raw_sockets.keys() {
        orlop_server::Owner::new(owner).map_err(|error| ("serve.raw_sockets", error.to_string()))?;
    }
    if !(1..=3600).contains(&config.credentials.provider_seconds) {
        let found = config.credentials.provider_seconds;
        return Err(("credentials.provider_seconds", format!("expected 1 to 3600, found {found}")));
    }
    config.beside().map_err(|error| ("containerd.owner", error.to_string()))?;
    if config.containerd.snapshotter.is_empty() {
        return Err(("containerd.snapshotter", "expected the name of a snapshotter, found \"\"".into()));
    }
    if config.containerd.socket.is_some() && config.containerd.socket == config.serve.socket {
        return Err(("containerd.socket", "it is the daemon's own: expected the socket of a containerd".into()));
    }
    if !(1..=3600).contains(&config.verify.verifier_seconds) {
        let found = config.verify.verifier_seconds;
        return Err(("verify.verifier_seconds", format!("expected 1 to 3600, found {found}")));
    }
    if config.gc.trash_free_percent > 100 {
        return Err(("gc.trash_free_percent", format!("expected at most 100, found {}", config.gc.trash_free_percent)));
    }
    config.registry.check()?;
    config.mirror.check()?;
    config.limits.check()?;
    config.peers.check()?;
    config.traces.check()?;
    if let Err(error) = config.log.level.parse::<tracing_subscriber::filter::Targets>() {
        return Err(("log.level", format!("{:?}: {error}", config.log.level)));
    }
    Ok(())
}

/// An octal file mode.
pub(crate) fn mode(text: &str) -> Option<u32> {
    u32::from_str_radix(text, 8).ok().filter(|mode| *mode <= 0o777 && !text.starts_with('+'))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn the_default_file_says_the_defaults() {
        assert_eq!(parse(DEFAULT, "default.toml").unwrap(), Config::default());
    }

    #[test]
    fn the_default_file_has_every_key_and_its_examples_are_right() {
        let uncommented: String = DEFAULT
            .lines()
            .map(|line| if line.starts_with('#') && !line.starts_with("# ") { &line[1..] } else { line })
            .collect::<Vec<_>>()
            .join("\n");
        let config = parse(&uncommented, "default.toml").unwrap();
        let toml::Value::Table(written) = toml::Value::try_from(&config).unwrap() else { panic!("no table") };
        let mut have = BTreeSet::new();
        for (name, value) in written {
            match value {
                toml::Value::Table(inner) => have.extend(inner.keys().map(|key| format!("{name}.{key}"))),
                _ => drop(have.insert(name)),
            }
        }
        assert_eq!(have, keys().collect());
    }

    #[track_caller]
    fn refused(text: &str) -> CliError {
        let error = parse(text, "f").unwrap_err();
        assert_eq!(error.class, Class::Usage);
        error
    }

    #[test]
    fn what_is_wrong_is_told_with_its_line_and_what_is_meant() {
        let error = refused("root = '/x'\n\n[serve]\nsokcet = '/s'\n");
        assert_eq!(error.message, "f:4: unknown key serve.sokcet");
        assert!(error.hint.unwrap().contains("serve.socket"));
        assert!(refused("max_calls = 1\n").hint.unwrap().contains("serve.max_calls"));
        assert!(refused("[srve]\nsocket = '/s'\n").message.starts_with("f:1: unknown key srve"));
        assert!(refused("[log]\nlevel = 3\n").message.starts_with("f:2: invalid type"));
        assert!(refused("\n[log\n").message.starts_with("f:2: "));
        assert!(
            refused("[serve]\nsocket_mode = '999'\n").message.starts_with("f:2: serve.socket_mode: expected an octal")
        );
        assert!(refused("[gc]\n\ntrash_free_percent = 101").message.starts_with("f:3: gc.trash_free_percent"));
        assert!(refused("[traces]\nratio = 1.5").message.starts_with("f:2: traces.ratio: expected 0.0 to 1.0"));
        assert!(refused("[traces]\nprotocol = 'http/json'").message.starts_with("f:2: unknown variant"));
        assert!(
            refused("[traces]\n\nendpoint = 'localhost:4317'").message.starts_with("f:3: traces.endpoint: expected")
        );
        assert!(refused("[traces]\nqueue = 0").message.contains("expected 1 to"));
        assert!(refused("[traces]\nservicename = 'x'").hint.unwrap().contains("traces.service_name"));
        assert!(refused("[verify]\nverifier_seconds = 0").message.contains("expected 1 to 3600"));
        assert!(refused("[serve]\nmax_calls = 0").message.contains("at least 1"));
        assert!(
            refused("[peers]\nbootstrap = ['dns:']")
                .message
                .starts_with("f:2: peers.bootstrap: \"dns:\": that is no name")
        );
        assert!(refused("[mirror]\nfetch = ['docker.io/*', 'a/*']").message.starts_with("f:2: mirror.fetch"));
        assert!(refused("[peers]\nwithhold = ['a/*']").message.starts_with("f:2: peers.withhold"));
        assert!(refused("[peers]\nnear = ['10.0.0.1']").message.contains("is no network"));
        assert!(refused("[peers]\nserve = '0.0.0.0:5001'").message.contains("it is peers.listen"));
        assert!(refused("[peers]\ntls_key = '/k'").message.contains("or none of them"));
        assert!(refused("[peers]\nbootstrap = ['https://a/id']").message.contains("needs tls_certificate"));
        assert!(refused("[peers]\nmax_uploads = 0").message.contains("expected 1 to 4096"));
        assert!(refused("[peers]\nlisten = 'here'").message.starts_with("f:2: "));
        assert!(refused("[credentials]\nprovider_seconds = 0").message.contains("expected 1 to 3600"));
        assert!(refused("[containerd]\nimages = 'steal'").message.starts_with("f:2: unknown variant"));
        assert!(refused("[containerd]\nsnapshotter = ''").message.starts_with("f:2: containerd.snapshotter"));
        assert!(
            refused("[containerd]\nsocket = '/s'\nowner = 'K3s'")
                .message
                .starts_with("f:3: containerd.owner: owner \"K3s\"")
        );
        assert!(
            refused("[serve]\nsocket = '/s'\n[containerd]\nsocket = '/s'").message.contains("it is the daemon's own")
        );
        assert!(
            refused("[serve]\nraw_sockets = { K3s = '/s' }")
                .message
                .starts_with("f:2: serve.raw_sockets: owner \"K3s\"")
        );
        assert!(
            refused("[registry]\naddress = '5000'").message.starts_with("f:2: registry.address: expected HOST:PORT")
        );
        assert!(refused("[registry]\n\nname = 'a/b'").message.starts_with("f:3: registry.name: expected a host"));
        let access = |text: &str| refused(&format!("[registry]\n{text}")).message;
        assert!(access("tls_certificate = '/c'").starts_with("f:2: registry.tls_certificate: its key is missing"));
        assert!(access("authentication = 'token'").starts_with("f:2: registry.authentication: tokens are issued"));
        assert!(access("authentication = 'none'").starts_with("f:2: unknown variant"));
        assert!(
            access("permissions = [{ repositories = ['*'], users = [], actions = ['pull'] }]").contains("a rule needs")
        );
        assert!(
            access("permissions = [{ repositories = ['*'], users = ['a:b'], actions = ['pull'] }]")
                .contains("no user's name")
        );
        assert!(
            access("permissions = [{ repositories = ['*'], users = ['a'], actions = ['write'] }]")
                .contains("unknown variant")
        );
        assert!(refused("[log]\nlevel = 'a=b=c'").message.starts_with("f:2: log.level"));
        assert!(refused("serve = 3").message.starts_with("f:1: invalid type"));
        assert!(refused("zzz = 3").hint.unwrap().starts_with("`orlop config default`"));
    }
}
