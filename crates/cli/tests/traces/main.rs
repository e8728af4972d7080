//! OpenTelemetry traces of `orlop serve`, as a receiver gets them.

#[path = "../common/mod.rs"]
mod common;
mod receiver;

use std::collections::BTreeSet;

use common::{Done, Orlop, binary};
use orlop_api::runtime::v1 as cri;
use orlop_api::runtime::v1::image_service_client::ImageServiceClient;
use orlop_oci::Compression;
use orlop_testkit::archive;
use orlop_testkit::containerd::Programs;
use orlop_testkit::image::{Content, Image, Layer};
use orlop_testkit::liar::Liar;
use orlop_testkit::registry::{Options, PASSWORD, Registry, USER};
use orlop_testkit::served::Served;
use orlop_testkit::tar::Entry;
use orlop_testkit::tls::Certificates;
use receiver::{Mute, Receiver, Span};
use rustix::process::Signal;

/// A trace that a client began, and its span there.
const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";

fn image() -> Content {
    // The lower one comes last, so that both are committed together.
    let lower = Layer::noise("lower", 1, 8 << 20).packed(Compression::Gzip);
    let upper = Layer::new([Entry::file("upper", "content")]).packed(Compression::Gzip);
    Content::image(&Image::host().layer(lower).layer(upper))
}

/// Starts a daemon with variables in its environment.
fn serve(store: &Orlop, variables: &[(&str, &str)], options: &[&str]) -> Served {
    let mut command = binary();
    command.envs(variables.iter().copied());
    Served::start(command, &store.root(), options)
}

/// Ends a daemon, which sends what it still has.
fn end(mut served: Served) -> String {
    served.process().signal(Signal::TERM);
    assert_eq!(served.process().wait().code(), Some(0), "{}", served.log());
    served.log()
}

/// CRI's PullImage as a client calls it that has a trace of its own.
fn pull(served: &Served, image: &str, traceparent: &str) -> Result<String, tonic::Status> {
    let socket = served.socket();
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let channel = orlop_api::channel::unix(&socket).await.unwrap();
        let image = Some(cri::ImageSpec { image: image.to_owned(), ..Default::default() });
        let mut request = tonic::Request::new(cri::PullImageRequest { image, ..Default::default() });
        request.metadata_mut().insert("traceparent", traceparent.parse().unwrap());
        request.metadata_mut().insert("x-request-id", "the-request".parse().unwrap());
        Ok(ImageServiceClient::new(channel).pull_image(request).await?.into_inner().image_ref)
    })
}

#[track_caller]
fn only<'a>(spans: &'a [Span], name: &str) -> &'a Span {
    let named: Vec<&Span> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(named.len(), 1, "{name}: {named:#?}");
    named[0]
}

#[track_caller]
fn children<'a>(spans: &'a [Span], parent: &Span, name: &str) -> Vec<&'a Span> {
    let found = spans.iter().filter(|span| span.name == name && span.parent == parent.id);
    let found: Vec<&Span> = found.inspect(|span| assert_eq!(span.trace, parent.trace)).collect();
    assert!(!found.is_empty(), "{} has no {name}", parent.name);
    found
}

/// The attribute of each, in order.
fn values(spans: &[&Span], attribute: &str) -> BTreeSet<String> {
    spans.iter().map(|span| span.attributes[attribute].clone()).collect()
}

