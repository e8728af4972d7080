//! kubelet's `CredentialProviderConfig`, for the daemon's own pulls: the file that `--image-credential-provider-config` names, read as
//! kubelet reads it.
//!
//! Source: Kubernetes' `kubelet.config.k8s.io` (v1, v1beta1, v1alpha1). Unknown keys are refused, as kubelet does. What only kubelet
//! can do, giving a program a pod's service account token, leaves that program out, with a warning: the file is kubelet's too.

use std::collections::BTreeSet;
use std::io::Read as _;
use std::path::Path;
use std::time::Duration;

use orlop_remote::{ApiVersion, ImagePattern, Provider, Providers, parse_duration};
use serde::Deserialize;

use crate::config::Credentials;
use crate::error::{Class, CliError, Result};

const KIND: &str = "CredentialProviderConfig";
const VERSIONS: [&str; 3] =
    ["kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v1beta1", "kubelet.config.k8s.io/v1alpha1"];

/// Real ones have some KiB.
const MAX_BYTES: u64 = 1 << 20;

/// The file as it stands.
#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct File {
    api_version: String,
    kind: String,
    providers: Vec<Entry>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct Entry {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: String,
    api_version: String,
    #[serde(default)]
    args: Option<Vec<String>>,
    #[serde(default)]
    env: Option<Vec<Variable>>,
    #[serde(default)]
    token_attributes: Option<TokenAttributes>,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct TokenAttributes {
    #[serde(default)]
    require_service_account: bool,
}

/// Reads the file that the configuration names; none: there are no programs.
///
/// # Errors
/// [`Class::Usage`] with the file and the provider, if something in it is not right.
pub(crate) fn providers(settings: &Credentials) -> Result<Providers> {
    let is_set = |path: &&Path| !path.as_os_str().is_empty();
    let Some(path) = settings.provider_config.as_deref().filter(is_set) else {
        return Ok(Providers::default());
    };
    let Some(bin_dir) = settings.provider_bin_dir.as_deref().filter(is_set) else {
        let message = "credentials.provider_config is set, and credentials.provider_bin_dir is not";
        return Err(CliError::new(Class::Usage, message).hint("name the directory that has the providers' programs"));
    };
    let mut text = String::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(MAX_BYTES + 1).read_to_string(&mut text));
    read.map_err(CliError::at("read credential providers", path))?;
    if text.len() as u64 > MAX_BYTES {
        return Err(wrong(path, &format!("it has more than {MAX_BYTES} bytes")));
    }
    let timeout = Duration::from_secs(settings.provider_seconds.into());
    parse(&text, path, bin_dir, timeout)
}

fn wrong(path: &Path, why: &str) -> CliError {
    CliError::new(Class::Usage, format!("{}: {why}", path.display()))
}

/// What a parser said, without values that it quotes: they may be secrets.
fn said(error: &serde_norway::Error) -> String {
    let text = error.to_string();
    if !text.contains("invalid type") && !text.contains("invalid value") {
        return text;
    }
    let place = error.location().map(|at| format!(" at line {}", at.line())).unwrap_or_default();
    format!("a value{place} is of another type than this key's")
}

fn parse(text: &str, path: &Path, bin_dir: &Path, timeout: Duration) -> Result<Providers> {
    let file: File = serde_norway::from_str(text).map_err(|e| wrong(path, &said(&e)))?;
    if file.kind != KIND || !VERSIONS.contains(&file.api_version.as_str()) {
        let (kind, version) = (&file.kind, &file.api_version);
        return Err(wrong(
            path,
            &format!("expected kind {KIND} of apiVersion {}, found {kind:?} of {version:?}", VERSIONS[0]),
        ));
    }
    let mut names = BTreeSet::new();
    let mut all = Vec::new();
    for entry in file.providers {
        if !names.insert(entry.name.clone()) {
            return Err(wrong(path, &format!("provider {:?} is there twice", entry.name)));
        }
        let needs_token = entry.token_attributes.as_ref().is_some_and(|attributes| attributes.require_service_account);
        let name = entry.name.clone();
        let provider = provider(entry, bin_dir, timeout);
        let provider = provider.map_err(|why| wrong(path, &format!("provider {name:?}: {why}")))?;
        if needs_token {
            tracing::warn!(
                provider = name,
                "a credential provider is left out: it wants a pod's service account token, which only kubelet has"
            );
            continue;
        }
        if !provider.program.is_file() {
            let program = provider.program.display();
            return Err(wrong(path, &format!("provider {name:?}: there is no program {program}")));
        }
        all.push(provider);
    }
    Ok(all.into_iter().collect())
}

