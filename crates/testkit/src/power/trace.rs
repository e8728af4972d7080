//! Lines of strace, called with `-f -y -xx -ttt -T`, as calls.
//!
//! With `-xx` every string and path is written in hexadecimal digits, so that no byte of it can be taken for syntax.

use std::collections::HashMap;

/// The options without which the lines cannot be read; every string has to be whole.
pub(super) const OPTIONS: [&str; 9] =
    ["-f", "-y", "-xx", "-ttt", "-T", "-s", "100000000", "-e", "trace=%file,%desc,sync"];

/// A call that has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Call {
    pub(super) name: String,
    /// As they are written.
    pub(super) args: Vec<String>,
    pub(super) result: i64,
    /// The number of the line in which it began.
    pub(super) began: usize,
    /// And of the one in which it ended.
    pub(super) ended: usize,
    /// When it ended, in microseconds since 1970.
    pub(super) at: u64,
    /// The whole, for messages.
    pub(super) text: String,
}

/// A descriptor among the arguments.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Descriptor {
    /// `None` is the current directory.
    pub(super) number: Option<i64>,
    /// What it is open on.
    pub(super) path: Vec<u8>,
}

/// The calls that ended, in the order in which they did, without those that failed. What is not a call is left out.
pub(super) fn calls(text: &str) -> Vec<Call> {
    let mut begun: HashMap<&str, (usize, &str)> = HashMap::new();
    let mut calls = Vec::new();
    for (number, line) in text.lines().enumerate() {
        let Some((thread, rest)) = line.split_once(' ') else { continue };
        let Some((time, rest)) = rest.trim_start().split_once(' ') else { continue };
        let Some(time) = micros(time) else { continue };
        if let Some(head) = rest.strip_suffix(" <unfinished ...>") {
            begun.insert(thread, (number, head));
        } else if let Some(resumed) = rest.strip_prefix("<... ") {
            let Some((began, head)) = begun.remove(thread) else { continue };
            let tail = resumed.split_once(" resumed>").map_or("", |(_, tail)| tail);
            let lasted = call((began, number), time, &format!("{head}{tail}"));
            calls.extend(lasted.map(|(call, _)| call));
        } else {
            let whole = call((number, number), time, rest);
            calls.extend(whole.map(|(call, lasted)| Call { at: call.at + lasted, ..call }));
        }
    }
    calls
}

/// Seconds with a fraction of six digits.
fn micros(text: &str) -> Option<u64> {
    let (seconds, fraction) = text.split_once('.').filter(|(_, fraction)| fraction.len() == 6)?;
    Some(seconds.parse::<u64>().ok()? * 1_000_000 + fraction.parse::<u64>().ok()?)
}

/// A call, and how long it took.
fn call((began, ended): (usize, usize), at: u64, text: &str) -> Option<(Call, u64)> {
    let (name, rest) = text.split_once('(')?;
    if !name.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'_') {
        return None;
    }
    let (args, after) = arguments(rest)?;
    let digits = after.trim_start().strip_prefix("= ")?;
    let end = digits.find(|c: char| !(c.is_ascii_digit() || c == '-')).unwrap_or(digits.len());
    let result: i64 = digits[..end].parse().ok()?;
    let lasted = after.rsplit_once('<').and_then(|(_, lasted)| micros(lasted.trim_end().strip_suffix('>')?));
    let text = text.chars().take(400).collect();
    let call = Call { name: name.to_owned(), args, result, began, ended, at, text };
    (result >= 0).then_some((call, lasted.unwrap_or(0)))
}

/// The arguments up to the bracket that ends them, and what comes after that.
fn arguments(text: &str) -> Option<(Vec<String>, &str)> {
    let (mut args, mut depth, mut quoted, mut start) = (Vec::new(), 0_u32, false, 0);
    for (at, c) in text.char_indices() {
        match c {
            '"' => quoted = !quoted,
            _ if quoted => {}
            '(' | '[' | '{' | '<' => depth += 1,
            ')' if depth == 0 => {
                let last = text[start..at].trim();
                args.extend((!last.is_empty()).then(|| last.to_owned()));
                return Some((args, &text[at + 1..]));
            }
            ')' | ']' | '}' | '>' => depth = depth.checked_sub(1)?,
            ',' if depth == 0 => {
                args.push(text[start..at].trim().to_owned());
                start = at + 1;
            }
            _ => {}
        }
    }
    None
}

