//! What a server tells of its changes: a subscription, and each event in words ([`words`]).
//!
//! containerd says neither who did something nor what a record points at; the second is looked up right after the event
//! ([`Tracker`]), the first only Orlop's history knows. What was looked up and what is only inferred is marked as such.

mod tracker;
mod words;

use orlop_api::containerd::services::events::v1::SubscribeRequest;
use orlop_api::containerd::types::Envelope;
use tonic::Streaming;
pub(crate) use tracker::{Author, Found, Tracker};
pub(crate) use words::Event;

use crate::client::Clients;
use crate::error::{Class, CliError, Result};

/// Subscribes; comes back with the first event, for containerd says nothing before.
///
/// # Errors
/// If a filter is wrong or the server is gone.
pub(crate) async fn subscribe(clients: &Clients, filters: Vec<String>) -> Result<Streaming<Envelope>> {
    let answer = clients.events().subscribe(SubscribeRequest { filters }).await;
    Ok(answer
        .map_err(|status| {
            // containerd says what is wrong with a filter, and gives no code for it.
            let wrong = status.message().contains("parsing subscription filters");
            let failed = CliError::from(status);
            match wrong {
                true => CliError { class: Class::Usage, ..failed }.hint("a filter is like 'topic==\"/images/create\"'"),
                false => failed,
            }
        })?
        .into_inner())
}

/// containerd's filters for one namespace, or for all: each of `filters` is an alternative.
pub(crate) fn in_namespace(filters: &[String], namespace: Option<&str>) -> Vec<String> {
    let Some(namespace) = namespace else { return filters.to_vec() };
    let only = format!("namespace=={namespace:?}");
    if filters.is_empty() {
        return vec![only];
    }
    filters.iter().map(|f| if f.is_empty() { only.clone() } else { format!("{f},{only}") }).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_alternative_is_bound_to_the_namespace() {
        let filters = ["topic~=image".to_owned(), String::new()];
        assert_eq!(
            in_namespace(&filters, Some("k8s.io")),
            ["topic~=image,namespace==\"k8s.io\"", "namespace==\"k8s.io\""]
        );
        assert_eq!(in_namespace(&[], Some("a")), ["namespace==\"a\""]);
        assert_eq!(in_namespace(&filters, None), filters);
        assert!(in_namespace(&[], None).is_empty());
    }
}
