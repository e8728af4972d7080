//! Layers that real tools write and that are easy to get wrong.

use orlop_oci::Compression;

use super::{Case, Layer};
use crate::compress;
use crate::tar::{Entry, Header, Kind, MTIME, NAME, SIZE, Style, TarBuilder, UID, tar};

/// Every awkward case.
pub fn awkward() -> Vec<Case> {
    [kinds(), formats(), packings(), whiteouts(), replacements(), implied(), links()].concat()
}

/// `security.capability` of version 2: CAP_NET_BIND_SERVICE, effective and permitted.
pub const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

fn kinds() -> Vec<Case> {
    vec![
        Case::applies("every kind of file")
            .layer(&[
                Entry::dir("d").mode(0o750).owner(1, 2),
                Entry::file("d/empty", ""),
                Entry::file("d/file", "content").mode(0o640).owner(1000, 1000),
                Entry::symlink("d/symlink", "file").owner(3, 4),
                Entry::symlink("d/dangling", "/no/such/file"),
                Entry::hardlink("d/hardlink", "d/file"),
                Entry::new("d/char", Kind::Char(1, 3)).mode(0o666),
                Entry::new("d/block", Kind::Block(7, 200)).mode(0o660),
                Entry::new("d/fifo", Kind::Fifo).mode(0o600),
            ])
            .present(&["d/empty", "d/hardlink", "d/char", "d/block", "d/fifo", "d/dangling"]),
        Case::applies("special mode bits survive the change of owner").layer(&[
            Entry::file("setuid", "x").mode(0o4755).owner(1000, 1000),
            Entry::file("setgid", "x").mode(0o2755).owner(0, 42),
            Entry::dir("sticky").mode(0o1777),
            Entry::dir("setgid-dir").mode(0o2775).owner(5, 5),
            Entry::file("setgid-dir/file", "x").owner(0, 0),
            Entry::file("nothing", "x").mode(0),
        ]),
        Case::applies("files below a read-only directory, listed after it")
            .layer(&[Entry::dir("ro").mode(0o555), Entry::file("ro/a", "1"), Entry::dir("ro/sub").mode(0)])
            .present(&["ro/a", "ro/sub"]),
        Case::applies("times to the nanosecond").layer(&[
            Entry::dir("d").mtime(1_500_000_000, 123_456_789),
            Entry::file("d/f", "x").mtime(1_600_000_000, 1),
            Entry::symlink("d/l", "f").mtime(1_400_000_000, 999_999_999),
            Entry::file("d/epoch", "x").mtime(0, 0),
            Entry::file("d/before-1970", "x").mtime(-1_000, 250_000_000),
            Entry::file("d/after-2038", "x").mtime(4_000_000_000, 5),
        ]),
        Case::applies("a directory's time does not move when files are put into it").layer(&[
            Entry::dir("d").mtime(1_000_000_000, 7),
            Entry::file("d/a", "x"),
            Entry::dir("d/e").mtime(1_000_000_001, 8),
            Entry::file("d/e/b", "x"),
        ]),
        Case::applies("extended attributes").layer(&[
            Entry::file("ping", "x").mode(0o755).xattr("security.capability", CAPABILITY),
            Entry::file("user", "x").xattr("user.comment", "grüße\0binary\n=x").xattr("user.empty", ""),
            Entry::dir("dir").xattr("user.on-dir", "1"),
            Entry::file("chowned", "x").owner(1000, 1000).xattr("security.capability", CAPABILITY),
        ]),
        Case::applies("big owners").layer(&[
            Entry::file("max", "x").owner(4_294_967_294, 4_294_967_294),
            Entry::file("octal-limit", "x").owner(2_097_151, 2_097_152),
            Entry::dir("dir").owner(1_000_000_000, 2_000_000_000),
        ]),
        Case::applies("sparse files").layer(&[
            Entry::new(
                "holes",
                Kind::Sparse { size: 1 << 20, extents: vec![(4096, vec![b'a'; 512]), (524_288, vec![b'b'; 1000])] },
            ),
            Entry::new("only-hole", Kind::Sparse { size: 1 << 16, extents: vec![] }),
        ]),
        Case::applies("an empty layer").layer(&[]),
        Case::applies("the root itself").layer(&[Entry::dir("./").mode(0o700).owner(9, 9), Entry::file("./f", "x")]),
    ]
}

