//! Setting up a `reconst` and its members, for the command line and for whole neighbourhoods in one process.
//!
//! Enters: names and limits. Leaves: a state directory, and a [`Profile`] for each member added. Always holds: a profile is known to the
//! accounts before it leaves. Writing profiles to files is left to the caller.

use std::path::Path;

use rustls::pki_types::{CertificateDer, UnixTime};
use shared::{
    community::{
        invite::{Fingerprint, Invite, InviteSecret, TARGETS_MAX},
        member::{Identity, Name, Role},
        profile::Profile,
    },
    ids::LanId,
    link::tls::{self, MemberVerifier},
    service::{Exit, Failure},
    target::{Host, Target},
};
use time::{Duration, OffsetDateTime};

use crate::{
    accounts::{
        Accounts, AccountsError, Database, Limits,
        exchange::{Document, ImportError, Imported},
        invites::{Invitation, Invited},
        nodes::PUBLIC,
        registry::{IssuedTo, Lan},
    },
    authority::Authority,
    nodes::NodeIdentity,
    state::StateDir,
};

/// A `reconst`'s state, open for adding members.
#[derive(Debug)]
pub struct Registrar {
    accounts: Accounts,
    authority: Authority,
}

/// The login port unless `reconst init` says another.
pub const DEFAULT_LOGIN_PORT: u16 = 10_000;

impl Registrar {
    /// Makes the state of a new `reconst` that relays reach at each of `public_hosts` on `login_port`.
    ///
    /// # Errors
    /// If the directory holds something already or can't be written, or there is no host.
    pub async fn init(state: &Path, public_hosts: &[Host], login_port: u16) -> Result<Self, Failure> {
        Self::init_with(state, public_hosts, login_port, None).await
    }

    /// As [`Registrar::init`], with the members in a database of PostgreSQL if one is given.
    ///
    /// # Errors
    /// As [`Registrar::init`], and if the database does not answer or has members already.
    pub async fn init_with(state: &Path, public_hosts: &[Host], login_port: u16, postgres: Option<&Database>) -> Result<Self, Failure> {
        let Some(first_host) = public_hosts.first() else {
            return Err(Failure::usage("reconst needs an address that relays reach it at: give --public HOST"));
        };
        if login_port == 0 {
            return Err(Failure::usage("--login-port takes a port from 1 to 65535"));
        }
        if let Some(database) = postgres {
            let accounts = Accounts::open(database).await?;
            if accounts.setting(PUBLIC).await?.is_some() {
                return Err(Failure::config(format!("{database} has the members of a reconst already: choose another database")));
            }
            accounts.close().await;
        }
        let state = StateDir::create(state)?;
        let (authority, issued) = Authority::create(&first_host.to_string()).map_err(no_randomness)?;
        state.keep_authority(&issued)?;
        let server = authority.issue_server().map_err(no_randomness)?;
        state.keep_server_certificate(&server)?;
        state.choose_database(postgres)?;
        let accounts = Accounts::open(&state.database()?).await?;
        let public: Vec<_> = public_hosts.iter().map(|host| Target { host: host.clone(), port: login_port }).collect();
        let written = public.iter().map(Target::to_string).collect::<Vec<_>>().join(" ");
        accounts.set_setting(PUBLIC, &written).await?;
        accounts.set_setting(LOGIN_PORT, &login_port.to_string()).await?;
        accounts.set_setting(SERVER_EXPIRES_AT, &server.expires_at.unix_timestamp().to_string()).await?;
        Ok(Self { accounts, authority })
    }

    /// Opens the state that [`Registrar::init`] made.
    ///
    /// # Errors
    /// If there is none, or it is damaged.
    pub async fn open(state: &Path) -> Result<Self, Failure> {
        Self::open_with(state, None).await
    }

