//! `orlop namespaces`.

use std::collections::BTreeMap;

use clap::Subcommand;
use orlop_api::containerd::services::namespaces::v1 as api;
use serde::Serialize;

use super::Context;
use super::content::{join_labels, label_mask, parse_labels};
use crate::args::Format;
use crate::error::Result;
use crate::output::{self, Names, Table};

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Namespaces {
    /// List namespaces
    Ls,
    /// Make a namespace
    Create {
        /// Its name
        name: String,
        /// KEY=VALUE
        labels: Vec<String>,
    },
    /// Set labels: KEY=VALUE; an empty value deletes
    Label {
        /// Its name
        name: String,
        /// KEY=VALUE
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// Remove namespaces that are empty
    #[command(visible_alias = "remove")]
    Rm {
        /// Their names
        #[arg(required = true)]
        names: Vec<String>,
    },
}

#[derive(Serialize)]
struct Namespace {
    name: String,
    labels: BTreeMap<String, String>,
}

#[derive(Serialize)]
struct List {
    schema: &'static str,
    namespaces: Vec<Namespace>,
}

/// Runs `namespaces`.
pub(crate) async fn run(context: &Context, command: Namespaces) -> Result<()> {
    let mut client = context.clients.namespaces();
    match command {
        Namespaces::Ls => list(context).await,
        Namespaces::Create { name, labels } => {
            let namespace = api::Namespace { name: name.clone(), labels: parse_labels(&labels)? };
            client.create(api::CreateNamespaceRequest { namespace: Some(namespace) }).await?;
            Names::one_quietly(context.global.output, "orlop.namespaces.create/v1", name)
        }
        Namespaces::Label { name, labels } => {
            let labels = parse_labels(&labels)?;
            let update_mask = Some(label_mask(&labels));
            let namespace = Some(api::Namespace { name: name.clone(), labels });
            client.update(api::UpdateNamespaceRequest { namespace, update_mask }).await?;
            Names::one_quietly(context.global.output, "orlop.namespaces.label/v1", name)
        }
        Namespaces::Rm { names } => {
            let mut removed = Names::new(context.global.output, "orlop.namespaces.rm/v1");
            let worked = async {
                for name in names {
                    client.delete(api::DeleteNamespaceRequest { name: name.clone() }).await?;
                    removed.add(name)?;
                }
                Ok(())
            }
            .await;
            removed.end(worked)
        }
    }
}

async fn list(context: &Context) -> Result<()> {
    let request = api::ListNamespacesRequest { filter: String::new() };
    let namespaces = context.clients.namespaces().list(request).await?.into_inner().namespaces;
    match context.global.output {
        Format::Name => output::names(namespaces.iter().map(|n| n.name.as_str())),
        Format::Json | Format::Yaml => {
            let namespaces = namespaces.into_iter().map(|n| Namespace { name: n.name, labels: n.labels }).collect();
            output::document(context.global.output, &List { schema: "orlop.namespaces/v1", namespaces })
        }
        Format::Table | Format::Wide => {
            let mut table = Table::new(&["NAME", "LABELS"]);
            for n in namespaces {
                let labels = join_labels(&n.labels);
                table.row([n.name, labels]);
            }
            table.print()
        }
    }
}
