//! Images as messages, made once for each picture of the catalog.

use std::sync::{Arc, Mutex, PoisonError};

use orlop_api::runtime::v1 as pb;
use orlop_image::{CriImage, CriView};

/// The messages of the newest picture.
#[derive(Default)]
pub(super) struct Listing {
    made: Mutex<Option<Made>>,
}

struct Made {
    view: Arc<CriView>,
    images: Arc<[pb::Image]>,
}

impl Listing {
    /// The messages of all images.
    pub(super) fn all(&self, view: &Arc<CriView>) -> Arc<[pb::Image]> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(made) = made.as_ref().filter(|made| Arc::ptr_eq(&made.view, view)) {
            return made.images.clone();
        }
        let images: Arc<[pb::Image]> = view.images().iter().map(message).collect();
        *made = Some(Made { view: view.clone(), images: images.clone() });
        images
    }
}

/// What a filter lets through; none: everything.
pub(super) fn filtered(listing: &Listing, view: &Arc<CriView>, filter: Option<pb::ImageFilter>) -> Arc<[pb::Image]> {
    match filter.and_then(|filter| filter.image).map(|image| image.image).filter(|text| !text.is_empty()) {
        Some(text) => view.matching(&text).into_iter().map(message).collect(),
        None => listing.all(view),
    }
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