    /// As [`Registrar::open`], with the members in this database rather than where the state says.
    ///
    /// # Errors
    /// As [`Registrar::open`].
    pub async fn open_with(state: &Path, database: Option<&Database>) -> Result<Self, Failure> {
        let state = StateDir::open(state)?;
        let kept = state.database()?;
        let accounts = Accounts::open(database.unwrap_or(&kept)).await?;
        Ok(Self { accounts, authority: state.authority()? })
    }

    /// A registrar of the state in `state`, whose accounts are open already.
    ///
    /// # Errors
    /// If the state is damaged.
    pub(crate) fn of(state: &StateDir, accounts: Accounts) -> Result<Self, Failure> {
        Ok(Self { accounts, authority: state.authority()? })
    }

    /// This registrar, with changes logged as `actor`'s.
    pub fn acting_as(self, actor: &str) -> Self {
        Self { accounts: self.accounts.acting_as(actor), ..self }
    }

    /// The accounts behind it, to list and remove.
    pub fn accounts(&self) -> &Accounts {
        &self.accounts
    }

    /// Makes the state of another server of this `reconst` at `to`, which relays reach at `public`. New profiles and invites name it as well.
    ///
    /// # Errors
    /// If there is a node of that name, the members are in a file of SQLite, or the directory holds something already.
    pub async fn add_node(&self, state: &StateDir, database: &Database, node: &NodeIdentity, to: &Path) -> Result<(), Failure> {
        self.accounts.add_node(&node.name, &node.public).await?;
        let server = self.authority.issue_server().map_err(no_randomness)?;
        let made = state.create_node(to, node, &server, database);
        if let Err(failure) = made {
            self.accounts.remove_node(&node.name).await?;
            return Err(failure);
        }
        let expires_at = server.expires_at.unix_timestamp().to_string();
        Ok(self.accounts.set_setting(&server_expires_at(Some(&node.name)), &expires_at).await?)
    }

    /// Removes a server for good; new profiles and invites don't name it any more.
    ///
    /// # Errors
    /// If there is no node of that name.
    pub async fn remove_node(&self, name: &Name) -> Result<(), Failure> {
        Ok(self.accounts.remove_node(name).await?)
    }

    /// Adds a LAN, with the next free number and its port unless they are given.
    ///
    /// # Errors
    /// If the name, number or port is taken.
    pub async fn add_lan(&self, name: &Name, id: Option<LanId>, data_port: Option<u16>) -> Result<Lan, Failure> {
        if id == Some(LanId(0)) || data_port == Some(0) {
            return Err(Failure::usage("LAN numbers and ports begin at 1"));
        }
        Ok(self.accounts.add_lan(name, id, data_port, login_port(&self.accounts).await?).await?)
    }

    /// Moves a LAN to another data port, also while `reconst` runs: relays and paths follow. Gives it as it was.
    ///
    /// # Errors
    /// If there is no such LAN, or the port is taken.
    pub async fn move_lan(&self, name: &Name, data_port: u16) -> Result<Lan, Failure> {
        if data_port == 0 {
            return Err(Failure::usage("ports begin at 1"));
        }
        Ok(self.accounts.move_lan(name, data_port, login_port(&self.accounts).await?).await?)
    }

    /// Adds a user to a LAN.
    ///
    /// # Errors
    /// If there is no such LAN, or such a user in it.
    pub async fn add_user(&self, lan: &Name, name: &Name, limits: &Limits) -> Result<Profile, Failure> {
        self.add_member(lan, Role::User, name, limits).await
    }

    /// Adds a relay to a LAN.
    ///
    /// # Errors
    /// If there is no such LAN, or such a relay in it.
    pub async fn add_relay(&self, lan: &Name, name: &Name) -> Result<Profile, Failure> {
        self.add_member(lan, Role::Relay, name, &Limits::default()).await
    }

