//! Certificates that are renewed.
//!
//! Enters: the certificate that a connection was authenticated with, and the key to be certified. Leaves: the new certificate, on the
//! accounts before it is told. Always holds: who was removed, or whose certificate was revoked, gets none; a member has a bounded number.

use shared::community::member::Identity;

use super::{
    Accounts, MemberId, day, identity,
    invites::{Certified, EnrolDenied, Enrolled, insert_certificate, newest_with_key},
    parsed,
    registry::now,
};

impl Accounts {
    /// Certifies `public_key` for the member that `certificate` is of. It may show it after its end: who has a connection that was made in
    /// time is still the same. The same key gets the same certificate again.
    ///
    /// # Errors
    /// If it is no member's certificate now, or the member has as many as one may.
    pub async fn renew(
        &self,
        certificate: &[u8],
        public_key: [u8; 32],
        certify: impl FnOnce(&Identity) -> Result<Certified, EnrolDenied>,
    ) -> Result<Enrolled, EnrolDenied> {
        let mut transaction = self.write_unnoticed().await?;
        let row: Option<HolderRow> = sqlx::query_as(
            "SELECT c.member_id, c.revoked_at, m.role, m.name, l.lan_id, l.name, coalesce(m.removed_at, l.removed_at)
             FROM certificates c JOIN members m ON m.member_id = c.member_id JOIN lans l ON l.lan_key = m.lan_key WHERE c.der = $1",
        )
        .bind(certificate)
        .fetch_optional(&mut *transaction)
        .await?;
        let (member_id, revoked_at, role, name, lan_id, lan_name, removed_at) = row.ok_or(EnrolDenied::UnknownCertificate)?;
        let (identity, lan_name) = (identity(&role, &name, lan_id)?, parsed(&lan_name)?);
        if let Some(on) = removed_at {
            return Err(EnrolDenied::Removed { identity, on: day(on) });
        }
        if revoked_at.is_some() {
            return Err(EnrolDenied::Replaced(identity));
        }
        let member = MemberId(member_id);
        if let Some(certificate) = newest_with_key(&mut transaction, member, &public_key).await? {
            return Ok(Enrolled { identity, lan_name, certificate });
        }
        let valid: i64 =
            sqlx::query_scalar("SELECT count(*) FROM certificates WHERE member_id = $1 AND revoked_at IS NULL AND expires_at > $2")
                .bind(member.0)
                .bind(now())
                .fetch_one(&mut *transaction)
                .await?;
        if valid >= CERTIFICATES_PER_MEMBER {
            return Err(EnrolDenied::TooMany(identity));
        }
        let certified = certify(&identity)?;
        insert_certificate(&mut transaction, member, &certified).await?;
        transaction.commit().await?;
        Ok(Enrolled { identity, lan_name, certificate: certified.der })
    }
}

/// Member, when the certificate was revoked, role, name, LAN's number and name, when removed.
type HolderRow = (i64, Option<i64>, String, String, i64, String, Option<i64>);

/// A user's few PCs, each with the certificate before; renewing in a loop fills no store.
const CERTIFICATES_PER_MEMBER: i64 = 64;
