//! `orlop content`: blobs by digest, in `ctr`'s words.

use clap::Subcommand;
use orlop_api::containerd::services::content::v1 as api;
use serde::Serialize;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::Context;
use crate::args::Format;
use crate::error::{Class, CliError, Result};
use crate::output::{self, Names, Table, size, time, time_short};
use crate::paint::plain;

/// Bytes a write message; well under the 16 MiB bound.
const CHUNK_BYTES: u64 = 1 << 20;

/// The subcommands.
#[derive(Debug, Subcommand)]
pub(crate) enum Content {
    /// List blobs
    Ls {
        /// containerd's filter syntax: digest, size, labels.KEY
        filter: Vec<String>,
    },
    /// Write a blob to standard output
    Get {
        /// The blob
        digest: String,
    },
    /// Read a blob from standard input
    Ingest {
        /// Names this write; the same name resumes it
        reference: String,
        /// Refuse anything else
        #[arg(long, value_name = "DIGEST")]
        expected_digest: Option<String>,
        /// Refuse another size
        #[arg(long, value_name = "BYTES", default_value_t = 0, hide_default_value = true)]
        expected_size: u64,
        /// KEY=VALUE; without one nothing keeps the blob beyond a day
        #[arg(long, value_name = "LABEL")]
        label: Vec<String>,
    },
    /// Take blobs out of this namespace; the bytes go with garbage collection
    Rm {
        /// The blobs
        #[arg(required = true)]
        digest: Vec<String>,
    },
    /// Set labels: KEY=VALUE; an empty value deletes
    Label {
        /// The blob
        digest: String,
        /// KEY=VALUE
        #[arg(required = true)]
        labels: Vec<String>,
    },
    /// List writes in progress
    Active,
    /// Drop a write in progress
    Abort {
        /// Its name
        reference: String,
    },
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Blob {
    digest: String,
    size: i64,
    created_at: String,
    updated_at: String,
    labels: std::collections::BTreeMap<String, String>,
}

#[derive(Serialize)]
struct Blobs {
    schema: &'static str,
    blobs: Vec<Blob>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Ingest {
    reference: String,
    offset: i64,
    total: i64,
    expected: String,
    started_at: String,
    updated_at: String,
}

#[derive(Serialize)]
struct Ingests {
    schema: &'static str,
    ingests: Vec<Ingest>,
}

/// `KEY=VALUE` pairs.
pub(crate) fn parse_labels(labels: &[String]) -> Result<std::collections::BTreeMap<String, String>> {
    labels
        .iter()
        .map(|label| match label.split_once('=') {
            Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
            _ => Err(CliError::new(Class::Usage, format!("label {label:?}: expected KEY=VALUE"))),
        })
        .collect()
}

/// A field mask that changes just these labels.
pub(crate) fn label_mask(labels: &std::collections::BTreeMap<String, String>) -> prost_types::FieldMask {
    prost_types::FieldMask { paths: labels.keys().map(|key| format!("labels.{key}")).collect() }
}

/// Runs `content`.
pub(crate) async fn run(context: &Context, command: Content) -> Result<()> {
    match command {
        Content::Ls { filter } => list(context, filter).await,
        Content::Get { digest } => get(context, digest).await,
        Content::Ingest { reference, expected_digest, expected_size, label } => {
            let labels = parse_labels(&label)?;
            ingest(context, reference, expected_digest.unwrap_or_default(), expected_size, labels).await
        }
        Content::Rm { digest } => remove(context, digest).await,
        Content::Label { digest, labels } => set_labels(context, digest, &labels).await,
        Content::Active => active(context).await,
        Content::Abort { reference } => {
            context.clients.content().abort(api::AbortRequest { r#ref: reference.clone() }).await?;
            Names::one_quietly(context.global.output, "orlop.content.abort/v1", reference)
        }
    }
}

async fn list(context: &Context, filters: Vec<String>) -> Result<()> {
    let mut stream = context.clients.content().list(api::ListContentRequest { filters }).await?.into_inner();
    let mut blobs = Vec::new();
    while let Some(page) = stream.message().await? {
        blobs.extend(page.info);
    }
    match context.global.output {
        Format::Name => output::names(blobs.iter().map(|b| b.digest.as_str())),
        Format::Json | Format::Yaml => {
            let blobs = blobs.into_iter().map(blob).collect();
            output::document(context.global.output, &Blobs { schema: "orlop.content/v1", blobs })
        }
        Format::Table | Format::Wide => {
            let mut table = Table::new(&["DIGEST", "SIZE", "CREATED", "LABELS"]);
            for b in blobs {
                let labels = join_labels(&b.labels);
                table.row([b.digest, size(b.size.max(0) as u64), time_short(b.created_at.as_ref()), labels]);
            }
            table.print()
        }
    }
}

#[derive(Serialize)]
struct Labelled {
    schema: &'static str,
    name: String,
    labels: std::collections::BTreeMap<String, String>,
}

/// The labels that a thing has now.
pub(crate) fn print_labels(
    context: &Context,
    schema: &'static str,
    name: String,
    labels: std::collections::BTreeMap<String, String>,
) -> Result<()> {
    match context.global.output {
        Format::Name => output::line(name),
        Format::Table | Format::Wide => output::line(join_labels(&labels)),
        format => output::document(format, &Labelled { schema, name, labels }),
    }
}

/// Sorted `k=v,k=v`, or a dash.
pub(crate) fn join_labels(labels: &std::collections::BTreeMap<String, String>) -> String {
    let pairs: Vec<String> = labels.iter().map(|(k, v)| plain(&format!("{k}={v}")).into_owned()).collect();
    if pairs.is_empty() { "-".to_owned() } else { pairs.join(",") }
}

fn blob(info: api::Info) -> Blob {
    Blob {
        digest: info.digest,
        size: info.size,
        created_at: time(info.created_at.as_ref()),
        updated_at: time(info.updated_at.as_ref()),
        labels: info.labels,
    }
}

async fn get(context: &Context, digest: String) -> Result<()> {
    let request = api::ReadContentRequest { digest, offset: 0, size: 0 };
    let mut stream = context.clients.content().read(request).await?.into_inner();
    let mut out = tokio::io::stdout();
    while let Some(part) = stream.message().await? {
        out.write_all(&part.data).await.map_err(|e| CliError::io("write to standard output", None, e))?;
    }
    out.flush().await.map_err(|e| CliError::io("write to standard output", None, e))
}

async fn ingest(
    context: &Context,
    reference: String,
    expected: String,
    total: u64,
    labels: std::collections::BTreeMap<String, String>,
) -> Result<()> {
    let (send, receive) = tokio::sync::mpsc::channel(4);
    let total = total as i64;
    tokio::spawn(async move {
        let mut stdin = tokio::io::stdin();
        let mut offset = 0;
        loop {
            let mut data = Vec::new();
            let n = (&mut stdin).take(CHUNK_BYTES).read_to_end(&mut data).await.unwrap_or(0);
            let last = n == 0;
            let action = if last { api::WriteAction::Commit } else { api::WriteAction::Write };
            let message = api::WriteContentRequest {
                action: action.into(),
                r#ref: reference.clone(),
                total,
                expected: expected.clone(),
                offset,
                data: data.into(),
                labels: if last { labels.clone() } else { Default::default() },
            };
            offset += n as i64;
            // The server closing first means that it answered with an error, which the caller reports.
            if send.send(message).await.is_err() || last {
                return;
            }
        }
    });
    let requests = tokio_stream::wrappers::ReceiverStream::new(receive);
    let mut stream = context.clients.content().write(requests).await?.into_inner();
    let mut digest = String::new();
    while let Some(answer) = stream.message().await? {
        digest = answer.digest;
    }
    Names::one(context.global.output, "orlop.content.ingest/v1", digest)
}

async fn remove(context: &Context, digests: Vec<String>) -> Result<()> {
    let mut removed = Names::new(context.global.output, "orlop.content.rm/v1");
    let worked = async {
        for digest in digests {
            context.clients.content().delete(api::DeleteContentRequest { digest: digest.clone() }).await?;
            removed.add(digest)?;
        }
        Ok(())
    }
    .await;
    removed.end(worked)
}

async fn set_labels(context: &Context, digest: String, labels: &[String]) -> Result<()> {
    let labels = parse_labels(labels)?;
    let update_mask = Some(label_mask(&labels));
    let info = api::Info { digest, labels, ..Default::default() };
    let answer =
        context.clients.content().update(api::UpdateRequest { info: Some(info), update_mask }).await?.into_inner();
    let api::Info { digest, labels, .. } = answer.info.unwrap_or_default();
    print_labels(context, "orlop.content.label/v1", digest, labels)
}

async fn active(context: &Context) -> Result<()> {
    let request = api::ListStatusesRequest { filters: Vec::new() };
    let statuses = context.clients.content().list_statuses(request).await?.into_inner().statuses;
    if output::is_document(context.global.output) {
        let ingests = statuses
            .into_iter()
            .map(|s| Ingest {
                started_at: time(s.started_at.as_ref()),
                updated_at: time(s.updated_at.as_ref()),
                reference: s.r#ref,
                offset: s.offset,
                total: s.total,
                expected: s.expected,
            })
            .collect();
        return output::document(context.global.output, &Ingests { schema: "orlop.content/v1", ingests });
    }
    if context.global.output == Format::Name {
        return output::names(statuses.iter().map(|status| status.r#ref.as_str()));
    }
    let mut table = Table::new(&["REF", "WRITTEN", "TOTAL", "UPDATED"]);
    for s in statuses {
        table.row([
            plain(&s.r#ref).into_owned(),
            size(s.offset.max(0) as u64),
            size(s.total.max(0) as u64),
            time_short(s.updated_at.as_ref()),
        ]);
    }
    table.print()
}
