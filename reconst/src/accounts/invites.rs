//! Invites, and the certificates that are issued to those who ask over the network.
//!
//! Enters: what an operator invites; an invite's number and secret, or a certificate that stands, with the key to be certified. Leaves: the
//! new certificate, on the accounts before it is told. Always holds: an invite makes one key a member's, however often and from wherever it
//! is shown; only who knows the secret is told what became of it.

use shared::{
    community::{
        invite::InviteSecret,
        member::{Identity, Name, Role},
    },
    ids::LanId,
};
use sqlx::{Any, FromRow, Row, Transaction, any::AnyRow};
use thiserror::Error;
use time::{Date, Duration, OffsetDateTime};

use super::{
    Accounts, AccountsError, Limits, MemberId,
    changes::Touched,
    day, identity, number, parsed,
    registry::{at, now},
    users::put_limits,
};

/// Who is to be invited.
#[derive(Clone, Debug)]
pub struct Invitation<'a> {
    /// The LAN's name.
    pub lan: &'a Name,
    /// What the member will be.
    pub role: Role,
    /// Its name.
    pub name: &'a Name,
    /// What it may spend, if it is new.
    pub limits: &'a Limits,
    /// Whether it may be a member already, who has joined: for another PC of a user's, or the next of a relay's.
    pub again: bool,
    /// How long the invite serves.
    pub lifetime: Duration,
}

/// An invite that was made.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Invited {
    /// Its number.
    pub number: u32,
    /// Whom it is for.
    pub identity: Identity,
    /// Until when it serves.
    pub expires_at: OffsetDateTime,
}

/// An invite as a list shows it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ListedInvite {
    /// Its number.
    pub number: u32,
    /// Whom it is for.
    pub identity: Identity,
    /// The LAN's name.
    pub lan_name: Name,
    /// Until when it serves, or served.
    pub expires_at: OffsetDateTime,
    /// What became of it.
    pub state: InviteState,
}

/// What became of an invite.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum InviteState {
    /// It serves.
    Open,
    /// It has made a PC a member, that day (UTC).
    Used(Date),
    /// It was withdrawn, or replaced by another.
    Revoked,
    /// Its time is over.
    Expired,
}

/// Who asks for a certificate, and for which key.
#[derive(Clone, Copy, Debug)]
pub struct Redeeming {
    /// The invite's number.
    pub number: u32,
    /// Its secret.
    pub secret: InviteSecret,
    /// The key to be certified.
    pub public_key: [u8; 32],
}

/// A certificate, new or told once more.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Enrolled {
    /// Whose it is.
    pub identity: Identity,
    /// The LAN's name.
    pub lan_name: Name,
    /// The certificate, DER.
    pub certificate: Vec<u8>,
}

/// A certificate as the authority makes it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Certified {
    /// The certificate, DER.
    pub der: Vec<u8>,
    /// When it ends.
    pub expires_at: OffsetDateTime,
}