    /// Makes a link that makes whoever uses it first the member `invitation` says.
    ///
    /// # Errors
    /// If there is no such LAN, or the member has joined and is not invited again.
    pub async fn invite(&self, invitation: &Invitation<'_>) -> Result<(Invite, Invited), Failure> {
        // Numbers stay below 2³¹: a store may know no larger ones.
        let (number, secret) = (rand::random_range(1..=i32::MAX as u32), InviteSecret(rand::random()));
        let authority = tls::certificate("authority's certificate", self.authority.certificate_pem());
        let authority = authority.map_err(|error| Failure::new(Exit::Data, error.to_string()))?;
        let public = public(&self.accounts).await?;
        let invited = self.accounts.invite(invitation, number, &secret).await?;
        let invite = Invite {
            reconst: public.into_iter().take(TARGETS_MAX).collect(),
            role: invitation.role,
            lan: invited.identity.lan,
            number,
            fingerprint: Fingerprint::of(&authority),
            secret,
        };
        Ok((invite, invited))
    }

    /// Makes LANs and members what `document` says; with `is_trial`, only says what that would change.
    ///
    /// # Errors
    /// If it does not go together with what is here.
    pub async fn import(&self, document: &Document, is_trial: bool) -> Result<Imported, ImportError> {
        let damaged = |error: String| AccountsError::Damaged(error);
        let login_port = login_port(&self.accounts).await.map_err(|failure| damaged(failure.message))?;
        let verifier = MemberVerifier::new(self.authority.certificate_pem()).map_err(|error| damaged(error.to_string()))?;
        let holder = |der: &[u8]| verifier.verify_certificate(&CertificateDer::from(der), UnixTime::now()).ok();
        self.accounts.import(document, login_port, holder, is_trial).await
    }

    async fn add_member(&self, lan: &Name, role: Role, name: &Name, limits: &Limits) -> Result<Profile, Failure> {
        let lan = self.accounts.lan(lan).await?;
        let identity = Identity { name: name.clone(), role, lan: lan.id };
        let (validity, public) = (member_validity(&self.accounts).await?, public(&self.accounts).await?);
        let issued = self.authority.issue_member(&identity, validity).map_err(no_randomness)?;
        let first = IssuedTo { der: &issued.certificate_der, expires_at: issued.expires_at };
        self.accounts.add_member(&lan.name, &identity, limits, first).await?;
        Ok(Profile {
            identity,
            lan_name: lan.name,
            reconst: public,
            certificate_pem: issued.certificate_pem,
            key_pem: issued.key_pem,
            authority_pem: self.authority.certificate_pem().into(),
        })
    }
}

/// Where relays reach the login port, as profiles say.
pub(crate) async fn public(accounts: &Accounts) -> Result<Vec<Target>, Failure> {
    let public = accounts.setting(PUBLIC).await?.unwrap_or_default();
    let public = public.split_whitespace().map(str::parse).collect::<Result<Vec<Target>, _>>();
    public.map_err(|error| Failure::new(Exit::Data, format!("the public address in the member database is damaged: {error}")))
}

/// How long members' certificates are valid.
pub(crate) async fn member_validity(accounts: &Accounts) -> Result<Duration, Failure> {
    let seconds = accounts.setting(MEMBER_VALIDITY).await?.and_then(|seconds| seconds.parse().ok());
    Ok(seconds.map_or(DEFAULT_MEMBER_VALIDITY, Duration::seconds))
}

/// The login port that profiles say.
pub(crate) async fn login_port(accounts: &Accounts) -> Result<u16, Failure> {
    let port = accounts.setting(LOGIN_PORT).await?.and_then(|port| port.parse().ok());
    port.ok_or_else(|| Failure::new(Exit::Data, "the login port in the member database is damaged: restore it from a backup"))
}

