//! Templates over the mounts before: `{{ mount 0 }}`, `{{ source 0 }}`, `{{ target 0 }}`, `{{ overlay 2 0 }}`.

use super::{Active, Wanted, bad};
use crate::Result;

/// Fills in source, target and options.
pub(super) fn format(mount: &mut Wanted, before: &[Active]) -> Result<()> {
    mount.source = filled(&mount.source, before)?;
    mount.target = filled(&mount.target, before)?;
    for option in &mut mount.options {
        *option = filled(option, before)?;
    }
    Ok(())
}

fn filled(text: &str, before: &[Active]) -> Result<String> {
    let (mut done, mut rest) = (String::new(), text);
    while let Some((literal, after)) = rest.split_once("{{") {
        let Some((action, after)) = after.split_once("}}") else {
            return Err(bad(format!("{text:?}: a template begins with {{{{ and does not end with }}}}")));
        };
        done.push_str(literal);
        done.push_str(&value(action, before)?);
        rest = after;
    }
    done.push_str(rest);
    Ok(done)
}

fn value(action: &str, before: &[Active]) -> Result<String> {
    let words: Vec<&str> = action.split_whitespace().collect();
    Ok(match words[..] {
        ["source", at] => one(at, before)?.mount.source.clone(),
        ["target", at] => one(at, before)?.mount.target.clone(),
        ["mount", at] => point(one(at, before)?),
        ["overlay", from, to] => range(from, to, before)?.into_iter().map(point).collect::<Vec<_>>().join(":"),
        _ => {
            let known = "source N, target N, mount N and overlay N N";
            return Err(bad(format!("template {action:?} is not known: expected {known}")));
        }
    })
}

fn point(active: &Active) -> String {
    active.point.display().to_string()
}

fn one<'a>(at: &str, before: &'a [Active]) -> Result<&'a Active> {
    let found = at.parse::<usize>().ok().and_then(|at| before.get(at));
    found.ok_or_else(|| bad(format!("template: there is no mount {at}, but {} before this one", before.len())))
}

/// From one to the other, both included, upwards or downwards.
fn range<'a>(from: &str, to: &str, before: &'a [Active]) -> Result<Vec<&'a Active>> {
    one(from, before)?;
    one(to, before)?;
    let (first, last): (usize, usize) = (from.parse().unwrap_or(0), to.parse().unwrap_or(0));
    Ok(if first > last { before[last..=first].iter().rev().collect() } else { before[first..=last].iter().collect() })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn templates_name_mounts_before() {
        let active = |at: usize| Active {
            mount: Wanted { source: format!("source{at}"), target: format!("target{at}"), ..Wanted::default() },
            point: format!("/m/{at}").into(),
        };
        let before = [active(0), active(1), active(2)];
        for (text, expected) in [
            ("plain { { }} text", Some("plain { { }} text")),
            ("{{ source 0 }}", Some("source0")),
            ("a{{target 1}}b{{mount 2}}c", Some("atarget1b/m/2c")),
            ("lowerdir={{ overlay 2 0 }}", Some("lowerdir=/m/2:/m/1:/m/0")),
            ("lowerdir={{ overlay 0 1 }}", Some("lowerdir=/m/0:/m/1")),
            ("{{ overlay 1 1 }}", Some("/m/1")),
            ("{{ mount 3 }}", None),
            ("{{ mount -1 }}", None),
            ("{{ overlay 0 3 }}", None),
            ("{{ mount }}", None),
            ("{{ printf 1 }}", None),
            ("{{ mount 0", None),
        ] {
            assert_eq!(filled(text, &before).ok().as_deref(), expected, "{text}");
        }
    }
}