/// Why no certificate is issued; the sentence is for the person who asks.
#[derive(Debug, Error)]
pub enum EnrolDenied {
    /// No such invite, or not its secret.
    #[error("this invite is not known to this reconst: ask its operator for a new one")]
    Unknown,
    /// Used by another key.
    #[error("this invite was used on {0}, and each makes one PC a member: ask reconst's operator for a new one")]
    Used(Date),
    /// Too late.
    #[error("this invite ended on {0} (UTC): ask reconst's operator for a new one")]
    Expired(Date),
    /// Withdrawn.
    #[error("this invite was withdrawn, or replaced by a newer one: ask reconst's operator for a new one")]
    Revoked,
    /// The member was removed, or its LAN.
    #[error("{identity} was removed on {on}: ask reconst's operator if that is a mistake")]
    Removed {
        /// Who it was.
        identity: Identity,
        /// The day, UTC.
        on: Date,
    },
    /// The certificate shown was never issued here.
    #[error("this certificate is not known to this reconst: ask its operator for an invite")]
    UnknownCertificate,
    /// The certificate shown is none of a member's any more.
    #[error("this certificate of {0} does not count any more: another PC has joined in its place")]
    Replaced(Identity),
    /// The member has as many as one may.
    #[error("{0} has as many certificates as a member may have: some must end first")]
    TooMany(Identity),
    /// The store does not answer, or no certificate can be made.
    #[error("reconst can't issue certificates now: try again in a moment")]
    Unavailable(#[source] Box<dyn std::error::Error + Send + Sync>),
}

impl From<sqlx::Error> for EnrolDenied {
    fn from(error: sqlx::Error) -> Self {
        Self::Unavailable(Box::new(error))
    }
}

impl From<AccountsError> for EnrolDenied {
    fn from(error: AccountsError) -> Self {
        Self::Unavailable(Box::new(error))
    }
}

impl Accounts {
    /// Makes an invite of that number and secret, and the member if there is none of that name. Open invites of the same member end.
    ///
    /// # Errors
    /// If there is no such LAN, or the member has joined and is not invited again.
    pub async fn invite(&self, invitation: &Invitation<'_>, number: u32, secret: &InviteSecret) -> Result<Invited, AccountsError> {
        let mut transaction = self.write().await?;
        let (member, lan) = invited_member(&mut transaction, invitation).await?;
        sqlx::query("UPDATE invites SET revoked_at = $1 WHERE member_id = $2 AND used_at IS NULL AND revoked_at IS NULL")
            .bind(now())
            .bind(member.0)
            .execute(&mut *transaction)
            .await?;
        let expires_at = OffsetDateTime::now_utc() + invitation.lifetime;
        sqlx::query("INSERT INTO invites (invite_id, member_id, secret_hash, created_at, expires_at) VALUES ($1, $2, $3, $4, $5)")
            .bind(i64::from(number))
            .bind(member.0)
            .bind(hexadecimal(&secret.hash()))
            .bind(now())
            .bind(expires_at.unix_timestamp())
            .execute(&mut *transaction)
            .await?;
        self.touch(&mut transaction, Touched::Nobody).await?;
        let (action, subject) = (format!("{}.invite", invitation.role), at(invitation.name, invitation.lan));
        self.log(&mut transaction, &action, &subject, &format!("invite {number}")).await?;
        transaction.commit().await?;
        let identity = Identity { name: invitation.name.clone(), role: invitation.role, lan };
        Ok(Invited { number, identity, expires_at })
    }

    /// The invites for members who are there, the newest first.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn invites(&self) -> Result<Vec<ListedInvite>, AccountsError> {
        let rows: Vec<ListedRow> = sqlx::query_as(
            "SELECT i.invite_id, m.role, m.name, l.lan_id, l.name AS lan_name, i.expires_at, i.used_at, i.revoked_at
             FROM invites i JOIN members m ON m.member_id = i.member_id JOIN lans l ON l.lan_key = m.lan_key
             WHERE m.removed_at IS NULL AND l.removed_at IS NULL ORDER BY i.created_at DESC, i.invite_id",
        )
        .fetch_all(&self.pool)
        .await?;
        let listed = |row: ListedRow| {
            let state = match row {
                ListedRow { used_at: Some(used_at), .. } => InviteState::Used(day(used_at)),
                ListedRow { revoked_at: Some(_), .. } => InviteState::Revoked,
                ListedRow { expires_at, .. } if expires_at <= now() => InviteState::Expired,
                _ => InviteState::Open,
            };
            Ok(ListedInvite {
                number: number(row.invite_id)?,
                identity: identity(&row.role, &row.name, row.lan_id)?,
                lan_name: parsed(&row.lan_name)?,
                expires_at: OffsetDateTime::from_unix_timestamp(row.expires_at).unwrap_or(OffsetDateTime::UNIX_EPOCH),
                state,
            })
        };
        rows.into_iter().map(listed).collect()
    }

    /// Withdraws the open invite of that number.
    ///
    /// # Errors
    /// If there is none that is open.
    pub async fn revoke_invite(&self, invite: u32) -> Result<(), AccountsError> {
        let mut transaction = self.write().await?;
        let revoked: Option<i64> = sqlx::query_scalar(
            "UPDATE invites SET revoked_at = $1 WHERE invite_id = $2 AND used_at IS NULL AND revoked_at IS NULL RETURNING member_id",
        )
        .bind(now())
        .bind(i64::from(invite))
        .fetch_optional(&mut *transaction)
        .await?;
        let member = revoked.ok_or(AccountsError::NoInvite(invite))?;
        let (role, name, lan): (String, String, String) =
            sqlx::query_as("SELECT m.role, m.name, l.name FROM members m JOIN lans l ON l.lan_key = m.lan_key WHERE m.member_id = $1")
                .bind(member)
                .fetch_one(&mut *transaction)
                .await?;
        self.touch(&mut transaction, Touched::Nobody).await?;
        self.log(&mut transaction, "invite.revoke", &at(&parsed(&name)?, &parsed(&lan)?), &format!("{role}'s invite {invite}")).await?;
        Ok(transaction.commit().await?)
    }

