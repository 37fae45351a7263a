//! From flags and file to a [`Config`] that can't hold a bad value.

use std::{
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    time::Duration,
};

use clap::Args;
use ipnet::IpNet;
use reconst::{Config, RecordsConfig};
use serde::Deserialize;
use shared::{
    service::{Failure, LogFormat, read_config},
    transfer::schedule::{Policy, PolicyError},
    units::{Rate, UnitError},
};

use crate::database;

/// Flags, and the configuration file under the same names. A flag replaces what the file says.
#[derive(Args, Deserialize, Default)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub(crate) struct RunOptions {
    /// Read these settings from a TOML file
    #[arg(short = 'c', long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,
    /// The directory that `reconst init` made
    #[arg(long, value_name = "DIR")]
    state: Option<PathBuf>,
    /// The PostgreSQL database that has the members, as in postgres://user@host/database [default: what `init` was told]
    #[arg(long, value_name = "URL")]
    database: Option<String>,
    /// A file, its owner's alone, with that URL and its password
    #[arg(long, value_name = "FILE", conflicts_with = "database")]
    database_file: Option<PathBuf>,
    /// The address that relays reach this server at [default: all of them]
    #[arg(long, value_name = "IP")]
    bind: Option<IpAddr>,
    /// What this server can carry, beside the others that share its database: with twice as much it gets twice as many LANs [default: 1G]
    #[arg(long, value_name = "RATE")]
    capacity: Option<String>,
    /// A network that users may reach besides the public internet; repeat for more
    #[arg(long, value_name = "CIDR", value_parser = network)]
    #[serde(default)]
    egress_allow: Vec<String>,
    /// How the bytes to users are spread over the lines, unless their proxies ask for another way: adaptive, wrr, rr or redundant
    /// [default: adaptive]
    #[arg(long, value_name = "SCHEDULER", value_parser = scheduler)]
    scheduler: Option<String>,
    /// What this server's own line carries towards the internet, in bits per second as in 1G: shared evenly between users
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate_up: Option<String>,
    /// The same from the internet
    #[arg(long, value_name = "RATE", value_parser = rate)]
    rate_down: Option<String>,
    /// How many announcements in a row a relay may miss before it is off the roster [default: 3]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    missed_announces: Option<u32>,
    /// Answer `reconst status` here; loopback only
    #[arg(long, value_name = "IP:PORT")]
    admin: Option<SocketAddr>,
    /// Answer programs that manage members here, by HTTP and JSON; they show the token in the state directory's file api-token
    #[arg(long, value_name = "IP:PORT")]
    api: Option<SocketAddr>,
    /// Keep a record of each flow that is over in files in this directory, one a day
    #[arg(long, value_name = "DIR")]
    records: Option<PathBuf>,
    /// How many days such a file is kept [default: 30]
    #[arg(long, value_name = "N")]
    records_days: Option<u16>,
    /// Have the records say where each flow went
    #[arg(long)]
    #[serde(default)]
    record_destinations: bool,
    /// How long open flows may go on after SIGTERM, in seconds [default: 20]
    #[arg(long, value_name = "SECONDS")]
    drain_time: Option<u64>,
    /// How the log is written: text or json
    #[arg(long, value_name = "FORMAT")]
    log_format: Option<String>,
}

impl RunOptions {
    /// The options with those of the file filled in.
    pub(crate) fn with_file(self) -> anyhow::Result<Self> {
        let Some(path) = &self.config else { return Ok(self) };
        let file: Self = read_config(path)?;
        Ok(Self {
            state: self.state.or(file.state),
            database: self.database.clone().or(if self.database_file.is_none() { file.database } else { None }),
            database_file: self.database_file.or(if self.database.is_none() { file.database_file } else { None }),
            bind: self.bind.or(file.bind),
            egress_allow: if self.egress_allow.is_empty() { file.egress_allow } else { self.egress_allow },
            scheduler: self.scheduler.or(file.scheduler),
            rate_up: self.rate_up.or(file.rate_up),
            rate_down: self.rate_down.or(file.rate_down),
            missed_announces: self.missed_announces.or(file.missed_announces),
            admin: self.admin.or(file.admin),
            api: self.api.or(file.api),
            records: self.records.or(file.records),
            records_days: self.records_days.or(file.records_days),
            record_destinations: self.record_destinations || file.record_destinations,
            capacity: self.capacity.or(file.capacity),
            drain_time: self.drain_time.or(file.drain_time),
            log_format: self.log_format.or(file.log_format),
            config: self.config,
        })
    }

    pub(crate) fn log_format(&self) -> Result<LogFormat, Failure> {
        self.log_format.as_deref().map_or(Ok(LogFormat::default()), str::parse)
    }

