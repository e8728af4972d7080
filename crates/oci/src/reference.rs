//! Image references as people write them, and the names of image records.
//!
//! Parsing follows Docker's and containerd's normal form (distribution/reference): `busybox` is
//! `docker.io/library/busybox:latest`; the first path element is a host only if it has a dot, a colon, a capital
//! letter or is `localhost`; of `name:tag@digest` the digest counts and the tag is dropped (CRI's rule).

use std::fmt;
use std::str::FromStr;

use crate::{Digest, DigestError, ImageId};

const DEFAULT_DOMAIN: &str = "docker.io";
/// What Docker Hub was called once; still written.
const LEGACY_DOMAIN: &str = "index.docker.io";
const DEFAULT_TAG: &str = "latest";
/// distribution/reference bounds the repository path.
const MAX_PATH_BYTES: usize = 255;
const MAX_TAG_BYTES: usize = 128;
const TAG_RULE: &str = "a tag has 1 to 128 letters, digits, _ . - and starts with a letter, digit or _";

/// A host and a path within it: `docker.io/library/busybox`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct RepositoryName {
    domain: String,
    path: String,
}

impl RepositoryName {
    /// Parses and normalises a name without tag or digest.
    pub fn parse(text: &str) -> Result<Self, ReferenceError> {
        if is_bare_id(text) {
            let reason = "64 hex digits are an image ID, not a repository name";
            return Err(ReferenceError::Invalid { reference: text.to_owned(), reason });
        }
        Self::parse_name(text)
    }

    fn parse_name(text: &str) -> Result<Self, ReferenceError> {
        let fail = |reason| ReferenceError::Invalid { reference: text.to_owned(), reason };
        let (domain, path) = split_domain(text);
        if path.is_empty() {
            return Err(fail("the repository name is empty"));
        }
        if path.bytes().any(|b| b.is_ascii_uppercase()) {
            return Err(fail("the repository name must be lower case"));
        }
        if path.len() > MAX_PATH_BYTES {
            return Err(fail("the repository name has more than 255 bytes"));
        }
        if !is_domain(&domain) {
            return Err(fail("the host part is not a host name with an optional port"));
        }
        if !path.split('/').all(is_path_component) {
            return Err(fail("the repository name may have a-z, 0-9 and single separators . _ __ - between them"));
        }
        Ok(Self { domain, path })
    }

    /// The host, with its port if there is one.
    pub fn domain(&self) -> &str {
        &self.domain
    }

    /// The path within the host.
    pub fn path(&self) -> &str {
        &self.path
    }

    /// What people write: without `docker.io/library/`, unless what is left would be another name.
    pub fn familiar(&self) -> String {
        let short = match (self.domain.as_str(), self.path.strip_prefix("library/")) {
            (DEFAULT_DOMAIN, Some(short)) if !short.contains('/') => short,
            (DEFAULT_DOMAIN, _) => self.path.as_str(),
            _ => return self.to_string(),
        };
        let is_same = Self::parse(short).is_ok_and(|name| name == *self);
        if is_same { short.to_owned() } else { self.to_string() }
    }

    /// The record name of a tag in this repository.
    pub fn with_tag(&self, tag: &str) -> Result<Reference, ReferenceError> {
        if !is_tag(tag) {
            return Err(ReferenceError::Invalid { reference: format!("{self}:{tag}"), reason: TAG_RULE });
        }
        Ok(Reference::Tag { repository: self.clone(), tag: tag.to_owned() })
    }

    /// The record name of a digest in this repository: a hash reference.
    pub fn with_digest(&self, digest: &Digest) -> Reference {
        Reference::Digest { repository: self.clone(), digest: digest.clone() }
    }
}

impl fmt::Display for RepositoryName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.domain, self.path)
    }
}

/// What an image is called. The last two are hash references.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Reference {
    /// `name:tag`.
    Tag {
        /// Host and path.
        repository: RepositoryName,
        /// The tag.
        tag: String,
    },
    /// `name@sha256:<manifest or index digest>`.
    Digest {
        /// Host and path.
        repository: RepositoryName,
        /// The target's digest.
        digest: Digest,
    },
    /// `sha256:<config digest>`.
    Id(ImageId),
}

impl Reference {
    /// Host and path, where there are any.
    pub const fn repository(&self) -> Option<&RepositoryName> {
        match self {
            Self::Tag { repository, .. } | Self::Digest { repository, .. } => Some(repository),
            Self::Id(_) => None,
        }
    }

    /// The tag, if this is one.
    pub fn tag(&self) -> Option<&str> {
        match self {
            Self::Tag { tag, .. } => Some(tag),
            _ => None,
        }
    }

