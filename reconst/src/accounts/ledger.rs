//! The community's ledger: what each relay has carried for others, and whose PC it is.

use std::collections::BTreeMap;

use shared::{
    community::{
        member::{Name, Role},
        quota::{Period, UnixSeconds, Used},
    },
    ids::LanId,
};

use sqlx::AssertSqlSafe;
use time::Date;

use super::{
    Accounts, AccountsError, MemberId,
    changes::Touched,
    day,
    lan_accounts::LanKey,
    number, parsed,
    parts::{MemberPlace, Members, Part, Rows},
    registry::at,
    usage::{ROWS_PER_STATEMENT, parameters, stored},
};

/// What relays have carried since it was last kept, by LAN and relay.
pub type Carried = BTreeMap<(LanId, Name), Used>;

/// A relay on the ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lender {
    /// The LAN's key in the store.
    pub lan_key: LanKey,
    /// The relay's LAN and its name.
    pub lan: LanId,
    /// The LAN's name.
    pub lan_name: Name,
    /// See `lan`.
    pub name: Name,
    /// When it was added.
    pub added_at: UnixSeconds,
    /// The user whose PC it is.
    pub owner: Option<Name>,
    /// What it has carried in the month asked for.
    pub carried: Used,
}

impl Lender {
    /// The day it was added, UTC.
    pub fn added_on(&self) -> Date {
        day(self.added_at.0)
    }
}

impl Accounts {
    /// Adds to what relays have carried in the calendar month (UTC) of `time`, for all of them or none.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn credit(&self, carried: &Carried, time: UnixSeconds) -> Result<(), AccountsError> {
        let mut transaction = self.write_unnoticed().await?;
        for ((lan, relay), bytes) in carried {
            sqlx::query(
                "INSERT INTO contributions (member_id, month_start, up_bytes, down_bytes)
                 SELECT m.member_id, $1, $2, $3 FROM members m JOIN lans l ON l.lan_key = m.lan_key
                 WHERE m.role = 'relay' AND m.name = $4 AND l.lan_id = $5 AND m.removed_at IS NULL AND l.removed_at IS NULL
                 ON CONFLICT (member_id, month_start) DO UPDATE SET
                 up_bytes = contributions.up_bytes + excluded.up_bytes, down_bytes = contributions.down_bytes + excluded.down_bytes",
            )
            .bind(month_of(time))
            .bind(stored(bytes.up))
            .bind(stored(bytes.down))
            .bind(relay.as_str())
            .bind(i64::from(lan.0))
            .execute(&mut *transaction)
            .await?;
        }
        Ok(transaction.commit().await?)
    }

    /// A part of the relays with what they have carried in the month of `time`.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn lenders(&self, members: &Members<'_>, time: UnixSeconds) -> Result<Part<Lender, MemberPlace>, AccountsError> {
        type Row = (i64, i64, String, String, i64, Option<String>, Option<i64>, Option<i64>);
        let Some(Rows { from, to }) = self.rows_of(members).await? else { return Ok(Part::empty()) };
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT m.lan_key, l.lan_id, l.name, m.name, m.created_at, o.name, c.up_bytes, c.down_bytes
             FROM members m JOIN lans l ON l.lan_key = m.lan_key
             LEFT JOIN members o ON o.member_id = m.owner_id AND o.removed_at IS NULL
             LEFT JOIN contributions c ON c.member_id = m.member_id AND c.month_start = $1
             WHERE m.role = 'relay' AND m.removed_at IS NULL AND l.removed_at IS NULL
             AND (m.lan_key, m.role, m.name) > ($2, 'relay', $3) AND m.lan_key <= $4 ORDER BY m.lan_key, m.name LIMIT $5",
        )
        .bind(month_of(time))
        .bind(from.0)
        .bind(from.1)
        .bind(to)
        .bind(i64::from(members.limit) + 1)
        .fetch_all(&self.pool)
        .await?;
        let lender = |(lan_key, lan, lan_name, name, added_at, owner, up, down): Row| {
            Ok(Lender {
                lan_key: LanKey(lan_key),
                lan: LanId(number(lan)?),
                lan_name: parsed(&lan_name)?,
                name: parsed(&name)?,
                added_at: UnixSeconds(added_at),
                owner: owner.as_deref().map(parsed).transpose()?,
                carried: Used { up: number(up.unwrap_or(0))?, down: number(down.unwrap_or(0))? },
            })
        };
        let lenders = rows.into_iter().map(lender).collect::<Result<Vec<Lender>, AccountsError>>()?;
        Ok(Part::cut(lenders, members.limit, |lender| MemberPlace { lan: lender.lan_key, name: lender.name.clone() }))
    }

    /// Notes whose PC a relay is: a user's of the same LAN, or nobody's that is known.
    ///
    /// # Errors
    /// If there is no such relay or user.
    pub async fn set_owner(&self, lan: &Name, relay: &Name, owner: Option<&Name>) -> Result<(), AccountsError> {
        let mut transaction = self.write().await?;
        let find = "SELECT m.member_id FROM members m JOIN lans l ON l.lan_key = m.lan_key
                    WHERE m.role = $1 AND m.name = $2 AND l.name = $3 AND m.removed_at IS NULL AND l.removed_at IS NULL";
        let mut ids: Vec<i64> = Vec::new();
        for (role, name) in [(Role::Relay, Some(relay)), (Role::User, owner)] {
            let Some(name) = name else { continue };
            let found: Option<i64> = sqlx::query_scalar(find)
                .bind(role.to_string())
                .bind(name.as_str())
                .bind(lan.as_str())
                .fetch_optional(&mut *transaction)
                .await?;
            ids.push(found.ok_or_else(|| AccountsError::NoMember { lan: lan.clone(), role, name: name.clone() })?);
        }
        sqlx::query("UPDATE members SET owner_id = $1 WHERE member_id = $2")
            .bind(ids.get(1).copied())
            .bind(ids[0])
            .execute(&mut *transaction)
            .await?;
        self.touch(&mut transaction, Touched::Nobody).await?;
        let detail = owner.map_or_else(|| "nobody".to_owned(), Name::to_string);
        self.log(&mut transaction, "relay.owner", &at(relay, lan), &detail).await?;
        Ok(transaction.commit().await?)
    }

    /// What the relays of each of these users have carried in the month of `time`; who has none is left out.
    pub(super) async fn lent_by(&self, users: &[MemberId], time: UnixSeconds) -> Result<BTreeMap<MemberId, Used>, AccountsError> {
        let mut lent_by_user = BTreeMap::new();
        for some in users.chunks(ROWS_PER_STATEMENT) {
            let sql = format!(
                "SELECT m.owner_id, CAST(SUM(c.up_bytes) AS BIGINT), CAST(SUM(c.down_bytes) AS BIGINT)
                 FROM members m JOIN lans l ON l.lan_key = m.lan_key JOIN contributions c ON c.member_id = m.member_id AND c.month_start = $1
                 WHERE m.owner_id IN ({}) AND m.role = 'relay' AND m.removed_at IS NULL AND l.removed_at IS NULL GROUP BY m.owner_id",
                parameters(2, some.len())
            );
            let query = some.iter().fold(sqlx::query_as(AssertSqlSafe(sql)).bind(month_of(time)), |query, user| query.bind(user.0));
            let rows: Vec<(i64, i64, i64)> = query.fetch_all(&self.pool).await?;
            for (user, up, down) in rows {
                lent_by_user.insert(MemberId(user), Used { up: number(up)?, down: number(down)? });
            }
        }
        Ok(lent_by_user)
    }
}