    pub(crate) fn into_config(self) -> Result<Config, Failure> {
        let state = self.state.ok_or_else(|| Failure::usage("give the state directory with --state DIR, or `state` in the file of -c"))?;
        let mut config = Config::new(state, self.bind.unwrap_or_else(reconst::any_address));
        config.database = database::chosen(self.database.as_deref(), self.database_file.as_deref())?;
        let parse = |text: &String| parsed_network(text).map_err(Failure::config);
        config.egress_allow = self.egress_allow.iter().map(parse).collect::<Result<_, _>>()?;
        let policy = self.scheduler.as_deref().map(str::parse::<Policy>).transpose();
        config.scheduler = policy.map_err(|error| Failure::config(error.to_string()))?.unwrap_or(config.scheduler);
        let rate =
            |text: Option<&String>| text.map(|text| text.parse::<Rate>()).transpose().map_err(|error| Failure::config(error.to_string()));
        (config.rate_up, config.rate_down) = (rate(self.rate_up.as_ref())?, rate(self.rate_down.as_ref())?);
        config.missed_max = self.missed_announces.unwrap_or(config.missed_max).max(1);
        if let Some(capacity) = &self.capacity {
            let rate = capacity.parse::<Rate>().map_err(|error| Failure::config(format!("--capacity: {error}")))?;
            config.capacity_bits_per_second = rate.bits_per_second;
        }
        config.admin = self.admin;
        config.api = self.api;
        if self.records.is_none() && (self.records_days.is_some() || self.record_destinations) {
            return Err(Failure::config("records-days and record-destinations say more about records: give --records DIR as well"));
        }
        config.records = self.records.map(|directory| RecordsConfig {
            directory,
            days: self.records_days.unwrap_or(RECORDS_DAYS),
            has_destinations: self.record_destinations,
        });
        if let Some(seconds) = self.drain_time {
            if seconds > DRAIN_SECONDS_MAX {
                return Err(Failure::config(format!("the drain time of {seconds} s is above {DRAIN_SECONDS_MAX} s: choose a shorter one")));
            }
            config.drain_time = Duration::from_secs(seconds);
        }
        Ok(config)
    }
}

fn scheduler(text: &str) -> Result<String, PolicyError> {
    text.parse::<Policy>().map(|_| text.into())
}

fn rate(text: &str) -> Result<String, UnitError> {
    text.parse::<Rate>().map(|_| text.into())
}

fn network(text: &str) -> Result<String, String> {
    parsed_network(text).map(|_| text.into())
}

fn parsed_network(text: &str) -> Result<IpNet, String> {
    let network = text.parse::<IpNet>().ok().or_else(|| text.parse::<IpAddr>().ok().map(IpNet::from));
    network.map(|network| network.trunc()).ok_or_else(|| format!("`{text}` is not a network: write it as in 10.0.0.0/8 or fd00::/8"))
}

/// Long enough for a complaint to come in, and no longer than most laws allow without a duty to keep them.
const RECORDS_DAYS: u16 = 30;

/// A day: who waits longer than that has forgotten the restart.
const DRAIN_SECONDS_MAX: u64 = 86_400;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_what_its_prefix_says_and_an_address_is_one_of_itself() {
        assert_eq!(parsed_network("10.1.2.3/8"), Ok("10.0.0.0/8".parse().expect("a network")));
        assert_eq!(parsed_network("10.1.2.3"), Ok("10.1.2.3/32".parse().expect("a network")));
        assert!(parsed_network("10.0.0.0/33").is_err());
        assert!(parsed_network("intranet").is_err());
    }

    #[test]
    fn a_flag_replaces_what_the_file_says() {
        let scratch = tempfile::tempdir().expect("a directory");
        let path = scratch.path().join("reconst.toml");
        std::fs::write(&path, "state = '/srv/a'\nbind = '127.0.0.1'\negress-allow = ['10.0.0.0/8']\n").expect("a file");
        let options = RunOptions { config: Some(path.clone()), state: Some("/srv/b".into()), ..Default::default() };
        let config = options.with_file().expect("a valid file").into_config().expect("a valid configuration");
        assert_eq!((config.state_dir, config.bind), ("/srv/b".into(), IpAddr::from([127, 0, 0, 1])));
        assert_eq!(config.egress_allow, ["10.0.0.0/8".parse().expect("a network")]);
        for (scheduler, expected) in [("wrr", Some(Policy::WeightedRoundRobin)), ("fastest", None)] {
            std::fs::write(&path, format!("state = '/srv/a'\nscheduler = '{scheduler}'\n")).expect("a file");
            let options = RunOptions { config: Some(path.clone()), ..Default::default() }.with_file().expect("a valid file");
            assert_eq!(options.into_config().ok().map(|config| config.scheduler), expected);
        }
        std::fs::write(&path, "sate = '/srv/a'\n").expect("a file");
        assert!(RunOptions { config: Some(path), ..Default::default() }.with_file().is_err());
    }
}
