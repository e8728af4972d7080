//! Which records a target gets.

use orlop_metadata::{Labels, Replacement};
use orlop_oci::Descriptor;

use super::Place;
use crate::labels::GC_EXPIRE;

/// containerd's name of an image in an archive.
const IMAGE_NAME: &str = "io.containerd.image.name";
/// The specification's; often only a tag.
const REF_NAME: &str = "org.opencontainers.image.ref.name";
/// On a record that goes with another one: that one's name.
const BACK_REF: &str = "containerd.io/gc.bref.image";

/// A further name, or how names that an archive gives are completed.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct NameRule {
    /// A name, or what stands before tag or digest.
    pub name: String,
    /// The name lacks tag and digest: an archive's names complete it or must begin with it.
    pub is_prefix: bool,
    /// An archive's full names may begin otherwise.
    pub allow_overwrite: bool,
    /// `name@digest` too.
    pub add_digest: bool,
    /// But not where there is another name.
    pub skip_named_digest: bool,
}

/// The records of a target that comes by itself.
pub(crate) fn records(place: &Place, target: &Descriptor) -> Vec<Replacement> {
    let own = (!place.name.is_empty()).then(|| put(place.name.clone(), target, place.labels.clone()));
    let further = place.rules.iter().filter(|rule| !rule.is_prefix || rule.add_digest).map(|rule| {
        let name = if rule.add_digest { digested(rule, target) } else { rule.name.clone() };
        put(name, target, further_labels(place))
    });
    own.into_iter().chain(further).collect()
}

/// The records of an image in an archive; its annotations say how it is called there.
pub(crate) fn archive_records(place: &Place, target: &Descriptor) -> Vec<Replacement> {
    let mut changes = Vec::new();
    for rule in place.rules.iter().filter(|rule| rule.is_prefix) {
        let name = archive_name(rule, target);
        let named = name.is_some();
        changes.extend(name.map(|name| put(name, target, further_labels(place))));
        if rule.add_digest && !(named && rule.skip_named_digest) {
            changes.push(put(digested(rule, target), target, further_labels(place)));
        }
    }
    changes
}

fn put(name: String, target: &Descriptor, labels: Labels) -> Replacement {
    let target = Descriptor { platform: None, data: None, urls: Vec::new(), ..target.clone() };
    Replacement { name, target, labels }
}

fn digested(rule: &NameRule, target: &Descriptor) -> String {
    format!("{}@{}", rule.name, target.digest)
}

/// A record beside a main one goes with it: it has expired already, and the main one keeps it.
fn further_labels(place: &Place) -> Labels {
    let mut labels = place.labels.clone();
    if !place.name.is_empty() {
        let now = jiff::Timestamp::now().strftime("%Y-%m-%dT%H:%M:%SZ").to_string();
        labels.insert(BACK_REF.to_owned(), place.name.clone());
        labels.insert(GC_EXPIRE.to_owned(), now);
    }
    labels
}

fn archive_name(rule: &NameRule, target: &Descriptor) -> Option<String> {
    if rule.name.is_empty() {
        return None;
    }
    let annotation = |key: &str| target.annotations.get(key).filter(|name| !name.is_empty());
    if let Some(full) = annotation(IMAGE_NAME) {
        // A full name counts as it stands or not at all.
        return complete(rule, full).filter(|name| name == full);
    }
    complete(rule, annotation(REF_NAME)?)
}

/// A tag is completed; a full name must begin with the rule's, unless the rule is only there for want of a better one.
fn complete(rule: &NameRule, name: &str) -> Option<String> {
    if !name.contains(['/', ':', '@']) {
        return Some(format!("{}:{name}", rule.name));
    }
    let rest = name.strip_prefix(&rule.name);
    let fits = rest.is_some_and(|rest| rest.is_empty() || rest.starts_with(['/', ':', '@']));
    (fits || rule.allow_overwrite).then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use orlop_oci::Digest;

    use super::*;

    fn target(annotations: &[(&str, &str)]) -> Descriptor {
        let mut target = Descriptor::new("application/vnd.oci.image.manifest.v1+json", Digest::of(b"x"), 1);
        target.annotations = annotations.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
        target
    }

    fn names(records: &[Replacement]) -> Vec<String> {
        records.iter().map(|record| record.name.clone()).collect()
    }

    fn rule(name: &str) -> NameRule {
        NameRule { name: name.into(), is_prefix: true, ..NameRule::default() }
    }

    #[test]
    fn names_of_an_archive_are_completed_checked_or_left_out() {
        let place = |rule: NameRule| Place { rules: vec![rule], ..Place::default() };
        let of = |rule: &NameRule, annotations: &[(&str, &str)]| {
            names(&archive_records(&place(rule.clone()), &target(annotations)))
        };
        let (strict, loose) = (rule("a.b/c"), NameRule { allow_overwrite: true, ..rule("import") });
        assert_eq!(of(&strict, &[(REF_NAME, "1.0")]), ["a.b/c:1.0"]);
        assert_eq!(of(&strict, &[(IMAGE_NAME, "a.b/c:2"), (REF_NAME, "9")]), ["a.b/c:2"]);
        assert_eq!(of(&strict, &[(IMAGE_NAME, "a.b/cd:2")]), [""; 0]);
        assert_eq!(of(&loose, &[(IMAGE_NAME, "a.b/cd:2")]), ["a.b/cd:2"]);
        assert_eq!(
            of(&loose, &[(IMAGE_NAME, "justatag"), (REF_NAME, "1")]),
            [""; 0],
            "a full name counts as it stands"
        );
        assert_eq!(of(&loose, &[]), [""; 0]);
        let digest = format!("import@{}", Digest::of(b"x"));
        let digests = NameRule { add_digest: true, ..loose };
        assert_eq!(of(&digests, &[]), std::slice::from_ref(&digest));
        assert_eq!(of(&digests, &[(REF_NAME, "1")]), ["import:1".to_owned(), digest]);
        let skipping = NameRule { skip_named_digest: true, ..digests };
        assert_eq!(of(&skipping, &[(REF_NAME, "1")]), ["import:1"]);
    }

    #[test]
    fn a_record_beside_a_main_one_goes_with_it() {
        let extra = NameRule { name: "a.b/c:2".into(), ..NameRule::default() };
        let place = Place { name: "a.b/c:1".into(), rules: vec![extra, rule("skipped")], ..Place::default() };
        let changes = records(&place, &target(&[]));
        assert_eq!(names(&changes), ["a.b/c:1", "a.b/c:2"]);
        let labels = &changes[1].labels;
        assert_eq!(labels[BACK_REF], "a.b/c:1");
        assert!(labels.contains_key(GC_EXPIRE));
    }
}
