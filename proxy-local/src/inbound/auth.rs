//! The user and password that the proxy asks for, if any.

use std::fmt;

/// One user and password. Prints without the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Credentials {
    user: String,
    password: String,
}

impl Credentials {
    /// A user and password, from `user:password` as a credentials file and HTTP's Basic scheme (RFC 7617) hold them.
    /// `None` if there is no colon, or a part is empty or longer than SOCKS5 can send (255 bytes).
    pub fn parse(text: &str) -> Option<Self> {
        let (user, password) = text.split_once(':')?;
        let can_be_sent = |part: &str| (1..=255).contains(&part.len());
        (can_be_sent(user) && can_be_sent(password)).then(|| Self { user: user.into(), password: password.into() })
    }

    /// Whether these are the ones. Takes the same time wherever they differ.
    pub fn admit(&self, user: &[u8], password: &[u8]) -> bool {
        is_same(self.user.as_bytes(), user) & is_same(self.password.as_bytes(), password)
    }
}

impl fmt::Debug for Credentials {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Credentials").field("user", &self.user).field("password", &"***").finish()
    }
}

fn is_same(ours: &[u8], theirs: &[u8]) -> bool {
    ours.len() == theirs.len() && ours.iter().zip(theirs).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_very_user_and_password_are_admitted() {
        let credentials = Credentials::parse("ann:pass:word").expect("credentials");
        assert!(credentials.admit(b"ann", b"pass:word"));
        for (user, password) in [("ann", "pass"), ("an", "pass:word"), ("", ""), ("ann", "pass:worD")] {
            assert!(!credentials.admit(user.as_bytes(), password.as_bytes()), "{user} {password}");
        }
        assert!(!format!("{credentials:?}").contains("pass:word"));
    }

    #[test]
    fn what_socks5_can_not_send_is_refused() {
        for text in ["ann", ":secret", "ann:", &format!("ann:{}", "x".repeat(256))] {
            assert_eq!(Credentials::parse(text), None, "{text}");
        }
    }
}
