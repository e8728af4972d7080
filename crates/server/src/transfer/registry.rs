//! The registry client of a transfer: as its resolver options say, with the client's credentials.

use std::sync::Arc;

use orlop_api::containerd::types::transfer as types;
use orlop_metadata::Scope;
use orlop_remote::{Client, ClientOptions, CredentialSource};
use tonic::Status;
use tonic::codegen::http::{HeaderMap, HeaderName, HeaderValue};

use super::credentials::Asked;
use crate::Server;

impl Server {
    pub(super) fn registry_client(&self, scope: &Scope, registry: &types::OciRegistry) -> Result<Client, Status> {
        let resolver = registry.resolver.clone().unwrap_or_default();
        let source = match resolver.auth_stream.as_str() {
            "" => None,
            stream => {
                let link = self.streams().get(&scope.namespace, stream)?;
                let source: Arc<dyn CredentialSource> = Arc::new(Asked::new(link, registry.reference.clone()));
                Some(source)
            }
        };
        Ok(Client::new(ClientOptions {
            hosts_dirs: Some(resolver.host_dir).filter(|dir| !dir.is_empty()).map(Into::into).into_iter().collect(),
            plain_http: resolver.default_scheme == "http",
            headers: headers(&resolver.headers)?,
            source,
            trace: self.trace_headers(),
            ..ClientOptions::default()
        }))
    }
}

fn headers(given: &std::collections::BTreeMap<String, String>) -> Result<HeaderMap, Status> {
    let mut headers = HeaderMap::new();
    for (name, value) in given {
        let refused = |_| Status::invalid_argument(format!("header {name:?} cannot be sent"));
        let parsed = HeaderName::try_from(name.as_str()).map_err(|_| refused(()))?;
        headers.append(parsed, HeaderValue::try_from(value.as_str()).map_err(|_| refused(()))?);
    }
    Ok(headers)
}
