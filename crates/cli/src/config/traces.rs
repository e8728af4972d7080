//! `[traces]`, and the variables by which OpenTelemetry is set up everywhere. A variable wins over the file; one that makes
//! no sense is told and left out, as OpenTelemetry's specification wants it: it may be meant for other programs.

use serde::{Deserialize, Serialize};

/// Where receivers listen by default.
const DEFAULT_GRPC: &str = "http://localhost:4317";
const DEFAULT_HTTP: &str = "http://localhost:4318";

/// What HTTP receivers call the place for traces.
const HTTP_PATH: &str = "v1/traces";

/// `[traces]`.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, default)]
pub(crate) struct Traces {
    /// Empty: no traces.
    pub(crate) endpoint: String,
    pub(crate) protocol: Protocol,
    pub(crate) sampler: SamplerKind,
    pub(crate) ratio: f64,
    pub(crate) service_name: String,
    pub(crate) queue: usize,
}

/// How spans travel.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
pub(crate) enum Protocol {
    #[serde(rename = "grpc")]
    Grpc,
    #[default]
    #[serde(rename = "http/protobuf")]
    HttpProtobuf,
}

/// Which traces are kept, by OpenTelemetry's names.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum SamplerKind {
    AlwaysOn,
    AlwaysOff,
    #[serde(rename = "traceidratio")]
    Ratio,
    #[serde(rename = "parentbased_always_on")]
    ParentAlwaysOn,
    #[serde(rename = "parentbased_always_off")]
    ParentAlwaysOff,
    #[default]
    #[serde(rename = "parentbased_traceidratio")]
    ParentRatio,
}

impl Default for Traces {
    fn default() -> Self {
        Self {
            endpoint: String::new(),
            protocol: Protocol::default(),
            sampler: SamplerKind::default(),
            ratio: 1.0,
            service_name: "orlop".into(),
            queue: 2048,
        }
    }
}

impl Traces {
    /// What is wrong with a value: its key and why.
    pub(super) fn check(&self) -> Result<(), (&'static str, String)> {
        if !self.endpoint.is_empty() {
            check_endpoint(&self.endpoint).map_err(|why| ("traces.endpoint", why))?;
        }
        if !(0.0..=1.0).contains(&self.ratio) {
            return Err(("traces.ratio", format!("expected 0.0 to 1.0, found {}", self.ratio)));
        }
        if !(1..=1_000_000).contains(&self.queue) {
            return Err(("traces.queue", format!("expected 1 to 1000000, found {}", self.queue)));
        }
        Ok(())
    }

    /// The same with what the environment says. Also tells which variables were left out and why.
    pub(crate) fn with_environment(mut self, variable: impl Fn(&str) -> Option<String>) -> (Self, Vec<String>) {
        let mut environment = Environment { variable, refused: Vec::new() };
        if environment.get("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true")) {
            self.endpoint.clear();
            return (self, environment.refused);
        }
        if let Some(protocol) = environment.parse(
            &["OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL"],
            "grpc or http/protobuf",
            |text| word(text).ok(),
        ) {
            self.protocol = protocol;
        }
        self.endpoint = environment.endpoint(std::mem::take(&mut self.endpoint), self.protocol);
        self.sample(&mut environment);
        if let Some(name) = environment.service_name() {
            self.service_name = name;
        }
        let queue = environment.parse(&["OTEL_BSP_MAX_QUEUE_SIZE"], "1 to 1000000", |text| {
            text.parse().ok().filter(|queue| (1..=1_000_000).contains(queue))
        });
        self.queue = queue.unwrap_or(self.queue);
        (self, environment.refused)
    }

    fn sample(&mut self, environment: &mut Environment<impl Fn(&str) -> Option<String>>) {
        let expected = "always_on, always_off, traceidratio, or one of them after parentbased_";
        if let Some(sampler) = environment.parse(&["OTEL_TRACES_SAMPLER"], expected, |text| word(text).ok()) {
            self.sampler = sampler;
            self.ratio = 1.0;
        }
        let ratio = |text: &str| text.parse().ok().filter(|ratio| (0.0..=1.0).contains(ratio));
        self.ratio = environment.parse(&["OTEL_TRACES_SAMPLER_ARG"], "0.0 to 1.0", ratio).unwrap_or(self.ratio);
    }
}