#[test]
fn a_pull_is_one_trace_from_the_client_to_the_registry() {
    let (store, registry, receiver, content) = (Orlop::new(), Liar::start(), Receiver::grpc(), image());
    let name = registry.put("team/app", "1", &content);
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", &*receiver.endpoint), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
    let file = store.path("config.toml");
    std::fs::write(&file, "[log]\nformat = 'json'\n").unwrap();
    let served = serve(&store, &variables, &["--config", file.to_str().unwrap()]);
    pull(&served, &name, &format!("00-{TRACE}-{PARENT}-01")).unwrap();
    let log = end(served);
    let spans = receiver.spans();

    let call = only(&spans, "runtime.v1.ImageService/PullImage");
    assert_eq!((&*call.trace, &*call.parent, call.kind), (TRACE, PARENT, 2));
    for (attribute, value) in [
        ("rpc.system", "grpc"),
        ("rpc.service", "runtime.v1.ImageService"),
        ("rpc.method", "PullImage"),
        ("rpc.grpc.status_code", "0"),
        ("orlop.request_id", "the-request"),
        ("orlop.peer.uid", &rustix::process::getuid().as_raw().to_string()),
    ] {
        assert_eq!(call.attributes.get(attribute).map(String::as_str), Some(value), "{attribute}: {call:#?}");
    }
    assert_eq!(call.resource["service.name"], "orlop");
    assert!(call.resource.contains_key("host.name") && call.resource.contains_key("service.version"));

    let pull = children(&spans, call, "pull")[0];
    assert_eq!(pull.attributes["orlop.image"], name);
    let resolve = children(&spans, pull, "resolve")[0];
    let layers: BTreeSet<String> = content.layers().iter().map(ToString::to_string).collect();
    let fetched = children(&spans, pull, "fetch");
    assert!(values(&fetched, "orlop.digest").is_superset(&layers), "{fetched:#?}");
    let unpacked = children(&spans, pull, "unpack");
    assert_eq!(values(&unpacked, "orlop.digest"), layers);
    assert_eq!(children(&spans, pull, "commit").len(), layers.len());
    children(&spans, pull, "reconcile");

    let answered = |span: &&&Span| span.error.is_none();
    let head = *children(&spans, resolve, "HEAD").iter().find(answered).unwrap();
    assert_eq!((head.kind, &*head.attributes["http.response.status_code"]), (3, "200"));
    let address = format!("{}:{}", head.attributes["server.address"], head.attributes["server.port"]);
    assert_eq!(address, registry.host());
    let told: BTreeSet<String> = registry.traces().into_iter().collect();
    let requests = spans.iter().filter(|span| span.kind == 3 && span.error.is_none());
    let requests: BTreeSet<String> = requests.map(|span| format!("00-{TRACE}-{}-01", span.id)).collect();
    assert!(!told.is_empty() && told == requests, "told {told:#?}, made {requests:#?}");

    // The same request id is on the lines of the log, wherever in the daemon they come from.
    let lines = log.lines().filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok());
    let pulled = lines.into_iter().find(|line| line["message"] == "image pulled").unwrap();
    assert_eq!(pulled["spans"][0]["id"], "the-request", "{pulled}");
}

#[test]
fn ctr_pulls_by_both_paths() {
    for programs in [Programs::debian(), Programs::current()].into_iter().flatten() {
        let Some(registry) = Registry::start(&Options::new()) else { return };
        let (store, receiver) = (Orlop::new(), Receiver::http());
        let name = format!("{}/app:1", registry.host());
        let file = store.path("image.tar");
        std::fs::write(&file, archive::oci_archive(&[(&name, &image())])).unwrap();
        store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
        store.ok(["push", &name]);
        let served = serve(&store, &[("OTEL_EXPORTER_OTLP_ENDPOINT", &receiver.endpoint)], &[]);
        let has_transfer = served.ctr(&programs, "one", &["images", "pull", "--help"]).ok().stdout.contains("--local");
        let paths: &[&[&str]] = if has_transfer { &[&[], &["--local"]] } else { &[&[]] };
        for (namespace, path) in ["one", "two"].into_iter().zip(paths) {
            served.ctr(&programs, namespace, &[&["images", "pull", "--plain-http"], *path, &[&*name]].concat()).ok();
        }
        end(served);
        let spans = receiver.spans();
        let called = |name: &str| spans.iter().filter(|span| span.kind == 2 && span.name == name).collect::<Vec<_>>();
        for apply in called("containerd.services.diff.v1.Diff/Apply") {
            assert_eq!(apply.attributes["rpc.grpc.status_code"], "0");
            assert_eq!((&*apply.parent, apply.trace.len()), ("", 32), "a trace that begins here");
        }
        assert!(!called("containerd.services.content.v1.Content/Write").is_empty(), "{}", programs.version());
        if has_transfer {
            let transfer = called("containerd.services.transfer.v1.Transfer/Transfer")[0];
            assert_eq!(transfer.attributes["orlop.namespace"], "one");
            let pull = children(&spans, transfer, "pull")[0];
            children(&spans, pull, "fetch");
            children(&spans, pull, "unpack");
        }
    }
}

