//! Escapes that were possible somewhere, by the number under which they are known: what an archive must have in it for them.
//!
//! Each says what was wrong in the program that had it. Where a number is about something other than a layer (a race with a
//! running container, a mount), the layer is what would have prepared it.

use orlop_oci::Compression;

use super::{Case, Layer};
use crate::compress;
use crate::tar::{Entry, Header, Kind, MTIME, SIZE, Style, TarBuilder, tar};

/// Every known case, aimed at the directory `outside`.
pub(super) fn known(outside: &str) -> Vec<Case> {
    [containers(outside), go_and_rust(outside), scripts(outside), tools(outside), kernel(outside)].concat()
}

fn up(outside: &str) -> String {
    format!("{}{outside}", "../".repeat(40))
}

/// Docker, containerd, runc, podman and buildah, umoci, Kubernetes.
fn containers(outside: &str) -> Vec<Case> {
    let up = up(outside);
    vec![
        // Links of an image were followed on the host.
        Case::contained("CVE-2014-6407: a symbolic and a hard link lead out, and are written through").layer(&[
            Entry::symlink("s", outside),
            Entry::file("s/victim", "evil"),
            Entry::hardlink("h", format!("{outside}/victim")),
            Entry::file("h", "evil"),
        ]),
        Case::contained("CVE-2014-9356: an absolute link, then a file below it")
            .layer(&[Entry::symlink("abs", format!("{outside}/sub")), Entry::file("abs/victim", "evil")]),
        // The program for xz was run, and found in the layer's own tree.
        Case::refused("CVE-2014-9357: a layer packed with xz")
            .packed(Layer::broken([&b"\xfd7zXZ\0\0\x04"[..], &[0; 600]].concat(), Compression::Gzip)),
        Case::contained("CVE-2015-3627: a way in through a descriptor that is open, by /proc").layer(&[
            Entry::symlink("fd", "/proc/self/fd"),
            Entry::file("fd/3/evil", "x"),
            Entry::symlink("cwd", "/proc/self/cwd"),
            Entry::file("cwd/evil", "x"),
        ]),
        // A directory was checked, then replaced by a link.
        Case::contained("CVE-2018-15664: a directory becomes a link between two files").layer(&[
            Entry::dir("d"),
            Entry::file("d/one", "x"),
            Entry::symlink("d", outside),
            Entry::file("d/victim", "evil"),
            Entry::dir("d"),
            Entry::file("d/two", "x"),
        ]),
        Case::contained("CVE-2019-1002101: a link to the parent, and one below it").layer(&[
            Entry::symlink("twist", ".."),
            Entry::symlink("twist/further", &up),
            Entry::file("twist/further/victim", "evil"),
        ]),
        Case::contained("CVE-2019-11246: a link whose own name climbs").layer(&[
            Entry::dir("a"),
            Entry::symlink("a/../../link", outside),
            Entry::file("link/victim", "evil"),
        ]),
        Case::contained("CVE-2019-11249: a link to a directory that a link has made").layer(&[
            Entry::symlink("one", "two"),
            Entry::symlink("two", outside),
            Entry::file("one/victim", "evil"),
        ]),
        Case::contained("CVE-2019-5736: a link to the program that unpacks").layer(&[
            Entry::symlink("exe", "/proc/self/exe"),
            Entry::file("exe", "evil"),
            Entry::file("exe/x", "evil"),
        ]),
        Case::contained("CVE-2020-10696: a link in a lower layer, content below it in the next")
            .layer(&[Entry::symlink("work", outside)])
            .layer(&[Entry::dir("work/sub").mode(0o777), Entry::file("work/victim", "evil")]),
        // Unpacking waited for ever for a part that had failed.
        Case::refused("CVE-2021-20291: a packed layer that is damaged in the middle").packed(Layer::broken(
            {
                let mut bytes = compress::gzip(&tar(&[Entry::file("f", crate::image::noise(1, 40_000))]));
                let middle = bytes.len() / 2;
                bytes[middle..middle + 64].fill(0xff);
                bytes
            },
            Compression::Gzip,
        )),
        Case::contained("CVE-2021-29136: the root of a layer is a link").layer(&[
            Entry::symlink(".", outside),
            Entry::file("./victim", "evil"),
            Entry::dir("sub").mode(0o777),
        ]),
        Case::contained("CVE-2021-30465: links that point at each other's place").layer(&[
            Entry::symlink("a", format!("b/..{outside}")),
            Entry::symlink("b", "/"),
            Entry::file("a/victim", "evil"),
            Entry::symlink("b", outside),
            Entry::file("a/victim", "evil"),
        ]),
        Case::contained("CVE-2021-32760: mode and owner by a hard link to a link that leads out").layer(&[
            Entry::symlink("s", format!("{outside}/victim")),
            Entry::hardlink("h", "s").mode(0o4777).owner(1000, 1000).mtime(1, 1),
        ]),
        Case::contained("CVE-2021-41089: the mode of a directory that is a link")
            .layer(&[Entry::symlink("d", format!("{outside}/sub"))])
            .layer(&[Entry::dir("d").mode(0o777).owner(1000, 1000).mtime(1, 1)]),
        Case::applies("CVE-2021-41091: files with the set-user-ID bit in directories open to all")
            .layer(&[Entry::dir("bin").mode(0o777), Entry::file("bin/su", "x").mode(0o4755)])
            .present(&["bin/su"]),
        Case::contained("CVE-2024-21626: the working directory of whoever unpacks")
            .layer(&[Entry::symlink("w", "/proc/self/fd/7"), Entry::file(format!("w{up}/victim"), "evil")]),
        Case::contained("CVE-2025-47290: two layers, one makes a link where the other writes")
            .layer(&[Entry::dir("var"), Entry::dir("var/lib")])
            .layer(&[Entry::symlink("var/lib", outside)])
            .layer(&[Entry::file("var/lib/victim", "evil"), Entry::dir("var/lib/sub").mode(0o777)]),
    ]
}

