//! `orlop watch`: what happens in a store, as it happens, in words.

use std::collections::BTreeMap;
use std::io::Write;
use std::time::Duration;

use serde::Serialize;
use serde_json::Value;

use super::Context;
use crate::args::Format;
use crate::error::{Class, CliError, Result};
use crate::events::{self, Author, Event, Found, Tracker};
use crate::output::time;

/// Options of `watch`.
#[derive(Debug, clap::Args)]
#[command(after_help = "\
Filters are containerd's: topic, namespace, event.FIELD with ==, !=, ~=; several are alternatives.
Leases, and what is written by other programs while no daemon serves Orlop's store, give no events: of those only changes
of image records are seen.

Examples:
  orlop watch
  orlop watch --filter 'topic~=\"/images/\"' -A
  orlop watch --filter 'event.name~=\"calico\"' --for 5m -o json")]
pub(crate) struct Args {
    /// Only what passes: containerd's filter syntax
    #[arg(long, value_name = "F")]
    filter: Vec<String>,
    /// In all namespaces
    #[arg(short = 'A', long)]
    all_namespaces: bool,
    /// End after so many events
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..))]
    count: Option<u64>,
    /// End after so long: 30s, 5m, 1h
    #[arg(long = "for", value_name = "DURATION", value_parser = duration)]
    limit: Option<Duration>,
}

/// `30s`, `5m`, `1h`.
pub(super) fn duration(text: &str) -> std::result::Result<Duration, String> {
    let parsed = text.parse::<jiff::SignedDuration>().map_err(|e| e.to_string())?;
    Duration::try_from(parsed).map_err(|_| "expected a duration that is not negative".to_owned())
}

/// One line of JSON (docs/lens.md).
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Line<'a> {
    schema: &'static str,
    at: String,
    namespace: &'a str,
    topic: &'a str,
    what: &'a str,
    subject: &'a str,
    kind: Option<&'static str>,
    note: Option<&'static str>,
    target: &'a Option<String>,
    was: &'a Option<String>,
    author: &'a Option<Author>,
    message: &'a str,
    event: &'a BTreeMap<&'static str, Value>,
}

