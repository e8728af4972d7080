//! `orlop history`: how an image was built, as its config says it, with what each step takes.

use orlop_graph::model::NodeId;
use orlop_lens::Documents;
use orlop_oci::{Digest, Platform, PlatformMatcher};
use serde::{Deserialize, Deserializer, Serialize};

use super::Context;
use crate::args::Format;
use crate::error::{Class, CliError, Result};
use crate::look::Look;
use crate::look::groups::{concerned, groups, search};
use crate::look::parts::{self, Layer, Part, Parts};
use crate::output::{self, Table, size};

/// Columns of a command that a table shows; `-o wide` shows all.
const SHOWN: usize = 60;

/// Options of `history`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
The newest step comes first. SIZE is what the step's layer takes unpacked, COMPRESSED what it takes as it was pulled; a step
that only sets something has no layer. Who changed a name and when `orlop log` tells.

Examples:
  orlop history alpine
  orlop history -o wide docker.io/calico/cni:v3.25.1
  orlop history --platform linux/arm64 nginx:1.27 -o json | jq '.steps[].createdBy'")]
pub(crate) struct Args {
    /// A name, or anything else that `orlop resolve` takes
    #[arg(value_name = "IMAGE")]
    name: String,
    /// Of an image of several platforms, this one [default: this machine's]
    #[arg(long, value_name = "P")]
    platform: Option<Platform>,
}

/// `orlop.history/v1` (docs/lens.md).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    schema: &'static str,
    image_id: String,
    manifest: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    platform: Option<String>,
    /// The newest first.
    steps: Vec<Step>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Step {
    #[serde(skip_serializing_if = "Option::is_none")]
    created: Option<String>,
    created_by: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    author: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    comment: String,
    /// Absent of a step that made none.
    #[serde(skip_serializing_if = "Option::is_none")]
    layer: Option<Made>,
}

/// The layer that a step made.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Made {
    digest: String,
    diff_id: Option<String>,
    compressed: u64,
    /// What it takes unpacked; absent if it is not, or nobody tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    unpacked: Option<u64>,
    here: bool,
}

/// What of a config is read here.
#[derive(Default, Deserialize)]
struct Config {
    #[serde(default, deserialize_with = "null_as_default")]
    history: Vec<Said>,
}

/// A step as the config says it.
#[derive(Default, Deserialize)]
struct Said {
    created: Option<String>,
    #[serde(default, deserialize_with = "null_as_default")]
    created_by: String,
    #[serde(default, deserialize_with = "null_as_default")]
    author: String,
    #[serde(default, deserialize_with = "null_as_default")]
    comment: String,
    #[serde(default, deserialize_with = "null_as_default")]
    empty_layer: bool,
}

fn null_as_default<'de, D: Deserializer<'de>, T: Default + Deserialize<'de>>(deserializer: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

/// Runs `history`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    let look = Look::around(context, &args.name).await?;
    let groups = groups(&look.model);
    let nodes: Vec<NodeId> =
        search(&look.model, &args.name, &context.store.namespace)?.into_iter().map(|found| found.node).collect();
    let concerned = concerned(&look.model, &groups, &nodes);
    let at = match concerned.len() {
        1 => *concerned.first().expect("there is one"),
        0 => return Err(no_image(args)),
        several => {
            let message = format!("{:?} is a part of {several} images", args.name);
            return Err(CliError::new(Class::Conflict, message)
                .hint(format!("name one; `orlop resolve {}` lists them", args.name)));
        }
    };
    let documents = parts::read(&look, groups[at].records.iter().copied()).await?;
    let snapshots = |model: &_| {
        let parts = Parts::new(model, &documents, &groups).of(at, &groups[at]);
        parts.iter().flat_map(Part::snapshots).map(|snapshot| snapshot.node).collect()
    };
    let look = look.measured(snapshots).await?;
    let targets = Parts::new(&look.model, &documents, &groups).of(at, &groups[at]);
    let document = document(args, &targets, &documents)?;
    if output::is_document(context.global.output) {
        return output::document(context.global.output, &document);
    }
    if context.global.output == Format::Name {
        let layers = document.steps.iter().filter_map(|step| step.layer.as_ref());
        return output::names(layers.map(|layer| layer.digest.as_str()));
    }
    table(&document, context.global.output).print()
}

fn no_image(args: &Args) -> CliError {
    CliError::new(Class::NotFound, format!("no image has a part in {:?}", args.name))
        .hint(format!("`orlop explain {}` says what it is", args.name))
}

