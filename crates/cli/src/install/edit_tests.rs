use super::*;

const CRI: &str = "io.containerd.grpc.v1.cri";

const FILE: &str = "\
# kubeadm's
version = 2

[plugins]
  [plugins.\"io.containerd.grpc.v1.cri\"]
    sandbox_image = 'pause:3.9' # kept
    [plugins.\"io.containerd.grpc.v1.cri\".containerd]
      snapshotter = \"overlayfs\" # the default
      default_runtime_name = \"runc\"
";

fn wants() -> Vec<Want> {
    vec![
        Want::set(&["proxy_plugins", "orlop-overlay", "type"], "snapshot"),
        Want::set(&["proxy_plugins", "orlop-overlay", "exports", "root"], "/var/lib/orlop"),
        Want::set(&["plugins", CRI, "containerd", "snapshotter"], "orlop-overlay"),
        Want::set(&["plugins", CRI, "containerd", "disable_snapshot_annotations"], false),
        Want::member(&["disabled_plugins"], "content"),
        Want::row(
            &["plugins", "transfer", "unpack_config"],
            "snapshotter",
            vec![("snapshotter", "orlop-overlay".into())],
        ),
    ]
}

fn applied(text: &str) -> (String, Vec<Change>) {
    let mut document = parse(text).unwrap();
    let changes = apply(&mut document, &wants()).unwrap();
    (document.to_string(), changes)
}

#[test]
fn what_is_wanted_gets_in_and_the_rest_stays_letter_for_letter() {
    let (edited, changes) = applied(FILE);
    assert_eq!(changes.len(), 6);
    insta::assert_snapshot!("edited", edited);
    let read: toml::Table = toml::from_str(&edited).unwrap();
    assert_eq!(read["plugins"][CRI]["containerd"]["snapshotter"].as_str(), Some("orlop-overlay"));
    assert_eq!(read["plugins"][CRI]["sandbox_image"].as_str(), Some("pause:3.9"));
    assert_eq!(read["plugins"]["transfer"]["unpack_config"][0]["snapshotter"].as_str(), Some("orlop-overlay"));
    assert_eq!(read["disabled_plugins"][0].as_str(), Some("content"));
}

#[test]
fn a_second_time_there_is_nothing_to_do() {
    let (edited, _) = applied(FILE);
    let (again, changes) = applied(&edited);
    assert_eq!((again.as_str(), changes.len()), (edited.as_str(), 0));
    // However it is written.
    let (again, changes) = applied(&edited.replace("\"orlop-overlay\"", "'orlop-overlay'"));
    assert!(again.contains("'orlop-overlay'") && changes.is_empty());
}

#[test]
fn what_was_put_in_is_taken_out_again_also_of_a_file_that_was_edited_since() {
    for text in [FILE, "version = 2\n", "", "version = 2\ndisabled_plugins = ['a'] # mine\n[proxy_plugins]\n"] {
        let (edited, changes) = applied(text);
        let mut document = parse(&edited).unwrap();
        take_out(&mut document, &changes).unwrap();
        assert_eq!(document.to_string().trim_end(), text.trim_end());

        let theirs = format!("{edited}\n[metrics]\naddress = 'x'\n");
        let mut document = parse(&theirs).unwrap();
        take_out(&mut document, &changes).unwrap();
        let read: toml::Table = toml::from_str(&document.to_string()).unwrap();
        let mut expected: toml::Table = toml::from_str(text).unwrap();
        expected.insert("metrics".into(), toml::Value::Table([("address".into(), "x".into())].into_iter().collect()));
        assert_eq!(read, expected, "{document}");
    }
}

#[test]
fn whoever_edited_the_same_key_is_not_overruled() {
    let (edited, changes) = applied(FILE);
    let theirs = edited.replace("snapshotter = \"orlop-overlay\" # the default", "snapshotter = \"native\"");
    let mut document = parse(&theirs).unwrap();
    let error = take_out(&mut document, &changes).unwrap_err();
    assert_eq!(
        error.to_string(),
        format!("plugins.{CRI}.containerd.snapshotter: expected \"orlop-overlay\", found \"native\"")
    );
    // Who put the old value back has done what was to be done.
    let theirs = edited.replace("snapshotter = \"orlop-overlay\" # the default", "snapshotter = 'overlayfs'");
    let mut document = parse(&theirs).unwrap();
    take_out(&mut document, &changes).unwrap();
    assert!(!document.to_string().contains("orlop"), "{document}");
}

#[test]
fn tables_may_be_written_in_any_way() {
    let inline =
        "version = 3\nplugins.transfer = { unpack_config = [{ snapshotter = 'overlayfs' }] }\nproxy_plugins = {}\n";
    let (edited, changes) = applied(inline);
    let read: toml::Table = toml::from_str(&edited).unwrap();
    assert_eq!(read["plugins"]["transfer"]["unpack_config"].as_array().unwrap().len(), 2);
    let mut document = parse(&edited).unwrap();
    take_out(&mut document, &changes).unwrap();
    let (read, expected): (toml::Table, toml::Table) =
        (toml::from_str(&document.to_string()).unwrap(), toml::from_str(inline).unwrap());
    assert_eq!(read, expected);
}

#[test]
fn what_is_no_table_is_told() {
    for (text, path) in [
        ("proxy_plugins = 3", "proxy_plugins: expected a table, found integer"),
        ("disabled_plugins = 'x'", "disabled_plugins: expected an array of strings, found string"),
    ] {
        let mut document = parse(text).unwrap();
        assert_eq!(apply(&mut document, &wants()).unwrap_err().to_string(), path);
    }
    assert!(matches!(parse("a = ["), Err(EditError::Syntax(_))));
}