fn formats() -> Vec<Case> {
    let long_name = "n".repeat(255);
    let deep: String = (0..60).map(|i| format!("directory-{i:02}-with-a-long-name/")).collect();
    let long = [
        Entry::file(format!("{long_name}/{long_name}"), "x"),
        Entry::file(format!("{deep}file"), "deep"),
        Entry::symlink("long-link", "t".repeat(1000)),
        Entry::hardlink("long-hardlink", format!("{deep}file")),
    ];
    let mut gnu = TarBuilder::with_style(Style::Gnu);
    gnu.extend(&long).push(&Entry::file("base256", "x").owner(3_000_000_000, 3_000_000_001));
    gnu.push(&Entry::file("negative-time", "x").mtime(-5, 0));
    let mut global = TarBuilder::new();
    global.pax_header(b'g', &[("comment".to_owned(), b"git archive writes one".to_vec())]);
    global.push(&Entry::file("after-global", "x"));
    let mut spaces = TarBuilder::new();
    let mut header = Header::new(b'0');
    header.name(b"spaces").set(SIZE, b"          5 ").set(UID, b"   750 \0").set(MTIME, b"14000000000 ");
    spaces.header(&mut header).data(b"12345");
    let mut v7 = TarBuilder::new();
    let mut header = Header::new(0);
    header.name(b"v7-file").octal_or_zero(SIZE, 2);
    v7.header(&mut header).data(b"v7");
    let mut header = Header::new(0);
    header.name(b"v7-dir/");
    v7.header(&mut header);
    let mut prefixed = TarBuilder::new();
    let mut block = Header::new(b'0').name(b"name").octal_or_zero(SIZE, 1).checksummed();
    block[345..351].copy_from_slice(b"prefix");
    let sum: u32 = block[..148].iter().chain(&block[156..]).map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    prefixed.raw(&block).data(b"x");
    let unpadded = tar_unfinished(&[Entry::file("f", "x")]);
    let mut full = TarBuilder::new();
    full.header(Header::new(b'0').set(NAME, &[b'f'; 100]).octal_or_zero(SIZE, 0));
    vec![
        Case::applies("long names in PAX").layer(&long),
        Case::applies("long names and base-256 numbers in GNU style").tar(&gnu.finish()),
        Case::applies("a global PAX header").tar(&global.finish()).present(&["after-global"]),
        Case::applies("numbers padded with spaces").tar(&spaces.finish()).present(&["spaces"]),
        Case::applies("a V7 header").tar(&v7.finish()).present(&["v7-file", "v7-dir"]),
        Case::applies("a ustar prefix").tar(&prefixed.finish()).present(&["prefix/name"]),
        Case::applies("a name that fills its field").tar(&full.finish()),
        Case::applies("names that are not UTF-8").layer(&[
            Entry::file(b"caf\xe9", "latin-1"),
            Entry::file("line\nbreak", "x"),
            Entry::file("a b\t", "x"),
        ]),
        Case::applies("one zero block at the end")
            .tar(&[tar_unfinished(&[Entry::file("f", "x")]), vec![0; 512]].concat())
            .present(&["f"]),
        Case::applies("no zero blocks at the end").tar(&tar_unfinished(&[Entry::file("f", "x")])).present(&["f"]),
        Case::applies("a last file without padding, as umoci ends a layer").tar(&unpadded[..513]).present(&["f"]),
        Case::applies("a last file with some of its padding").tar(&unpadded[..700]).present(&["f"]),
        Case::applies("many zero blocks at the end")
            .tar(&[tar(&[Entry::file("f", "x")]), vec![0; 20 * 512]].concat())
            .present(&["f"]),
        Case::applies("dots and double slashes")
            .layer(&[
                Entry::dir("./a/"),
                Entry::file("./a/./b", "x"),
                Entry::file("a//c", "x"),
                Entry::file("a/x/../d", "x"),
            ])
            .present(&["a/b", "a/c", "a/d"]),
    ]
}

