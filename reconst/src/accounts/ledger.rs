//! The community's ledger: what each relay has carried for others, and whose PC it is.

use std::collections::BTreeMap;

use shared::{
    community::{
        member::{Name, Role},
        quota::{Period, UnixSeconds, Used},
    },
    ids::LanId,
};

use super::{Accounts, AccountsError, MemberId, number, registry::at, usage::stored};

/// What relays have carried since it was last kept, by LAN and relay.
pub type Carried = BTreeMap<(LanId, Name), Used>;

/// A relay on the ledger.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Lender {
    /// The relay's LAN and its name.
    pub lan: LanId,
    /// See `lan`.
    pub name: Name,
    /// The user whose PC it is.
    pub owner: Option<(MemberId, Name)>,
    /// What it has carried in the month asked for.
    pub carried: Used,
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

    /// All relays with what they have carried in the month of `time`, by LAN and name.
    ///
    /// # Errors
    /// If the store does not answer.
    pub async fn lenders(&self, time: UnixSeconds) -> Result<Vec<Lender>, AccountsError> {
        type Row = (i64, String, Option<i64>, Option<String>, Option<i64>, Option<i64>);
        let rows: Vec<Row> = sqlx::query_as(
            "SELECT l.lan_id, m.name, o.member_id, o.name, c.up_bytes, c.down_bytes FROM members m JOIN lans l ON l.lan_key = m.lan_key
             LEFT JOIN members o ON o.member_id = m.owner_id AND o.removed_at IS NULL
             LEFT JOIN contributions c ON c.member_id = m.member_id AND c.month_start = $1
             WHERE m.role = 'relay' AND m.removed_at IS NULL AND l.removed_at IS NULL ORDER BY l.lan_id, m.name",
        )
        .bind(month_of(time))
        .fetch_all(&self.pool)
        .await?;
        let lender = |(lan, name, owner_id, owner, up, down): Row| {
            let owner: Option<Name> = owner.as_deref().map(super::parsed).transpose()?;
            Ok(Lender {
                lan: LanId(number(lan)?),
                name: super::parsed(&name)?,
                owner: owner_id.map(MemberId).zip(owner),
                carried: Used { up: number(up.unwrap_or(0))?, down: number(down.unwrap_or(0))? },
            })
        };
        rows.into_iter().map(lender).collect()
    }

    /// Notes whose PC a relay is: a user's of the same LAN, or nobody's that is known.
    ///
    /// # Errors
    /// If there is no such relay or user.
    pub async fn set_owner(&self, lan: &Name, relay: &Name, owner: Option<&Name>) -> Result<(), AccountsError> {
        let mut transaction = self.write_unnoticed().await?;
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
        let detail = owner.map_or_else(|| "nobody".to_owned(), Name::to_string);
        self.log(&mut transaction, "relay.owner", &at(relay, lan), &detail).await?;
        Ok(transaction.commit().await?)
    }

    /// What a user's relays have carried in the month of `time`.
    pub(super) async fn lent(&self, time: UnixSeconds) -> Result<BTreeMap<MemberId, Used>, AccountsError> {
        let mut lent: BTreeMap<MemberId, Used> = BTreeMap::new();
        for lender in self.lenders(time).await? {
            if let Some((owner, _)) = lender.owner {
                let sum = lent.entry(owner).or_default();
                sum.up += lender.carried.up;
                sum.down += lender.carried.down;
            }
        }
        Ok(lent)
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
        assert_eq!(lent(accounts.user_reports(NOVEMBER).await.expect("a list").remove(0)), (20, 400));
        let lenders = accounts.lenders(NOVEMBER).await.expect("relays");
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