impl Call {
    pub(super) fn arg(&self, at: usize) -> &str {
        self.args.get(at).map_or("", String::as_str)
    }

    /// A descriptor with its path.
    pub(super) fn descriptor(&self, at: usize) -> Option<Descriptor> {
        let (number, path) = self.arg(at).split_once('<')?;
        let number = match number {
            "AT_FDCWD" => None,
            number => Some(number.parse().ok()?),
        };
        Some(Descriptor { number, path: unhex(path.split('>').next()?)? })
    }

    /// A string.
    ///
    /// # Panics
    /// If it was cut short.
    pub(super) fn string(&self, at: usize) -> Option<Vec<u8>> {
        let (inner, after) = self.arg(at).strip_prefix('"')?.split_once('"')?;
        assert!(after.is_empty(), "a string was cut short: {}", self.text);
        unhex(inner)
    }

    /// A number, in octal digits if it begins with a zero.
    pub(super) fn number(&self, at: usize) -> Option<u64> {
        let text = self.arg(at);
        match text.strip_prefix('0') {
            Some(octal) if !octal.is_empty() => u64::from_str_radix(octal, 8).ok(),
            _ => text.parse().ok(),
        }
    }

    /// The strings of a vector of buffers, one after the other.
    pub(super) fn vector(&self, at: usize) -> Vec<u8> {
        let buffers = self.arg(at).split("iov_base=\"").skip(1);
        buffers.filter_map(|buffer| unhex(buffer.split('"').next()?)).flatten().collect()
    }

    /// Everything that names a file in it.
    pub(super) fn paths(&self) -> Vec<Vec<u8>> {
        let all = (0..self.args.len()).flat_map(|at| [self.string(at), self.descriptor(at).map(|found| found.path)]);
        all.flatten().collect()
    }
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    text.split("\\x").skip(1).map(|digits| u8::from_str_radix(digits.get(..2)?, 16).ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_put_together_and_come_in_the_order_in_which_they_ended() {
        let text = "\
10 1.000001 openat(AT_FDCWD<\\x2f>, \"\\x2f\\x61\\x2c\\x29\", O_RDWR|O_CREAT, 0644) = 7<\\x2f\\x61> <0.000100>
11 1.000002 fsync(7<\\x2f\\x61> <unfinished ...>
10  1.000003 pwrite64(7<\\x2f\\x61>, \"\\x00\\x22\", 2, 4096) = 2 <0.000001>
10  1.000004 mkdir(\"\\x2f\\x62\", 0755)         = -1 EEXIST (File exists) <0.000001>
11  1.000005 <... fsync resumed>)               = 0 <0.000003>
10 1.000006 utimensat(7<\\x2f>, NULL, [{tv_sec=1, tv_nsec=2} /* 1970-01-01T00:00:01+0000 */, {tv_sec=3, tv_nsec=4}], 0) = 0 <0.000001>
10 1.000007 writev(7<\\x2f\\x61>, [{iov_base=\"\\x01\", iov_len=1}, {iov_base=\"\\x02\\x03\", iov_len=2}], 2) = 3 <0.000001>
10 1.000008 +++ exited with 0 +++
";
        let calls = calls(text);
        let names: Vec<(&str, usize)> = calls.iter().map(|call| (call.name.as_str(), call.began)).collect();
        assert_eq!(names, [("openat", 0), ("pwrite64", 2), ("fsync", 1), ("utimensat", 5), ("writev", 6)]);
        assert_eq!(
            (calls[0].string(1).unwrap(), calls[0].number(3), calls[0].result),
            (b"/a,)".to_vec(), Some(0o644), 7)
        );
        let ends: Vec<u64> = calls.iter().map(|call| call.at - 1_000_000).collect();
        assert_eq!(ends, [101, 4, 5, 7, 8]);
        assert_eq!(calls[0].descriptor(0).unwrap(), Descriptor { number: None, path: b"/".to_vec() });
        assert_eq!(calls[1].string(1).unwrap(), b"\0\"");
        assert_eq!(calls[1].descriptor(0).unwrap().number, Some(7));
        assert_eq!((calls[3].args.len(), calls[4].vector(1)), (4, vec![1, 2, 3]));
        assert_eq!(calls[1].paths(), [b"/a".to_vec(), b"\0\"".to_vec()]);
    }
}