fn tar_unfinished(entries: &[Entry]) -> Vec<u8> {
    TarBuilder::new().extend(entries).unfinished()
}

fn packings() -> Vec<Case> {
    let entries: Vec<Entry> = (0..50).map(|i| Entry::file(format!("f{i}"), format!("{i}").repeat(1000))).collect();
    let bytes = tar(&entries);
    let parts = |compression, part| {
        let mut layer = Layer::new(&bytes, Compression::None);
        layer.compression = compression;
        layer.bytes = compress::pack_in_parts(&bytes, compression, part);
        layer
    };
    vec![
        Case::applies("gzip").packed(Layer::new(&bytes, Compression::Gzip)).present(&["f0", "f49"]),
        Case::applies("zstd").packed(Layer::new(&bytes, Compression::Zstd)).present(&["f0", "f49"]),
        Case::applies("gzip in many members").packed(parts(Compression::Gzip, 700)).present(&["f0", "f49"]),
        Case::applies("zstd in many frames").packed(parts(Compression::Zstd, 700)).present(&["f0", "f49"]),
    ]
}

fn whiteouts() -> Vec<Case> {
    let lower = [
        Entry::dir("d").mode(0o711).owner(7, 7).mtime(1_111_111_111, 1),
        Entry::file("d/a", "a"),
        Entry::file("d/b", "b"),
        Entry::dir("d/sub"),
        Entry::file("d/sub/c", "c"),
        Entry::file("top", "t"),
        Entry::symlink("link", "d"),
    ];
    let base = |name| Case::applies(name).layer(&lower);
    vec![
        base("whiteouts of a file, a directory and a link")
            .layer(&[Entry::whiteout("d/a"), Entry::whiteout("d/sub"), Entry::whiteout("link")])
            .present(&["d/b", "top"])
            .absent(&["d/a", "d/sub", "link", "d/.wh.a"]),
        base("a whiteout of what is not there")
            .layer(&[Entry::whiteout("d/never"), Entry::whiteout("no/such/place")])
            .absent(&["d/never", "no/such/place", "d/.wh.never"]),
        base("a directory made opaque, its new content after the mark")
            .layer(&[Entry::dir("d"), Entry::opaque("d"), Entry::file("d/new", "n")])
            .present(&["d/new"])
            .absent(&["d/a", "d/b", "d/sub", "d/.wh..wh..opq"]),
        base("a directory made opaque, its new content before the mark")
            .layer(&[Entry::dir("d"), Entry::file("d/new", "n"), Entry::file("d/a", "again"), Entry::opaque("d")])
            .present(&["d/new", "d/a"])
            .absent(&["d/b", "d/sub"]),
        base("an opaque directory that the layer only implies")
            .layer(&[Entry::opaque("d/sub"), Entry::file("d/sub/new", "n")])
            .present(&["d/a", "d/sub/new"])
            .absent(&["d/sub/c"]),
        base("a whiteout, then the same name again in the layer")
            .disputed()
            .layer(&[Entry::whiteout("d/sub"), Entry::dir("d/sub"), Entry::file("d/sub/new", "n")])
            .present(&["d/sub/new"])
            .absent(&["d/sub/c"]),
        base("gone in one layer, back in the next")
            .layer(&[Entry::whiteout("d")])
            .layer(&[Entry::file("d/new", "n")])
            .present(&["d/new"])
            .absent(&["d/a", "d/sub"]),
        base("gone, back, gone")
            .layer(&[Entry::whiteout("top")])
            .layer(&[Entry::file("top", "2")])
            .layer(&[Entry::whiteout("top")])
            .absent(&["top"]),
        base("opaque twice over two layers")
            .layer(&[Entry::dir("d"), Entry::opaque("d"), Entry::file("d/one", "1")])
            .layer(&[Entry::dir("d"), Entry::opaque("d"), Entry::file("d/two", "2")])
            .present(&["d/two"])
            .absent(&["d/one", "d/a"]),
        base("a whiteout below a directory that becomes opaque")
            .layer(&[Entry::dir("d"), Entry::opaque("d"), Entry::whiteout("d/a"), Entry::file("d/keep", "k")])
            .present(&["d/keep"])
            .absent(&["d/a", "d/b", "d/.wh.a"]),
        base("aufs' own files are not content")
            .layer(&[Entry::dir(".wh..wh.plnk").mode(0o700), Entry::file(".wh..wh.aufs", ""), Entry::file("new", "n")])
            .present(&["new", "top"])
            .absent(&[".wh..wh.plnk", ".wh..wh.aufs"]),
        base("everything at the root goes")
            .disputed()
            .layer(&[Entry::file(".wh..wh..opq", ""), Entry::file("new", "n")])
            .present(&["new"])
            .absent(&["d", "top", "link"]),
    ]
}