#[test]
fn no_secret_leaves_and_failures_say_what_failed() {
    let Some(registry) = Registry::start(&Options::new().basic()) else { return };
    let (store, receiver) = (Orlop::new(), Receiver::http());
    let (login, name) = (format!("{USER}:{PASSWORD}"), format!("{}/app:1", registry.host()));
    let file = store.path("image.tar");
    std::fs::write(&file, archive::oci_archive(&[(&name, &image())])).unwrap();
    let endpoint = format!("{}/v1/traces", receiver.endpoint);
    let config = store.path("config.toml");
    std::fs::write(&config, format!("[traces]\nendpoint = {endpoint:?}\nservice_name = 'node'\n")).unwrap();
    let served = serve(&store, &[], &["--config", config.to_str().unwrap()]);
    store.ok(["import", "--no-unpack", file.to_str().unwrap()]);
    store.ok(["push", "--user", &login, &name]);
    store.ok(["pull", "--user", &login, &name]);
    assert_eq!(store.run(["pull", "--user", "testuser:wrong horse", &name]).code, 7);
    assert_eq!(store.run(["pull", "--user", &login, &format!("{}/nothing:1", registry.host())]).code, 3);
    store.ok(["gc"]);
    end(served);

    let text = String::from_utf8_lossy(&receiver.bytes()).into_owned();
    let basic = |secret: &str| {
        let output = std::process::Command::new("base64").arg(secret).output().unwrap();
        String::from_utf8(output.stdout).unwrap().trim().to_owned()
    };
    let packed = store.path("secret");
    std::fs::write(&packed, &login).unwrap();
    for secret in [PASSWORD, "wrong horse", &basic(packed.to_str().unwrap())] {
        assert!(!text.contains(secret), "{secret} was sent");
    }
    let spans = receiver.spans();
    assert!(spans.iter().all(|span| span.resource["service.name"] == "node"));
    let import = only(&spans, "import");
    assert!(spans.iter().any(|span| span.id == import.parent && span.name == "orlop.v1.Orlop/Import"), "{import:#?}");
    only(&spans, "push");
    let failed: Vec<&Span> = spans.iter().filter(|span| span.name == "pull" && span.error.is_some()).collect();
    assert_eq!(failed.len(), 2, "{failed:#?}");
    assert!(failed.iter().any(|span| span.error.as_ref().unwrap().contains("nothing")), "{failed:#?}");
    let refused = spans.iter().find(|span| span.attributes.get("error.type").is_some_and(|kind| kind == "401"));
    assert_eq!(refused.unwrap().attributes["http.response.status_code"], "401");
    let kinds: Vec<&Span> = spans.iter().filter(|span| span.name == "collect").collect();
    assert!(values(&kinds, "orlop.kind").contains("start"), "{kinds:#?}");
}

#[test]
fn the_client_decides_which_of_its_traces_are_sent_and_the_sampler_of_others() {
    let (store, receiver) = (Orlop::new(), Receiver::grpc());
    let variables = [
        ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", &*receiver.endpoint),
        ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
        ("OTEL_TRACES_SAMPLER", "parentbased_always_off"),
        ("OTEL_SERVICE_NAME", "by name"),
        ("OTEL_RESOURCE_ATTRIBUTES", "service.name=other,deployment.environment=test"),
    ];
    let served = serve(&store, &variables, &[]);
    let nowhere = "127.0.0.1:1/nothing:1";
    for (trace, sampled) in [("11", "01"), ("22", "00")] {
        pull(&served, nowhere, &format!("00-{}-{PARENT}-{sampled}", trace.repeat(16))).unwrap_err();
    }
    store.ok(["images"]);
    pull(&served, nowhere, "00-nonsense").unwrap_err();
    end(served);
    let spans = receiver.spans();
    let traces: BTreeSet<&str> = spans.iter().map(|span| &*span.trace).collect();
    assert_eq!(traces, [&*"11".repeat(16)].into());
    let call = only(&spans, "runtime.v1.ImageService/PullImage");
    assert_ne!(call.attributes["rpc.grpc.status_code"], "0");
    assert_eq!(call.resource["service.name"], "by name");
    assert_eq!(call.resource["deployment.environment"], "test");
}