    /// Makes `redeeming`'s key the invited member's, with the certificate that `certify` makes. A relay's certificates before it are
    /// revoked: it has one PC at a time. Who shows a used invite with the key that used it gets the same certificate again.
    ///
    /// # Errors
    /// If the invite is none that serves.
    pub async fn redeem(
        &self,
        redeeming: Redeeming,
        certify: impl FnOnce(&Identity) -> Result<Certified, EnrolDenied>,
    ) -> Result<Enrolled, EnrolDenied> {
        let mut transaction = self.write().await?;
        let row: Option<InviteRow> = sqlx::query_as(
            "SELECT i.member_id, i.secret_hash, i.expires_at, i.used_at, i.used_by_key, i.revoked_at,
             m.role, m.name, l.lan_id, l.name AS lan_name, coalesce(m.removed_at, l.removed_at) AS removed_at
             FROM invites i JOIN members m ON m.member_id = i.member_id JOIN lans l ON l.lan_key = m.lan_key WHERE i.invite_id = $1",
        )
        .bind(i64::from(redeeming.number))
        .fetch_optional(&mut *transaction)
        .await?;
        let row = row.ok_or(EnrolDenied::Unknown)?;
        let hash: [u8; 32] = bytes_of(&row.secret_hash)?;
        if !redeeming.secret.fits(&hash) {
            return Err(EnrolDenied::Unknown);
        }
        let (identity, lan_name) = (identity(&row.role, &row.name, row.lan_id)?, parsed(&row.lan_name)?);
        let key = hexadecimal(&redeeming.public_key);
        let is_same_key = row.used_by_key.as_ref() == Some(&key);
        match row {
            InviteRow { removed_at: Some(on), .. } => return Err(EnrolDenied::Removed { identity, on: day(on) }),
            InviteRow { used_at: Some(used_at), .. } if !is_same_key => return Err(EnrolDenied::Used(day(used_at))),
            InviteRow { used_at: None, revoked_at: Some(_), .. } => return Err(EnrolDenied::Revoked),
            InviteRow { used_at: None, expires_at, .. } if expires_at <= now() => return Err(EnrolDenied::Expired(day(expires_at))),
            _ => (),
        }
        let member = MemberId(row.member_id);
        if is_same_key {
            let certificate = newest_with_key(&mut transaction, member, &redeeming.public_key).await?.ok_or(EnrolDenied::Unknown)?;
            return Ok(Enrolled { identity, lan_name, certificate });
        }
        let certified = certify(&identity)?;
        if identity.role == Role::Relay {
            sqlx::query("UPDATE certificates SET revoked_at = $1 WHERE member_id = $2 AND revoked_at IS NULL")
                .bind(now())
                .bind(member.0)
                .execute(&mut *transaction)
                .await?;
        }
        self.touch(&mut transaction, if identity.role == Role::Relay { Touched::Member(member) } else { Touched::Nobody }).await?;
        insert_certificate(&mut transaction, member, &certified).await?;
        sqlx::query("UPDATE invites SET used_at = $1, used_by_key = $2 WHERE invite_id = $3")
            .bind(now())
            .bind(key)
            .bind(i64::from(redeeming.number))
            .execute(&mut *transaction)
            .await?;
        let (action, detail) = (format!("{}.join", identity.role), format!("invite {}", redeeming.number));
        self.log(&mut transaction, &action, &at(&identity.name, &lan_name), &detail).await?;
        transaction.commit().await?;
        Ok(Enrolled { identity, lan_name, certificate: certified.der })
    }
}