fn month_of(time: UnixSeconds) -> i64 {
    Period::default().span(time, time).start.0
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::accounts::{Limits, testing};

    #[tokio::test]
    async fn what_a_relay_carries_is_its_owner_s_credit_of_that_month() {
        let (registrar, _scratch) = testing::registrar().await;
        let (elm, ann, pc) = (name("elm"), name("ann"), name("ann-pc"));
        registrar.add_user(&elm, &ann, &Limits::default()).await.expect("a user");
        registrar.add_relay(&elm, &pc).await.expect("a relay");
        let accounts = registrar.accounts();
        let carried =
            Carried::from([((LanId(15), pc.clone()), Used { up: 10, down: 200 }), ((LanId(15), name("gone")), Used { up: 1, down: 1 })]);
        accounts.credit(&carried, NOVEMBER).await.expect("kept");
        accounts.credit(&carried, NOVEMBER).await.expect("kept");
        accounts.credit(&carried, DECEMBER).await.expect("kept");
        let report = async |time| accounts.user_report(&elm, &ann, time).await.expect("a user");
        assert_eq!(report(NOVEMBER).await.lent_down_bytes, 0, "nobody's relay yet");
        accounts.set_owner(&elm, &pc, Some(&ann)).await.expect("a relay and a user");
        let lent = |report: crate::accounts::report::UserReport| (report.lent_up_bytes, report.lent_down_bytes);
        assert_eq!((lent(report(NOVEMBER).await), lent(report(DECEMBER).await)), ((20, 400), (10, 200)));
        let all = Members::after(None, None);
        assert_eq!(lent(accounts.users(&all, NOVEMBER).await.expect("a list").items.remove(0)), (20, 400));
        let lenders = accounts.lenders(&all, NOVEMBER).await.expect("relays").items;
        assert_eq!(lenders.iter().map(|lender| (&lender.name, lender.carried.down)).collect::<Vec<_>>(), [(&pc, 400)]);
        accounts.set_owner(&elm, &pc, None).await.expect("a relay");
        assert!(accounts.set_owner(&elm, &pc, Some(&name("bob"))).await.is_err());
        assert_eq!(report(NOVEMBER).await.lent_down_bytes, 0);
    }

    const NOVEMBER: UnixSeconds = UnixSeconds(1_795_507_200);
    const DECEMBER: UnixSeconds = UnixSeconds(1_797_000_000);

    fn name(text: &str) -> Name {
        text.parse().expect("a name")
    }
}
