//! Findings for people: a block for each class.

use orlop_graph::model::Class;

use super::{Examined, Found, words};
use crate::commands::Context;
use crate::look::words::abbreviated;
use crate::output::{count, size};
use crate::paint::{Painted, Tone, plain};

/// Where lines are broken.
const WIDTH: usize = 110;

/// Everything that was found.
pub(super) fn all(context: &Context, examined: &Examined) -> String {
    let mut blocks = Vec::new();
    for class in Class::ALL {
        let found: Vec<&Found> = examined.found.iter().filter(|found| found.finding.class == class).collect();
        if !found.is_empty() {
            blocks.push(block(context, examined, class, &found));
        }
    }
    if !examined.checked.is_empty() {
        let mut text = format!("orlop check finds {}\n", count(examined.checked.len() as u64, "problem"));
        for problem in &examined.checked {
            text.push_str(&format!(
                "  {}: {}: {}\n      {}\n",
                Tone::Bad.paint(&problem.class),
                problem.subject,
                problem.detail,
                problem.fix
            ));
        }
        blocks.push(text);
    }
    if blocks.is_empty() {
        let model = &examined.look.model;
        let rows = model.inventory();
        return format!(
            "{}: {}, {}, {}\n",
            sound(rows.gaps.is_empty()),
            count(rows.records.len() as u64, "record"),
            count(rows.blobs.len() as u64, "blob"),
            count(rows.snapshots.len() as u64, "snapshot"),
        );
    }
    blocks.join("\n")
}

/// Of what could not be read nobody can say that nothing is wrong with it.
fn sound(whole: bool) -> Painted<&'static str> {
    match whole {
        true => Tone::Good.paint("nothing is wrong"),
        false => Tone::Warning.paint("not everything could be read; nothing is wrong with the rest"),
    }
}

fn block(context: &Context, examined: &Examined, class: Class, found: &[&Found]) -> String {
    let model = &examined.look.model;
    let name = severity(class).paint(class.as_str());
    let mut text = format!("{name} ({}): {}\n", found.len(), words::title(class));
    field(&mut text, "cause", words::cause(class));
    let fix = match words::caution(class) {
        None => "safe: `orlop doctor --fix` mends it".to_owned(),
        Some(why) if matches!(class, Class::Partial | Class::Unmanaged) => format!("by the commands below: {why}"),
        Some(why) => format!("not by `--fix` alone, only with `--class {}`: {why}", class.as_str()),
    };
    field(&mut text, "mended", &fix);
    for found in found {
        let bytes = found.finding.frees.bytes();
        let gives = if bytes > 0 { format!("; gives back {}", size(bytes)) } else { String::new() };
        let detail = words::detail(model, found);
        let detail = if detail.is_empty() { detail } else { format!(": {detail}") };
        let subject = words::subject(model, found);
        text.push_str(&format!("  {}{detail}{gives}\n", abbreviated(&plain(&subject))));
        text.push_str(&format!("      {}\n", words::command(context, model, found)));
    }
    text
}

/// Red is what makes an image fail; the rest takes space or is untidy.
const fn severity(class: Class) -> Tone {
    match class {
        Class::Partial | Class::Damaged | Class::ZeroLength | Class::MissingDigest => Tone::Bad,
        _ => Tone::Warning,
    }
}

/// `  cause   some words …`, broken where the line ends.
fn field(text: &mut String, name: &str, words: &str) {
    let mut line = format!("  {name:<8}");
    let indent = line.len();
    for word in words.split(' ') {
        if line.len() + word.len() > WIDTH && line.len() > indent {
            text.push_str(line.trim_end());
            text.push('\n');
            line = " ".repeat(indent);
        }
        line.push_str(word);
        line.push(' ');
    }
    text.push_str(line.trim_end());
    text.push('\n');
}