/// Runs `watch`.
pub(crate) async fn run(context: &Context, args: &Args) -> Result<()> {
    let ended = async {
        match args.limit {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    tokio::select! {
        watched = watch(context, args) => watched,
        () = ended => Ok(()),
    }
}

async fn watch(context: &Context, args: &Args) -> Result<()> {
    let namespace = (!args.all_namespaces).then_some(context.store.namespace.as_str());
    let filters = events::in_namespace(&args.filter, namespace);
    let mut stream = events::subscribe(&context.clients, filters).await?;
    let mut tracker = Tracker::new(context.clients.clone(), context.store.is_own());
    let mut left = args.count;
    while let Some(envelope) = stream.message().await? {
        let event = Event::of(envelope);
        let found = tracker.look_up(&event).await;
        if !print(context.global.output, &event, &found)? {
            return Ok(());
        }
        left = left.map(|left| left - 1);
        if left == Some(0) {
            return Ok(());
        }
    }
    Err(CliError::new(Class::Unavailable, format!("{} ended the stream of events", context.store))
        .hint("what it told before holds; look at the state anew, and watch again"))
}

/// Prints an event; whether anybody still reads.
fn print(format: Format, event: &Event, found: &Found) -> Result<bool> {
    let failed = |e: &dyn std::fmt::Display| CliError::new(Class::Failed, format!("render output: {e}"));
    let text = match format {
        Format::Json => serde_json::to_string(&line(event, found)).map_err(|e| failed(&e))? + "\n",
        Format::Yaml => format!("---\n{}", serde_norway::to_string(&line(event, found)).map_err(|e| failed(&e))?),
        Format::Name => format!("{}\n", event.subject),
        Format::Table | Format::Wide => words(event, found, format == Format::Wide),
    };
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(e) if e.kind() == std::io::ErrorKind::BrokenPipe => Ok(false),
        Err(e) => Err(CliError::io("write to standard output", None, e)),
        Ok(()) => Ok(true),
    }
}

fn line<'a>(event: &'a Event, found: &'a Found) -> Line<'a> {
    Line {
        schema: "orlop.watch/v1",
        at: time(event.at.as_ref()),
        namespace: &event.namespace,
        topic: &event.topic,
        what: event.what,
        subject: &event.subject,
        kind: event.kind.map(orlop_oci::Kind::as_str),
        note: event.hash_reference(),
        target: &found.target,
        was: &found.was,
        author: &found.author,
        message: &event.message,
        event: &event.fields,
    }
}

/// `12:03:11 k8s.io    image created       docker.io/library/alpine:3.20 → sha256:4bcff63911fc`
fn words(event: &Event, found: &Found, wide: bool) -> String {
    let cut = |text: &str| if wide { text.to_owned() } else { shortened(text) };
    let mut text = format!("{} {:<9} {:<19} {}", clock(event), event.namespace, event.what, event.subject);
    if let Some(target) = &found.target {
        text += &format!(" → {}", cut(target));
    }
    let mut notes: Vec<String> = event.details.iter().map(|detail| cut(detail)).collect();
    notes.extend(found.was.iter().map(|was| format!("was {}", cut(was))));
    notes.extend(event.hash_reference().map(str::to_owned));
    notes.extend(found.author.iter().map(|author| match author.inferred {
        true => format!("managed by {}, its label says", author.name),
        false => format!("by {}", author.name),
    }));
    if !notes.is_empty() {
        text += &format!("  ({})", notes.join("; "));
    }
    // What others put into names must not move the cursor or the line.
    text.retain(|c| !c.is_control());
    text.push('\n');
    text
}

/// The time of day here, as logs have it.
fn clock(event: &Event) -> String {
    let at = event.at.as_ref().and_then(|at| jiff::Timestamp::new(at.seconds, at.nanos).ok()).unwrap_or_default();
    at.to_zoned_datetime(jiff::tz::TimeZone::system()).strftime("%H:%M:%S").to_string()
}

/// Digests within a text, cut to twelve digits.
fn shortened(text: &str) -> String {
    const SHOWN: usize = 12;
    let mut parts = text.split("sha256:");
    let mut short = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        let digits = part.bytes().take_while(u8::is_ascii_hexdigit).count();
        let cut = if digits > SHOWN { SHOWN } else { digits };
        short += &format!("sha256:{}{}", &part[..cut], &part[digits..]);
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_cut_wherever_they_are() {
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(shortened(&format!("on {digest}, in x")), "on sha256:aaaaaaaaaaaa, in x");
        assert_eq!(shortened("sha256:ab x"), "sha256:ab x");
        assert_eq!(shortened("none"), "none");
    }

    #[test]
    fn a_line_says_who_what_and_where_to() {
        let event = Event {
            namespace: "k8s.io".into(),
            what: "image updated",
            subject: "docker.io/library/a:1\u{1b}[2J".into(),
            ..Event::default()
        };
        let author = Some(Author { name: "orlop tag".into(), inferred: false });
        let found = Found { target: Some("sha256:0123456789abcdef".into()), was: Some("sha256:ff".into()), author };
        let text = words(&event, &found, false);
        let rest = text.split_once(' ').unwrap().1;
        assert_eq!(
            rest,
            "k8s.io    image updated       docker.io/library/a:1[2J → sha256:0123456789ab  (was sha256:ff; by orlop tag)\n"
        );
        assert!(words(&event, &found, true).contains("sha256:0123456789abcdef"));
    }

    #[test]
    fn durations_are_read_as_people_write_them() {
        assert_eq!(duration("90s").unwrap(), Duration::from_secs(90));
        assert_eq!(duration("1h 30m").unwrap(), Duration::from_secs(5400));
        assert!(duration("-1s").is_err() && duration("soon").is_err());
    }
}
