//! Errors as containerd's CRI tells them.
//!
//! containerd gives a code only to errors of few kinds, and kubelet counts on that: of an error whose code is `UNKNOWN` it
//! takes the message as it stands, and looks for the words of `k8s.io/cri-api/pkg/errors` at its start.

use orlop_image::Error;
use orlop_remote as remote;
use tonic::{Code, Status};

use crate::status::ToStatus;

/// kubelet's word for a registry that cannot be reached.
const REGISTRY_UNAVAILABLE: &str = "RegistryUnavailable";

/// kubelet's word for an image that is not let in.
const SIGNATURE_FAILED: &str = "SignatureValidationFailed";

/// The status of a failed call.
pub(crate) fn cri_status(error: &Error) -> Status {
    let status = error.to_status();
    match status.code() {
        Code::NotFound | Code::AlreadyExists | Code::FailedPrecondition | Code::Cancelled => status,
        _ => unknown(&status, status.message().to_owned()),
    }
}

/// The status of a pull of `image` that failed.
pub(super) fn pull_status(image: &str, error: &Error) -> Status {
    let status = cri_status(error);
    let message = format!("pull {image:?}: {}", status.message());
    match word(error) {
        // Of any other code kubelet would see the code's name first, and not the word.
        Some(word) => unknown(&status, format!("{word}: {message}")),
        None => with_code(status.code(), &status, message),
    }
}

/// By which of kubelet's words it knows what was wrong, and says so in the pod's state.
fn word(error: &Error) -> Option<&'static str> {
    match error {
        Error::Refused(_) => Some(SIGNATURE_FAILED),
        error if is_unreachable(error) => Some(REGISTRY_UNAVAILABLE),
        _ => None,
    }
}

fn unknown(status: &Status, message: String) -> Status {
    with_code(Code::Unknown, status, message)
}

fn with_code(code: Code, status: &Status, message: String) -> Status {
    let details = status.details().to_vec().into();
    Status::with_details_and_metadata(code, message, details, status.metadata().clone())
}

fn is_unreachable(error: &Error) -> bool {
    use remote::Error as E;
    let Error::Remote(error) = error else { return false };
    match error.principal() {
        E::Dns { .. }
        | E::Connect { .. }
        | E::Tls { .. }
        | E::Timeout { .. }
        | E::Broken { .. }
        | E::Skipped { .. } => true,
        E::Status { status, .. } => *status >= 500,
        _ => false,
    }
}