/// The manifest that is meant: the one that was named, else the one of the platform.
fn chosen<'p>(args: &Args, targets: &'p [Part]) -> Result<&'p Part> {
    let all: Vec<&Part> = targets.iter().flat_map(Part::all).filter(|part| part.kind == "manifest").collect();
    let named = all.iter().find(|part| args.platform.is_none() && part.blob.digest.ends_with(args.name.trim()));
    if let (Some(part), true) = (named, args.name.len() > "sha256:".len()) {
        return Ok(part);
    }
    let matcher = args.platform.as_ref().map_or_else(PlatformMatcher::host, PlatformMatcher::only);
    let rank = |part: &Part| matcher.rank(&part.platform.as_ref()?.parse().ok()?);
    let best = all.iter().filter_map(|part| Some((rank(part)?, *part))).min_by_key(|(rank, _)| *rank);
    match (best, &all[..]) {
        (Some((_, part)), _) => Ok(part),
        (None, [only]) if args.platform.is_none() => Ok(only),
        _ => {
            let there: Vec<&str> = all.iter().filter_map(|part| part.platform.as_deref()).collect();
            let wanted = args.platform.as_ref().map_or_else(|| Platform::host().to_string(), ToString::to_string);
            let message = format!("{} has no manifest for {wanted}", args.name);
            Err(CliError::new(Class::NotFound, message).hint(match there.is_empty() {
                true => "none of its manifests is here; pull it again".to_owned(),
                false => format!("it has {}: give one with --platform", there.join(", ")),
            }))
        }
    }
}

fn document(args: &Args, targets: &[Part], documents: &Documents) -> Result<Document> {
    let part = chosen(args, targets)?;
    let config = part.config.as_ref().map(|config| config.digest.clone()).unwrap_or_default();
    let raw = config.parse::<Digest>().ok().and_then(|digest| documents.get(&digest).cloned());
    let Some(raw) = raw else {
        let message = format!("the config of {} ({config}) is not here or cannot be read", args.name);
        return Err(
            CliError::new(Class::NotFound, message).hint("pull the image again; `orlop doctor` finds such ones")
        );
    };
    let said: Config = serde_json::from_slice(&raw)
        .map_err(|error| CliError::new(Class::Failed, format!("the history in the config {config}: {error}")))?;
    Ok(Document {
        schema: "orlop.history/v1",
        image_id: config,
        manifest: part.blob.digest.clone(),
        platform: part.platform.clone(),
        steps: steps(said.history, &part.layers),
    })
}

/// Steps with their layers, the newest first. What made a layer may not be said; then the layer is a step by itself.
fn steps(said: Vec<Said>, layers: &[Layer]) -> Vec<Step> {
    let mut layers = layers.iter();
    let mut steps: Vec<Step> = Vec::new();
    for Said { created, created_by, author, comment, empty_layer } in said {
        let layer = if empty_layer { None } else { layers.next().map(made) };
        steps.push(Step { created, created_by, author, comment, layer });
    }
    steps.extend(layers.map(|layer| Step {
        created: None,
        created_by: String::new(),
        author: String::new(),
        comment: String::new(),
        layer: Some(made(layer)),
    }));
    steps.reverse();
    steps
}

fn made(layer: &Layer) -> Made {
    Made {
        digest: layer.blob.digest.clone(),
        diff_id: layer.diff_id.clone(),
        compressed: layer.blob.size,
        unpacked: layer.snapshots.iter().find_map(|snapshot| snapshot.size),
        here: layer.blob.here,
    }
}

fn table(document: &Document, format: Format) -> Table {
    let is_wide = format == Format::Wide;
    let mut table = Table::new(&["CREATED", "CREATED BY", "SIZE", "COMPRESSED", "LAYER", "COMMENT"]);
    for step in &document.steps {
        let (unpacked, compressed, digest) = match &step.layer {
            Some(layer) => {
                (layer.unpacked.map_or_else(|| "-".to_owned(), size), size(layer.compressed), &*layer.digest)
            }
            None => ("0 B".to_owned(), "0 B".to_owned(), "-"),
        };
        table.row([
            seconds(step.created.as_deref()),
            cut(&step.created_by, if is_wide { usize::MAX } else { SHOWN }),
            unpacked,
            compressed,
            if is_wide { digest.to_owned() } else { output::short(digest).to_owned() },
            cut(&step.comment, usize::MAX),
        ]);
    }
    table
}

/// A time to the second; what is no time as it stands.
fn seconds(time: Option<&str>) -> String {
    let Some(time) = time else { return "-".to_owned() };
    let parsed = time.parse::<jiff::Timestamp>().ok();
    let whole = parsed.and_then(|time| jiff::Timestamp::from_second(time.as_second()).ok());
    whole.map_or_else(|| time.to_owned(), |time| time.to_string())
}

/// One line of at most so many characters, without what a terminal would take for commands.
fn cut(text: &str, most: usize) -> String {
    let line: String = text.split_whitespace().collect::<Vec<_>>().join(" ").replace(char::is_control, "");
    match line.char_indices().nth(most) {
        Some((at, _)) => format!("{}…", &line[..at]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use super::{cut, seconds};

    #[test]
    fn a_step_is_one_line_that_a_terminal_shows_as_it_is() {
        assert_eq!(cut("RUN  apt-get \n\t install", usize::MAX), "RUN apt-get install");
        assert_eq!(cut("COPY \u{1b}[31mred", usize::MAX), "COPY [31mred");
        assert_eq!(cut("grün und", 4), "grün…");
        assert_eq!(cut("grün", 4), "grün");
    }

    #[test]
    fn times_are_told_to_the_second() {
        assert_eq!(seconds(Some("2026-01-02T03:04:05.678+01:00")), "2026-01-02T02:04:05Z");
        assert_eq!(seconds(Some("yesterday")), "yesterday");
        assert_eq!(seconds(None), "-");
    }
}