async fn invited_member(
    transaction: &mut Transaction<'static, Any>,
    invitation: &Invitation<'_>,
) -> Result<(MemberId, LanId), AccountsError> {
    let Invitation { lan, role, name, limits, again, .. } = invitation;
    let row: Option<(i64, i64)> = sqlx::query_as("SELECT lan_key, lan_id FROM lans WHERE name = $1 AND removed_at IS NULL")
        .bind(lan.as_str())
        .fetch_optional(&mut **transaction)
        .await?;
    let (lan_key, lan_id) = row.ok_or_else(|| AccountsError::NoLan((*lan).clone()))?;
    let lan_id = LanId(number(lan_id)?);
    let known: Option<(i64, i64)> = sqlx::query_as(
        "SELECT m.member_id, (SELECT count(*) FROM certificates c WHERE c.member_id = m.member_id) FROM members m
         WHERE m.lan_key = $1 AND m.role = $2 AND m.name = $3 AND m.removed_at IS NULL",
    )
    .bind(lan_key)
    .bind(role.to_string())
    .bind(name.as_str())
    .fetch_optional(&mut **transaction)
    .await?;
    match known {
        Some((_, certificates)) if certificates > 0 && !again => {
            Err(AccountsError::HasJoined { lan: (*lan).clone(), role: *role, name: (*name).clone() })
        }
        Some((member, _)) => Ok((MemberId(member), lan_id)),
        None if *again => Err(AccountsError::NoMember { lan: (*lan).clone(), role: *role, name: (*name).clone() }),
        None => {
            let sql = "INSERT INTO members (lan_key, role, name, created_at) VALUES ($1, $2, $3, $4) RETURNING member_id";
            let inserted = sqlx::query_scalar(sql).bind(lan_key).bind(role.to_string()).bind(name.as_str()).bind(now());
            let member = MemberId(inserted.fetch_one(&mut **transaction).await?);
            if *role == Role::User {
                put_limits(transaction, member, limits).await?;
            }
            Ok((member, lan_id))
        }
    }
}

pub(super) async fn insert_certificate(
    transaction: &mut Transaction<'static, Any>,
    member: MemberId,
    certified: &Certified,
) -> Result<(), sqlx::Error> {
    sqlx::query("INSERT INTO certificates (member_id, der, issued_at, expires_at) VALUES ($1, $2, $3, $4)")
        .bind(member.0)
        .bind(&certified.der[..])
        .bind(now())
        .bind(certified.expires_at.unix_timestamp())
        .execute(&mut **transaction)
        .await?;
    Ok(())
}

pub(super) async fn newest_with_key(
    transaction: &mut Transaction<'static, Any>,
    member: MemberId,
    public_key: &[u8; 32],
) -> Result<Option<Vec<u8>>, sqlx::Error> {
    let ders: Vec<Vec<u8>> = sqlx::query_scalar("SELECT der FROM certificates WHERE member_id = $1 ORDER BY certificate_id DESC")
        .bind(member.0)
        .fetch_all(&mut **transaction)
        .await?;
    // The key stands in its certificate as it is (RFC 8410 §4), and nothing else there is like it.
    Ok(ders.into_iter().find(|der| der.windows(public_key.len()).any(|window| window == public_key)))
}

struct ListedRow {
    invite_id: i64,
    role: String,
    name: String,
    lan_id: i64,
    lan_name: String,
    expires_at: i64,
    used_at: Option<i64>,
    revoked_at: Option<i64>,
}

impl FromRow<'_, AnyRow> for ListedRow {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            invite_id: row.try_get("invite_id")?,
            role: row.try_get("role")?,
            name: row.try_get("name")?,
            lan_id: row.try_get("lan_id")?,
            lan_name: row.try_get("lan_name")?,
            expires_at: row.try_get("expires_at")?,
            used_at: row.try_get("used_at")?,
            revoked_at: row.try_get("revoked_at")?,
        })
    }
}

struct InviteRow {
    member_id: i64,
    secret_hash: String,
    expires_at: i64,
    used_at: Option<i64>,
    used_by_key: Option<String>,
    revoked_at: Option<i64>,
    role: String,
    name: String,
    lan_id: i64,
    lan_name: String,
    removed_at: Option<i64>,
}

impl FromRow<'_, AnyRow> for InviteRow {
    fn from_row(row: &AnyRow) -> Result<Self, sqlx::Error> {
        Ok(Self {
            member_id: row.try_get("member_id")?,
            secret_hash: row.try_get("secret_hash")?,
            expires_at: row.try_get("expires_at")?,
            used_at: row.try_get("used_at")?,
            used_by_key: row.try_get("used_by_key")?,
            revoked_at: row.try_get("revoked_at")?,
            role: row.try_get("role")?,
            name: row.try_get("name")?,
            lan_id: row.try_get("lan_id")?,
            lan_name: row.try_get("lan_name")?,
            removed_at: row.try_get("removed_at")?,
        })
    }
}

fn hexadecimal(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn bytes_of(hexadecimal: &str) -> Result<[u8; 32], AccountsError> {
    let damaged = || AccountsError::Damaged("an invite's hash".into());
    if hexadecimal.len() != 64 || !hexadecimal.is_ascii() {
        return Err(damaged());
    }
    let mut bytes = [0; 32];
    for (index, byte) in bytes.iter_mut().enumerate() {
        *byte = u8::from_str_radix(&hexadecimal[2 * index..2 * index + 2], 16).map_err(|_| damaged())?;
    }
    Ok(bytes)
}
