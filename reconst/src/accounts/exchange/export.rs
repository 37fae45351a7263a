//! From the store to a document.

use std::collections::BTreeMap;

use sqlx::{Any, Transaction};

use super::{CertificateEntry, Der, Document, LanEntry, RelayEntry, UserEntry, UserOfLan, VERSION};
use crate::accounts::{
    Accounts, AccountsError, Limits, MemberId,
    lan_accounts::{LanKey, all_lan_limits},
    number, parsed,
    registry::now,
    schema::Backend,
    usage,
};

impl Accounts {
    /// All LANs and members, as they are at one moment, with the certificates that make them members.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn export(&self) -> Result<Document, AccountsError> {
        let mut transaction = self.pool.begin().await?;
        if self.backend == Backend::Postgres {
            sqlx::query("SET TRANSACTION ISOLATION LEVEL REPEATABLE READ").execute(&mut *transaction).await?;
        }
        let document = read(&mut transaction).await?;
        transaction.rollback().await?;
        Ok(document)
    }
}

/// Member, role, name, LAN's name, when added, whose account (name and LAN), whose PC.
type MemberRow = (i64, String, String, String, i64, Option<String>, Option<String>, Option<String>);

/// Member, DER, when issued, when it ends.
type CertificateRow = (i64, Vec<u8>, i64, i64);

async fn read(transaction: &mut Transaction<'static, Any>) -> Result<Document, AccountsError> {
    let lan_limits = all_lan_limits(&mut **transaction).await?;
    let lans: Vec<(i64, String, i64, i64)> =
        sqlx::query_as("SELECT lan_key, name, lan_id, data_port FROM lans WHERE removed_at IS NULL ORDER BY lan_id")
            .fetch_all(&mut **transaction)
            .await?;
    let lan = |(key, name, id, port): (i64, String, i64, i64)| {
        let limits = lan_limits.get(&LanKey(key)).map(Into::into).unwrap_or_default();
        Ok::<_, AccountsError>(LanEntry { name: parsed(&name)?, number: number(id)?, data_port: number(port)?, limits })
    };
    let lan = lans.into_iter().map(lan).collect::<Result<_, _>>()?;

    let limits_by_member = usage::all_limits(&mut **transaction).await?;
    let certificates: Vec<CertificateRow> = sqlx::query_as(
        "SELECT member_id, der, issued_at, expires_at FROM certificates WHERE revoked_at IS NULL AND expires_at > $1 ORDER BY certificate_id",
    )
    .bind(now())
    .fetch_all(&mut **transaction)
    .await?;
    let mut certificates_by_member: BTreeMap<i64, Vec<CertificateEntry>> = BTreeMap::new();
    for (member, der, issued_at, expires_at) in certificates {
        certificates_by_member.entry(member).or_default().push(CertificateEntry { issued_at, expires_at, der: Der(der) });
    }

    let members: Vec<MemberRow> = sqlx::query_as(
        "SELECT m.member_id, m.role, m.name, l.name AS lan_name, m.created_at, a.name AS account, al.name AS account_lan, o.name AS owner
         FROM members m JOIN lans l ON l.lan_key = m.lan_key
         LEFT JOIN members a ON a.member_id = m.account_of AND a.removed_at IS NULL LEFT JOIN lans al ON al.lan_key = a.lan_key
         LEFT JOIN members o ON o.member_id = m.owner_id AND o.removed_at IS NULL
         WHERE m.removed_at IS NULL AND l.removed_at IS NULL ORDER BY l.lan_id, m.name",
    )
    .fetch_all(&mut **transaction)
    .await?;
    let (mut user, mut relay) = (Vec::new(), Vec::new());
    for (id, role, name, lan, added_at, account, account_lan, owner) in members {
        let (name, lan, added_at) = (parsed(&name)?, parsed(&lan)?, Some(added_at));
        let certificates = certificates_by_member.remove(&id).unwrap_or_default();
        if role == "relay" {
            let owner = owner.as_deref().map(parsed).transpose()?;
            relay.push(RelayEntry { name, lan, added_at, owner, certificates });
            continue;
        }
        let account = match (account, account_lan) {
            (Some(name), Some(lan)) => Some(UserOfLan { name: parsed(&name)?, lan: parsed(&lan)? }),
            _ => None,
        };
        let no_limits = Limits::default();
        let limits = limits_by_member.get(&MemberId(id)).filter(|_| account.is_none()).unwrap_or(&no_limits);
        user.push(UserEntry { name, lan, added_at, account, limits: limits.into(), certificates });
    }
    Ok(Document { version: VERSION, lan, user, relay })
}