fn provider(entry: Entry, bin_dir: &Path, timeout: Duration) -> std::result::Result<Provider, String> {
    let is_file_name = !matches!(entry.name.as_str(), "" | "." | "..")
        && !entry.name.contains(['/', '\\'])
        && !entry.name.contains(char::is_whitespace);
    if !is_file_name {
        return Err("name: expected the name of a program in the directory, without slashes and spaces".to_owned());
    }
    if entry.match_images.is_empty() {
        return Err("matchImages: expected at least one pattern".to_owned());
    }
    let images = entry.match_images.iter().map(|text| text.parse::<ImagePattern>());
    let images = images.collect::<std::result::Result<_, _>>().map_err(|e| format!("matchImages: {e}"))?;
    let duration = &entry.default_cache_duration;
    let default_cache = parse_duration(duration)
        .ok_or_else(|| format!("defaultCacheDuration: expected a length of time such as 12h, found {duration:?}"))?;
    let version: ApiVersion = entry.api_version.parse().map_err(|e| format!("apiVersion: {e}"))?;
    let variables = entry.env.unwrap_or_default();
    if variables.iter().any(|v| v.name.is_empty() || v.name.contains(['=', '\0']) || v.value.contains('\0')) {
        return Err("env: a name is empty, or has what no variable's name may have".to_owned());
    }
    let args = entry.args.unwrap_or_default();
    if args.iter().any(|arg| arg.contains('\0')) {
        return Err("args: one has a byte 0".to_owned());
    }
    Ok(Provider {
        program: bin_dir.join(&entry.name),
        name: entry.name,
        images,
        default_cache,
        version,
        args,
        env: variables.into_iter().map(|v| (v.name, v.value)).collect(),
        timeout,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const RIGHT: &str = "\
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: ecr
    matchImages: ['*.dkr.ecr.*.amazonaws.com', 'registry.io:8080/path']
    defaultCacheDuration: 12h
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: [get-credentials]
    env:
      - name: AWS_PROFILE
        value: node
  - name: pods
    matchImages: ['*.example']
    defaultCacheDuration: 0s
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    tokenAttributes: {serviceAccountTokenAudience: a, cacheType: Token, requireServiceAccount: true}
";

    fn read(text: &str) -> Result<Providers> {
        let bin = tempfile::tempdir().unwrap();
        std::fs::write(bin.path().join("ecr"), "").unwrap();
        parse(text, Path::new("f"), bin.path(), Duration::from_secs(60))
    }

    #[test]
    fn kubelets_file_is_read_and_what_only_kubelet_can_ask_is_left_out() {
        assert_eq!(format!("{:?}", read(RIGHT).unwrap()), "[\"ecr\"]");
    }

    #[test]
    fn an_empty_directory_of_programs_is_none() {
        for provider_bin_dir in [None, Some("".into())] {
            let settings =
                Credentials { provider_config: Some("f".into()), provider_bin_dir, ..Credentials::default() };
            let error = providers(&settings).unwrap_err();
            assert!(error.message.ends_with("credentials.provider_bin_dir is not"), "{}", error.message);
        }
    }

    #[test]
    fn mistakes_are_told_with_file_and_provider() {
        for (from, to, says) in [
            ("kind: C", "kind: X", "expected kind CredentialProviderConfig"),
            ("kubelet.config.k8s.io/v1", "kubelet.config.k8s.io/v2", "found \"CredentialProviderConfig\" of"),
            ("name: ecr", "name: ../ecr", "provider \"../ecr\": name: expected"),
            ("name: ecr", "name: gone", "provider \"gone\": there is no program"),
            ("name: pods", "name: ecr", "provider \"ecr\" is there twice"),
            ("12h", "12", "defaultCacheDuration: expected a length of time such as 12h, found \"12\""),
            ("12h", "-1h", "defaultCacheDuration"),
            ("registry.io:8080", "registry.io:port", "matchImages: \"registry.io:port/path\" is no pattern"),
            ("['*.example']", "[]", "provider \"pods\": matchImages: expected at least one"),
            ("credentialprovider.kubelet.k8s.io/v1", "credentialprovider.kubelet.k8s.io/v3", "apiVersion: expected"),
            ("AWS_PROFILE", "'A=B'", "env: "),
            ("value: node", "value: [node]", "a value at line"),
            ("args:", "arguments:", "unknown field `arguments`"),
            ("providers:", "provider:", "unknown field `provider`"),
            ("defaultCacheDuration: 12h", "x: 1", "f: "),
        ] {
            let error = read(&RIGHT.replacen(from, to, 1)).unwrap_err();
            assert_eq!(error.class, Class::Usage);
            assert!(error.message.starts_with("f: ") && error.message.contains(says), "{says}: {}", error.message);
        }
    }
}
