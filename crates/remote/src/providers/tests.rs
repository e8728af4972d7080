use std::path::Path;

use super::*;

/// A program that notes each time it is asked, and answers as `answer` says (a line of shell).
fn provider(directory: &Path, answer: &str) -> Provider {
    let script = directory.join("provider");
    let text = format!("read -r request\necho \"$request\" >> {}/asked\n{answer}\n", directory.display());
    std::fs::write(&script, text).unwrap();
    Provider {
        name: "test".to_owned(),
        // What was just written cannot be run while another test's child has its descriptor.
        program: "/bin/sh".into(),
        images: vec!["*.example".parse().unwrap()],
        default_cache: Duration::from_secs(3600),
        version: ApiVersion::V1,
        args: vec![script.display().to_string(), "--flag".to_owned()],
        env: vec![("OWN".to_owned(), "value".to_owned())],
        timeout: Duration::from_secs(60),
    }
}

fn answer(kind: &str, more: &str) -> String {
    let head = r#""apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse""#;
    let auth = r#""auth":{"*.example":{"username":"me","password":"'"$1$OWN"'"}}"#;
    format!(r#"echo '{{{head},"cacheKeyType":"{kind}",{auth}{more}}}'"#)
}

fn asked(directory: &Path) -> usize {
    std::fs::read_to_string(directory.join("asked")).unwrap_or_default().lines().count()
}

fn found(credential: Option<Credential>) -> Option<String> {
    match credential? {
        Credential::Basic { user, password } => Some(format!("{user}:{password}")),
        _ => None,
    }
}

#[tokio::test]
async fn a_program_is_asked_by_the_protocol_and_as_often_as_its_answers_want() {
    for (kind, more, times) in [
        ("Image", "", [1, 1, 2, 3]),
        ("Registry", "", [1, 1, 1, 2]),
        ("Global", "", [1, 1, 1, 1]),
        ("Global", r#","cacheDuration":"1h""#, [1, 1, 1, 1]),
        ("Global", r#","cacheDuration":"0s""#, [1, 2, 3, 4]),
    ] {
        let directory = tempfile::tempdir().unwrap();
        let providers = Providers::from_iter([provider(directory.path(), &answer(kind, more))]);
        let asks = [("a.example", "app"), ("a.example", "app"), ("a.example", "other"), ("b.example", "app")];
        for ((host, repository), times) in asks.into_iter().zip(times) {
            assert_eq!(found(providers.find(host, repository).await).as_deref(), Some("me:--flagvalue"));
            assert_eq!(asked(directory.path()), times, "{kind}{more} {host}/{repository}");
        }
        assert_eq!(providers.find("elsewhere.test", "app").await, None);
        assert_eq!(asked(directory.path()), times[3], "it is no image of its patterns");
        let request = std::fs::read_to_string(directory.path().join("asked")).unwrap();
        let request: serde_json::Value = serde_json::from_str(request.lines().next().unwrap()).unwrap();
        let expected = serde_json::json!({
            "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
            "kind": "CredentialProviderRequest",
            "image": "a.example/app",
        });
        assert_eq!(request, expected);
    }
}

#[tokio::test]
async fn the_configuration_says_how_long_an_answer_counts_that_does_not() {
    let directory = tempfile::tempdir().unwrap();
    let mut short = provider(directory.path(), &answer("Image", ""));
    short.default_cache = Duration::ZERO;
    let providers = Providers::from_iter([short]);
    for _ in 0..2 {
        assert!(providers.find("a.example", "app").await.is_some());
    }
    assert_eq!(asked(directory.path()), 2);
}

#[tokio::test]
async fn who_asks_at_the_same_time_is_given_one_answer() {
    let directory = tempfile::tempdir().unwrap();
    let providers = Providers::from_iter([provider(directory.path(), &answer("Image", ""))]);
    let all = futures::future::join_all((0..20).map(|_| providers.find("a.example", "app"))).await;
    assert!(all.iter().all(Option::is_some));
    assert_eq!(asked(directory.path()), 1);
}

#[tokio::test]
async fn a_program_that_fails_in_any_way_is_passed_over_and_asked_again() {
    for says in [
        "exit 1",
        "echo garbage",
        "head -c 3000000 /dev/zero",
        "sleep 1000 & sleep 1000",
        "exec sleep 1000",
        "kill -9 $$",
        ":",
    ] {
        let (first, second) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let mut broken = provider(first.path(), says);
        if says.contains("1000") {
            broken.timeout = Duration::from_secs(1);
        }
        let sound = provider(second.path(), &answer("Image", ""));
        let providers = Providers::from_iter([broken, sound]);
        for time in 1..=2 {
            assert_eq!(found(providers.find("a.example", "app").await).as_deref(), Some("me:--flagvalue"), "{says}");
            // One that was killed may not have come so far.
            assert!(asked(first.path()) == time || says.contains("1000"), "{says}");
        }
    }
}

#[tokio::test]
async fn what_an_answer_says_of_other_hosts_reaches_no_host() {
    let directory = tempfile::tempdir().unwrap();
    let head = r#""apiVersion":"credentialprovider.kubelet.k8s.io/v1","kind":"CredentialProviderResponse""#;
    let says = format!(
        r#"echo '{{{head},"cacheKeyType":"Global","auth":{{"other.example":{{"username":"u","password":"p"}}}}}}'"#
    );
    let providers = Providers::from_iter([provider(directory.path(), &says)]);
    assert_eq!(providers.find("a.example", "app").await, None);
    // It is for all images of this program, and there it may be given.
    assert!(providers.find("other.example", "app").await.is_some());
    assert_eq!(asked(directory.path()), 1);
}

#[tokio::test]
async fn more_answers_than_can_be_remembered_push_the_oldest_out() {
    let directory = tempfile::tempdir().unwrap();
    let plugin = Plugin::new(provider(directory.path(), &answer("Image", "")));
    let kept = Arc::new(exec::ask(&plugin.provider, "a.example/app").await.ok().unwrap());
    for number in 0..MAX_ANSWERS + 5 {
        plugin.keep(&format!("a.example/{number}"), &kept);
    }
    assert_eq!(plugin.answers.lock().unwrap().len(), MAX_ANSWERS);
    assert!(plugin.known("a.example/0").is_none());
    assert!(plugin.known(&format!("a.example/{}", MAX_ANSWERS + 4)).is_some());
}