/// The libraries of Go and Rust.
fn go_and_rust(outside: &str) -> Vec<Case> {
    let hidden = tar(&[Entry::symlink("hidden", outside), Entry::file("hidden/victim", "evil")]);
    let hidden = &hidden[..hidden.len() - 1024];
    let record = |key: &str, value: &str| (key.to_owned(), value.as_bytes().to_vec());
    let mut smuggled = TarBuilder::new();
    smuggled.pax_header(b'x', &[record("size", &hidden.len().to_string())]);
    smuggled.header(Header::new(b'0').name(b"nested.tar").octal_or_zero(SIZE, 0)).data(hidden);
    smuggled.push(&Entry::file("after", "x"));
    let mut many = Vec::new();
    (0..6).for_each(|i| many.push(record(&format!("comment.{i}"), &"x".repeat(300 << 10))));
    let mut map = b"600000\n".to_vec();
    map.extend(b"0\n0\n".repeat(600_000));
    map.resize(map.len().next_multiple_of(512), 0);
    let sparse = Entry::file("f", map).pax("GNU.sparse.major", "1").pax("GNU.sparse.minor", "0");
    vec![
        Case::contained("CVE-2018-20990: a hard link to a file behind a link, then content for it").layer(&[
            Entry::symlink("dir", outside),
            Entry::hardlink("file", "dir/victim"),
            Entry::file("file", "evil"),
        ]),
        Case::contained("CVE-2021-38511: a directory below a link that leads out").layer(&[
            Entry::symlink("link", outside),
            Entry::dir("link/new"),
            Entry::dir("link/new/deep"),
        ]),
        Case::refused("CVE-2022-2879: headers of an entry without end")
            .tar(&TarBuilder::new().pax_header(b'x', &many).push(&Entry::file("f", "x")).finish()),
        Case::refused("CVE-2025-58183: a sparse map with more regions than any file has")
            .layer(&[sparse.pax("GNU.sparse.name", "f").pax("GNU.sparse.realsize", "1")]),
        // Whoever takes the header's size sees the entries within the file as entries of the layer.
        Case::applies("CVE-2025-62518: a size in PAX that the header contradicts, with entries in the content")
            .tar(&smuggled.finish())
            .present(&["nested.tar", "after"])
            .absent(&["hidden"]),
    ]
}

