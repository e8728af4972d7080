//! Images as messages, made once for each picture of the catalog.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use orlop_api::rows::EncodedRows;
use orlop_api::runtime::v1 as pb;
use orlop_image::{CriImage, CriView};
use tonic::Status;

use crate::page::too_long;

/// The message of the newest picture.
#[derive(Default)]
pub(super) struct Listing {
    made: Mutex<Option<Made>>,
}

struct Made {
    view: Arc<CriView>,
    encoded: Bytes,
}

impl Listing {
    /// All images in one message.
    ///
    /// # Errors
    /// `RESOURCE_EXHAUSTED` if they are too many for that.
    pub(super) fn all(&self, view: &Arc<CriView>) -> Result<Bytes, Status> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.as_ref().filter(|made| Arc::ptr_eq(&made.view, view)) {
            return Ok(made.encoded.clone());
        }
        // What it replaces goes first: two of them are never there.
        *made = None;
        let encoded = encoded(view.images().iter())?;
        *made = Some(Made { view: view.clone(), encoded: encoded.clone() });
        Ok(encoded)
    }
}

/// Images in one message.
pub(super) fn encoded<'v>(images: impl Iterator<Item = &'v CriImage>) -> Result<Bytes, Status> {
    let mut rows = EncodedRows::default();
    for image in images {
        rows.push(&message(image)).map_err(|bytes| too_long("images", bytes, "use StreamImages"))?;
    }
    Ok(rows.freeze())
}

/// The text that a filter asks for; none: everything.
pub(super) fn wanted(filter: Option<pb::ImageFilter>) -> Option<String> {
    filter.and_then(|filter| filter.image).map(|image| image.image).filter(|text| !text.is_empty())
}

/// An image as CRI shows it.
pub(super) fn message(image: &CriImage) -> pb::Image {
    let (uid, username) = user(&image.gist.user);
    let id = image.gist.id.to_string();
    let texts = |names: &[Arc<str>]| names.iter().map(|name| name.to_string()).collect();
    pb::Image {
        repo_tags: texts(&image.repo_tags),
        repo_digests: texts(&image.repo_digests),
        size: image.gist.size,
        uid: uid.map(|value| pb::Int64Value { value }),
        username,
        spec: Some(pb::ImageSpec { image: id.clone(), ..pb::ImageSpec::default() }),
        pinned: !image.pinned.is_empty(),
        id,
    }
}

/// The number or the name of a config's user; its group does not count.
fn user(user: &str) -> (Option<i64>, String) {
    let name = user.split(':').next().unwrap_or_default();
    match name.parse() {
        Ok(uid) => (Some(uid), String::new()),
        Err(_) => (None, name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_user_is_a_number_or_a_name() {
        for (given, uid, name) in [
            ("", None, ""),
            ("0", Some(0), ""),
            ("65532:65532", Some(65532), ""),
            ("nobody", None, "nobody"),
            ("nobody:nogroup", None, "nobody"),
            (":5", None, ""),
            ("-1", Some(-1), ""),
            ("99999999999999999999", None, "99999999999999999999"),
        ] {
            assert_eq!(user(given), (uid, name.to_owned()), "{given:?}");
        }
    }
}