fn replacements() -> Vec<Case> {
    let tree = [Entry::dir("x"), Entry::file("x/in", "1"), Entry::file("f", "file"), Entry::symlink("s", "x")];
    let base = |name| Case::applies(name).layer(&tree);
    vec![
        base("a file replaces a directory").layer(&[Entry::file("x", "now a file")]).present(&["x"]).absent(&["x/in"]),
        base("a directory replaces a file")
            .layer(&[Entry::dir("f").mode(0o700), Entry::file("f/in", "2")])
            .present(&["f/in"]),
        base("a symlink replaces a directory").layer(&[Entry::symlink("x", "f")]).present(&["x"]),
        base("a directory replaces a symlink")
            .layer(&[Entry::dir("s"), Entry::file("s/new", "3")])
            .present(&["s/new", "x/in"])
            .absent(&["x/new"]),
        base("a file replaces a symlink, not its target").layer(&[Entry::file("s", "plain")]).present(&["s", "x/in"]),
        base("a fifo replaces a file").layer(&[Entry::new("f", Kind::Fifo)]).present(&["f"]),
        base("a directory comes again: new mode, same content")
            .layer(&[Entry::dir("x").mode(0o700).owner(8, 8).mtime(1_234_567_890, 5)])
            .present(&["x/in"]),
        Case::applies("a name twice in one layer: the last one counts")
            .layer(&[Entry::file("f", "first, longer"), Entry::file("f", "second")])
            .present(&["f"]),
        Case::applies("a directory twice in one layer: the last mode counts")
            .layer(&[Entry::dir("d").mode(0o700), Entry::file("d/f", "x"), Entry::dir("d").mode(0o755)])
            .present(&["d/f"]),
        Case::applies("a file, then a directory of the same name in one layer")
            .layer(&[Entry::file("n", "x"), Entry::dir("n"), Entry::file("n/in", "y")])
            .present(&["n/in"]),
        Case::applies("a directory, then a file of the same name in one layer")
            .layer(&[Entry::dir("n"), Entry::file("n/in", "y"), Entry::file("n", "x")])
            .absent(&["n/in"]),
        base("a directory becomes a file and a directory again over three layers")
            .layer(&[Entry::file("x", "file")])
            .layer(&[Entry::dir("x"), Entry::file("x/other", "3")])
            .present(&["x/other"])
            .absent(&["x/in"]),
    ]
}