/// The libraries of Node and Python.
fn scripts(outside: &str) -> Vec<Case> {
    let up = up(outside);
    // A chain whose expansion is longer than any path: what gives up on the way must not go on without looking.
    let step = "d".repeat(240);
    let mut chain = vec![Entry::dir(&step)];
    for at in 0..16 {
        let link = char::from(b'a' + at).to_string();
        let target = format!("{step}/../{step}");
        chain.push(Entry::symlink(&link, target));
    }
    let long: String = (0..16).map(|at| format!("{}/../", char::from(b'a' + at))).collect();
    chain.push(Entry::symlink("escape", format!("{long}..{}", &up)));
    chain.push(Entry::file("escape/victim", "evil"));
    chain.push(Entry::hardlink("flaglink", "escape/victim"));
    chain.push(Entry::file("flaglink", "evil"));
    let raw_pax = |body: &[u8]| {
        let mut out = TarBuilder::new();
        out.header(Header::new(b'x').name(b"pax").octal_or_zero(SIZE, body.len() as u64)).data(body);
        out.push(&Entry::file("f", "x")).finish()
    };
    let mut negative = TarBuilder::new();
    negative.header(Header::new(b'0').name(b"f").base256(SIZE, -1024)).push(&Entry::file("g", "x"));
    vec![
        Case::contained("CVE-2007-4559: names with dots and from the root")
            .layer(&[Entry::file(format!("{outside}/evil"), "x"), Entry::file(format!("{up}/evil"), "x")]),
        Case::contained("CVE-2018-20834: a hard link to a file outside, then content for it").layer(&[
            Entry::hardlink("l", &up),
            Entry::hardlink("v", format!("{up}/victim")),
            Entry::file("v", "evil"),
        ]),
        Case::refused("CVE-2019-20907: a PAX record of length zero").tar(&raw_pax(b"0 path=x\n")),
        Case::contained("CVE-2021-32803: a directory is known, becomes a link, and is used again").layer(&[
            Entry::dir("cached"),
            Entry::file("cached/a", "x"),
            Entry::symlink("cached", outside),
            Entry::dir("cached/sub").mode(0o777),
            Entry::file("cached/sub/victim", "evil"),
        ]),
        Case::contained("CVE-2021-32804: a name from the root after many slashes").layer(&[
            Entry::file(format!("////////{outside}/evil"), "x"),
            Entry::file(format!("//../..{up}/evil"), "x"),
        ]),
        Case::applies("CVE-2021-37701: a backslash is a letter")
            .layer(&[Entry::symlink("a\\b", outside), Entry::file("a/b/victim", "x"), Entry::file("a\\c", "x")])
            .present(&["a/b/victim"]),
        Case::applies("CVE-2021-37712: names that some file systems take for the same")
            .layer(&[
                Entry::symlink("FOO", outside),
                Entry::file("foo/victim", "x"),
                Entry::symlink("caf\u{e9}", outside),
                Entry::file("cafe\u{301}/victim", "x"),
                Entry::symlink("ﬁ", outside),
                Entry::file("fi/victim", "x"),
            ])
            .present(&["FOO", "foo/victim", "fi/victim"]),
        Case::contained("CVE-2024-12718: time and mode of a directory outside").layer(&[
            Entry::symlink("d", format!("{outside}/sub")),
            Entry::dir("d/").mode(0o777).mtime(1, 1),
            Entry::dir(format!("x/../d/../{up}/sub")).mode(0o777).mtime(1, 1),
        ]),
        Case::contained("CVE-2024-28863: directories nearly as deep as a path can name")
            .layer(&[Entry::file(format!("{}f", "d/".repeat(1_900)), "x")]),
        Case::contained("CVE-2025-4138: a link that leads out, under a name that hides it").layer(&[
            Entry::dir("a/b"),
            Entry::symlink("a/b/../b/l", &up),
            Entry::file("a/b/l/victim", "evil"),
        ]),
        Case::contained("CVE-2025-4330: a hard link whose target is found from elsewhere than its own directory")
            .layer(&[
                Entry::dir("in"),
                Entry::symlink("in/s", format!("../{up}/victim")),
                Entry::hardlink("out", "in/s"),
                Entry::file("out", "evil"),
            ]),
        Case::contained("CVE-2025-4517: a chain of links longer than a path may be").layer(&chain),
        Case::refused("CVE-2025-8194: a size below zero").tar(&negative.finish()),
    ]
}