/// Variables as they are, and those that make no sense.
struct Environment<V> {
    variable: V,
    refused: Vec<String>,
}

impl<V: Fn(&str) -> Option<String>> Environment<V> {
    /// One that is empty counts as one that is not set.
    fn get(&self, name: &str) -> Option<String> {
        (self.variable)(name).map(|value| value.trim().to_owned()).filter(|value| !value.is_empty())
    }

    /// The first of the variables that is set.
    fn parse<T>(&mut self, names: &[&str], expected: &str, parse: impl Fn(&str) -> Option<T>) -> Option<T> {
        let (name, value) = names.iter().find_map(|name| Some((name, self.get(name)?)))?;
        let parsed = parse(&value);
        if parsed.is_none() {
            self.refused.push(format!("{name}: expected {expected}, found {value:?}"));
        }
        parsed
    }

    fn endpoint(&mut self, configured: String, protocol: Protocol) -> String {
        let exporters = self.get("OTEL_TRACES_EXPORTER");
        let wanted = exporters.as_deref().map(|names| names.split(',').any(|name| name.trim() == "otlp"));
        if wanted == Some(false) {
            if exporters.as_deref() != Some("none") {
                self.refused.push("OTEL_TRACES_EXPORTER: expected otlp or none; no traces are sent".into());
            }
            return String::new();
        }
        if let Some(endpoint) = self.url("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT") {
            return endpoint;
        }
        if let Some(base) = self.url("OTEL_EXPORTER_OTLP_ENDPOINT") {
            return below(&base, protocol);
        }
        if configured.is_empty() && wanted == Some(true) {
            return match protocol {
                Protocol::Grpc => DEFAULT_GRPC.into(),
                Protocol::HttpProtobuf => below(DEFAULT_HTTP, protocol),
            };
        }
        configured
    }

    fn url(&mut self, name: &str) -> Option<String> {
        let value = self.get(name)?;
        match check_endpoint(&value) {
            Ok(()) => Some(value),
            Err(why) => {
                self.refused.push(format!("{name}: {why}"));
                None
            }
        }
    }

    fn service_name(&self) -> Option<String> {
        let of_resource = || {
            let attributes = self.get("OTEL_RESOURCE_ATTRIBUTES")?;
            let name = attributes.split(',').find_map(|pair| pair.trim().strip_prefix("service.name="))?;
            Some(name.trim().to_owned())
        };
        self.get("OTEL_SERVICE_NAME").or_else(of_resource)
    }
}

/// One of the words of an enumeration.
fn word<T: for<'a> Deserialize<'a>>(text: &str) -> Result<T, serde::de::value::Error> {
    T::deserialize(serde::de::value::StrDeserializer::new(text))
}

/// The place for traces below the place for everything.
fn below(base: &str, protocol: Protocol) -> String {
    match protocol {
        Protocol::Grpc => base.to_owned(),
        Protocol::HttpProtobuf => format!("{}/{HTTP_PATH}", base.trim_end_matches('/')),
    }
}