fn implied() -> Vec<Case> {
    vec![
        Case::applies("directories nobody lists").layer(&[Entry::file("a/b/c/file", "x")]).present(&["a/b/c/file"]),
        Case::applies("implied directories take everything from the layers below")
            .layer(&[
                Entry::dir("a").mode(0o701).owner(11, 12).mtime(1_200_000_000, 3).xattr("user.below", "yes"),
                Entry::dir("a/b").mode(0o2770).owner(13, 14).mtime(1_200_000_001, 4),
            ])
            .layer(&[Entry::file("a/b/file", "x")])
            .layer(&[Entry::file("a/other", "y")])
            .present(&["a/b/file", "a/other"]),
        Case::applies("a directory is implied first and listed later in the layer")
            .layer(&[Entry::file("late/f", "x"), Entry::dir("late").mode(0o700).owner(3, 3).mtime(1_300_000_000, 9)])
            .present(&["late/f"]),
        Case::applies("the way down leads through a link of a lower layer")
            .disputed()
            .layer(&[Entry::dir("usr"), Entry::dir("usr/lib"), Entry::symlink("lib", "usr/lib")])
            .layer(&[Entry::file("lib/new.so", "elf")])
            .present(&["usr/lib/new.so", "lib"]),
        Case::applies("the way down leads through a link of the same layer")
            .layer(&[Entry::dir("usr/lib"), Entry::symlink("lib", "/usr/lib"), Entry::file("lib/new.so", "elf")])
            .present(&["usr/lib/new.so", "lib"]),
        Case::applies("a whiteout through a link of a lower layer")
            .disputed()
            .layer(&[Entry::dir("usr/lib"), Entry::file("usr/lib/old.so", "elf"), Entry::symlink("lib", "usr/lib")])
            .layer(&[Entry::whiteout("lib/old.so")])
            .absent(&["usr/lib/old.so"]),
    ]
}

fn links() -> Vec<Case> {
    vec![
        Case::applies("a hard link into a lower layer")
            .layer(&[Entry::dir("d"), Entry::file("d/f", "shared").mode(0o600).owner(5, 6).mtime(1_222_222_222, 2)])
            .layer(&[Entry::hardlink("link", "d/f").mode(0o600).owner(5, 6).mtime(1_222_222_222, 2)])
            .present(&["d/f", "link"]),
        Case::applies("several hard links into a lower layer make one file")
            .layer(&[Entry::file("f", "shared").xattr("user.keep", "1")])
            .layer(&[Entry::hardlink("l1", "f"), Entry::hardlink("l2", "f"), Entry::hardlink("l3", "l1")])
            .present(&["l1", "l2", "l3"]),
        Case::applies("hard links within a layer, absolute and dotted")
            .layer(&[Entry::file("f", "x"), Entry::hardlink("a", "/f"), Entry::hardlink("b", "./f")])
            .present(&["a", "b"]),
        Case::applies("a hard link to a symbolic link")
            .layer(&[Entry::file("f", "x"), Entry::symlink("s", "f"), Entry::hardlink("h", "s")])
            .present(&["h"]),
        Case::applies("a hard link's other name goes in the same layer")
            .layer(&[Entry::file("f", "x")])
            .layer(&[Entry::hardlink("l", "f"), Entry::whiteout("f")])
            .present(&["l"])
            .absent(&["f"]),
        Case::applies("a file is replaced after it was linked: the link keeps the old content")
            .layer(&[Entry::file("f", "old"), Entry::hardlink("l", "f"), Entry::file("f", "new")])
            .present(&["f", "l"]),
        Case::applies("absolute and climbing symlink targets stay as they are written").layer(&[
            Entry::symlink("absolute", "/etc/passwd"),
            Entry::symlink("climbing", "../../../../etc/passwd"),
            Entry::symlink("dot", "."),
            Entry::symlink("loop", "loop"),
        ]),
    ]
}