    /// The target's digest, if the reference has one; of an image ID: `None`, since that is the config's.
    pub const fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Digest { digest, .. } => Some(digest),
            _ => None,
        }
    }

    /// Which of the three it is.
    pub const fn kind(&self) -> Kind {
        match self {
            Self::Tag { .. } => Kind::Tag,
            Self::Digest { .. } => Kind::Digest,
            Self::Id(_) => Kind::Id,
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tag { repository, tag } => write!(f, "{repository}:{tag}"),
            Self::Digest { repository, digest } => write!(f, "{repository}@{digest}"),
            Self::Id(id) => id.fmt(f),
        }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let fail = |reason| ReferenceError::Invalid { reference: text.to_owned(), reason };
        if text.is_empty() {
            return Err(fail("it is empty"));
        }
        if let Some(id) = parse_id(text) {
            return Ok(Self::Id(ImageId::new(id)));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>()?)),
            None => (text, None),
        };
        let (name, tag) = split_tag(rest);
        if tag.is_some_and(|t| !is_tag(t)) {
            return Err(fail(TAG_RULE));
        }
        let repository = RepositoryName::parse_name(name).map_err(|e| e.of(text))?;
        Ok(match digest {
            Some(digest) => Self::Digest { repository, digest },
            None => Self::Tag { repository, tag: tag.unwrap_or(DEFAULT_TAG).to_owned() },
        })
    }
}

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum ReferenceError {
    /// It breaks the grammar.
    #[error("{reference:?} is not an image reference: {reason}")]
    Invalid {
        /// What was given.
        reference: String,
        /// Which rule it breaks.
        reason: &'static str,
    },
    /// The part after `@` is not a digest.
    #[error("not an image reference: {0}")]
    Digest(#[from] DigestError),
}

impl ReferenceError {
    fn of(self, whole: &str) -> Self {
        match self {
            Self::Invalid { reason, .. } => Self::Invalid { reference: whole.to_owned(), reason },
            other => other,
        }
    }
}

/// What kind of name an image record has.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Kind {
    /// `name:tag`.
    Tag,
    /// `name@sha256:…`, a hash reference.
    Digest,
    /// `sha256:…`, a hash reference.
    Id,
    /// Any other non-empty text: containerd allows it.
    Other,
}

impl Kind {
    /// The word used in JSON.
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Tag => "tag",
            Self::Digest => "digest",
            Self::Id => "id",
            Self::Other => "other",
        }
    }

    /// Whether such a record is a hash reference.
    pub const fn is_hash_reference(self) -> bool {
        matches!(self, Self::Digest | Self::Id)
    }
}

/// Says which kind of name a record has, as written: `busybox` without host and tag is [`Kind::Other`], since no
/// normalising writer would have stored it.
pub fn classify(name: &str) -> Kind {
    // Listings ask this of every record: nothing is parsed into memory of its own.
    if Digest::is_valid(name) {
        return Kind::Id;
    }
    if let Some((repository, digest)) = name.split_once('@') {
        let is_normal = Digest::is_valid(digest) && is_normal_repository(repository);
        return if is_normal { Kind::Digest } else { Kind::Other };
    }
    match split_tag(name) {
        (repository, Some(tag)) if is_tag(tag) && is_normal_repository(repository) => Kind::Tag,
        _ => Kind::Other,
    }
}

/// Whether a name is what [`RepositoryName`] would show it as.
fn is_normal_repository(name: &str) -> bool {
    let Some((domain, path)) = name.split_once('/') else { return false };
    let is_host = looks_like_host(domain) && domain != LEGACY_DOMAIN && is_domain(domain);
    let is_whole = domain != DEFAULT_DOMAIN || path.contains('/');
    is_host && is_whole && path.len() <= MAX_PATH_BYTES && path.split('/').all(is_path_component)
}

/// `sha256:<64 hex>` or 64 bare hex digits, which Docker reads as an ID too.
fn parse_id(text: &str) -> Option<Digest> {
    if is_bare_id(text) { format!("sha256:{text}").parse().ok() } else { text.parse().ok() }
}

fn is_bare_id(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'))
}

fn split_domain(name: &str) -> (String, String) {
    let (domain, path) = match name.split_once('/') {
        Some((first, rest)) if looks_like_host(first) => (first, rest),
        _ => (DEFAULT_DOMAIN, name),
    };
    let domain = if domain == LEGACY_DOMAIN { DEFAULT_DOMAIN } else { domain };
    if domain == DEFAULT_DOMAIN && !path.contains('/') && !path.is_empty() {
        return (domain.to_owned(), format!("library/{path}"));
    }
    (domain.to_owned(), path.to_owned())
}

fn looks_like_host(first: &str) -> bool {
    first.contains(['.', ':']) || first == "localhost" || first.bytes().any(|b| b.is_ascii_uppercase())
}

/// The last colon starts a tag unless a slash follows it (then it belongs to a port).
fn split_tag(text: &str) -> (&str, Option<&str>) {
    match text.rsplit_once(':') {
        Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
        _ => (text, None),
    }
}

fn is_tag(tag: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    tag.len() <= MAX_TAG_BYTES
        && tag.bytes().next().is_some_and(word)
        && tag.bytes().all(|b| word(b) || b == b'.' || b == b'-')
}

fn is_domain(domain: &str) -> bool {
    let (host, port) = if let Some(rest) = domain.strip_prefix('[') {
        let Some((address, after)) = rest.split_once(']') else { return false };
        let v6 = !address.is_empty() && address.bytes().all(|b| b.is_ascii_hexdigit() || b == b':');
        match after.strip_prefix(':') {
            _ if !v6 => return false,
            Some(port) => return is_port(port),
            None => return after.is_empty(),
        }
    } else {
        match domain.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (domain, None),
        }
    };
    let label = |l: &str| {
        !l.is_empty()
            && !l.starts_with('-')
            && !l.ends_with('-')
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'-')
    };
    host.split('.').all(label) && port.is_none_or(is_port)
}

fn is_port(port: &str) -> bool {
    !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit())
}

/// `[a-z0-9]+` joined by one of `.`, `_`, `__` or any number of `-`.
fn is_path_component(component: &str) -> bool {
    let alnum = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    if !component.starts_with(alnum) || !component.ends_with(alnum) {
        return false;
    }
    component
        .split(alnum)
        .filter(|separator| !separator.is_empty())
        .all(|s| matches!(s, "." | "_" | "__") || s.bytes().all(|b| b == b'-'))
}
