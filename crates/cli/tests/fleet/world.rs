//! A PostgreSQL, an S3 server behind a proxy that can be busy, and gateways over both.

use std::path::Path;
use std::process::Command;

use orlop_testkit::busy::Busy;
use orlop_testkit::postgres::Postgres;
use orlop_testkit::process::{Daemon, Output, output};
use orlop_testkit::s3::S3;

use crate::common::binary;

/// Everything that gateways stand on.
pub(crate) struct World {
    pub(crate) postgres: Postgres,
    pub(crate) busy: Busy,
    pub(crate) s3: S3,
    pub(crate) bucket: String,
    pub(crate) dir: tempfile::TempDir,
}

impl World {
    /// Servers of its own, since they are killed; `None`, with a word on standard error, where there are none.
    pub(crate) fn new() -> Option<Self> {
        let (s3, postgres) = (S3::start()?, Postgres::start()?);
        let busy = Busy::before(s3.address()).unwrap();
        let bucket = s3.bucket();
        Some(Self { postgres, busy, s3, bucket, dir: tempfile::tempdir().unwrap() })
    }

    /// `orlop registry` with the options that say where its things are.
    pub(crate) fn registry(&self, options: &[&str]) -> Command {
        let mut command = binary();
        let bucket = S3::url(&self.bucket, self.busy.address());
        command.args(["registry", "--database", &self.postgres.url("postgres"), "--bucket", &bucket]);
        command.args(options).envs(S3::variables()).env_remove("AWS_CA_BUNDLE").env_remove("AWS_PROFILE");
        command
    }

    pub(crate) fn gateway(&self, name: &str, options: &[&str]) -> Gateway {
        Gateway::start(self.registry(&[&["--listen", "127.0.0.1:0"], options].concat()), &self.dir.path().join(name))
    }

    pub(crate) fn collect(&self, options: &[&str]) -> Output {
        output(&mut self.registry(&[&["--collect"], options].concat()))
    }

    pub(crate) fn sql(&self, sql: &str) -> String {
        self.postgres.run("postgres", sql).unwrap_or_else(|| panic!("{sql}\n{}", self.postgres.log()))
    }

    /// Keys in the bucket below a prefix.
    pub(crate) fn keys(&self, prefix: &str) -> Vec<String> {
        self.s3.keys(&self.bucket, prefix)
    }
}

/// A gateway that listens.
pub(crate) struct Gateway {
    pub(crate) daemon: Daemon,
    pub(crate) host: String,
}

impl Gateway {
    pub(crate) fn start(mut command: Command, log: &Path) -> Self {
        let mut daemon = Daemon::start(&mut command, log).unwrap();
        let host = daemon.wait_for(|daemon| {
            let log = daemon.log();
            let line = log.lines().find(|line| line.contains("serving"))?;
            let at = line.find("address=")? + "address=".len();
            Some(line[at..].split_whitespace().next()?.to_owned())
        });
        Self { daemon, host }
    }
}
