//! What a credential provider says. The first line is the image that it is asked about; the rest is its answer.
//!
//! What is taken from it is a user and a password that a plain JSON reader finds in it too, under a key that names the image's host;
//! and no error repeats anything of the answer, for that may be the secret.

use orlop_remote::{ApiVersion, Credential, read_provider_answer};

use super::Target;

/// See the module.
pub const TARGET: Target = Target {
    name: "credentials",
    run,
    seeds,
    words: &[
        b"r.example/app\n",
        b"\"apiVersion\":\"credentialprovider.kubelet.k8s.io/v1\"",
        b"\"kind\":\"CredentialProviderResponse\"",
        b"\"cacheKeyType\":\"Registry\"",
        b"\"cacheDuration\":\"1h30m\"",
        b"\"auth\":{\"*.example\":{\"username\":\"u\",\"password\":\"p\"}}",
        b"*.example",
        b"r.example/app",
        b"[a-z].example",
        b":5000",
        b"https://",
    ],
    limit: 4 << 10,
    isolated: false,
};

/// A secret that a mutation has to leave whole to be found.
const SECRET: &str = "p4ssw0rd-of-the-fuzzer";

fn run(bytes: &[u8]) {
    let Some(line) = bytes.iter().position(|b| *b == b'\n') else { return };
    let (image, answer) = (String::from_utf8_lossy(&bytes[..line]), &bytes[line + 1..]);
    let given = match read_provider_answer(answer, ApiVersion::V1, &image) {
        Ok(given) => given,
        Err(error) => return assert!(!error.is_empty() && !error.contains(SECRET), "{error}"),
    };
    let Some(Credential::Basic { user, password }) = given else { return };
    // What nobody looks at may have mistakes.
    let Ok(plain) = serde_json::from_slice::<serde_json::Value>(answer) else { return };
    let auth = plain["auth"].as_object().expect("it has an entry");
    let host = host_of(&image);
    let parts = |host: &str| host.split('.').count();
    let fits = |key: &str| {
        let of = host_of(key.split_once("://").map_or(key, |(_, rest)| rest));
        // Docker's old key for its Hub has another host.
        parts(of) == parts(host) || of.eq_ignore_ascii_case("index.docker.io")
    };
    let same = |value: &serde_json::Value, of: &str| value.as_str().unwrap_or_default() == of;
    let from = |(key, entry): (&String, &serde_json::Value)| {
        fits(key) && same(&entry["username"], &user) && same(&entry["password"], &password)
    };
    assert!(auth.iter().any(from), "{image} is given what is not there");
}

/// The port comes after the last colon: what is no name of an image may have more of them.
fn host_of(text: &str) -> &str {
    let authority = text.split('/').next().unwrap_or_default();
    authority.rsplit_once(':').filter(|(_, port)| !port.contains(']')).map_or(authority, |(host, _)| host)
}

fn seeds() -> Vec<(String, Vec<u8>)> {
    let head = r#""apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse""#;
    let user = format!(r#"{{"username":"user","password":"{SECRET}"}}"#);
    let answer = |image: &str, rest: &str| format!("{image}\n{{{head},{rest}}}").into_bytes();
    vec![
        (
            "image".to_owned(),
            answer("r.example/app", &format!(r#""cacheKeyType":"Image","auth":{{"r.example":{user}}}"#)),
        ),
        (
            "registry".to_owned(),
            answer(
                "1.dkr.ecr.us-east-1.amazonaws.com/app",
                &format!(
                    r#""cacheKeyType":"Registry","cacheDuration":"12h","auth":{{"*.dkr.ecr.*.amazonaws.com":{user}}}"#
                ),
            ),
        ),
        (
            "global".to_owned(),
            answer(
                "r.example:5000/team/app",
                &format!(r#""cacheKeyType":"Global","auth":{{"r.example:5000/team":{user},"r[0-9].example":{user}}}"#),
            ),
        ),
        (
            "hub".to_owned(),
            answer(
                "docker.io/library/busybox",
                &format!(
                    r#""cacheKeyType":"Image","cacheDuration":"0s","auth":{{"https://index.docker.io/v1/":{user}}}"#
                ),
            ),
        ),
        ("nobody".to_owned(), answer("r.example/app", r#""cacheKeyType":"Image","auth":null"#)),
        ("broken".to_owned(), format!("r.example/app\n{{\"auth\":\"{SECRET}\"").into_bytes()),
    ]
}