/// Why something is no endpoint. It is not repeated where it may have a password in it.
fn check_endpoint(text: &str) -> Result<(), String> {
    let expected = "expected a URL like http://127.0.0.1:4318/v1/traces";
    let url: http::Uri = text.parse().map_err(|_| format!("{expected}, found {text:?}"))?;
    let authority = url.authority().map(http::uri::Authority::as_str).unwrap_or_default();
    if authority.contains('@') {
        return Err(format!("{expected}, without a password: OTEL_EXPORTER_OTLP_HEADERS is for secrets"));
    }
    if !matches!(url.scheme_str(), Some("http" | "https")) || authority.is_empty() {
        return Err(format!("{expected}, found {text:?}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn with(config: Traces, variables: &[(&str, &str)]) -> (Traces, Vec<String>) {
        config.with_environment(|name| {
            variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned())
        })
    }

    fn right(config: Traces, variables: &[(&str, &str)]) -> Traces {
        let (effective, refused) = with(config, variables);
        assert_eq!(refused, Vec::<String>::new());
        effective
    }

    fn configured() -> Traces {
        Traces { endpoint: "http://file:4318/v1/traces".into(), ratio: 0.5, ..Traces::default() }
    }

    #[test]
    fn an_environment_without_variables_changes_nothing() {
        assert_eq!(right(configured(), &[("OTEL_EXPORTER_OTLP_ENDPOINT", " ")]), configured());
        assert_eq!(right(Traces::default(), &[]).endpoint, "");
    }

    #[test]
    fn the_endpoint_for_traces_wins_over_the_one_for_all_and_that_over_the_file() {
        let (all, traces) = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT");
        assert_eq!(right(configured(), &[(all, "http://all:4318/")]).endpoint, "http://all:4318/v1/traces");
        let both = [(all, "http://all:4318"), (traces, "https://traces/in")];
        assert_eq!(right(configured(), &both).endpoint, "https://traces/in");
        let grpc = [(all, "http://all:4317"), ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")];
        let effective = right(configured(), &grpc);
        assert_eq!((effective.endpoint.as_str(), effective.protocol), ("http://all:4317", Protocol::Grpc));
        let protocols =
            [("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"), ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/protobuf")];
        assert_eq!(right(configured(), &protocols).protocol, Protocol::HttpProtobuf);
    }

    #[test]
    fn traces_can_be_switched_off_and_on() {
        assert_eq!(right(configured(), &[("OTEL_SDK_DISABLED", "TRUE")]).endpoint, "");
        assert_eq!(right(configured(), &[("OTEL_SDK_DISABLED", "false")]), configured());
        assert_eq!(right(configured(), &[("OTEL_TRACES_EXPORTER", "none")]).endpoint, "");
        assert_eq!(right(configured(), &[("OTEL_TRACES_EXPORTER", "otlp")]), configured());
        let by_name = right(Traces::default(), &[("OTEL_TRACES_EXPORTER", "otlp")]);
        assert_eq!(by_name.endpoint, "http://localhost:4318/v1/traces");
        let (off, refused) = with(configured(), &[("OTEL_TRACES_EXPORTER", "zipkin")]);
        assert_eq!((off.endpoint.as_str(), refused.len()), ("", 1));
    }

    #[test]
    fn samplers_and_names_are_those_of_opentelemetry() {
        for (name, sampler) in [
            ("always_on", SamplerKind::AlwaysOn),
            ("always_off", SamplerKind::AlwaysOff),
            ("traceidratio", SamplerKind::Ratio),
            ("parentbased_always_on", SamplerKind::ParentAlwaysOn),
            ("parentbased_always_off", SamplerKind::ParentAlwaysOff),
            ("parentbased_traceidratio", SamplerKind::ParentRatio),
        ] {
            let effective = right(configured(), &[("OTEL_TRACES_SAMPLER", name)]);
            assert_eq!((effective.sampler, effective.ratio), (sampler, 1.0), "{name}");
        }
        let tenth = [("OTEL_TRACES_SAMPLER", "traceidratio"), ("OTEL_TRACES_SAMPLER_ARG", "0.1")];
        assert_eq!(right(configured(), &tenth).ratio, 0.1);
        let names = [("OTEL_RESOURCE_ATTRIBUTES", "a=b, service.name=node ,c=d")];
        assert_eq!(right(configured(), &names).service_name, "node");
        let both = [names[0], ("OTEL_SERVICE_NAME", "images")];
        assert_eq!(right(configured(), &both).service_name, "images");
        assert_eq!(right(configured(), &[("OTEL_BSP_MAX_QUEUE_SIZE", "7")]).queue, 7);
    }

    #[test]
    fn what_makes_no_sense_is_told_and_left_out() {
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "collector:4317"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "ftp://collector"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/json"),
            ("OTEL_TRACES_SAMPLER", "jaeger_remote"),
            ("OTEL_TRACES_SAMPLER_ARG", "1.5"),
            ("OTEL_TRACES_SAMPLER_ARG", "NaN"),
            ("OTEL_BSP_MAX_QUEUE_SIZE", "0"),
        ] {
            let (effective, refused) = with(configured(), &[(name, value)]);
            assert_eq!(effective, configured(), "{name}={value}");
            assert!(refused.len() == 1 && refused[0].starts_with(name), "{refused:?}");
        }
        let secret = check_endpoint("http://user:hunter2@host").unwrap_err();
        assert!(!secret.contains("hunter2") && secret.contains("OTEL_EXPORTER_OTLP_HEADERS"), "{secret}");
    }
}
