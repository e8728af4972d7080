//! `orlop export`.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};

use clap::ValueEnum;
use serde::Serialize;
use tokio::io::{AsyncWrite, AsyncWriteExt};

use super::Context;
use crate::args::Format;
use crate::client::pb;
use crate::error::{Class, CliError, Result};
use crate::output::{self, size};

/// Options of `export`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Examples:
  orlop export alpine:3.20 -O alpine.tar
  orlop export --format docker app:1.0 | docker load")]
pub(crate) struct Args {
    /// Names, digests or image IDs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// Only this platform; may be given several times [default: all that are here]
    #[arg(long, value_name = "P")]
    platform: Vec<String>,
    /// Refuse if a platform of the index is not here
    #[arg(long, conflicts_with = "platform")]
    all_platforms: bool,
    /// Which archive to write
    #[arg(long, value_enum, default_value = "oci")]
    format: ArchiveFormat,
    /// The archive; - is standard output
    #[arg(short = 'O', long = "out", value_name = "FILE", default_value = "-")]
    out: PathBuf,
}

impl Args {
    /// Whether the archive goes where results are printed.
    pub(crate) fn is_to_standard_output(&self) -> bool {
        self.out.as_os_str() == "-"
    }
}

#[derive(Serialize)]
struct Exported {
    schema: &'static str,
    names: Vec<String>,
    file: PathBuf,
    bytes: u64,
}

/// Archive formats.
#[derive(Debug, Clone, Copy, ValueEnum)]
enum ArchiveFormat {
    /// OCI layout in a tar; docker load, ctr, skopeo and podman read it.
    Oci,
    /// docker-archive, one platform, as `docker save` made it before version 25.
    Docker,
}

/// Runs `export`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    let to_stdout = args.is_to_standard_output();
    if to_stdout && std::io::stdout().is_terminal() {
        return Err(CliError::new(Class::Usage, "an archive is not for a terminal").hint("give -O FILE, or pipe it"));
    }
    let request = pb::ExportRequest {
        names: args.names.clone(),
        platforms: args.platform.clone(),
        all_platforms: args.all_platforms,
        format: match args.format {
            ArchiveFormat::Oci => "oci".to_owned(),
            ArchiveFormat::Docker => "docker".to_owned(),
        },
    };
    let stream = context.clients.orlop().export(request).await?.into_inner();
    let written = if to_stdout {
        copy(stream, &mut tokio::io::stdout(), Path::new("standard output")).await?
    } else {
        to_file(stream, &args.out).await?
    };
    context.say(format!("wrote {}", size(written)));
    let (names, file) = (args.names.clone(), args.out.clone());
    match context.global.output {
        Format::Table | Format::Wide => Ok(()),
        Format::Name => output::names(names.iter().map(String::as_str)),
        format => output::document(format, &Exported { schema: "orlop.export/v1", names, file, bytes: written }),
    }
}

/// The archive appears under its name only when it is whole.
async fn to_file(stream: tonic::Streaming<pb::ExportResponse>, path: &Path) -> Result<u64> {
    let mut name = path.as_os_str().to_owned();
    name.push(".partial");
    let partial = PathBuf::from(name);
    let mut file = tokio::fs::File::create(&partial).await.map_err(CliError::at("create", &partial))?;
    let written = match copy(stream, &mut file, &partial).await {
        Ok(written) => written,
        Err(error) => {
            // The error that counts is the first one.
            let _ = tokio::fs::remove_file(&partial).await;
            return Err(error);
        }
    };
    file.sync_all().await.map_err(CliError::at("sync", &partial))?;
    tokio::fs::rename(&partial, path).await.map_err(CliError::at("rename to", path))?;
    Ok(written)
}

async fn copy(
    mut stream: tonic::Streaming<pb::ExportResponse>,
    out: &mut (impl AsyncWrite + Unpin),
    path: &Path,
) -> Result<u64> {
    let mut written = 0;
    while let Some(part) = stream.message().await? {
        out.write_all(&part.data).await.map_err(CliError::at("write", path))?;
        written += part.data.len() as u64;
    }
    out.flush().await.map_err(CliError::at("write", path))?;
    Ok(written)
}