/// Tar programs and libraries in C.
fn tools(outside: &str) -> Vec<Case> {
    let up = up(outside);
    let names = format!("Rename f to {up}/evil\nSymlink {outside} to l\n");
    let mut blanks = TarBuilder::new();
    blanks.header(Header::new(0).name(b"f").octal_or_zero(SIZE, 1).set(MTIME, b"            ")).data(b"x");
    let mut gnu = TarBuilder::with_style(Style::Gnu);
    gnu.header(Header::new(b'K').name(b"././@LongLink").octal_or_zero(SIZE, up.len() as u64).gnu()).data(up.as_bytes());
    gnu.header(Header::new(b'L').name(b"././@LongLink").octal_or_zero(SIZE, 1).gnu()).data(b"l");
    gnu.header(Header::new(b'2').name(b"harmless").gnu());
    gnu.push(&Entry::file("l/victim", "evil"));
    let acl = [
        2, 0, 0, 0, 1, 0, 7, 0, 0xff, 0xff, 0xff, 0xff, 4, 0, 7, 0, 0xff, 0xff, 0xff, 0xff, 32, 0, 7, 0, 0xff, 0xff,
        0xff, 0xff,
    ];
    vec![
        Case::contained("CVE-2001-1267: dots in the middle of a name")
            .layer(&[Entry::file(format!("a/../{up}/evil"), "x")]),
        Case::contained("CVE-2006-6097: an entry of names, with a link in it")
            .layer(&[Entry::new("names", Kind::Other(b'N', names.into_bytes())), Entry::file("l/victim", "evil")]),
        Case::contained("CVE-2007-4131: dots at the end of a name").layer(&[
            Entry::symlink("a", outside),
            Entry::dir("a/sub/.."),
            Entry::file("a/sub/../victim", "evil"),
        ]),
        Case::contained("CVE-2011-5325: a link, then a file of its name, then one below").layer(&[
            Entry::symlink("l", outside),
            Entry::file("l", "x"),
            Entry::file("l/victim", "evil"),
        ]),
        Case::contained("CVE-2016-6321: a name of which a part is cut")
            .layer(&[Entry::file(format!("usr/../{up}/victim"), "evil")]),
        Case::contained("CVE-2021-23177: a list of rights on a link").layer(&[Entry::symlink(
            "l",
            format!("{outside}/victim"),
        )
        .xattr("system.posix_acl_access", acl)]),
        Case::contained("CVE-2021-31566: attributes and times of a link, set after its directory is complete").layer(
            &[
                Entry::symlink("l", format!("{outside}/sub")).mtime(1, 1).owner(1000, 1000),
                Entry::hardlink("k", "l").mtime(2, 2).owner(1001, 1001).mode(0o777).xattr("trusted.evil", "1"),
            ],
        ),
        Case::contained("CVE-2022-48303: a time of blanks alone").tar(&blanks.finish()),
        Case::refused("CVE-2023-39804: an attribute whose name is as long as a header")
            .layer(&[Entry::file("f", "x").pax(&format!("SCHILY.xattr.user.{}", "n".repeat(200_000)), "v")]),
        Case::contained("CVE-2025-45582: a link from one archive, content below it from the next")
            .layer(&[Entry::symlink("x", &up)])
            .layer(&[Entry::file("x/victim", "evil")]),
        Case::contained("long names of GNU tar: a link in two parts").tar(&gnu.finish()),
    ]
}

/// What the kernel takes a meaning from.
fn kernel(outside: &str) -> Vec<Case> {
    let marked = |name, key: &str, value: &str| {
        Case::applies(name)
            .layer(&[Entry::dir("lower"), Entry::file("lower/secret", "s"), Entry::file("d/kept", "below")])
            .layer(&[Entry::dir("d").xattr(key, value), Entry::file("d/new", "above")])
            .present(&["d/new", "lower/secret", "d/kept"])
    };
    vec![
        marked("CVE-2023-2640: an overlay mark for the kernel", "trusted.overlay.opaque", "y"),
        marked("CVE-2023-32629: an overlay redirect to another directory", "trusted.overlay.redirect", "/lower"),
        marked("CVE-2023-0386: an overlay mark that users may set", "user.overlay.opaque", "y"),
        Case::contained("CVE-2021-3493: capabilities on a link to a file outside").layer(&[Entry::symlink(
            "l",
            format!("{outside}/victim"),
        )
        .xattr("security.capability", super::CAPABILITY)]),
        Case::applies("capabilities and set-user-ID on files of the layer stay with it")
            .layer(&[Entry::file("ping", "x").mode(0o4755).xattr("security.capability", super::CAPABILITY)])
            .present(&["ping"]),
        Case::contained("a device of the disk, and a way to write to it").layer(&[
            Entry::new("disk", Kind::Block(8, 0)).mode(0o666),
            Entry::file("disk", "evil"),
            Entry::new("mem", Kind::Char(1, 1)).mode(0o666),
            Entry::hardlink("mem2", "mem"),
            Entry::file("mem2", "evil"),
        ]),
    ]
}
