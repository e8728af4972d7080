//! Whether the database and the bucket answer.

use std::time::Duration;

use async_trait::async_trait;
use orlop_registry::Health;

use crate::{Error, Shared};

/// How long each of the two may take to answer who asks for its health.
const PATIENCE: Duration = Duration::from_secs(3);

#[async_trait]
impl Health for Shared {
    async fn check(&self) -> Result<(), String> {
        let marker = self.bucket.marker();
        let database = tokio::time::timeout(PATIENCE, self.database.query("SELECT 1", &[]));
        let bucket = tokio::time::timeout(PATIENCE, self.bucket.size(&marker));
        let (database, bucket) = tokio::join!(database, bucket);
        let mut away = Vec::new();
        match database {
            Ok(Ok(_)) => {}
            Ok(Err(error)) => away.push(error.to_string()),
            Err(_) => away.push(Error::Pool("no answer".to_owned()).to_string()),
        }
        match bucket {
            Ok(Ok(Some(_))) => {}
            Ok(Ok(None)) => away.push(format!("the bucket has lost its object {marker}")),
            Ok(Err(error)) => away.push(error.to_string()),
            Err(_) => away.push("the bucket is not available: no answer".to_owned()),
        }
        if away.is_empty() { Ok(()) } else { Err(away.join("\n")) }
    }
}
