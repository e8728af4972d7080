//! `orlop leases`: what keeps objects while nothing else does.

use std::collections::BTreeMap;

use clap::Subcommand;
use orlop_api::containerd::services::leases::v1 as api;
use orlop_image::GC_EXPIRE;
use serde::Serialize;

use super::Context;
use super::content::{join_labels, parse_labels};
use crate::args::Format;
use crate::error::{Class, CliError, Result};
use crate::output::{self, Names, Table, time, time_short};
use crate::paint::plain;

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Leases {
    /// List leases
    Ls {
        /// containerd's filter syntax: id, labels.KEY
        filter: Vec<String>,
    },
    /// Make a lease; prints its name
    Create {
        /// Its name; one is chosen if none is given
        #[arg(long)]
        id: Option<String>,
        /// When it ends by itself, e.g. 24h or 30m; never if not given
        #[arg(long, value_name = "DURATION")]
        expires: Option<String>,
        /// KEY=VALUE
        labels: Vec<String>,
    },
    /// Delete leases; what only they kept goes with garbage collection
    #[command(visible_alias = "delete")]
    Rm {
        /// Their names
        #[arg(required = true)]
        ids: Vec<String>,
    },
    /// List what a lease holds
    Resources {
        /// Its name
        id: String,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Lease {
    id: String,
    created_at: String,
    labels: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct List {
    schema: &'static str,
    leases: Vec<Lease>,
}

#[derive(Serialize)]
struct Resources {
    schema: &'static str,
    resources: Vec<Held>,
}

/// What a lease holds.
#[derive(Serialize)]
struct Held {
    kind: String,
    name: String,
}

/// Runs `leases`.
pub(crate) async fn run(context: &Context, command: Leases) -> Result<()> {
    match command {
        Leases::Ls { filter } => list(context, filter).await,
        Leases::Create { id, expires, labels } => create(context, id, expires, &labels).await,
        Leases::Rm { ids } => {
            let mut removed = Names::new(context.global.output, "orlop.leases.rm/v1");
            let worked = async {
                for id in ids {
                    context.clients.leases().delete(api::DeleteRequest { id: id.clone(), sync: false }).await?;
                    removed.add(id)?;
                }
                Ok(())
            }
            .await;
            removed.end(worked)
        }
        Leases::Resources { id } => resources(context, id).await,
    }
}

async fn list(context: &Context, filters: Vec<String>) -> Result<()> {
    let leases = context.clients.leases().list(api::ListRequest { filters }).await?.into_inner().leases;
    match context.global.output {
        Format::Name => output::names(leases.iter().map(|l| l.id.as_str())),
        Format::Json | Format::Yaml => {
            let leases = leases
                .into_iter()
                .map(|l| Lease { created_at: time(l.created_at.as_ref()), id: l.id, labels: l.labels })
                .collect();
            output::document(context.global.output, &List { schema: "orlop.leases/v1", leases })
        }
        Format::Table | Format::Wide => {
            let mut table = Table::new(&["ID", "CREATED", "LABELS"]);
            for l in leases {
                let labels = join_labels(&l.labels);
                table.row([plain(&l.id).into_owned(), time_short(l.created_at.as_ref()), labels]);
            }
            table.print()
        }
    }
}

async fn create(context: &Context, id: Option<String>, expires: Option<String>, labels: &[String]) -> Result<()> {
    let mut labels: BTreeMap<String, String> = parse_labels(labels)?;
    if let Some(duration) = expires {
        let bad =
            |_| CliError::new(Class::Usage, format!("--expires {duration:?}: expected a duration such as 24h or 30m"));
        let span: jiff::SignedDuration = duration.parse().map_err(bad)?;
        let end = jiff::Timestamp::now()
            .checked_add(span)
            .map_err(|_| CliError::new(Class::Usage, format!("--expires {duration:?}: beyond the end of time")))?;
        labels.insert(GC_EXPIRE.to_owned(), end.to_string());
    }
    let request = api::CreateRequest { id: id.unwrap_or_default(), labels };
    let lease = context.clients.leases().create(request).await?.into_inner().lease.unwrap_or_default();
    Names::one(context.global.output, "orlop.leases.create/v1", lease.id)
}

async fn resources(context: &Context, id: String) -> Result<()> {
    let resources =
        context.clients.leases().list_resources(api::ListResourcesRequest { id }).await?.into_inner().resources;
    match context.global.output {
        Format::Name => output::names(resources.iter().map(|r| r.id.as_str())),
        Format::Table | Format::Wide => {
            let mut table = Table::new(&["KIND", "NAME"]);
            for r in resources {
                table.row([plain(&r.r#type), plain(&r.id)]);
            }
            table.print()
        }
        format => {
            let resources = resources.into_iter().map(|r| Held { kind: r.r#type, name: r.id }).collect();
            output::document(format, &Resources { schema: "orlop.leases.resources/v1", resources })
        }
    }
}