/// Replaces `reconst`'s own certificate when it ends soon: that of the server that `init` made, or of the node of that name.
pub(crate) async fn renew_server_certificate(state: &StateDir, accounts: &Accounts, node: Option<&Name>) -> Result<(), Failure> {
    let setting = server_expires_at(node);
    let expires_at = accounts.setting(&setting).await?.and_then(|seconds| seconds.parse().ok());
    let expires_at = expires_at.and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok());
    if expires_at.is_some_and(|at| at - OffsetDateTime::now_utc() > RENEWED_BEFORE) {
        return Ok(());
    }
    let server = state.authority()?.issue_server().map_err(no_randomness)?;
    state.keep_server_certificate(&server)?;
    accounts.set_setting(&setting, &server.expires_at.unix_timestamp().to_string()).await?;
    tracing::info!(until = %server.expires_at.date(), "renewed the server's certificate");
    Ok(())
}

fn server_expires_at(node: Option<&Name>) -> String {
    node.map_or_else(|| SERVER_EXPIRES_AT.to_owned(), |node| format!("{SERVER_EXPIRES_AT}/{node}"))
}

fn no_randomness(error: rcgen::Error) -> Failure {
    Failure::new(Exit::Software, format!("can't make a key or certificate: {error}"))
}

const LOGIN_PORT: &str = "login-port";
/// The setting that holds how long members' certificates are valid, in seconds; without it [`DEFAULT_MEMBER_VALIDITY`].
pub const MEMBER_VALIDITY: &str = "member-validity-seconds";

/// Long enough that nobody joins anew often, short enough that a forgotten PC is a member no more some day.
pub const DEFAULT_MEMBER_VALIDITY: Duration = Duration::days(730);

const SERVER_EXPIRES_AT: &str = "server-expires-at";

/// Enough for a server that is started twice a year.
const RENEWED_BEFORE: Duration = Duration::days(200);

#[cfg(test)]
mod tests {
    use shared::units::{Rate, Size};

    use super::*;
    use crate::accounts::{Denied, Quota, changes::Change};

    #[tokio::test]
    async fn a_member_added_is_one_until_removed() {
        let neighbourhood = Neighbourhood::new().await;
        let (registrar, elm) = (&neighbourhood.registrar, name("elm"));
        let profile = registrar.add_user(&elm, &name("ann"), &Limits::default()).await.expect("a new user");
        assert_eq!(profile.reconst, ["127.0.0.1:10000".parse().expect("a target")]);
        let certificate = shared::link::tls::certificate("certificate", &profile.certificate_pem).expect("PEM");
        let accounts = registrar.accounts();
        let member = accounts.authorise(&certificate, Role::User).await.expect("a member");
        assert_eq!((member.identity, member.lan_name), (profile.identity.clone(), elm.clone()));
        assert!(matches!(accounts.authorise(&certificate, Role::Relay).await, Err(Denied::Role { .. })));

        accounts.remove_member(&elm, Role::User, &name("ann")).await.expect("a user to remove");
        let denied = accounts.authorise(&certificate, Role::User).await.expect_err("no member any more");
        assert!(denied.to_string().starts_with("user ann of LAN 15 was removed on 20"), "{denied}");

        let again = registrar.add_user(&elm, &name("ann"), &Limits::default()).await.expect("the name is free again");
        let again = shared::link::tls::certificate("certificate", &again.certificate_pem).expect("PEM");
        accounts.authorise(&again, Role::User).await.expect("the new ann");
        assert!(accounts.authorise(&certificate, Role::User).await.is_err());
    }

    #[tokio::test]
    async fn a_certificate_that_was_never_issued_is_unknown() {
        let (one, other) = (Neighbourhood::new().await, Neighbourhood::new().await);
        let profile = other.registrar.add_user(&name("elm"), &name("ann"), &Limits::default()).await.expect("a new user");
        one.registrar.add_user(&name("elm"), &name("ann"), &Limits::default()).await.expect("a new user");
        let certificate = shared::link::tls::certificate("certificate", &profile.certificate_pem).expect("PEM");
        assert!(matches!(one.registrar.accounts().authorise(&certificate, Role::User).await, Err(Denied::Unknown)));
    }

