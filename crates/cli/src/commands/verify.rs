//! `orlop verify`: are the bytes sound, and would policy let the image in?

use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::Context;
use super::check::{self, Problem};
use super::pull::RegistryArgs;
use crate::args::Format;
use crate::client::pb;
use crate::error::{Class, CliError, Result, report};
use crate::output::{self, Table, short};
use crate::policy;

/// Options of `verify`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Every byte is hashed again. Then the store's policy and verifiers are asked, or the policy or keys given here.
Signatures (cosign's, and sigstore bundles) that are in the store are used first; only if they do not suffice is the
registry asked for more. Exit code 5 if something is wrong or would not be let in.

Examples:
  orlop verify registry.example.com/team/app:1.0
  orlop verify --key cosign.pub registry.example.com/team/app:1.0
  orlop verify --policy policy.toml --offline nginx:1.27 -o json")]
pub(crate) struct Args {
    /// Names, digests or image IDs
    #[arg(required = true, value_name = "NAME")]
    names: Vec<String>,
    /// A public key (PEM) that must have signed, instead of the store's policy; of several, any
    #[arg(long, value_name = "FILE")]
    key: Vec<PathBuf>,
    /// A policy file instead of the store's
    #[arg(long, value_name = "FILE", conflicts_with = "key")]
    policy: Option<PathBuf>,
    /// Only with the signatures that the store has
    #[arg(long)]
    offline: bool,
    #[command(flatten)]
    registry: RegistryArgs,
}

#[derive(Serialize)]
struct Report {
    schema: &'static str,
    ok: bool,
    problems: Vec<Problem>,
    images: Vec<Image>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Image {
    name: String,
    digest: String,
    accepted: bool,
    rule: Option<String>,
    verified_by: Vec<String>,
    signatures: Vec<Signature>,
    refused: Option<String>,
}

#[derive(Serialize)]
struct Signature {
    manifest: String,
    form: String,
    key: Option<String>,
    problem: Option<String>,
}

/// Runs `verify`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<ExitCode> {
    let policy = match &args.policy {
        Some(path) => Some(policy::read(path)?),
        None if !args.key.is_empty() => Some(policy::of_keys(&args.key)?),
        None => None,
    };
    let registry = if args.offline { None } else { Some(args.registry.to_api(context)?) };
    let (mut problems, mut total, mut images) = (Vec::new(), pb::CheckSummary::default(), Vec::new());
    // What is sound and would be let in: all that may go on, where names alone are printed.
    let mut good: Vec<String> = Vec::new();
    for name in &args.names {
        let (found, summary) = check::ask(context, true, name).await?;
        let is_sound = found.is_empty();
        problems.extend(found);
        total.records += summary.records;
        total.blobs += summary.blobs;
        total.blob_bytes += summary.blob_bytes;
        total.snapshots += summary.snapshots;
        let policy = policy.as_ref().map(policy::to_api);
        let request = pb::VerifyRequest { name: name.clone(), registry: registry.clone(), policy };
        let answer = context.clients.orlop().verify(request).await?.into_inner();
        let verdicts: Vec<Image> = answer.verdicts.into_iter().map(image).collect();
        good.extend(verdicts.iter().filter(|image| is_sound && image.accepted).map(|image| image.name.clone()));
        images.extend(verdicts);
    }
    let refused = images.iter().any(|image: &Image| !image.accepted);
    let ok = problems.is_empty() && !refused;
    if output::is_document(context.global.output) {
        output::document(context.global.output, &Report { schema: "orlop.verify/v1", ok, problems, images })?;
    } else if context.global.output == Format::Name {
        output::names(good.iter().map(String::as_str))?;
    } else {
        verdicts(context, &images)?;
        check::show(context, problems, &total, true)?;
    }
    let failure = if refused { "images were refused" } else { "problems were found" };
    Ok(if ok { ExitCode::SUCCESS } else { report(&CliError::new(Class::Verification, failure)) })
}

/// What the gate says, and the signatures that it looked at.
fn verdicts(context: &Context, images: &[Image]) -> Result<()> {
    let mut table = Table::new(&["NAME", "DIGEST", "VERDICT", "WHY"]);
    let mut signatures = Table::new(&["SIGNATURE", "OF", "FORM", "KEY", "PROBLEM"]);
    let mut found = false;
    for image in images {
        let verdict = if image.accepted { "accepted" } else { "refused" };
        table.row([image.name.clone(), short(&image.digest).to_owned(), verdict.to_owned(), why(image)]);
        for signature in &image.signatures {
            found = true;
            signatures.row([
                short(&signature.manifest).to_owned(),
                image.name.clone(),
                signature.form.clone(),
                signature.key.clone().unwrap_or_default(),
                signature.problem.clone().unwrap_or_default(),
            ]);
        }
    }
    table.print()?;
    if found {
        signatures.print()?;
    }
    for image in images.iter().filter(|i| !i.accepted) {
        context.say(image.refused.as_deref().unwrap_or_default());
    }
    Ok(())
}

fn why(image: &Image) -> String {
    match (&image.rule, image.verified_by.as_slice()) {
        (Some(rule), _) if !image.accepted => rule.clone(),
        (None, _) if !image.accepted => "a verifier objects".to_owned(),
        (None, []) => "no policy".to_owned(),
        (Some(rule), []) => format!("{rule} accepts it"),
        (_, by) => by.join(", "),
    }
}

fn image(verdict: pb::Verdict) -> Image {
    let set = |text: String| (!text.is_empty()).then_some(text);
    let refused = set(verdict.refused).map(|refused| match verdict.advice.as_str() {
        "" => refused,
        advice => format!("{refused}\n  hint: {advice}"),
    });
    let signature =
        |s: pb::Signature| Signature { manifest: s.manifest, form: s.form, key: set(s.key), problem: set(s.problem) };
    Image {
        name: verdict.name,
        digest: verdict.digest,
        accepted: refused.is_none(),
        rule: set(verdict.rule),
        verified_by: verdict.verified_by,
        signatures: verdict.signatures.into_iter().map(signature).collect(),
        refused,
    }
}