/// What the system trusts is in `SSL_CERT_FILE` here: the receiver's authority, or somebody else's.
#[test]
fn traces_go_by_tls_to_a_receiver_that_is_trusted_and_to_no_other() {
    let directories = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
    let [own, foreign] = [0, 1].map(|n: usize| Certificates::create(directories[n].path()));
    for (protocol, receiver) in [("grpc", Receiver::grpc_tls(&own)), ("http/protobuf", Receiver::http_tls(&own))] {
        for (authority, trusted) in [(&foreign.ca, false), (&own.ca, true)] {
            let store = Orlop::new();
            let variables = [
                ("OTEL_EXPORTER_OTLP_ENDPOINT", &*receiver.endpoint),
                ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
                ("SSL_CERT_FILE", authority.to_str().unwrap()),
                ("SSL_CERT_DIR", "/nonexistent"),
            ];
            let mut served = serve(&store, &variables, &[]);
            store.ok(["images"]);
            if trusted {
                served.process().wait_for(|_| (!receiver.spans().is_empty()).then_some(()));
                let log = end(served);
                assert!(!log.contains("WARN"), "{protocol}: {log}");
                only(&receiver.spans(), "orlop.v1.Orlop/ListImages");
            } else {
                served.process().wait_for(|daemon| daemon.log().contains("WARN").then_some(()));
                let log = end(served);
                assert!(log.contains("took no spans"), "{protocol}: {log}");
                assert!(receiver.bytes().is_empty(), "{protocol}: sent to a stranger");
            }
        }
    }
}

/// The number of a result among the metrics.
fn counted(page: &str, result: &str) -> u64 {
    let name = format!("orlop_spans_total{{result=\"{result}\"}} ");
    page.lines()
        .find_map(|line| line.strip_prefix(&name))
        .unwrap_or_else(|| panic!("no {name}: {page}"))
        .parse()
        .unwrap()
}

#[test]
fn a_receiver_that_never_answers_costs_spans_and_nothing_else() {
    for protocol in ["grpc", "http/protobuf"] {
        let (store, registry, receiver) = (Orlop::new(), Liar::start(), Mute::start());
        let name = registry.put("team/app", "1", &image());
        let variables = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", &*receiver.endpoint),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", protocol),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "4"),
        ];
        let mut served = serve(&store, &variables, &["--metrics", "127.0.0.1:0"]);
        let metrics = common::metrics_address(&mut served);
        // Once a message is on its way, the queue fills up for good.
        let dropped = served.process().wait_for(|_| {
            store.ok(["pull", &name]);
            Some(counted(&common::get(&metrics, "/metrics"), "dropped")).filter(|dropped| *dropped > 0)
        });
        assert!(dropped > 0);
        let log = end(served);
        assert!(log.contains("did not take the last spans in time"), "{log}");
    }
}

#[test]
fn a_receiver_that_is_not_there_is_told_of_once() {
    let store = Orlop::new();
    let variables = [("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:1"), ("OTEL_EXPORTER_OTLP_TIMEOUT", "50")];
    let mut served = serve(&store, &variables, &["--metrics", "127.0.0.1:0"]);
    let metrics = common::metrics_address(&mut served);
    let mut failed = BTreeSet::new();
    served.process().wait_for(|_| {
        store.ok(["images"]);
        failed.insert(counted(&common::get(&metrics, "/metrics"), "failed"));
        // None, after the first message, after the second.
        (failed.len() > 2).then_some(())
    });
    let log = end(served);
    assert_eq!(log.matches(" WARN ").count(), 1, "{log}");
    assert!(log.contains("the receiver of traces took no spans"), "{log}");
}

#[test]
fn without_a_receiver_nothing_is_traced_and_nonsense_is_left_out() {
    let store = Orlop::new();
    let mut served = serve(&store, &[("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317")], &["--metrics", "127.0.0.1:0"]);
    let metrics = common::metrics_address(&mut served);
    assert!(!common::get(&metrics, "/metrics").contains("orlop_spans_total{"));
    let log = end(served);
    assert!(log.contains("OTEL_EXPORTER_OTLP_ENDPOINT: expected a URL"), "{log}");

    let mut command = store.command(["config", "dump"]);
    command.env("OTEL_EXPORTER_OTLP_ENDPOINT", "http://collector:4318").env("OTEL_SERVICE_NAME", "images");
    let dumped = Done::of(&command.output().unwrap()).out;
    for line in ["endpoint = \"http://collector:4318/v1/traces\"", "service_name = \"images\""] {
        assert!(dumped.contains(line), "{dumped}");
    }
}