    #[tokio::test]
    async fn a_lan_removed_takes_its_members_along() {
        let neighbourhood = Neighbourhood::new().await;
        let (registrar, elm) = (&neighbourhood.registrar, name("elm"));
        let profile = registrar.add_relay(&elm, &name("bob")).await.expect("a new relay");
        let certificate = shared::link::tls::certificate("certificate", &profile.certificate_pem).expect("PEM");
        registrar.accounts().remove_lan(&elm).await.expect("a LAN to remove");
        registrar.add_lan(&elm, Some(LanId(15)), None).await.expect("name, number and port are free again");
        assert!(matches!(registrar.accounts().authorise(&certificate, Role::Relay).await, Err(Denied::Removed { .. })));
        assert_eq!(registrar.accounts().member_count(Role::Relay).await.expect("a count"), 0);
    }

    #[tokio::test]
    async fn limits_are_recorded() {
        let neighbourhood = Neighbourhood::new().await;
        let limits = Limits {
            quota: Some(Quota::of(Size { bytes: 100_000_000_000 })),
            rate_up: Some(Rate { bits_per_second: 512_000 }),
            rate_down: None,
            max_flows: Some(200),
        };
        neighbourhood.registrar.add_user(&name("elm"), &name("ann"), &limits).await.expect("a new user");
        let user = neighbourhood.registrar.accounts().user(&name("elm"), &name("ann")).await.expect("a user");
        assert_eq!(user.limits, limits);
    }

    #[tokio::test]
    async fn names_numbers_and_ports_of_lans_are_given_once() {
        let neighbourhood = Neighbourhood::new().await;
        let accounts = neighbourhood.registrar.accounts();
        let add = async |lan: &str, id: Option<u16>, port| accounts.add_lan(&name(lan), id.map(LanId), port, 10_000).await;
        assert!(matches!(add("elm", None, None).await, Err(AccountsError::LanExists(_))));
        assert!(matches!(add("oak", Some(15), None).await, Err(AccountsError::LanIdTaken(_))));
        assert!(matches!(add("oak", Some(16), Some(10_015)).await, Err(AccountsError::DataPortTaken(_))));
        assert!(matches!(add("oak", Some(16), Some(10_000)).await, Err(AccountsError::DataPortTaken(_))));
        assert!(matches!(add("oak", Some(60_000), None).await, Err(AccountsError::NoDataPort(_))));
        assert_eq!(add("oak", None, None).await.expect("the first number").data_port, 10_001);
        assert_eq!(add("yew", Some(60_000), Some(9_000)).await.expect("a port of its own").data_port, 9_000);
    }

    #[tokio::test]
    async fn a_change_by_another_program_is_noticed() {
        let neighbourhood = Neighbourhood::new().await;
        let accounts = neighbourhood.registrar.accounts().clone();
        let following = tokio::spawn({
            let accounts = accounts.clone();
            async move { accounts.follow_changes().await }
        });
        let mut changes = accounts.changes();
        assert_eq!(*changes.next().await, Change::of_everything(), "it looks for the first time");
        let other = Registrar::open(neighbourhood.scratch.path().join("state").as_path()).await.expect("the same state");
        other.add_lan(&name("oak"), None, None).await.expect("a new LAN");
        let change = tokio::time::timeout(std::time::Duration::from_secs(20), changes.next()).await.expect("noticed in time");
        assert!(change.touches_lans() && !change.touches_members(), "{change:?}");
        following.abort();
    }

    #[tokio::test]
    async fn members_are_told_the_nodes_that_another_program_has_added_and_removed() {
        let neighbourhood = Neighbourhood::new().await;
        let (registrar, elm) = (&neighbourhood.registrar, name("elm"));
        let other = Registrar::open(neighbourhood.scratch.path().join("state").as_path()).await.expect("the same state");
        let written = "127.0.0.1:10000 127.0.0.2:10000 127.0.0.3:10000";
        other.accounts().set_setting(PUBLIC, written).await.expect("as `node add` does");
        let told = async |user: &str| {
            let profile = registrar.add_user(&elm, &name(user), &Limits::default()).await.expect("a new user");
            profile.reconst.iter().map(Target::to_string).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(told("ann").await, written);
        if registrar.accounts().takes_several_nodes() {
            let public = "127.0.0.2:10000".parse().expect("an address");
            other.accounts().add_node(&name("node2"), &public).await.expect("a node");
            registrar.remove_node(&name("node2")).await.expect("a node");
            assert_eq!(told("bob").await, "127.0.0.1:10000 127.0.0.3:10000", "the others stay");
        }
    }

    #[tokio::test]
    async fn of_nodes_that_are_added_at_once_all_are_told() {
        let neighbourhood = Neighbourhood::new().await;
        let registrar = &neighbourhood.registrar;
        if !registrar.accounts().takes_several_nodes() {
            println!("skipped: nodes need PostgreSQL; run .ci/with-postgres cargo test -p reconst --lib");
            return;
        }
        let state = StateDir::open(&neighbourhood.scratch.path().join("state")).expect("a state directory");
        let database = state.database().expect("chosen");
        let add = async |host: u8| {
            let public = format!("127.0.0.{host}:10000").parse().expect("an address");
            let node = NodeIdentity { name: name(&format!("node{host}")), public };
            registrar.add_node(&state, &database, &node, &neighbourhood.scratch.path().join(node.name.as_str())).await.expect("a new node");
        };
        tokio::join!(add(2), add(3), add(4), add(5));
        let told = public(registrar.accounts()).await.expect("a store");
        let added = (2..=5).filter(|host| told.contains(&format!("127.0.0.{host}:10000").parse().expect("an address")));
        assert_eq!((told.len(), added.count()), (5, 4), "{told:?}");
        let remove = async |node: &str| registrar.remove_node(&name(node)).await.expect("a node");
        tokio::join!(remove("node2"), remove("node3"), remove("node4"));
        assert_eq!(public(registrar.accounts()).await.expect("a store").len(), 2);
    }

    #[tokio::test]
    async fn every_change_is_logged_with_who_made_it() {
        let Neighbourhood { registrar, scratch: _scratch } = Neighbourhood::new().await;
        let registrar = registrar.acting_as("ada (uid 1000)");
        let (elm, ann) = (name("elm"), name("ann"));
        registrar.add_user(&elm, &ann, &Limits::default()).await.expect("a new user");
        let accounts = registrar.accounts();
        let account = accounts.user(&elm, &ann).await.expect("a user").account;
        let limits = Limits { quota: Some(Quota::of(Size { bytes: 1_000_000_000 })), max_flows: Some(7), ..Limits::default() };
        accounts.set_limits(account, &limits).await.expect("an account");
        accounts.remove_member(&elm, Role::User, &ann).await.expect("a user to remove");
        assert!(accounts.remove_member(&elm, Role::User, &ann).await.is_err(), "what is not changed is not logged");
        let log = accounts.audit_log_end(None, 3).await.expect("a log");
        let texts: Vec<_> = log.iter().map(|entry| (entry.actor.as_str(), entry.action.as_str(), entry.subject.as_str())).collect();
        let who = "ada (uid 1000)";
        assert_eq!(texts, [(who, "user.add", "ann@elm"), (who, "user.set", "ann@elm"), (who, "user.remove", "ann@elm")]);
        assert_eq!(log[1].detail, "quota 1.00 GB per month in UTC, both, 7 flows");
        assert_eq!(accounts.audit_part(None, Some(log[0].number), 1).await.expect("a log").items, log[1..2]);
    }

    struct Neighbourhood {
        registrar: Registrar,
        scratch: tempfile::TempDir,
    }

    impl Neighbourhood {
        async fn new() -> Self {
            let (registrar, scratch) = crate::accounts::testing::registrar().await;
            Self { registrar, scratch }
        }
    }

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }
}
